"""A robust accuracy beside the accuracy of the constant answer, and how far both are uncertain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.evaluation.bootstrap import Interval, bootstrap_mean
from nnmf_cuda.evaluation.metrics import wilson_interval


@dataclass(frozen=True)
class Verdict:
    """A robust accuracy beside the accuracy of always naming the larger class."""

    robust: float
    low: float  # ends of its 95 % interval
    high: float
    method: str  # "bootstrap" or "Wilson"
    drawn: str  # what is drawn as a whole: "patient", "series" or "image"
    constant: float  # accuracy of the constant answer, on the same samples
    less_constant: Interval  # robust less constant, each sample with itself
    is_worst_case: bool = True  # under adaptive attacks; else it is not compared

    @classmethod
    def of(
        cls,
        robust: NDArray[np.float64],
        labels: NDArray[np.int64],
        *,
        groupings: Mapping[str, NDArray[Any]],
        seed: int,
        is_worst_case: bool = True,
    ) -> Verdict:
        """Compare with the constant answer, by a bootstrap of whole groups where they are known.

        `robust` is for each sample (n,) the share of rounds in which it is robust; the first of the
        `groupings` is drawn as a whole.
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
        return cls(accuracy, low, high, method, drawn, float(constant.mean()), less, is_worst_case)

    @property
    def sentence(self) -> str:
        """How the robust accuracy stands to the constant answer."""
        figures = (
            f"{self.robust:.4f} (95 % {self.method} interval by {self.drawn}"
            f" {self.low:.3f}-{self.high:.3f})"
        )
        if not self.is_worst_case:
            return (
                f"Only the paper's protocol was counted: {figures} is no worst case, and no"
                f" comparison with the constant answer, {self.constant:.4f}."
            )
        less = self.less_constant
        says = "does not beat"
        if less.low > 0:
            says = "beats"
        elif less.high < 0:
            says = "is below"
        return (
            f"The worst case, {figures}, {says} the constant answer, {self.constant:.4f}:"
            f" difference {less.estimate:+.3f} (95 % {less.low:+.3f} to {less.high:+.3f})."
        )
