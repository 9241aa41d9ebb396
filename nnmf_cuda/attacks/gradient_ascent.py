"""Gradient ascent in a ball: APGD, whose steps halve where they stop helping, and PGD.

`vector_apgd` is the attack on feature vectors and random models: any loss, any box, the worst point
of every sample. `climb` is the ascent below it, which AutoAttack's APGD shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.balls import Ball, Box, Threat
from nnmf_cuda.attacks.objectives import ExpectedLoss, Objective, is_random, wrongness
from nnmf_cuda.models.networks import frozen, isolated

N_JUDGED = 20
"""Answers of a random model by which the worst of several points is chosen."""

Evaluate = Callable[[Tensor, Tensor], Tensor]
"""Maps a leaf (n, M) to its losses (n, 1), and writes their gradient (n, M) into the second."""

# Share of the last step that the momentum replaces, from the second step on.
_OWN_STEP = 0.75
# A step is halved unless the loss rose in more than this share of a window's steps.
_RISING_SHARE = 0.75
# PGD's steps add up to this many radii, so that any point of the ball can be reached: Madry et al.
REACH = 2.5


def vector_apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attack_eps: float | Tensor,
    norm: str = "Linf",
    box: Box = (0.0, 1.0),
    keeps_length: bool = False,
    loss: str = "margin",
    n_iter: int = 100,
    n_restarts: int = 5,
    eot_iter: int = 1,
    eot_share: float = 1.0,
    starts: Sequence[Tensor] = (),
    judge: nn.Module | None = None,
    seed: int = 0,
) -> Tensor:
    """Return the worst point that was found for every sample, whether it breaks the model or not.

    Parameters
    ----------
    model : nn.Module
        What is climbed: maps features (n, n_features) to logits (n, n_classes), differentiably.
        Asked in evaluation mode.
    x : Tensor of shape (n_samples, n_features)
        Features, inside the box.
    y : Tensor of shape (n_samples,)
        int64 labels.
    attack_eps : float or Tensor of shape (n_features,)
        Radius of the ball, in units of the features; under Linf each feature may have its own.
    norm : {"Linf", "L2"}, default="Linf"
        Norm of the ball.
    box : pair of float or Tensor of shape (n_features,), default=(0, 1)
        Lowest and highest value of each feature.
    keeps_length : bool, default=False
        Keep to points as long as their samples; see `Threat`.
    loss : {"margin", "ce", "dlr"}, default="margin"
        What is climbed; "dlr" needs three classes.
    n_iter, n_restarts : int, default=100, 5
        Steps from a start, and random starts.
    eot_iter : int, default=1
        Answers of a random model that each step averages, as one pass.
    eot_share : float, default=1
        Share of these answers that counts, those nearest to being wrong; see `ExpectedLoss`.
    starts : sequence of Tensor of shape (n_samples, n_features), optional
        Points to climb from beside the random starts, such as those of another attack.
    judge : nn.Module, optional
        By whose answers the best point is chosen, where it is not `model`: the attacked model of
        which `model` is a surrogate.
    seed : int, default=0
        Seeds torch's generators, which are put back afterwards.

    Returns
    -------
    Tensor of shape (n_samples, n_features)
        Within ball and box. Of a random model the point is chosen by answers of its own, which
        say nothing of later ones: ask again to measure it.

    Raises
    ------
    ValueError
        If x leaves the box, or settings do not fit.

    See Also
    --------
    nnmf_cuda.attacks.autoattack.apgd.apgd_attack : as its authors run it.
    """
    if not 0 < eot_share <= 1:
        raise ValueError(f"eot_share must be in (0, 1], got {eot_share}")
    objective = ExpectedLoss(model, y, loss, eot_iter, eot_share)
    with frozen(model), isolated(seed):
        return ascend_objective(
            objective,
            judge or model,
            x,
            y,
            threat=Threat(attack_eps, norm, box, keeps_length),
            n_iter=n_iter,
            n_restarts=n_restarts,
            starts=starts,
        )


def ascend_objective(
    objective: Objective,
    judge: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    n_iter: int = 100,
    n_restarts: int = 1,
    starts: Sequence[Tensor] = (),
) -> Tensor:
    """Climb any objective, and return of each sample the point that `judge` is worst on.

    The other arguments are those of `vector_apgd`; draws from torch's generators as they are.
    """
    threat.check_features(x)
    if n_iter < 1 or n_restarts + len(starts) < 1:
        raise ValueError(f"n_iter={n_iter}, n_restarts={n_restarts}: need at least one of each")
    ball = threat.ball(x)
    n_judged = N_JUDGED if is_random(judge, x) else 1
    worst, reached = x.clone(), wrongness(judge, x, y, n_judged)

    def evaluate(leaf: Tensor, gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            losses = objective(leaf)
            (found,) = torch.autograd.grad(losses.sum(), leaf)
        gradient.copy_(found)
        return losses.detach().unsqueeze(1)

    for start in [*starts, *[None] * n_restarts]:
        points = ball.random_start() if start is None else start.clone()
        ball.project_(points)
        with torch.no_grad():
            points = climb(evaluate, ball, points, n_iter=n_iter)
        wrong = wrongness(judge, points, y, n_judged)
        worse = wrong > reached
        worst = torch.where(worse.unsqueeze(1), points, worst)
        reached = torch.where(worse, wrong, reached)
    return worst


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

    def __init__(self, first_step: float | Tensor, losses: Tensor) -> None:
        self.size = torch.ones_like(losses) * first_step
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


def pgd(objective: Objective, ball: Ball, start: Tensor, *, n_iter: int) -> Tensor:
    """Climb an objective by `n_iter` equal steps; returns the last points (n, n_features).

    What adversarial training defends from. Madry, Makelov, Schmidt, Tsipras & Vladu (2018), Towards
    deep learning models resistant to adversarial attacks, ICLR.
    """
    size = torch.ones_like(start[:, :1]) * (REACH * ball.radius / n_iter)
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
