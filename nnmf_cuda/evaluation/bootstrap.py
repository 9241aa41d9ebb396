"""Bootstrap intervals of the nine metrics, and of their differences between two models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnmf_cuda.evaluation.metrics import METRIC_NAMES, check_labels, check_predictions

__all__ = [
    "BootstrapIntervals",
    "Interval",
    "NoResampleError",
    "ResampledMetrics",
    "WeightedMetrics",
    "bootstrap_interval",
    "bootstrap_mean",
    "paired_bootstrap",
    "percentile_intervals",
    "resample_metrics",
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


# Bootstrap resamples of a test set, of single samples or of whole groups, and their metrics.

_BLOCK = 2**22
"""Counts held at a time: 32 MiB in float64."""

_MOST_REDRAWN = 100
"""Redraws allowed for each resample wanted, before the data are called unfit."""


class NoResampleError(ValueError):
    """Hardly a resample of the data holds every class, as ROC-AUC needs."""


@dataclass(frozen=True)
class ResampledMetrics:
    """Metrics of models on the same resamples of a test set.

    Attributes
    ----------
    values : array of shape (n_models, n_metrics, n_resamples)
        Metrics in the order of `METRIC_NAMES`.
    estimates : array of shape (n_models, n_metrics)
        Metrics on the test set itself.
    n_clusters : int
        Groups that were drawn from; the number of samples where no groups were given.
    n_redrawn : int
        Resamples that lacked a class and were drawn anew.
    """

    values: NDArray[np.float64]
    estimates: NDArray[np.float64]
    n_clusters: int
    n_redrawn: int


def resample_metrics(
    labels: ArrayLike,
    models: Sequence[ArrayLike],
    *,
    groups: ArrayLike | None = None,
    n_resamples: int = 2000,
    seed: int,
) -> ResampledMetrics:
    """Compute the nine metrics of each model on bootstrap resamples that all models share.

    Parameters
    ----------
    labels : array-like of int, shape (n_samples,)
        True classes 0..n_classes-1.
    models : sequence of array-like, (n_samples, n_classes) or (n_predictions, n_samples, n_classes)
        Class probabilities of each model. Of several predictions of a random model, each metric is
        the mean over predictions, as in `evaluate_rows`.
    groups : array-like of shape (n_samples,), optional
        What to draw as a whole, such as patients: a resample holds as many groups as there are,
        and every sample of each. By default each sample is drawn on its own.
    n_resamples : int, default=2000
        Resamples that hold every class. Those that lack one have no ROC-AUC; they are redrawn.
    seed : int
        Of the draws, which do not depend on the models.

    Returns
    -------
    ResampledMetrics

    Raises
    ------
    ValueError
        If arguments are not as described, or there is one group only.
    NoResampleError
        If hardly a resample holds every class. A ValueError too.
    """
    y = check_labels(labels)
    if not len(models):
        raise ValueError("models is empty; give the class probabilities of at least one model")
    if n_resamples < 1:
        raise ValueError(f"n_resamples={n_resamples}; need at least 1, better 1000 or more")
    measured = [_predictions_of(y, model, i) for i, model in enumerate(models)]
    clusters = _clusters(y, groups)
    resampler = _Resampler(y, clusters, n_resamples, seed)
    values = np.concatenate([_mean_metrics(measured, counts) for counts in resampler], axis=2)
    itself = _mean_metrics(measured, np.ones((len(y), 1)))[:, :, 0]
    return ResampledMetrics(values, itself, int(clusters.max()) + 1, resampler.n_redrawn)


def _predictions_of(y: NDArray[np.int64], model: ArrayLike, index: int) -> list[WeightedMetrics]:
    probabilities = np.asarray(model, dtype=np.float64)
    if probabilities.ndim == 2:
        probabilities = probabilities[None]
    if probabilities.ndim != 3 or not len(probabilities):
        raise ValueError(
            f"models[{index}] has shape {np.shape(model)}; give class probabilities of shape "
            "(n_samples, n_classes) or (n_predictions, n_samples, n_classes)"
        )
    return [WeightedMetrics(*check_predictions(y, p)) for p in probabilities]


def _mean_metrics(
    measured: Sequence[Sequence[WeightedMetrics]], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    found = np.empty((len(measured), len(METRIC_NAMES), counts.shape[1]))
    for i, predictions in enumerate(measured):
        found[i] = sum(metrics(counts) for metrics in predictions) / len(predictions)
    return found


def _clusters(y: NDArray[np.int64], groups: ArrayLike | None) -> NDArray[np.intp]:
    """Return the number of each sample's group, counted from 0."""
    if groups is None:
        return np.arange(len(y))
    names = np.asarray(groups)
    if names.shape != y.shape:
        raise ValueError(
            f"groups has shape {names.shape}; labels asks for {y.shape}, the group of each sample"
        )
    _, clusters = np.unique(names, return_inverse=True)
    if clusters.max() == 0:
        raise ValueError(
            "groups holds a single group, of which every resample is the test set itself; leave "
            "groups out, or give a finer grouping"
        )
    return np.asarray(clusters, dtype=np.intp)


class _Resampler:
    """Iterates over blocks of counts (n_samples, n_of_block); what is drawn depends on no block."""

    def __init__(
        self, y: NDArray[np.int64], clusters: NDArray[np.intp], n_resamples: int, seed: int
    ) -> None:
        self._clusters = clusters
        self._n_clusters = int(clusters.max()) + 1
        self._n_resamples = n_resamples
        self._rng = np.random.default_rng(seed)
        self._of_class = np.zeros((int(y.max()) + 1, self._n_clusters))
        np.add.at(self._of_class, (y, clusters), 1)
        self.n_redrawn = 0

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        size, missing = max(1, _BLOCK // len(self._clusters)), self._n_resamples
        while missing:
            drawn = self._draw(min(size, missing))
            complete = ((self._of_class @ drawn) > 0).all(axis=0)
            missing -= int(complete.sum())
            self.n_redrawn += int((~complete).sum())
            if self.n_redrawn > _MOST_REDRAWN * self._n_resamples:
                raise NoResampleError(
                    f"{self.n_redrawn} resamples of {self._n_clusters} groups lacked a class; give "
                    "samples of each class from more groups, or a finer grouping"
                )
            if complete.any():
                yield drawn[:, complete][self._clusters]

    def _draw(self, n: int) -> NDArray[np.float64]:
        """Return how often each of n resamples holds each cluster: (n_clusters, n)."""
        chosen = self._rng.integers(0, self._n_clusters, size=(n, self._n_clusters))
        chosen += self._n_clusters * np.arange(n)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=n * self._n_clusters)
        return counts.reshape(n, self._n_clusters).T.astype(np.float64)


# The nine metrics of many resamples of one test set at once.

_Floats = NDArray[np.float64]


class WeightedMetrics:
    """The metrics of `classification_metrics`, of resamples.

    Parameters
    ----------
    labels : array of shape (n_samples,)
        True classes, as `check_predictions` returns them.
    probabilities : array of shape (n_samples, n_classes)
        Likewise.
    """

    def __init__(self, labels: NDArray[np.int64], probabilities: _Floats) -> None:
        n, self.n_classes = probabilities.shape
        cells = labels * self.n_classes + probabilities.argmax(axis=1)
        self._cells = np.zeros((self.n_classes**2, n))
        self._cells[cells, np.arange(n)] = 1
        self._losses = np.stack((_brier(labels, probabilities), _log_loss(labels, probabilities)))
        scored = (1,) if self.n_classes == 2 else range(self.n_classes)
        self._curves = [_RankedScores(probabilities[:, c], labels == c) for c in scored]

    def __call__(self, counts: _Floats) -> _Floats:
        """Return the metrics (len(METRIC_NAMES), n_resamples).

        Parameters
        ----------
        counts : array of shape (n_samples, n_resamples)
            How often each resample holds each sample; every class must occur in each.
        """
        confusion = (self._cells @ counts).reshape(self.n_classes, self.n_classes, -1)
        brier, log_loss = self._losses @ counts / counts.sum(axis=0)
        values = {
            **_of_confusion(confusion),
            "roc_auc": np.mean([curve.area(counts) for curve in self._curves], axis=0),
            "brier": brier,
            "log_loss": log_loss,
        }
        return np.stack([values[name] for name in METRIC_NAMES])


class _RankedScores:
    """Area under the ROC curve of one score, for any counts of its samples.

    The area is the share of pairs of a positive and a negative sample in which the positive one
    scores higher; ties count half.
    """

    def __init__(self, scores: _Floats, positive: NDArray[np.bool_]) -> None:
        self._positive = np.flatnonzero(positive)
        negative = np.flatnonzero(~positive)
        self._negative = negative[np.argsort(scores[negative], kind="stable")]
        of_negatives, of_positives = scores[self._negative], scores[self._positive]
        self._n_below = np.searchsorted(of_negatives, of_positives, side="left")
        self._n_up_to = np.searchsorted(of_negatives, of_positives, side="right")

    def area(self, counts: _Floats) -> _Floats:
        weights = counts[self._positive]
        below = np.zeros((len(self._negative) + 1, counts.shape[1]))
        np.cumsum(counts[self._negative], axis=0, out=below[1:])
        won = np.einsum("ib,ib->b", weights, below[self._n_below])
        won += np.einsum("ib,ib->b", weights, below[self._n_up_to])
        area: _Floats = won / 2 / (weights.sum(axis=0) * below[-1])
        return area


def _brier(labels: NDArray[np.int64], p: _Floats) -> _Floats:
    if p.shape[1] == 2:
        return np.asarray((p[:, 1] - labels) ** 2, dtype=np.float64)
    truth = np.eye(p.shape[1])[labels]
    return np.asarray(((p - truth) ** 2).sum(axis=1), dtype=np.float64)


def _log_loss(labels: NDArray[np.int64], p: _Floats) -> _Floats:
    eps = np.finfo(np.float64).eps
    of_truth = p[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.clip(of_truth, eps, 1 - eps)), dtype=np.float64)


def _of_confusion(confusion: _Floats) -> Mapping[str, _Floats]:
    """Return the six metrics of confusion matrices (true class, predicted class, resample)."""
    right = np.einsum("ccb->cb", confusion)
    of_class, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    total = of_class.sum(axis=0)
    precision, recall = _share(right, predicted), _share(right, of_class)
    f1 = _share(2 * right, of_class + predicted)
    averaged = slice(1, 2) if len(confusion) == 2 else slice(None)
    return {
        "accuracy": right.sum(axis=0) / total,
        "precision": precision[averaged].mean(axis=0),
        "recall": recall[averaged].mean(axis=0),
        "f1": f1[averaged].mean(axis=0),
        "mcc": _correlation(right.sum(axis=0), of_class, predicted, total),
        "balanced_accuracy": recall.mean(axis=0),
    }


def _correlation(right: _Floats, of_class: _Floats, predicted: _Floats, total: _Floats) -> _Floats:
    """Return the multi-class Matthews correlation (Gorodkin 2004), 0 where undefined."""
    covariance = right * total - (of_class * predicted).sum(axis=0)
    variances = (total**2 - (of_class**2).sum(axis=0)) * (total**2 - (predicted**2).sum(axis=0))
    return _share(covariance, np.sqrt(variances))


def _share(part: _Floats, whole: _Floats) -> _Floats:
    """Divide, and return 0 where there is nothing to divide by."""
    found: _Floats = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return found
