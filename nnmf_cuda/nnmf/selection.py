"""Which components tell the classes apart: AUC, Cohen's d and Welch's t-test, and a ranking."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata, ttest_ind_from_stats
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from nnmf_cuda.nnmf.inputs import check_integer

FloatArray = NDArray[np.float64]

_MIN_PER_CLASS = 2  # a variance needs two samples


class ComponentSelector(SelectorMixin, BaseEstimator):  # type: ignore[misc]
    """Rank components by how well each separates the classes, and keep the best.

    Three statistics are computed for every component: the area under the ROC curve, Cohen's d
    and the p-value of Welch's t-test. Components are ranked by |AUC - 0.5| (descending), |d|
    (descending) and p (ascending), ties sharing their average rank, and the sum of the three
    ranks decides; a tie of the sums goes to the lower index. Fit it on training rows only:
    chosen with test rows, a selection inflates every later score.

    Parameters
    ----------
    n_selected : int or None, default=None
        Number of components kept; None keeps all, so that only the ranking is of use.

    Attributes
    ----------
    auc_ : ndarray of shape (n_components,)
        Probability that a positive sample exceeds a negative one, ties counting one half.
    cohens_d_ : ndarray of shape (n_components,)
        Mean of the positives minus mean of the negatives over the pooled standard deviation.
    p_value_ : ndarray of shape (n_components,)
        Two-sided, unequal variances, not corrected for multiple tests. 0 where it underflows.
    rank_sum_ : ndarray of shape (n_components,)
        Sum of the three ranks, each from 1 (best); lower is better.
    ranking_ : ndarray of shape (n_components,)
        Indices of all components, best first.
    selected_ : ndarray of shape (n_selected,)
        Indices of the kept components in component order, the order of `transform`'s columns.
    classes_ : ndarray of shape (n_classes,)
        The labels; the last is the positive class of two.
    n_features_in_ : int
        Number of components seen by `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the components, where the features had names.

    Notes
    -----
    With more than two classes every statistic is computed for each class against the rest, and
    each component gets the strongest: the AUC farthest from 0.5, the d of largest size (both
    with their direction for that class), the smallest p. The classes may differ between the
    three.

    A component that is constant over all samples has AUC 0.5, d 0 and p 1. One that is constant
    within both classes but differs between them has an infinite d and p 0.

    References
    ----------
    .. [1] Hanley & McNeil (1982), The meaning and use of the area under a receiver operating
       characteristic (ROC) curve, Radiology 143(1).
    .. [2] Cohen (1988), Statistical power analysis for the behavioral sciences, chapter 2.
    .. [3] Welch (1947), The generalization of "Student's" problem when several different
       population variances are involved, Biometrika 34.

    Examples
    --------
    >>> import numpy as np
    >>> from nnmf_cuda import ComponentSelector
    >>> labels = np.repeat([0, 1], 50)
    >>> features = np.random.default_rng(0).random((100, 3))
    >>> features[:, 1] += labels
    >>> ComponentSelector(n_selected=1).fit(features, labels).selected_
    array([1])
    """

    def __init__(self, n_selected: int | None = None) -> None:
        self.n_selected = n_selected

    def fit(self, features: Any, labels: Any) -> ComponentSelector:
        """Compute the statistics and the ranking.

        Parameters
        ----------
        features : array-like or Tensor of shape (n_samples, n_components)
            Finite values of the training rows. Statistics are computed in float64 on the CPU.
        labels : array-like or Tensor of shape (n_samples,)
            Class of each row, at least two classes with two rows each.

        Raises
        ------
        TypeError
            If `n_selected` is neither an integer nor None.
        ValueError
            For features that are not finite or not two-dimensional, labels of another length,
            fewer than two classes or two rows in a class, `n_selected` out of range.
        """
        features = validate_data(self, _as_array(features), dtype=np.float64)
        labels = _as_array(labels)
        if self.n_selected is not None:
            check_integer("n_selected", self.n_selected, low=1, high=features.shape[1])
        self.classes_ = _checked_classes(labels, len(features))
        # With two classes, class against rest is the same question twice: ask it of the last.
        positives = self.classes_ if len(self.classes_) > 2 else self.classes_[-1:]
        each = [_statistics(features, labels == positive) for positive in positives]
        auc, d, p = map(np.stack, zip(*each, strict=True))
        column = np.arange(features.shape[1])
        self.auc_ = auc[np.abs(auc - 0.5).argmax(0), column]
        self.cohens_d_ = d[np.abs(d).argmax(0), column]
        self.p_value_ = p.min(0)
        self.rank_sum_ = (
            rankdata(-np.abs(self.auc_ - 0.5))
            + rankdata(-np.abs(self.cohens_d_))
            + rankdata(self.p_value_)
        )
        self.ranking_ = np.argsort(self.rank_sum_, kind="stable")
        self.selected_ = np.sort(self.ranking_[: self.n_selected])
        return self

    def transform(self, features: Any) -> Any:
        """Keep the selected columns (n_samples, n_selected), unchanged.

        Parameters
        ----------
        features : array-like or Tensor of shape (n_samples, n_components)
            An array must be finite. The values of a tensor are not looked at; the result is a
            tensor too, differentiable.
        """
        check_is_fitted(self)
        if not isinstance(features, Tensor):
            return validate_data(self, features, reset=False)[:, self.selected_]
        if features.ndim != 2 or features.shape[1] != self.n_features_in_:
            raise ValueError(
                f"features has shape {tuple(features.shape)}, but ComponentSelector was fitted on "
                f"(n_samples, {self.n_features_in_})"
            )
        return features[:, torch.as_tensor(self.selected_, device=features.device)]

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        mask = np.zeros(self.n_features_in_, dtype=bool)
        mask[self.selected_] = True
        return mask

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def _statistics(
    features: FloatArray, positive: NDArray[np.bool_]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return AUC, Cohen's d and p of each component, the rows `positive` against the others."""
    first, second = features[positive], features[~positive]
    n_first, n_second = len(first), len(second)
    rank_sum = rankdata(features, axis=0)[positive].sum(0)
    auc = (rank_sum - n_first * (n_first + 1) / 2) / (n_first * n_second)

    (mean_first, var_first), (mean_second, var_second) = _moments(first), _moments(second)
    difference = mean_first - mean_second
    pooled = ((n_first - 1) * var_first + (n_second - 1) * var_second) / (n_first + n_second - 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        d = difference / np.sqrt(pooled)
        one = mean_first, np.sqrt(var_first), n_first
        other = mean_second, np.sqrt(var_second), n_second
        p = ttest_ind_from_stats(*one, *other, equal_var=False).pvalue
    equal, rigid = difference == 0, pooled == 0
    d = np.where(rigid & equal, 0.0, d)
    return auc, d, np.where(rigid, np.where(equal, 1.0, 0.0), p)


def _moments(features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return mean and variance (n - 1); exact for a constant column, which rounding would blur."""
    constant = features.min(0) == features.max(0)
    mean = np.where(constant, features[0], features.mean(0))
    return mean, np.where(constant, 0.0, features.var(0, ddof=1))


def _as_array(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _checked_classes(labels: Any, n_samples: int) -> NDArray[Any]:
    if labels is None:
        raise ValueError("fit requires y to be passed, but the target y is None: labels are needed")
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) != n_samples:
        raise ValueError(
            f"labels must have shape ({n_samples},), one per row of features, got {labels.shape}"
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError("labels contains NaN or inf; drop the rows without a class")
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            f"labels has one class only ({classes[0]!r}); a selection needs rows of two or more"
        )
    if counts.min() < _MIN_PER_CLASS:
        rarest = classes.tolist()[counts.argmin()]
        raise ValueError(
            f"class {rarest!r} has {counts.min()} row of {_MIN_PER_CLASS} needed; add rows or merge"
            " classes"
        )
    return classes
