"""Bootstrap intervals of the nine metrics, and of their differences between two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnmf_cuda.evaluation.metrics import METRIC_NAMES
from nnmf_cuda.evaluation.resampling import resample_metrics

__all__ = [
    "BootstrapIntervals",
    "Interval",
    "bootstrap_interval",
    "bootstrap_mean",
    "paired_bootstrap",
    "percentile_intervals",
]


@dataclass(frozen=True)
class Interval:
    """A figure and how far it is uncertain.

    Attributes
    ----------
    estimate : float
        The figure on the samples themselves.
    low, high : float
        Ends of the interval.
    """

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class BootstrapIntervals:
    """Percentile intervals of metrics.

    Attributes
    ----------
    metrics : dict of str to Interval
        By the names of `METRIC_NAMES`.
    level : float
        Coverage that the intervals aim at.
    n_resamples : int
        Resamples behind them.
    n_redrawn : int
        Resamples that lacked a class and were drawn anew.
    n_clusters : int
        Groups, or samples, that were drawn from.
    """

    metrics: dict[str, Interval]
    level: float
    n_resamples: int
    n_redrawn: int
    n_clusters: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain dictionaries and numbers."""
        return asdict(self)


def bootstrap_interval(
    labels: ArrayLike,
    probabilities: ArrayLike,
    metric: str | Sequence[str] = METRIC_NAMES,
    *,
    groups: ArrayLike | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int,
) -> BootstrapIntervals:
    """Return percentile bootstrap intervals of metrics on a test set.

    Parameters
    ----------
    labels : array-like of int, shape (n_samples,)
        True classes 0..n_classes-1.
    probabilities : array-like (n_samples, n_classes) or (n_predictions, n_samples, n_classes)
        Class probabilities; of several predictions of a random model, each metric is the mean.
    metric : str or sequence of str, default=METRIC_NAMES
        Which metrics. All come of the same resamples.
    groups : array-like of shape (n_samples,), optional
        What to draw as a whole, such as patients, whose samples are not independent.
    n_resamples : int, default=2000
        Resamples that hold every class; see `resample_metrics`.
    level : float, default=0.95
        Coverage aimed at, between 0 and 1.
    seed : int
        Of the draws.

    Returns
    -------
    BootstrapIntervals

    Raises
    ------
    ValueError
        If a metric is unknown, level is not between 0 and 1, or see `resample_metrics`.

    Notes
    -----
    The interval is that of a new test set from the same source, for these trained models: it does
    not hold the spread over seeds of training. With few groups (say, under 20) percentile
    intervals are too narrow.

    References
    ----------
    .. [1] Efron & Tibshirani (1993), An introduction to the bootstrap, chapter 13.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([0, 1] * 20)
    >>> p = np.clip(0.5 + 0.3 * (labels - 0.5) + np.linspace(-0.3, 0.3, 40), 0, 1)
    >>> found = bootstrap_interval(labels, np.stack((1 - p, p), 1), "accuracy", seed=0)
    >>> found.metrics["accuracy"].low < found.metrics["accuracy"].estimate
    True
    """
    names = _names(metric)
    _check_level(level)
    found = resample_metrics(
        labels, [probabilities], groups=groups, n_resamples=n_resamples, seed=seed
    )
    intervals = percentile_intervals(found.estimates[0], found.values[0], level, names)
    return BootstrapIntervals(intervals, level, n_resamples, found.n_redrawn, found.n_clusters)


def paired_bootstrap(
    labels: ArrayLike,
    probabilities_a: ArrayLike,
    probabilities_b: ArrayLike,
    metric: str | Sequence[str] = METRIC_NAMES,
    *,
    groups: ArrayLike | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int,
) -> BootstrapIntervals:
    """Return percentile intervals of the differences a - b of metrics of two models.

    Both models answer the same samples, and each resample holds the same ones for both: what makes
    a sample hard for both drops out.

    Parameters
    ----------
    labels : array-like of int, shape (n_samples,)
        True classes 0..n_classes-1.
    probabilities_a, probabilities_b : array-like
        Of each model, as in `bootstrap_interval`; the numbers of predictions may differ.
    metric : str or sequence of str, default=METRIC_NAMES
        Which metrics.
    groups, n_resamples, level, seed
        As in `bootstrap_interval`.

    Returns
    -------
    BootstrapIntervals
        Of differences. A positive one speaks for model a, but for ``brier`` and ``log_loss``.

    Raises
    ------
    ValueError
        As in `bootstrap_interval`.
    """
    names = _names(metric)
    _check_level(level)
    found = resample_metrics(
        labels,
        [probabilities_a, probabilities_b],
        groups=groups,
        n_resamples=n_resamples,
        seed=seed,
    )
    intervals = percentile_intervals(
        found.estimates[0] - found.estimates[1], found.values[0] - found.values[1], level, names
    )
    return BootstrapIntervals(intervals, level, n_resamples, found.n_redrawn, found.n_clusters)


def bootstrap_mean(
    values: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int,
) -> Interval:
    """Return the percentile bootstrap interval of a mean, such as a share of robust samples.

    Parameters
    ----------
    values : array-like of shape (n_samples,)
        A number for each sample.
    groups : array-like of shape (n_samples,), optional
        What to draw as a whole, such as patients, whose samples are not independent.
    n_resamples, level, seed
        As in `bootstrap_interval`.

    Raises
    ------
    ValueError
        If shapes disagree, values are not finite, there are fewer than two groups, or level is not
        between 0 and 1.
    """
    from scipy.stats import bootstrap

    _check_level(level)
    numbers = np.asarray(values, dtype=np.float64)
    names = np.arange(len(numbers)) if groups is None else np.asarray(groups)
    if numbers.ndim != 1 or names.shape != numbers.shape:
        raise ValueError(
            f"values has shape {numbers.shape}, groups {names.shape}; give one of each a sample"
        )
    if not np.isfinite(numbers).all():
        raise ValueError("values holds NaN or infinity; give a finite number for each sample")
    _, cluster = np.unique(names, return_inverse=True)
    sums, sizes = np.bincount(cluster, weights=numbers), np.bincount(cluster)
    if len(sizes) < 2 and groups is None:
        raise ValueError("values holds a single sample or none; give at least two")
    if len(sizes) < 2:
        raise ValueError("groups holds a single group; leave groups out, or give a finer grouping")
    found = bootstrap(
        (sums, sizes),
        lambda total, size, axis: total.sum(axis) / size.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=n_resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(numbers.mean()), float(found.low), float(found.high))


def percentile_intervals(
    estimates: NDArray[np.float64],
    values: NDArray[np.float64],
    level: float,
    names: Sequence[str] = METRIC_NAMES,
) -> dict[str, Interval]:
    """Return the interval of each named metric.

    Parameters
    ----------
    estimates : array of shape (n_metrics,)
        Metrics, in the order of `METRIC_NAMES`, on the samples themselves.
    values : array of shape (n_metrics, n_resamples)
        Likewise, on resamples.
    level : float
        Share of resamples within the interval; half of the others lies on either side.
    names : sequence of str, default=METRIC_NAMES
        Which metrics.
    """
    _check_level(level)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=1)
    return {
        name: Interval(float(estimates[i]), float(low[i]), float(high[i]))
        for name, i in ((name, METRIC_NAMES.index(name)) for name in names)
    }


def _names(metric: str | Sequence[str]) -> tuple[str, ...]:
    names = (metric,) if isinstance(metric, str) else tuple(metric)
    unknown = [name for name in names if name not in METRIC_NAMES]
    if unknown or not names:
        raise ValueError(f"metric={metric!r}; give one or more of {', '.join(METRIC_NAMES)}")
    return names


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level}; need a value between 0 and 1, such as 0.95")
