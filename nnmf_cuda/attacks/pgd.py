"""Projected gradient ascent with a fixed step: what adversarial training defends from."""

from __future__ import annotations

import torch
from torch import Tensor

from nnmf_cuda.attacks.balls import Ball
from nnmf_cuda.attacks.objectives import Objective

__all__ = ["pgd"]

_REACH = 2.5
"""Steps add up to this many radii, so that any point of the ball can be reached: Madry et al."""


def pgd(objective: Objective, ball: Ball, start: Tensor, *, n_iter: int) -> Tensor:
    """Climb an objective by equal steps; returns the last points (n, n_features).

    Parameters
    ----------
    objective : callable
        Maps points to losses (n,), differentiably.
    ball : Ball
        Where points stay.
    start : Tensor of shape (n, n_features)
        Not modified.
    n_iter : int
        Steps, each of 2.5 radii over `n_iter`.

    References
    ----------
    .. [1] Madry, Makelov, Schmidt, Tsipras & Vladu (2018), Towards deep learning models resistant
       to adversarial attacks, ICLR.
    """
    size = torch.full_like(start[:, :1], _REACH * ball.radius / n_iter)
    points, moved = start.clone(), torch.empty_like(start)
    ball.project_(points)
    for _ in range(n_iter):
        leaf = points.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(leaf).sum(), leaf)
        points = leaf.detach()
        ball.step(points, gradient, size, out=moved)
        points.copy_(moved)
    return points
