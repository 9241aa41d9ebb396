"""What is measured of predictions: the paper's nine metrics, exactly and on resamples; calibration.

`METRICS` is the one list of metrics. A new one has an entry there, a field of `Metrics`, and is
computed in `classification_metrics` and, for many resamples at once, in `WeightedMetrics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics


@dataclass(frozen=True)
class Metric:
    """A metric as tables show it.

    Attributes
    ----------
    name : str
        Its key in `metrics.json`, and its field of `Metrics`.
    title : str
        Its column's title.
    higher_is_better : bool, default=True
        The direction in which a model improves.
    """

    name: str
    title: str
    higher_is_better: bool = True


METRICS = (
    Metric("accuracy", "accuracy"),
    Metric("precision", "precision"),
    Metric("recall", "recall"),
    Metric("f1", "F1"),
    Metric("mcc", "MCC"),
    Metric("balanced_accuracy", "bal. acc"),
    Metric("roc_auc", "ROC-AUC"),
    Metric("brier", "Brier", higher_is_better=False),
    Metric("log_loss", "log loss", higher_is_better=False),
)
"""The paper's nine columns, in its order."""

METRIC_NAMES = tuple(metric.name for metric in METRICS)


@dataclass(frozen=True)
class Metrics:
    """Every metric of `METRICS` on one set of samples.

    Attributes
    ----------
    accuracy, balanced_accuracy : float
        Share of right predictions; the mean of that share over classes.
    precision, recall, f1 : float
        Of the positive class, 0 where undefined; with more than two classes the mean over classes.
    mcc : float
        Matthews' correlation, 0 where undefined.
    roc_auc : float
        Area under the ROC curve; with more than two classes the mean over one-vs-rest.
    brier : float
        Mean of (p_1 - y)^2 for two classes; for more, of the sum of (p_c - y_c)^2 over classes.
    log_loss : float
        Mean of -log(p of the true class), p clipped to float64's machine epsilon.
    n : int
        Number of samples.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    mcc: float
    balanced_accuracy: float
    roc_auc: float
    brier: float
    log_loss: float
    n: int

    def __getitem__(self, name: str) -> float:
        """Return a metric by its name, one of `METRIC_NAMES`."""
        if name not in METRIC_NAMES:
            raise KeyError(name)
        return float(getattr(self, name))

    def as_dict(self) -> dict[str, float]:
        """Return every metric and ``n``, as `metrics.json` holds them."""
        return asdict(self)


def check_labels(labels: ArrayLike) -> NDArray[np.int64]:
    """Return ``labels`` (n_samples,) as int64; they must be whole numbers of at least 0."""
    y = np.asarray(labels)
    if y.ndim != 1 or y.size == 0:
        raise ValueError(f"labels has shape {y.shape}; give a 1-D array with one label a sample")
    if y.dtype.kind not in "iub":
        raise ValueError(f"labels has dtype {y.dtype}; give class numbers 0, 1, ... as integers")
    if y.min() < 0:
        raise ValueError(f"labels holds {y.min()}; class numbers start at 0")
    return y.astype(np.int64)


def check_predictions(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return labels (n_samples,) and class probabilities (n_samples, n_classes) as arrays.

    It is a ValueError if lengths disagree, a probability is NaN or outside [0, 1], a row does not
    sum to 1 (within 1e-4), a label has no column, or a class has no sample: its ROC-AUC would be
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
    absent = sorted(set(range(p.shape[1])) - set(y.tolist()))
    if absent:
        raise ValueError(
            f"labels holds no sample of class {absent}; ROC-AUC needs every class: "
            "evaluate on a split that has them all"
        )
    return y, p / sums[:, None]


def classification_metrics(labels: ArrayLike, probabilities: ArrayLike) -> Metrics:
    """Compute every metric of predictions, by scikit-learn.

    Parameters
    ----------
    labels : array-like of int, shape (n_samples,)
        True classes 0..n_classes-1. With two classes, 1 (the last) is the positive one.
    probabilities : array-like of shape (n_samples, n_classes)
        Each row sums to 1. The predicted class is the first largest.

    Raises
    ------
    ValueError
        If lengths disagree, a probability is NaN or outside [0, 1], a row does not sum to 1
        (within 1e-4), a label has no column, or a class has no sample.
    """
    y, p = check_predictions(labels, probabilities)
    predicted, n_classes = p.argmax(axis=1), p.shape[1]
    classes = list(range(n_classes))
    average: dict[str, Any] = {"average": "macro", "labels": classes, "zero_division": 0}
    if n_classes == 2:
        average |= {"average": "binary", "labels": None}
        roc_auc = metrics.roc_auc_score(y, p[:, 1])
        brier = metrics.brier_score_loss(y, p[:, 1], pos_label=1)
    else:
        roc_auc = metrics.roc_auc_score(y, p, labels=classes, multi_class="ovr", average="macro")
        brier = metrics.brier_score_loss(y, p, labels=classes)
    return Metrics(
        accuracy=float(metrics.accuracy_score(y, predicted)),
        precision=float(metrics.precision_score(y, predicted, **average)),
        recall=float(metrics.recall_score(y, predicted, **average)),
        f1=float(metrics.f1_score(y, predicted, **average)),
        mcc=float(metrics.matthews_corrcoef(y, predicted)),
        balanced_accuracy=float(metrics.balanced_accuracy_score(y, predicted)),
        roc_auc=float(roc_auc),
        brier=float(brier),
        log_loss=float(metrics.log_loss(y, p, labels=classes)),
        n=len(y),
    )


_Floats = NDArray[np.float64]


class WeightedMetrics:
    """What `classification_metrics` gives, for many resamples of one test set at once.

    Labels and probabilities are those that `check_predictions` returns.
    """

    def __init__(self, labels: NDArray[np.int64], probabilities: _Floats) -> None:
        n, self.n_classes = probabilities.shape
        cells = labels * self.n_classes + probabilities.argmax(axis=1)
        self._cells = np.zeros((self.n_classes**2, n))
        self._cells[cells, np.arange(n)] = 1
        if self.n_classes == 2:
            brier = (probabilities[:, 1] - labels) ** 2
        else:
            brier = ((probabilities - np.eye(self.n_classes)[labels]) ** 2).sum(axis=1)
        eps = np.finfo(np.float64).eps
        log_loss = -np.log(np.clip(probabilities[np.arange(n), labels], eps, 1 - eps))
        self._losses = np.stack((brier, log_loss))
        scored = (1,) if self.n_classes == 2 else range(self.n_classes)
        self._curves = [_RankedScores(probabilities[:, c], labels == c) for c in scored]

    def __call__(self, counts: _Floats) -> _Floats:
        """Return the metrics (len(METRIC_NAMES), n_resamples) of resamples with every class.

        `counts` (n_samples, n_resamples) says how often each resample holds each sample.
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
        return np.asarray(won / 2 / (weights.sum(axis=0) * below[-1]))


def _of_confusion(confusion: _Floats) -> Mapping[str, _Floats]:
    """Return the six metrics of confusion matrices (true class, predicted class, resample)."""
    right = np.einsum("ccb->cb", confusion)
    of_class, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    total = of_class.sum(axis=0)
    precision, recall = _share(right, predicted), _share(right, of_class)
    f1 = _share(2 * right, of_class + predicted)
    # The multi-class Matthews correlation (Gorodkin 2004).
    covariance = right.sum(axis=0) * total - (of_class * predicted).sum(axis=0)
    variances = (total**2 - (of_class**2).sum(axis=0)) * (total**2 - (predicted**2).sum(axis=0))
    averaged = slice(1, 2) if len(confusion) == 2 else slice(None)
    return {
        "accuracy": right.sum(axis=0) / total,
        "precision": precision[averaged].mean(axis=0),
        "recall": recall[averaged].mean(axis=0),
        "f1": f1[averaged].mean(axis=0),
        "mcc": _share(covariance, np.sqrt(variances)),
        "balanced_accuracy": recall.mean(axis=0),
    }


def _share(part: _Floats, whole: _Floats) -> _Floats:
    """Divide, and return 0 where there is nothing to divide by."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def check_level(name: str, level: float) -> None:
    """Raise ValueError unless the coverage that an interval aims at is between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"{name}={level}; need a value between 0 and 1, such as 0.95")


def majority_class_accuracy(labels: ArrayLike) -> float:
    """Return the accuracy of always answering the most frequent class of ``labels``."""
    y = check_labels(labels)
    return float(np.bincount(y).max() / len(y))


def wilson_interval(k: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a share of ``k`` successes in ``n`` trials.

    ``k`` may be a mean over predictions, so not whole.

    It takes the trials as independent: neighbouring slices of one patient are not, so the true
    interval is then wider.

    References
    ----------
    .. [1] E. B. Wilson (1927), J. Am. Stat. Assoc. 22(158), 209-212.
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"k={k}, n={n}; need n >= 1 and 0 <= k <= n")
    check_level("confidence", confidence)
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + confidence / 2))
    share = k / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


@dataclass(frozen=True)
class ReliabilityCurve:
    """Predicted probability against observed frequency, in the bins that hold predictions.

    Attributes
    ----------
    predicted, observed, counts : array of shape (n_filled_bins,)
        Mean predicted probability, share of events and number of predictions in each bin.
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
    labels, probabilities : array-like of shape (n_samples,), (n_samples, n_classes)
        True classes and class probabilities; errors are those of `classification_metrics`.
    n_bins : int, default=10
        Bins of [0, 1]; a value on an inner edge belongs to the upper bin.
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
    means = [
        np.bincount(bins, weights, minlength=n_bins)[filled] / counts[filled]
        for weights in (predicted, event)
    ]
    return ReliabilityCurve(means[0], means[1], counts[filled])


def expected_calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, *, n_bins: int = 10
) -> float:
    """Return the mean distance of `reliability_curve` from the diagonal, weighted by counts."""
    curve = reliability_curve(labels, probabilities, n_bins=n_bins)
    distance = np.abs(curve.predicted - curve.observed)
    return float((distance * curve.counts).sum() / curve.counts.sum())
