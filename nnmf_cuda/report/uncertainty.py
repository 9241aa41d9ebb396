"""Intervals and comparisons of `metrics.json`, as cells and sentences of the metric table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES

__all__ = [
    "calibration_note",
    "comparison_note",
    "interval_cells",
    "interval_label",
    "uncertainty_notes",
]

_FEW_CLUSTERS = 20
"""Below this, percentile intervals are known to be too narrow."""


def interval_label(uncertainty: Mapping[str, Any]) -> str:
    """Return what stands before `interval_cells`."""
    return f"{uncertainty['intervals']['level']:.0%} interval".replace("%", " %")


def interval_cells(uncertainty: Mapping[str, Any], row: str) -> tuple[str, ...] | None:
    """Return the interval of each metric of a row, or None where there are none."""
    if uncertainty["intervals"] is None:
        return None
    intervals = uncertainty["intervals"]["rows"][row]
    return tuple(f"{intervals[m]['low']:.2f}–{intervals[m]['high']:.2f}" for m in METRIC_NAMES)


def uncertainty_notes(uncertainty: Mapping[str, Any], *, is_random: bool = True) -> list[str]:
    """Return the sentences on intervals, on the two models' differences, and on calibration.

    Parameters
    ----------
    uncertainty : mapping
        ``intervals``, ``comparisons`` and ``calibration`` of ``metrics.json``.
    is_random : bool, default=True
        Whether the defended model has several answers to a sample.
    """
    comparisons = uncertainty["comparisons"]
    return [
        _intervals_note(uncertainty["intervals"]),
        *(comparison_note(comparisons, name, is_random=is_random) for name in ("clean", "robust")),
        calibration_note(uncertainty["calibration"]),
    ]


def _intervals_note(intervals: Mapping[str, Any] | None) -> str:
    if intervals is None:
        return "No bootstrap intervals: hardly a resample of the test images holds every class."
    kind, n = intervals["clustered_by"], intervals["n_clusters"]
    drawn = {
        "patient": f"whole patients ({n})",
        "series": f"whole slice series ({n}), as patients are not known",
        "image": f"single images ({n}), taken as independent",
    }[kind]
    few = f" Of fewer than {_FEW_CLUSTERS} they are too narrow." if n < _FEW_CLUSTERS else ""
    return (
        f"Intervals under the rows: percentile bootstrap, {intervals['n_resamples']} resamples of"
        f" {drawn}. They leave out how training would vary.{few}"
    )


def comparison_note(
    comparisons: Mapping[str, Any], condition: str, *, is_random: bool = True
) -> str:
    """Return the sentence on the two models' differences on "clean" or "robust" features."""
    found, level = comparisons[condition], f"{100 * comparisons['level']:.0f} %"
    parts = []
    if found["difference"] is not None:
        accuracy = found["difference"]["accuracy"]
        parts.append(
            f"accuracy {accuracy['estimate']:+.3f} ({level} {accuracy['low']:+.3f} to"
            f" {accuracy['high']:+.3f})"
        )
    right, area = "right", "ROC-AUC"
    if is_random:
        right, area = "right by majority", "ROC-AUC of the mean probability"
    test = found["mcnemar"]
    parts.append(
        f"{right} on {test['n_only_a']} images that the other gets wrong, against"
        f" {test['n_only_b']} (McNemar {_p(test['p_value'])})"
    )
    areas = found["delong"]
    if areas is not None and areas["low"] is not None:
        parts.append(
            f"{area} {areas['difference']:+.3f} ({level}"
            f" {areas['low']:+.3f} to {areas['high']:+.3f}, DeLong {_p(areas['p_value'])})"
        )
    independent = "" if condition == "clean" else " Both tests take images as independent."
    return f"Defended against Baseline, {condition}: {'; '.join(parts)}.{independent}"


def _p(value: float | None) -> str:
    if value is None:
        return "p not defined"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def calibration_note(calibration: Mapping[str, Any]) -> str:
    """Return the sentence on how far probabilities are from frequencies."""
    errors = calibration["expected_calibration_error"]
    values = ", ".join(f"{name} {errors[name]:.3f}" for name in ROW_NAMES)
    return f"Expected calibration error, {calibration['n_bins']} bins: {values}."
