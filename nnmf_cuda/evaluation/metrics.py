"""The nine metrics of the paper's table, by scikit-learn, for two or more classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics

__all__ = [
    "CONFUSION_METRICS",
    "METRIC_NAMES",
    "ReliabilityCurve",
    "check_every_class",
    "check_labels",
    "check_predictions",
    "classification_metrics",
    "expected_calibration_error",
    "majority_class_accuracy",
    "metrics_from_confusion",
    "reliability_curve",
    "wilson_interval",
]


CONFUSION_METRICS = ("accuracy", "precision", "recall", "f1", "mcc", "balanced_accuracy")
"""The metrics that a confusion matrix determines."""

METRIC_NAMES = (*CONFUSION_METRICS, "roc_auc", "brier", "log_loss")
"""The paper's nine columns, in its order."""


def check_labels(labels: ArrayLike) -> NDArray[np.int64]:
    """Return ``labels`` as a 1-D int64 array.

    Raises
    ------
    ValueError
        If they are empty, not one-dimensional, not whole numbers, or negative.
    """
    y = np.asarray(labels)
    if y.ndim != 1 or y.size == 0:
        raise ValueError(f"labels has shape {y.shape}; give a 1-D array with one label a sample")
    if y.dtype.kind not in "iub":
        raise ValueError(f"labels has dtype {y.dtype}; give class numbers 0, 1, ... as integers")
    if y.min() < 0:
        raise ValueError(f"labels holds {y.min()}; class numbers start at 0")
    return y.astype(np.int64)


def check_every_class(labels: ArrayLike, n_classes: int) -> None:
    """Check that each class 0..n_classes-1 has a sample, as the metrics need; cheap, so call early.

    Raises
    ------
    ValueError
        If a class has none: its ROC-AUC would be undefined.
    """
    absent = sorted(set(range(n_classes)) - set(check_labels(labels).tolist()))
    if absent:
        raise ValueError(
            f"labels holds no sample of class {absent}; ROC-AUC needs every class: "
            "evaluate on a split that has them all"
        )


def check_predictions(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return labels and class probabilities as arrays, or say what is wrong with them.

    Raises
    ------
    ValueError
        If lengths disagree, a probability is NaN or outside [0, 1], a row does not sum to 1
        (within 1e-4), a label has no column, or a class has no sample: its ROC-AUC would be
        undefined.
    """
    y = check_labels(labels)
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] < 2:
        raise ValueError(
            f"probabilities has shape {p.shape}; give (n_samples, n_classes) with n_classes >= 2"
        )
    if len(p) != len(y):
        raise ValueError(f"probabilities has {len(p)} rows but labels has {len(y)} entries")
    if not np.isfinite(p).all():
        raise ValueError(
            f"probabilities holds NaN or infinity in {int((~np.isfinite(p)).any(1).sum())} rows; "
            "check the model's logits"
        )
    if p.min() < 0 or p.max() > 1:
        raise ValueError(
            f"probabilities spans [{p.min():g}, {p.max():g}], outside [0, 1]; apply softmax first"
        )
    sums = p.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > 1e-4:  # float32 softmax is within 1e-6
        raise ValueError(
            f"probabilities sums to {sums[worst]:g} in row {worst}, not to 1; apply softmax first"
        )
    if y.max() >= p.shape[1]:
        raise ValueError(f"labels holds {y.max()} but probabilities has {p.shape[1]} columns")
    check_every_class(y, p.shape[1])
    return y, p / sums[:, None]


def _confusion_metrics(
    y: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int
) -> dict[str, float]:
    average: dict[str, Any] = {
        "average": "binary" if n_classes == 2 else "macro",
        "labels": None if n_classes == 2 else list(range(n_classes)),
        "zero_division": 0,
    }
    values = (
        metrics.accuracy_score(y, predicted),
        metrics.precision_score(y, predicted, **average),
        metrics.recall_score(y, predicted, **average),
        metrics.f1_score(y, predicted, **average),
        metrics.matthews_corrcoef(y, predicted),
        metrics.balanced_accuracy_score(y, predicted),
    )
    return {name: float(value) for name, value in zip(CONFUSION_METRICS, values, strict=True)}


def classification_metrics(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """Compute the nine metrics of `METRIC_NAMES`, and ``n``.

    Parameters
    ----------
    labels : array-like of int, shape (n_samples,)
        True classes 0..n_classes-1. With two classes, 1 (the last) is the positive one.
    probabilities : array-like of shape (n_samples, n_classes)
        Each row sums to 1. The predicted class is the first largest.

    Returns
    -------
    dict
        ``n`` (int) and a float for each metric. Precision, recall and F1 are those of the
        positive class, and 0 where undefined; with more than two classes, the mean over classes.
        ROC-AUC is then the mean over one-vs-rest. ``brier`` is the mean of (p_1 - y)^2 for two
        classes, and scikit-learn's sum over classes for more. ``log_loss`` clips probabilities to
        float64's machine epsilon, as scikit-learn does.

    Raises
    ------
    ValueError
        See `check_predictions`.
    """
    y, p = check_predictions(labels, probabilities)
    n_classes = p.shape[1]
    classes = list(range(n_classes))
    result = _confusion_metrics(y, p.argmax(axis=1), n_classes)
    if n_classes == 2:
        result["roc_auc"] = float(metrics.roc_auc_score(y, p[:, 1]))
        result["brier"] = float(metrics.brier_score_loss(y, p[:, 1], pos_label=1))
    else:
        result["roc_auc"] = float(
            metrics.roc_auc_score(y, p, labels=classes, multi_class="ovr", average="macro")
        )
        result["brier"] = float(metrics.brier_score_loss(y, p, labels=classes))
    result["log_loss"] = float(metrics.log_loss(y, p, labels=classes))
    result["n"] = len(y)
    return result


def metrics_from_confusion(tp: int, fp: int, fn: int, tn: int) -> dict[str, float]:
    """Compute the metrics of `CONFUSION_METRICS`, and ``n``, from a two-class confusion matrix.

    Parameters
    ----------
    tp, fp, fn, tn : int
        Numbers of true positives, false positives, false negatives and true negatives.

    Raises
    ------
    ValueError
        If a count is negative, or one of the two classes has no sample.
    """
    counts = {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    for name, value in counts.items():
        if value != int(value) or value < 0:
            raise ValueError(f"{name}={value}; give a whole number of samples, 0 or more")
    if tp + fn == 0 or fp + tn == 0:
        raise ValueError(f"{counts}: both classes need samples (tp + fn > 0 and fp + tn > 0)")
    y = np.repeat([1, 0, 1, 0], [tp, fp, fn, tn])
    predicted = np.repeat([1, 1, 0, 0], [tp, fp, fn, tn])
    return {**_confusion_metrics(y, predicted, 2), "n": len(y)}


def majority_class_accuracy(labels: ArrayLike) -> float:
    """Return the accuracy of always answering the most frequent class of ``labels``."""
    y = check_labels(labels)
    return float(np.bincount(y).max() / len(y))


def wilson_interval(k: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a share of ``k`` successes in ``n`` trials.

    ``k`` may be a mean over predictions, so not whole.

    It takes the trials as independent: neighbouring slices of one patient are not, so the true
    interval is then wider.

    Raises
    ------
    ValueError
        If not ``0 <= k <= n``, ``n < 1``, or ``confidence`` is not between 0 and 1.

    References
    ----------
    .. [1] E. B. Wilson (1927), J. Am. Stat. Assoc. 22(158), 209-212.
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"k={k}, n={n}; need n >= 1 and 0 <= k <= n")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}; need a value between 0 and 1, such as 0.95")
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + confidence / 2))
    share = k / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


# How well predicted probabilities match observed frequencies.


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
