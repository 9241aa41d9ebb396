"""A model with a weakness that is known to be there: what an attack that misses it is worth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.objectives import margin_loss

__all__ = ["PlantedDirection"]


class PlantedDirection(nn.Module):
    """A model to which a direction is added that makes every sample wrong within the ball.

    Zimmermann, Brendel, Tramer & Carlini (2022), Increasing confidence in adversarial robustness
    evaluations: an attack that does not find it is too weak to say anything.

    Parameters
    ----------
    model : nn.Module
        Maps features (n, n_features) to logits (n, n_classes).
    x : Tensor of shape (n, n_features)
        Clean features; row i of every batch is about sample i, modulo n.
    y : Tensor of shape (n,)
        int64 labels.
    direction : Tensor of shape (n, n_features)
        Perturbations within the ball: at x + direction the label's logit has fallen below every
        other, by as much as it was above at x.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, direction: Tensor) -> None:
        super().__init__()
        self.model = model
        self.x, self.y = x, y
        with torch.no_grad():
            highest = (-margin_loss(model(x), y)).abs().max()
        length = direction.square().sum(1, keepdim=True).clamp_min(1e-12)
        self.slope = (2 * highest + 1) * direction / length

    def forward(self, points: Tensor) -> Tensor:
        """Return logits (n, n_classes) of features (n, n_features)."""
        repeats = len(points) // len(self.x)
        moved = points - self.x.repeat(repeats, 1)
        fall = (moved * self.slope.repeat(repeats, 1)).sum(1, keepdim=True)
        logits: Tensor = self.model(points)
        of_label = torch.zeros_like(logits).scatter(1, self.y.repeat(repeats).unsqueeze(1), 1.0)
        return logits - fall * of_label
