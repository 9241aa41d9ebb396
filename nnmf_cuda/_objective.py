"""What a factorisation minimises."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Penalty:
    """Regularisation as the ops take it, already scaled by the size of X."""

    l1_reg_W: float = 0.0
    l1_reg_H: float = 0.0
    l2_reg_W: float = 0.0
    l2_reg_H: float = 0.0

    def value(self, W: Tensor, H: Tensor) -> Tensor:
        """Return the penalty of each start of the batch, (B,) float64."""
        W, H = W.double(), H.double()
        absolute = self.l1_reg_W * W.sum((1, 2)) + self.l1_reg_H * H.sum((1, 2))
        squared = self.l2_reg_W * W.square().sum((1, 2)) + self.l2_reg_H * H.square().sum((1, 2))
        return absolute + squared / 2


@dataclass(frozen=True)
class Objective:
    """A beta-divergence plus a penalty."""

    beta_loss: float
    penalty: Penalty
