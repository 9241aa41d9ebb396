"""Bootstrap: how far metrics, their differences and means move from one test set to the next.

A resample holds as many samples, or whole groups such as patients, as the test set, drawn with
replacement. Intervals lie between percentiles of what resamples give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnmf_cuda.evaluation.metrics import (
    METRIC_NAMES,
    WeightedMetrics,
    check_labels,
    check_level,
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
    """A figure on the samples themselves, and the ends of an interval around it."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class ResampledMetrics:
    """Metrics of models on the same resamples of a test set, in the order of `METRIC_NAMES`.

    Attributes
    ----------
    values : array of shape (n_models, n_metrics, n_resamples)
    estimates : array of shape (n_models, n_metrics)
        On the test set itself.
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

        `model` is its place among the models, `level` the share of resamples within the interval,
        between 0 and 1.
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
    check_level("level", level)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=1)
    return {
        name: Interval(float(estimates[i]), float(low[i]), float(high[i]))
        for i, name in enumerate(METRIC_NAMES)
    }


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

    Raises
    ------
    NoResampleError
        If hardly a resample holds every class. A ValueError, as is a single group.

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
    >>> bool(found.intervals(0)["accuracy"].low < found.estimates[0, 0])
    True
    """
    y = check_labels(labels)
    if not len(models):
        raise ValueError("models is empty; give the class probabilities of at least one model")
    if n_resamples < 1:
        raise ValueError(f"n_resamples={n_resamples}; need at least 1, better 1000 or more")
    measured = [_predictions_of(y, model, i) for i, model in enumerate(models)]
    clusters = _clusters(len(y), groups)
    n_clusters = int(clusters.max()) + 1
    of_class = np.zeros((int(y.max()) + 1, n_clusters))
    np.add.at(of_class, (y, clusters), 1)
    rng = np.random.default_rng(seed)
    size, missing, n_redrawn, values = max(1, _BLOCK // len(y)), n_resamples, 0, []
    while missing:
        drawn = _draw(rng, n_clusters, min(size, missing))
        complete = ((of_class @ drawn) > 0).all(axis=0)
        missing -= int(complete.sum())
        n_redrawn += int((~complete).sum())
        if n_redrawn > _MOST_REDRAWN * n_resamples:
            raise NoResampleError(
                f"{n_redrawn} resamples of {n_clusters} groups lacked a class; give samples of "
                "each class from more groups, or a finer grouping"
            )
        if complete.any():
            values.append(_mean_metrics(measured, drawn[:, complete][clusters]))
    itself = _mean_metrics(measured, np.ones((len(y), 1)))[:, :, 0]
    return ResampledMetrics(np.concatenate(values, axis=2), itself, n_clusters, n_redrawn)


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


def _clusters(n: int, groups: ArrayLike | None) -> NDArray[np.intp]:
    """Return the number of each sample's group, counted from 0; at least two groups."""
    if groups is None and n < 2:
        raise ValueError("there is a single sample or none; give at least two")
    names = np.arange(n) if groups is None else np.asarray(groups)
    if names.shape != (n,):
        raise ValueError(f"groups has shape {names.shape}; give the group of each of {n} samples")
    _, clusters = np.unique(names, return_inverse=True)
    if clusters.max() == 0:
        raise ValueError(
            "groups holds a single group, of which every resample is the test set itself; leave "
            "groups out, or give a finer grouping"
        )
    return np.asarray(clusters, dtype=np.intp)


def _draw(rng: np.random.Generator, n_clusters: int, n: int) -> NDArray[np.float64]:
    """Return how often each of n resamples holds each cluster: (n_clusters, n)."""
    chosen = rng.integers(0, n_clusters, size=(n, n_clusters))
    chosen += n_clusters * np.arange(n)[:, None]
    counts = np.bincount(chosen.ravel(), minlength=n * n_clusters)
    return counts.reshape(n, n_clusters).T.astype(np.float64)


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
        A finite number for each sample.
    groups, n_resamples, seed
        As for `resample_metrics`.
    level : float, default=0.95
        Coverage aimed at, between 0 and 1.
    """
    from scipy.stats import bootstrap

    check_level("level", level)
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise ValueError(
            f"values has shape {numbers.shape}, or holds NaN or infinity; give a finite number for "
            "each sample"
        )
    clusters = _clusters(len(numbers), groups)
    found = bootstrap(
        (np.bincount(clusters, weights=numbers), np.bincount(clusters)),
        lambda total, size, axis: total.sum(axis) / size.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=n_resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(numbers.mean()), float(found.low), float(found.high))
