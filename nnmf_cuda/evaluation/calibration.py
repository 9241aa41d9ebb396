"""How well predicted probabilities match observed frequencies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnmf_cuda.evaluation.metrics import check_predictions

__all__ = ["ReliabilityCurve", "expected_calibration_error", "reliability_curve"]


@dataclass(frozen=True)
class ReliabilityCurve:
    """Predicted probability against observed frequency, in the bins that hold predictions.

    Attributes
    ----------
    predicted : array of shape (n_filled_bins,)
        Mean predicted probability in each bin.
    observed : array of shape (n_filled_bins,)
        Share of events in each bin.
    counts : array of shape (n_filled_bins,)
        Number of predictions in each bin.
    """

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    counts: NDArray[np.int64]


def reliability_curve(
    labels: ArrayLike, probabilities: ArrayLike, *, n_bins: int = 10
) -> ReliabilityCurve:
    """Compare predicted probabilities with observed frequencies, in bins of equal width.

    With two classes the probability is that of the positive class and the event is a positive
    label. With more, the probability is that of the predicted class, and the event is a right
    prediction.

    Parameters
    ----------
    labels : array-like of int, shape (n_samples,)
        True classes.
    probabilities : array-like of shape (n_samples, n_classes)
        Class probabilities.
    n_bins : int, default=10
        Bins of [0, 1]; a value on an inner edge belongs to the upper bin.

    Raises
    ------
    ValueError
        If ``n_bins < 1``, or see `nnmf_cuda.evaluation.metrics.check_predictions`.
    """
    if n_bins < 1:
        raise ValueError(f"n_bins={n_bins}; need at least 1")
    y, p = check_predictions(labels, probabilities)
    if p.shape[1] == 2:
        predicted, event = p[:, 1], y == 1
    else:
        predicted, event = p.max(axis=1), p.argmax(axis=1) == y
    bins = np.minimum((predicted * n_bins).astype(np.int64), n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    filled = counts > 0
    sums = np.bincount(bins, weights=predicted, minlength=n_bins)[filled]
    events = np.bincount(bins, weights=event, minlength=n_bins)[filled]
    return ReliabilityCurve(sums / counts[filled], events / counts[filled], counts[filled])


def expected_calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, *, n_bins: int = 10
) -> float:
    """Return the mean distance of `reliability_curve` from the diagonal, weighted by counts."""
    curve = reliability_curve(labels, probabilities, n_bins=n_bins)
    distance = np.abs(curve.predicted - curve.observed)
    return float((distance * curve.counts).sum() / curve.counts.sum())
