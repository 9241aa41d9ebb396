"""What attacks have found, and the worst case over them for each sample."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nnmf_cuda.attacks.decisions import majority

__all__ = ["AttackOutcome", "SuiteResult"]


@dataclass(frozen=True)
class AttackOutcome:
    """What one attack found.

    Attributes
    ----------
    name : str
        Short name; "clean" is no attack.
    points : Tensor of shape (n, n_features)
        A point for every sample.
    right : Tensor of shape (n_rounds, N_DECISIONS, n)
        bool: rounds of fresh decisions on the points; (1, 1, n) where the model is not random.
    margins : Tensor of shape (n,)
        Mean margin loss of these decisions: the larger, the worse for the defence.
    seconds : float
        Time of the attack.
    """

    name: str
    points: Tensor
    right: Tensor
    margins: Tensor
    seconds: float

    @property
    def robust(self) -> Tensor:
        """Who (n_rounds, n) is right by the majority of decisions of a round."""
        return majority(self.right)

    @property
    def accuracies(self) -> dict[str, float]:
        """Success counted in three ways: "fresh" (mean), "majority" and "all" decisions right."""
        return {
            "fresh": float(self.right.double().mean()),
            "majority": float(self.robust.double().mean()),
            "all": float(self.right.all(1).double().mean()),
        }


@dataclass(frozen=True)
class SuiteResult:
    """What all attacks found.

    Attributes
    ----------
    outcomes : list of AttackOutcome
        The first is "clean".
    """

    outcomes: list[AttackOutcome] = field(default_factory=list)

    @property
    def robust(self) -> Tensor:
        """Who (n_rounds, n) holds against every attack, by majority decisions."""
        return torch.stack([outcome.robust for outcome in self.outcomes]).all(0)

    @property
    def robust_share(self) -> Tensor:
        """In which share (n,) of the rounds a sample holds against every attack."""
        return self.robust.double().mean(0)

    @property
    def worst_case_accuracies(self) -> Tensor:
        """Share of samples that hold against every attack, in each round (n_rounds,)."""
        return self.robust.double().mean(1)

    @property
    def worst_case_accuracy(self) -> float:
        """Their mean: a single round of a random model is a matter of luck."""
        return float(self.worst_case_accuracies.mean())

    @property
    def all_right_accuracy(self) -> float:
        """The same, where every decision on every point must be right."""
        held = torch.stack([outcome.right.all(1) for outcome in self.outcomes]).all(0)
        return float(held.double().mean())

    @property
    def worst_points(self) -> Tensor:
        """Of each sample the point (n, n_features) with the fewest right decisions.

        Among equals the one of largest mean margin loss, so that of a sample which holds it is the
        point that came nearest to breaking it. The clean point is none, if there is another.
        """
        attacked = self.outcomes[1:] or self.outcomes
        shares = torch.stack([o.right.double().mean((0, 1)) for o in attacked])
        margins = torch.stack([o.margins for o in attacked]).double()
        margins = margins.where(shares == shares.amin(0), float("-inf"))
        points = torch.stack([o.points for o in attacked])
        return points[margins.argmax(0), torch.arange(points.shape[1], device=points.device)]
