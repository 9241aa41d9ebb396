"""How far the four rows are uncertain, and whether the two models differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.evaluation.bootstrap import (
    Interval,
    NoResampleError,
    ResampledMetrics,
    resample_metrics,
)
from nnmf_cuda.evaluation.comparisons import AUCComparison, McNemarResult, delong, mcnemar
from nnmf_cuda.evaluation.metrics import expected_calibration_error, wilson_interval
from nnmf_cuda.evaluation.rows import ROW_NAMES, EvaluatedRows
from nnmf_cuda.evaluation.seeds import Purpose, seed_word

_N_BINS = 10


@dataclass(frozen=True)
class RowIntervals:
    """Percentile intervals of every metric of the four rows.

    Attributes
    ----------
    clustered_by : str
        What was drawn as a whole: "patient", "series", or "image" for single images.
    n_clusters, n_resamples, n_redrawn : int
        Groups drawn from, resamples, and those that lacked a class and were drawn anew.
    rows : mapping of str to mapping of str to Interval
        By the row and the metric.
    """

    clustered_by: str
    n_clusters: int
    n_resamples: int
    n_redrawn: int
    rows: Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True)
class Comparison:
    """The defended model (a) against the baseline (b), each on its own points.

    Attributes
    ----------
    mcnemar : McNemarResult
        Of the majority decisions.
    difference : mapping of str to Interval, or None
        Of each metric, a less b, on shared resamples; None where nothing could be resampled.
    delong : AUCComparison or None
        Of the mean probabilities; None for more than two classes, or a class of one sample.
    """

    mcnemar: McNemarResult
    difference: Mapping[str, Interval] | None
    delong: AUCComparison | None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as `metrics.json` holds it."""
        return {
            "mcnemar": self.mcnemar.as_dict(),
            "difference": self.difference
            and {metric: asdict(interval) for metric, interval in self.difference.items()},
            "delong": self.delong and self.delong.as_dict(),
        }


@dataclass(frozen=True)
class Uncertainty:
    """What `measure_uncertainty` found.

    Attributes
    ----------
    level : float
        Coverage that all intervals aim at.
    intervals : RowIntervals or None
        None where hardly a resample holds every class.
    wilson : mapping of str to Interval
        Of each row's accuracy, images taken as independent.
    clean, robust : Comparison
        Of the two models on clean and on attacked features.
    calibration_errors : mapping of str to float
        Expected calibration error of each row, the mean over predictions.
    n_bins : int
        Bins behind it.
    """

    level: float
    intervals: RowIntervals | None
    wilson: Mapping[str, Interval]
    clean: Comparison
    robust: Comparison
    calibration_errors: Mapping[str, float]
    n_bins: int = _N_BINS

    def as_dict(self) -> dict[str, Any]:
        """Return intervals, wilson, comparisons and calibration, as `metrics.json` holds them."""
        found, intervals = self.intervals, None
        if found is not None:
            intervals = {
                "method": "percentile bootstrap",
                "level": self.level,
                "clustered_by": found.clustered_by,
                "n_clusters": found.n_clusters,
                "n_resamples": found.n_resamples,
                "n_redrawn": found.n_redrawn,
                "rows": {
                    name: {metric: _ends(interval) for metric, interval in row.items()}
                    for name, row in found.rows.items()
                },
            }
        return {
            "intervals": intervals,
            "wilson": {name: _ends(interval) for name, interval in self.wilson.items()},
            "comparisons": {
                "a": "defended",
                "b": "baseline",
                "level": self.level,
                "clean": self.clean.as_dict(),
                "robust": self.robust.as_dict(),
            },
            "calibration": {
                "n_bins": self.n_bins,
                "expected_calibration_error": dict(self.calibration_errors),
            },
        }


def _ends(interval: Interval) -> dict[str, float]:
    """Leave out the estimate, which stands among the rows."""
    return {"low": interval.low, "high": interval.high}


def measure_uncertainty(
    rows: EvaluatedRows,
    *,
    groupings: Mapping[str, NDArray[Any]],
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Uncertainty:
    """Measure how far the rows are uncertain, whether the models differ, and their calibration.

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
    """
    models = [rows.probabilities[name] for name in ROW_NAMES]
    word = seed_word(seed, Purpose.RESAMPLING)
    found, intervals = None, None
    resampled = resample_by_groups(
        rows.labels, models, groupings=groupings, n_resamples=n_resamples, seed=word
    )
    if resampled is not None:
        found = resampled.metrics
        of_rows = {name: found.intervals(i, level=level) for i, name in enumerate(ROW_NAMES)}
        intervals = RowIntervals(
            resampled.clustered_by, found.n_clusters, n_resamples, found.n_redrawn, of_rows
        )
    return Uncertainty(
        level=level,
        intervals=intervals,
        wilson={name: _wilson(row.accuracy, row.n, level) for name, row in rows.rows.items()},
        clean=_compare(rows, "Clean", found, level),
        robust=_compare(rows, "Robust", found, level),
        calibration_errors={name: _calibration_error(rows, name) for name in ROW_NAMES},
    )


class ResampledByGroups(NamedTuple):
    """Metrics of models on resamples, and what was drawn as a whole."""

    metrics: ResampledMetrics
    clustered_by: str


def resample_by_groups(
    labels: NDArray[np.int64],
    models: Sequence[NDArray[np.float64]],
    *,
    groupings: Mapping[str, NDArray[Any]],
    n_resamples: int,
    seed: int,
) -> ResampledByGroups | None:
    """Resample by the first grouping that leaves every class in a resample, else single images.

    `labels`, `models` and `n_resamples` are those of `resample_metrics`, `groupings` those of
    `measure_uncertainty`, `seed` is the bootstrap's own. None where nothing can be resampled.
    """
    for clustered_by, groups in (*groupings.items(), ("image", None)):
        try:
            found = resample_metrics(
                labels, models, groups=groups, n_resamples=n_resamples, seed=seed
            )
        except NoResampleError:
            continue
        return ResampledByGroups(found, clustered_by)
    return None


def _wilson(accuracy: float, n: int, level: float) -> Interval:
    return Interval(accuracy, *wilson_interval(accuracy * n, n, confidence=level))


def _compare(
    rows: EvaluatedRows, condition: str, found: ResampledMetrics | None, level: float
) -> Comparison:
    names = [f"{condition}_{model}" for model in ("Defended", "Baseline")]
    a, b = (rows.probabilities[name] for name in names)
    right = [(p.argmax(2) == rows.labels).mean(0) > 0.5 for p in (a, b)]
    areas, difference = None, None
    if a.shape[2] == 2 and np.bincount(rows.labels).min() > 1:
        areas = delong(rows.labels, a[:, :, 1].mean(0), b[:, :, 1].mean(0), level=level)
    if found is not None:
        difference = found.differences(*map(ROW_NAMES.index, names), level=level)
    return Comparison(mcnemar(*right), difference, areas)


def _calibration_error(rows: EvaluatedRows, name: str) -> float:
    errors = [
        expected_calibration_error(rows.labels, p, n_bins=_N_BINS) for p in rows.probabilities[name]
    ]
    return float(np.mean(errors))
