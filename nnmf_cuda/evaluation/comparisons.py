"""Tests of whether two models on the same samples differ: McNemar's and DeLong's."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnmf_cuda.evaluation.metrics import check_labels, check_level


@dataclass(frozen=True)
class McNemarResult:
    """What `mcnemar` found.

    Attributes
    ----------
    n_only_a, n_only_b : int
        Samples that model a alone, or model b alone, got right.
    p_value : float
        Two-sided, exact; 1 where the models are right on the same samples.
    """

    n_only_a: int
    n_only_b: int
    p_value: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a plain dictionary."""
        return asdict(self)


def mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> McNemarResult:
    """Test whether two models are right equally often on the same samples, exactly.

    Parameters
    ----------
    right_a, right_b : array-like of bool, shape (n_samples,), not empty
        Whether each model got each sample right.

    Notes
    -----
    Where the models are equally good, a sample on which they differ is as likely to be model a's as
    model b's: a binomial test of the two counts. It takes samples as independent, so several of
    one patient make p too small; `resample_metrics` knows groups.

    References
    ----------
    .. [1] Q. McNemar (1947), Psychometrika 12(2), 153-157.

    Examples
    --------
    >>> mcnemar([True, True, True, False], [True, False, False, False])
    McNemarResult(n_only_a=2, n_only_b=0, p_value=0.5)
    """
    a, b = _right(right_a, "right_a"), _right(right_b, "right_b")
    if a.shape != b.shape:
        raise ValueError(
            f"right_a has {len(a)} entries and right_b {len(b)}; give both models' on the same "
            "samples"
        )
    from scipy.stats import binomtest

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    differing = only_a + only_b
    p_value = float(binomtest(only_a, differing, 0.5).pvalue) if differing else 1.0
    return McNemarResult(only_a, only_b, p_value)


def _right(value: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = np.asarray(value)
    if array.ndim != 1 or array.size == 0 or not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"{name} (shape {array.shape}, {array.dtype}) must be a 1-D array of True and False, "
            f"one a sample: give {name} = predictions == labels"
        )
    return array.astype(np.bool_)


@dataclass(frozen=True)
class AUCComparison:
    """What `delong` found.

    Attributes
    ----------
    auc_a, auc_b : float
        Areas under the two ROC curves.
    difference, standard_error : float
        auc_a - auc_b, and its standard error.
    z, p_value : float
        difference / standard_error and its two-sided p under the normal distribution; both may be
        NaN, see `delong`.
    low, high, level : float
        Interval of the difference, and the coverage that it aims at.
    """

    auc_a: float
    auc_b: float
    difference: float
    standard_error: float
    z: float
    p_value: float
    low: float
    high: float
    level: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a plain dictionary, None for NaN."""
        return {k: None if math.isnan(v) else v for k, v in asdict(self).items()}


def delong(
    labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, *, level: float = 0.95
) -> AUCComparison:
    """Test whether two scores of the same samples have the same area under the ROC curve.

    Parameters
    ----------
    labels : array-like of int, shape (n_samples,)
        0 and 1; at least two samples of each.
    scores_a, scores_b : array-like of shape (n_samples,)
        Finite, higher for 1; ties count half.
    level : float, default=0.95
        Coverage of the interval.

    Returns
    -------
    AUCComparison
        Equal areas without variance, such as those of one score given twice, have z = 0 and p = 1.
        Unequal ones without variance (both curves perfect or perfectly wrong) have NaN: the normal
        approximation says nothing there.

    Notes
    -----
    DeLong's covariance of two areas, from midranks in O(n log n) (equations 3-6 and algorithm 2 of
    Sun & Xu). It takes samples as independent; `resample_metrics` knows groups.

    References
    ----------
    .. [1] DeLong, DeLong & Clarke-Pearson (1988), Biometrics 44(3), 837-845.
    .. [2] Sun & Xu (2014), IEEE Signal Processing Letters 21(11), 1389-1393.
    """
    from scipy.stats import norm

    y = check_labels(labels)
    if set(np.unique(y)) != {0, 1} or np.bincount(y).min() < 2:
        raise ValueError(
            f"labels holds classes {np.unique(y).tolist()} with {np.bincount(y).tolist()} samples; "
            "give 0 and 1, at least two samples of each"
        )
    check_level("level", level)
    scores = np.stack([_scores(scores_a, y, "scores_a"), _scores(scores_b, y, "scores_b")])
    areas, of_positives, of_negatives = _structural_components(scores, y == 1)
    # The variance of a difference, not the sum of a covariance matrix, in which rounding would
    # leave something of two equal scores.
    variance = sum(np.var(v[0] - v[1], ddof=1) / v.shape[1] for v in (of_positives, of_negatives))
    auc_a, auc_b, error = float(areas[0]), float(areas[1]), math.sqrt(variance)
    difference = auc_a - auc_b
    if error > 0:
        z = difference / error
    else:
        z = 0.0 if difference == 0 else math.nan
    half = float(norm.ppf(0.5 + level / 2)) * error
    low, high = max(-1.0, difference - half), min(1.0, difference + half)
    if math.isnan(z):  # the estimated error is 0, which is no knowledge of the true one
        low = high = math.nan
    p_value = float(2 * norm.sf(abs(z)))
    return AUCComparison(auc_a, auc_b, difference, error, z, p_value, low, high, level)


def _scores(value: ArrayLike, y: NDArray[np.int64], name: str) -> NDArray[np.float64]:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != y.shape or not np.isfinite(array).all():
        raise ValueError(
            f"{name} has shape {array.shape}, or values that are not finite; give {len(y)} finite "
            "scores, such as the probability of class 1"
        )
    return array


def _structural_components(
    scores: NDArray[np.float64], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return areas (2,) and the components of positive (2, m) and negative (2, n) samples.

    That of a positive sample is the share of negative ones that it beats; that of a negative
    sample, the share of positive ones that beat it.
    """
    from scipy.stats import rankdata

    among_all = rankdata(scores, axis=1)  # midranks
    among_positives = rankdata(scores[:, positive], axis=1)
    among_negatives = rankdata(scores[:, ~positive], axis=1)
    m, n = among_positives.shape[1], among_negatives.shape[1]
    of_positives = (among_all[:, positive] - among_positives) / n
    of_negatives = 1 - (among_all[:, ~positive] - among_negatives) / m
    return of_positives.mean(axis=1), of_positives, of_negatives
