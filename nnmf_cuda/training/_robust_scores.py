"""How a classifier does on validation samples, as they are and attacked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from nnmf_cuda.attacks.balls import BALLS
from nnmf_cuda.attacks.objectives import margin_loss
from nnmf_cuda.attacks.pgd import pgd

__all__ = ["Answer", "RobustScores", "rank"]

Answer = Callable[[Tensor], Tensor]
"""Features (n, n_features) to logits (n, n_classes)."""

_N_STEPS = 20


class RobustScores:
    """Scores of the samples that training is watched on, with a short attack.

    Parameters
    ----------
    x, y : Tensor of shape (n, n_features), (n,)
        Features in [0, 1] and int64 labels.
    attack_eps, norm : float, str
        The ball.
    """

    def __init__(self, x: Tensor, y: Tensor, attack_eps: float, norm: str) -> None:
        self._x, self._y = x, y
        self._ball = BALLS[norm](x, attack_eps)

    def of(self, attacked: Answer, judged: Answer | None = None) -> dict[str, Tensor]:
        """Return loss, accuracy and attacked accuracy.

        Parameters
        ----------
        attacked : callable
            Whose gradient the attack climbs.
        judged : callable, optional
            Who answers; of a random model with noise that the attack has not seen.
        """
        judged = judged or attacked
        points = pgd(
            lambda leaf: margin_loss(attacked(leaf), self._y),
            self._ball,
            self._x,
            n_iter=_N_STEPS,
        )
        with torch.no_grad():
            logits = judged(self._x)
            right = logits.argmax(1) == self._y
            held = right & (judged(points).argmax(1) == self._y)
        return {
            "valid_loss": functional.cross_entropy(logits, self._y),
            "valid_accuracy": right.float().mean(),
            "valid_robust_accuracy": held.float().mean(),
        }


def rank(scores: dict[str, float]) -> tuple[float, ...]:
    """Say how good an epoch is: clean and attacked accuracy count alike."""
    return scores["valid_accuracy"] + scores["valid_robust_accuracy"], -scores["valid_loss"]
