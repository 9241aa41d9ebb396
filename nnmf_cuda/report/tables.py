"""The metric table and the stage table, as lines that the terminal and the HTML both show."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnmf_cuda.evaluation import (
    METRIC_NAMES,
    METRICS,
    PAPER_METRICS,
    PAPER_TIMINGS,
    ROW_NAMES,
    wilson_interval,
)
from nnmf_cuda.timing import PAPER_STAGES

__all__ = [
    "Line",
    "METRIC_TITLES",
    "PAPER_SECONDS_NOTE",
    "STAGE_TITLES",
    "against_constant",
    "bullet_list",
    "calibration_note",
    "comparison_note",
    "interval_cells",
    "interval_label",
    "metric_lines",
    "metric_notes",
    "metrics_table",
    "stage_benchmark_caption",
    "stage_header",
    "stage_lines",
    "stage_notes",
    "timings_table",
    "uncertainty_notes",
]


METRIC_TITLES = {metric.name: metric.title for metric in METRICS}

STAGE_TITLES = {
    "nnmf_feature_extraction": "NNMF feature extraction",
    "cnn_training": "CNN training",
    "denoiser_training": "Diffusion denoiser training",
    "autoattack_baseline": "APGD-CE + Square, baseline",
    "autoattack_defended": "APGD-CE + Square, defended",
    "total": "Total of these five",
}

PAPER_SECONDS_NOTE = (
    "The paper's seconds are from its own data, hardware and software (MATLAB, then ONNX into "
    "PyTorch): for reading beside these, not for a ratio."
)

NONE = "–"


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes
    ----------
    kind : str
        "measured", "interval", "spread", "paper", "constant", "total" or "other": how to set it.
    label : str
        First cell.
    cells : tuple of str
        The other cells, formatted.
    """

    kind: str
    label: str
    cells: tuple[str, ...]


def against_constant(rows: Mapping[str, Mapping[str, float]], constant: float) -> str:
    """Say how far Robust_Defended is above or below the constant answer."""
    points = 100 * (rows["Robust_Defended"]["accuracy"] - constant)
    side = "above" if points >= 0 else "below"
    return f"Robust_Defended is {abs(points):.1f} percentage points {side} it"


def metric_lines(
    rows: Mapping[str, Mapping[str, float]],
    *,
    majority_class_accuracy: float,
    paper: bool,
    spread: Mapping[str, Mapping[str, float]] | None = None,
    n_predictions: int | None = None,
    uncertainty: Mapping[str, Any] | None = None,
    paper_defence: bool = True,
) -> list[Line]:
    """Return the metric table's lines: each row, its interval and spread, the paper's; constant."""
    lines = []
    for name in ROW_NAMES:
        values = rows[name]
        lines.append(Line("measured", name, tuple(f"{values[m]:.4f}" for m in METRIC_NAMES)))
        intervals = interval_cells(uncertainty, name) if uncertainty else None
        if uncertainty and intervals:
            lines.append(Line("interval", interval_label(uncertainty), intervals))
        if spread and name in spread and n_predictions != 1:
            deviations = tuple(f"±{spread[name][m]:.4f}" for m in METRIC_NAMES)
            lines.append(Line("spread", "noise spread", deviations))
        if paper:
            printed = PAPER_METRICS[name]
            published = tuple(f"{printed[m]:.4f}" if m in printed else NONE for m in METRIC_NAMES)
            lines.append(Line("paper", _paper_label(name, paper_defence), published))
    constant = (f"{majority_class_accuracy:.4f}", *(NONE for _ in METRIC_NAMES[1:]))
    lines.append(Line("constant", "Constant answer", constant))
    return lines


def _paper_label(row: str, paper_defence: bool) -> str:
    """Say whose defence is behind the paper's figures, where it is not the run's."""
    return "paper" if paper_defence or row.endswith("Baseline") else "paper (its own defence)"


def metric_notes(
    rows: Mapping[str, Mapping[str, float]],
    *,
    majority_class_accuracy: float,
    paper: bool,
    n_predictions: int | None = None,
    uncertainty: Mapping[str, Any] | None = None,
    paper_defence: bool = True,
    random_defence: bool = True,
) -> list[str]:
    """Return the sentences that belong under the metric table."""
    n = int(rows["Clean_Baseline"]["n"])
    intervals = []
    for name in ROW_NAMES:
        low, high = wilson_interval(rows[name]["accuracy"] * n, n)
        intervals.append(f"{name} {low:.3f}-{high:.3f}")
    lower = " and ".join(metric.title for metric in METRICS if not metric.higher_is_better)
    notes = [
        f"{n} test images. {lower}: lower is better; all others: higher.",
        "Constant answer: always naming the most frequent class scores "
        f"{majority_class_accuracy:.4f}; {against_constant(rows, majority_class_accuracy)}.",
        f"95 % Wilson intervals of accuracy, images taken as independent: {', '.join(intervals)}.",
    ]
    if uncertainty:
        notes += uncertainty_notes(uncertainty, is_random=random_defence)
    if n_predictions is not None:
        notes.append(_prediction_note(n_predictions, random_defence))
    if paper:
        notes.append("The paper's defended rows are one prediction each.")
        if not paper_defence:
            notes.append("They are of the paper's own defence, its purifier, not of this run's.")
    else:
        notes.append("The data are not the paper's, so its figures are not shown beside these.")
    return notes


def _prediction_note(n_predictions: int, random_defence: bool) -> str:
    if not random_defence:
        return "The defence has no noise: its rows are of one answer to each image."
    if n_predictions == 1:
        return "Defended rows: one prediction with fresh noise for each image."
    return (
        f"Defended rows: mean of each metric over {n_predictions} predictions with fresh noise; "
        "± is their standard deviation, not the uncertainty from the number of images."
    )


def metrics_table(
    rows: Mapping[str, Mapping[str, float]],
    *,
    majority_class_accuracy: float,
    paper: bool = True,
    spread: Mapping[str, Mapping[str, float]] | None = None,
    n_predictions: int | None = None,
    uncertainty: Mapping[str, Any] | None = None,
    paper_defence: bool = True,
    random_defence: bool = True,
) -> str:
    """Return the four rows by nine metrics as plain text.

    Parameters
    ----------
    rows : mapping
        ``rows`` of ``metrics.json``.
    majority_class_accuracy : float
        Accuracy of the constant answer.
    paper : bool, default=True
        Whether the paper's figures stand under ours: true where the data are the paper's.
    spread : mapping, optional
        Standard deviations over predictions of the defended rows.
    n_predictions : int, optional
        How many predictions those rows are the mean of.
    uncertainty : mapping, optional
        ``intervals``, ``comparisons`` and ``calibration`` of ``metrics.json``.
    paper_defence : bool, default=True
        Whether the defence is the paper's purifier.
    random_defence : bool, default=True
        Whether it draws noise.

    Returns
    -------
    str
        No newline at the end.
    """
    lines = metric_lines(
        rows,
        majority_class_accuracy=majority_class_accuracy,
        paper=paper,
        spread=spread,
        n_predictions=n_predictions,
        uncertainty=uncertainty,
        paper_defence=paper_defence,
    )
    notes = metric_notes(
        rows,
        majority_class_accuracy=majority_class_accuracy,
        paper=paper,
        n_predictions=n_predictions,
        uncertainty=uncertainty,
        paper_defence=paper_defence,
        random_defence=random_defence,
    )
    return _plain_text(("", *METRIC_TITLES.values()), lines, notes)


def _bytes(n_bytes: float | None) -> str:
    return NONE if not n_bytes else f"{n_bytes / 2**20:,.0f} MiB"


def stage_header(*, paper: bool) -> tuple[str, ...]:
    """Return the column titles of the stage table."""
    titles = ("stage", "seconds", "items", "peak memory")
    return (*titles, "paper CPU", "paper GPU") if paper else titles


def stage_lines(timings: Mapping[str, Any], *, paper: bool) -> list[Line]:
    """Return the lines of the stage table: the paper's five, their total, then the others."""
    measured = {row["stage"]: row for row in timings["rows"]}
    names = [*PAPER_STAGES, "total"]
    others = [name for name in measured if name not in names]
    lines = []
    for name in [*names, *others]:
        row = measured.get(name)
        cells: tuple[str, ...] = (NONE, NONE, NONE)
        if row is not None:
            items = f"{row['n_items']:,}" if row["n_items"] and name != "total" else NONE
            cells = (f"{row['seconds']:.2f}", items, _bytes(row["peak_bytes"]))
        if paper:
            cells += _published_seconds(name)
        kind = "total" if name == "total" else "other" if name in others else "measured"
        lines.append(Line(kind, STAGE_TITLES.get(name, name.replace("_", " ")), cells))
    return lines


def _published_seconds(stage: str) -> tuple[str, str]:
    published = PAPER_TIMINGS.get(stage)
    return (f"{published['cpu']:.2f}", f"{published['gpu']:.2f}") if published else (NONE, NONE)


def stage_notes(timings: Mapping[str, Any], *, paper: bool) -> list[str]:
    """Return the sentences that belong under the stage table."""
    device = str(timings["device"])
    memory = (
        "the most that torch held on the device"
        if device.startswith("cuda")
        else "the largest resident set of the whole process"
    )
    notes = [f"Measured on {device}. Peak memory: {memory} during the stage."]
    return [*notes, PAPER_SECONDS_NOTE] if paper else notes


def timings_table(timings: Mapping[str, Any], *, paper: bool = True) -> str:
    """Return seconds and memory of each stage as plain text.

    Parameters
    ----------
    timings : mapping
        Content of ``timings.json``.
    paper : bool, default=True
        Whether the paper's seconds stand beside ours: true where the data are the paper's.

    Returns
    -------
    str
        No newline at the end.
    """
    return _plain_text(
        stage_header(paper=paper),
        stage_lines(timings, paper=paper),
        stage_notes(timings, paper=paper),
    )


def _plain_text(header: Sequence[str], lines: Iterable[Line], notes: Iterable[str]) -> str:
    """Set a table with the first column to the left and the others to the right."""
    indent = dict.fromkeys(("interval", "spread", "paper"), "  ")
    table = [tuple(header)]
    table += [(indent.get(line.kind, "") + line.label, *line.cells) for line in lines]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]

    def set_row(row: tuple[str, ...]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    width = sum(widths) + 2 * (len(widths) - 1)
    rule = "-" * width
    text = [set_row(table[0]), rule, *map(set_row, table[1:]), rule]
    return "\n".join((*text, bullet_list(notes, width=width)))


def stage_benchmark_caption(record: Mapping[str, Any]) -> str:
    """Say what a record of the stage benchmark has measured, where and when."""
    machines = " and ".join(e["device_name"] for e in record["environments"].values())
    return (
        "This package and the same experiment in plain eager torch (reference), measured by"
        f" nnmf-cuda bench stages on these images, settings {record['options']['preset']}, on"
        f" {machines} with {record['threads']} threads, commit {record['commit'][:10]},"
        f" {record['date'][:10]}. Both found the same, within what the benchmark allows."
    )


def bullet_list(notes: Iterable[str], *, width: int = 100) -> str:
    """Return sentences as a list of wrapped lines, each beginning with an asterisk."""
    return "\n".join(
        textwrap.fill(note, width, initial_indent="* ", subsequent_indent="  ") for note in notes
    )


# Intervals and comparisons of `metrics.json`, as cells and sentences of the metric table.

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
