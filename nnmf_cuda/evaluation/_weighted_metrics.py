"""The nine metrics of many resamples of one test set at once.

A resample is a vector of counts, how often it holds each sample, so that every metric becomes a
few products of a matrix of counts with numbers of the samples that do not change.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.evaluation.metrics import METRIC_NAMES

__all__ = ["WeightedMetrics"]

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
