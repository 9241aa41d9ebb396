"""Bootstrap: how far metrics, their differences and means move from one test set to the next.

A resample holds as many samples, or whole groups such as patients, as the test set, drawn with
replacement. Intervals lie between percentiles of what resamples give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnmf_cuda.evaluation.metrics import (
    METRIC_NAMES,
    WeightedMetrics,
    check_labels,
    check_predictions,
)

_BLOCK = 2**22
"""Counts held at a time: 32 MiB in float64."""

_MOST_REDRAWN = 100
"""Redraws allowed for each resample wanted, before the data are called unfit."""


class NoResampleError(ValueError):
    """Hardly a resample of the data holds every class, as ROC-AUC needs."""


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

    def intervals(self, model: int, *, level: float = 0.95) -> dict[str, Interval]:
        """Return the percentile interval of each metric of a model, by the metric's name.

        Parameters
        ----------
        model : int
            Its place among the models.
        level : float, default=0.95
            Coverage aimed at: the share of resamples within the interval.

        Raises
        ------
        ValueError
            If level is not between 0 and 1.
        """
        return _percentiles(self.estimates[model], self.values[model], level)

    def differences(self, a: int, b: int, *, level: float = 0.95) -> dict[str, Interval]:
        """Return the percentile interval of each metric of model a less that of model b.

        Each resample holds the same samples for both: what makes one hard for both drops out. A
        positive difference speaks for a where the metric's ``higher_is_better``.
        """
        return _percentiles(
            self.estimates[a] - self.estimates[b], self.values[a] - self.values[b], level
        )


def _percentiles(
    estimates: NDArray[np.float64], values: NDArray[np.float64], level: float
) -> dict[str, Interval]:
    """Return intervals of estimates (n_metrics,) by their resamples (n_metrics, n_resamples)."""
    _check_level(level)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=1)
    return {
        name: Interval(float(estimates[i]), float(low[i]), float(high[i]))
        for i, name in enumerate(METRIC_NAMES)
    }


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level}; need a value between 0 and 1, such as 0.95")


def resample_metrics(
    labels: ArrayLike,
    models: Sequence[ArrayLike],
    *,
    groups: ArrayLike | None = None,
    n_resamples: int = 2000,
    seed: int,
) -> ResampledMetrics:
    """Compute every metric of each model on bootstrap resamples that all models share.

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

    Notes
    -----
    Resamples stand for new test sets from the same source, for these trained models: intervals do
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
    >>> found = resample_metrics(labels, [np.stack((1 - p, p), 1)], seed=0)
    >>> found.intervals(0)["accuracy"].low < found.estimates[0, 0]
    True
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
    n_resamples : int, default=2000
        Resamples behind the interval.
    level : float, default=0.95
        Coverage aimed at, between 0 and 1.
    seed : int
        Of the draws.

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
