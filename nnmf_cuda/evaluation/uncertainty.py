"""How far the four rows are uncertain, and whether the two models differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data import ImageDataset
from nnmf_cuda.evaluation import (
    METRIC_NAMES,
    ROW_NAMES,
    EvaluatedRows,
    Interval,
    NoResampleError,
    ResampledMetrics,
    delong,
    expected_calibration_error,
    mcnemar,
    percentile_intervals,
    resample_metrics,
    wilson_interval,
)
from nnmf_cuda.evaluation.seeds import Purpose, seed_word

__all__ = ["groupings_of_test", "measure_uncertainty"]


_CLUSTERS = ("patient", "series")
"""Groups whose images are alike, the widest first. A fold holds many patients: it is none."""

_N_BINS = 10


def groupings_of_test(dataset: ImageDataset) -> dict[str, NDArray[Any]]:
    """Return to which patient and series each test image belongs, the widest grouping first.

    Those that are known and do not hold the whole test split in one group.
    """
    test = dataset.split == "test"
    of_test = {name: dataset.groups[name][test] for name in _CLUSTERS if name in dataset.groups}
    return {name: groups for name, groups in of_test.items() if len(np.unique(groups)) > 1}


def measure_uncertainty(
    rows: EvaluatedRows,
    *,
    groupings: Mapping[str, NDArray[Any]],
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, Any]:
    """Return what `metrics.json` holds of intervals, comparisons and calibration.

    Parameters
    ----------
    rows : EvaluatedRows
        The four rows and the probabilities behind them.
    groupings : mapping of str to array of shape (n_samples,)
        What to draw as a whole, by name; the first that leaves every class in a resample is taken,
        else single images.
    seed : int
        Of the run.
    n_resamples : int, default=2000
        Of the bootstrap; the same for all four rows.
    level : float, default=0.95
        Coverage that intervals aim at.

    Returns
    -------
    dict
        ``intervals``: ``clustered_by`` "patient", "series" or "image", ``n_clusters``, and ``low``
        and ``high`` of every metric of the ``rows``; None where no resample can hold every class.
        ``wilson``: of each row's accuracy, images taken as independent.
        ``comparisons``: the defended model (a) less the baseline (b), ``clean`` and ``robust``,
        each on its own points: McNemar's test of the majority decisions, the paired bootstrap's
        ``difference`` of every metric (or None), DeLong's test of the mean probabilities (None for
        more than two classes).
        ``calibration``: expected calibration error of each row, the mean over predictions.
    """
    word = seed_word(seed, Purpose.RESAMPLING)
    models = [rows.probabilities[name] for name in ROW_NAMES]
    found, intervals = None, None
    for clustered_by, groups in (*groupings.items(), ("image", None)):
        try:
            found = resample_metrics(
                rows.labels, models, groups=groups, n_resamples=n_resamples, seed=word
            )
        except NoResampleError:
            continue
        intervals = _intervals(found, clustered_by, level)
        break
    return {
        "intervals": intervals,
        "wilson": {name: _wilson(rows, name, level) for name in ROW_NAMES},
        "comparisons": {
            **{"a": "defended", "b": "baseline", "level": level},
            **{
                condition.lower(): _comparison(rows, condition, found, level)
                for condition in ("Clean", "Robust")
            },
        },
        "calibration": {
            "n_bins": _N_BINS,
            "expected_calibration_error": {
                name: _calibration_error(rows, name) for name in ROW_NAMES
            },
        },
    }


def _ends(interval: Interval) -> dict[str, float]:
    return {"low": interval.low, "high": interval.high}


def _intervals(found: ResampledMetrics, clustered_by: str, level: float) -> dict[str, Any]:
    return {
        "method": "percentile bootstrap",
        "level": level,
        "clustered_by": clustered_by,
        "n_clusters": found.n_clusters,
        "n_resamples": found.values.shape[2],
        "n_redrawn": found.n_redrawn,
        "rows": {
            name: {
                metric: _ends(interval)
                for metric, interval in percentile_intervals(
                    found.estimates[i], found.values[i], level
                ).items()
            }
            for i, name in enumerate(ROW_NAMES)
        },
    }


def _wilson(rows: EvaluatedRows, name: str, level: float) -> dict[str, float]:
    n = len(rows.labels)
    low, high = wilson_interval(rows.rows[name]["accuracy"] * n, n, confidence=level)
    return {"low": low, "high": high}


def _comparison(
    rows: EvaluatedRows, condition: str, found: ResampledMetrics | None, level: float
) -> dict[str, Any]:
    names = [f"{condition}_{model}" for model in ("Defended", "Baseline")]
    a, b = (rows.probabilities[name] for name in names)
    right = [(p.argmax(2) == rows.labels).mean(0) > 0.5 for p in (a, b)]
    counts = np.bincount(rows.labels)
    areas = None
    if a.shape[2] == 2 and counts.min() > 1:
        areas = delong(rows.labels, a[:, :, 1].mean(0), b[:, :, 1].mean(0), level=level).as_dict()
    return {
        "mcnemar": mcnemar(*right).as_dict(),
        "difference": _differences(found, names, level),
        "delong": areas,
    }


def _differences(
    found: ResampledMetrics | None, names: list[str], level: float
) -> dict[str, dict[str, float]] | None:
    if found is None:
        return None
    a, b = map(ROW_NAMES.index, names)
    intervals = percentile_intervals(
        found.estimates[a] - found.estimates[b], found.values[a] - found.values[b], level
    )
    return {metric: asdict(intervals[metric]) for metric in METRIC_NAMES}


def _calibration_error(rows: EvaluatedRows, name: str) -> float:
    errors = [
        expected_calibration_error(rows.labels, p, n_bins=_N_BINS) for p in rows.probabilities[name]
    ]
    return float(np.mean(errors))
