"""Checks of what networks are trained on and against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nnmf_cuda.attacks.balls import BALLS, BOX_TOLERANCE, Threat
from nnmf_cuda.attacks.gradient_ascent import pgd
from nnmf_cuda.attacks.objectives import margin_loss

__all__ = ["Answer", "RobustScores", "rank"]


Array = Tensor | NDArray[Any]


def as_features(
    name: str, values: Array, device: torch.device | str, *, n_features: int | None = None
) -> Tensor:
    """Return features as float32 on the device; raise unless they are finite rows."""
    x = torch.as_tensor(values).detach().to(device=device, dtype=torch.float32)
    if x.dim() != 2 or x.numel() == 0 or n_features not in (None, x.shape[1]):
        expected = "n_features" if n_features is None else n_features
        raise ValueError(
            f"{name} must have shape (n_samples, {expected}) with at least one sample, "
            f"got {tuple(x.shape)}"
        )
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity: check the features")
    return x


def as_labels(
    name: str, values: Array, n_samples: int, n_classes: int, device: torch.device | str
) -> Tensor:
    """Return labels as int64 on the device; raise unless they are those of `n_samples` samples."""
    y = torch.as_tensor(values)
    if y.is_floating_point() or y.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {y.dtype}")
    if y.shape != (n_samples,):
        raise ValueError(f"{name} must have shape ({n_samples},), got {tuple(y.shape)}")
    if int(y.min()) < 0 or int(y.max()) >= n_classes:
        raise ValueError(
            f"{name} must be within 0..{n_classes - 1} for n_classes={n_classes}, got values "
            f"from {int(y.min())} to {int(y.max())}"
        )
    return y.to(device=device, dtype=torch.int64)


def check_ball(attack_eps: float, norm: str, **features: Tensor) -> None:
    """Raise ValueError unless this is a ball that training can attack in, around such features."""
    Threat(attack_eps, norm)  # raises
    for name, x in features.items():
        low, high = float(x.min()), float(x.max())
        if low < -BOX_TOLERANCE or high > 1 + BOX_TOLERANCE:
            raise ValueError(
                f"{name} must be within the box [0, 1] of the attack, got values from {low:.6g} to"
                f" {high:.6g}: L2-normalise non-negative features first"
            )


# How a classifier does on validation samples, as they are and attacked.

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
