"""How the worst case stands to the constant answer, and how far both are uncertain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.evaluation import Interval, bootstrap_mean, wilson_interval

__all__ = ["Standing", "standing_of", "verdict"]


@dataclass(frozen=True)
class Standing:
    """A robust accuracy beside the accuracy of always naming the larger class.

    Attributes
    ----------
    robust, low, high : float
        Robust accuracy and its 95 % interval.
    method : str
        "bootstrap" or "Wilson".
    drawn : str
        What is drawn as a whole: "patient", "series" or "image".
    constant : float
        Accuracy of the constant answer, on the same samples.
    less_constant : Interval
        Robust accuracy less the constant answer's, each sample with itself.
    """

    robust: float
    low: float
    high: float
    method: str
    drawn: str
    constant: float
    less_constant: Interval


def standing_of(
    robust: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    groupings: Mapping[str, NDArray[Any]],
    seed: int,
) -> Standing:
    """Compare with the constant answer, by a bootstrap of whole groups where they are known.

    Parameters
    ----------
    robust : array of shape (n,)
        For each sample the share of rounds in which it is robust.
    labels : array of shape (n,)
    groupings : mapping of str to array of shape (n,)
        The first is drawn as a whole.
    seed : int
        Of the bootstrap.
    """
    drawn, groups = next(iter(groupings.items()), ("image", None))
    constant = (labels == np.bincount(labels).argmax()).astype(np.float64)
    accuracy = float(robust.mean())
    if groups is None or accuracy in (0, 1):
        # A bootstrap of zeros or ones alone knows no error; Wilson's interval does.
        method, n = "Wilson", len(robust) if groups is None else len(np.unique(groups))
        low, high = wilson_interval(accuracy * n, n)
    else:
        found = bootstrap_mean(robust, groups=groups, seed=seed)
        method, low, high = "bootstrap", found.low, found.high
    less = bootstrap_mean(robust - constant, groups=groups, seed=seed)
    return Standing(accuracy, low, high, method, drawn, float(constant.mean()), less)


def verdict(stands: Standing, *, is_worst_case: bool = True) -> str:
    """Say how the worst case stands to the constant answer.

    Parameters
    ----------
    stands : Standing
    is_worst_case : bool, default=True
        Whether the adaptive attacks were run; else nothing is said but what was counted.
    """
    figures = (
        f"{stands.robust:.4f} (95 % {stands.method} interval by {stands.drawn}"
        f" {stands.low:.3f}-{stands.high:.3f})"
    )
    if not is_worst_case:
        return (
            f"Only the paper's protocol was counted: {figures} is no worst case, and no comparison"
            f" with the constant answer, {stands.constant:.4f}."
        )
    less = stands.less_constant
    if less.low > 0:
        says = "beats"
    elif less.high < 0:
        says = "is below"
    else:
        says = "does not beat"
    return (
        f"The worst case, {figures}, {says} the constant answer, {stands.constant:.4f}: difference"
        f" {less.estimate:+.3f} (95 % {less.low:+.3f} to {less.high:+.3f})."
    )
