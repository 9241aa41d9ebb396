"""The ascent of APGD: steps along a gradient that halve where the loss stops rising."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nnmf_cuda.attacks.balls import Ball

__all__ = ["Evaluate", "climb"]

Evaluate = Callable[[Tensor, Tensor], Tensor]
"""Maps a leaf (n, M) to its losses (n, 1), and writes their gradient (n, M) into the second."""

# Share of the last step that the momentum replaces, from the second step on.
_OWN_STEP = 0.75
# A step is halved unless the loss rose in more than this share of a window's steps.
_RISING_SHARE = 0.75


def climb(evaluate: Evaluate, ball: Ball, start: Tensor, *, n_iter: int) -> Tensor:
    """Go up from a start (n, M), which is overwritten; returns the points of highest loss (n, M).

    The loss is asked once at the start and once after each step. On a GPU, no step waits for the
    device.
    """
    x_adv = start
    leaf = x_adv.detach().requires_grad_()  # the same memory, for the model
    gradient = torch.empty_like(x_adv)
    losses = evaluate(leaf, gradient)
    best = _Best(x_adv.clone(), gradient.clone(), losses)
    # Row i + 1 is of step i; row 0 stays 0. So the authors' implementation judges the first step:
    # against 0, not against the loss at the start.
    history = losses.new_zeros((n_iter + 1, *losses.shape))
    steps = _StepSizes(2 * ball.radius, losses)
    checkpoints = _checkpoints(n_iter)
    previous, change, proposed = x_adv.clone(), torch.empty_like(x_adv), torch.empty_like(x_adv)

    for i in range(n_iter):
        own = _OWN_STEP if i > 0 else 1.0
        torch.sub(x_adv, previous, out=change)
        previous.copy_(x_adv)
        ball.step(x_adv, gradient, steps.size, out=proposed)
        proposed.sub_(x_adv).mul_(own).add_(x_adv).add_(change.mul_(1 - own))
        ball.project_(proposed)
        x_adv.copy_(proposed)

        losses = evaluate(leaf, gradient)
        history[i + 1] = losses
        best.update(x_adv, gradient, losses)
        if i in checkpoints:
            stuck = steps.halve_where_stuck(history[i + 1 - checkpoints[i] : i + 2], best.losses)
            torch.where(stuck, best.points, x_adv, out=x_adv)
            torch.where(stuck, best.gradient, gradient, out=gradient)
    return best.points


def _checkpoints(n_iter: int) -> dict[int, int]:
    """Return the steps after which progress is judged, each with the length of its window.

    Windows of 22 % of the steps, each 3 % shorter than the one before, down to 6 %.
    """
    length, shorter, shortest = (max(int(share * n_iter), 1) for share in (0.22, 0.03, 0.06))
    checkpoints = {}
    step = length - 1
    while step < n_iter:
        checkpoints[step] = length
        length = max(length - shorter, shortest)
        step += length
    return checkpoints


@dataclass
class _Best:
    """Of each sample the point of highest loss so far, with gradient and loss (n, 1) there."""

    points: Tensor
    gradient: Tensor
    losses: Tensor

    def update(self, points: Tensor, gradient: Tensor, losses: Tensor) -> None:
        """Take over what is better."""
        better = losses > self.losses
        torch.where(better, points, self.points, out=self.points)
        torch.where(better, gradient, self.gradient, out=self.gradient)
        self.losses = torch.where(better, losses, self.losses)


class _StepSizes:
    """A step size for each sample (n, 1), halved at the checkpoints where it stopped helping."""

    def __init__(self, first_step: float, losses: Tensor) -> None:
        self.size = torch.full_like(losses, first_step)
        self._last_best = losses
        self._last_stuck = torch.ones_like(losses, dtype=torch.bool)

    def halve_where_stuck(self, window: Tensor, best: Tensor) -> Tensor:
        """Return where (n, 1) the loss hardly rose, or its best has not moved at a kept size.

        `window` holds the losses (steps + 1, n, 1) since the last checkpoint, and the one before.
        """
        n_steps = len(window) - 1
        n_rises = (window[1:] > window[:-1]).sum(0)
        stuck = n_rises <= _RISING_SHARE * n_steps
        stuck |= ~self._last_stuck & (self._last_best >= best)
        self._last_stuck, self._last_best = stuck, best
        self.size = torch.where(stuck, self.size / 2, self.size)
        return stuck
