"""Who is right on a point: fresh decisions of a model that may be random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.checks import frozen, isolated
from nnmf_cuda.attacks.objectives import finite, is_random, margin_loss, sampled_logits

__all__ = ["N_DECISIONS", "N_ROUNDS", "fresh_decisions", "majority", "majority_right"]

N_DECISIONS = 20
"""R: fresh decisions of a random model on a point, of which a majority decides."""

N_ROUNDS = 10
"""How often these are taken anew: what is reported is the mean over rounds."""


def fresh_decisions(
    model: nn.Module, points: Tensor, y: Tensor, *, seed: int, n_rounds: int = 1
) -> tuple[Tensor, Tensor]:
    """Ask a random model `N_DECISIONS` times a round, a model without noise once.

    Returns
    -------
    right : Tensor of shape (n_rounds, N_DECISIONS, n)
        bool; (1, 1, n) of a model without noise.
    margins : Tensor of shape (n,)
        Mean margin loss.
    """
    with frozen(model), isolated(seed), torch.no_grad():
        n_rounds, n_decisions = (n_rounds, N_DECISIONS) if is_random(model, points) else (1, 1)
        right, margins = [], []
        for _ in range(n_rounds):
            logits = finite(sampled_logits(model, points, n_decisions))
            right.append(logits.argmax(2) == y)
            flat = margin_loss(logits.flatten(0, 1), y.repeat(n_decisions))
            margins.append(flat.reshape(n_decisions, -1).mean(0))
        return torch.stack(right), torch.stack(margins).mean(0)


def majority(right: Tensor) -> Tensor:
    """Return who (n_rounds, n) is right in more than half of the decisions (n_rounds, R, n)."""
    return right.double().mean(1) > 0.5


def majority_right(model: nn.Module, points: Tensor, y: Tensor, *, seed: int) -> Tensor:
    """Return who, bool (n,), is right by the majority of one round of fresh decisions."""
    right, _ = fresh_decisions(model, points, y, seed=seed)
    return majority(right)[0]
