"""Gradient ascent in a ball: APGD, whose steps halve where they stop helping, and PGD.

`vector_apgd` is the attack on feature vectors and random models: any loss, any box, the worst point
of every sample. `Ascent` is what climbs below it, which AutoAttack's APGD shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.balls import Ball, Box, Threat
from nnmf_cuda.attacks.objectives import ExpectedLoss, Objective, is_random, wrongness
from nnmf_cuda.graphs import Repeated
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
            asked=model,
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
    asked: object = None,
) -> Tensor:
    """Climb any objective, and return of each sample the point that `judge` is worst on.

    `asked` is the model that the objective calls, by which a step may be a CUDA graph (`Repeated`).
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

    ascent = Ascent(evaluate, ball, n_iter=n_iter, asked=asked)
    for start in [*starts, *[None] * n_restarts]:
        points = ball.random_start() if start is None else start.clone()
        ball.project_(points)
        points = ascent.climb(points)
        wrong = wrongness(judge, points, y, n_judged)
        worse = wrong > reached
        worst = torch.where(worse.unsqueeze(1), points, worst)
        reached = torch.where(worse, wrong, reached)
    return worst


class Ascent:
    """Goes up from one start after the other, all around the same centers.

    `asked` is the model that `evaluate` calls; by it a step may be a CUDA graph (`Repeated`).
    """

    def __init__(
        self, evaluate: Evaluate, ball: Ball, *, n_iter: int, asked: object = None
    ) -> None:
        self._at = _Climber(evaluate, ball)
        self._checkpoints = [_checkpoints(n_iter).get(i) for i in range(n_iter)]
        step = partial(self._at.take_step, _OWN_STEP)
        self._step = Repeated(step, ball.centers.device, name="a step of APGD", asked=asked)

    @torch.no_grad()
    def climb(self, start: Tensor) -> Tensor:
        """Return the points of highest loss (n, M) on the way up from a start (n, M).

        The loss is asked once at the start and once after each step. On a GPU, nothing waits for
        the device. The points are changed by the next start.
        """
        self._at.begin(start)
        for i, window in enumerate(self._checkpoints):
            if i == 0:
                self._at.take_step(1.0)
            else:
                self._step()
            if window is not None:
                self._at.judge(window)
        return self._at.best_points


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


class _Climber:
    """Where the samples are on their way up: all that a step reads and changes.

    From the first start on no tensor leaves its place, so that a step can be recorded.
    """

    size: Tensor  # (n, 1), of each sample's step
    _best_losses: Tensor  # (n, 1), at the best points
    _last_losses: Tensor  # (n, 1), at the present ones
    _rises: Tensor  # (n, 1) int64: steps since the last checkpoint in which the loss rose
    _judged_best: Tensor  # (n, 1): the best losses at the last checkpoint
    _judged_stuck: Tensor  # (n, 1) bool: who had got stuck by then

    def __init__(self, evaluate: Evaluate, ball: Ball) -> None:
        self._evaluate, self._ball = evaluate, ball
        like = ball.centers
        self._points, self._gradient = torch.empty_like(like), torch.empty_like(like)
        self._leaf = self._points.detach().requires_grad_()  # the same memory, for the model
        self.best_points, self._best_gradient = torch.empty_like(like), torch.empty_like(like)
        self._previous, self._change = torch.empty_like(like), torch.empty_like(like)
        self._proposed = torch.empty_like(like)
        self._has_begun = False

    def begin(self, start: Tensor) -> None:
        """Forget what was before, and be at a start (n, M)."""
        self._points.copy_(start)
        self._previous.copy_(start)
        losses = self._evaluate(self._leaf, self._gradient)
        if not self._has_begun:
            self.size = torch.empty_like(losses)
            self._best_losses = torch.empty_like(losses)
            self._last_losses = torch.empty_like(losses)
            self._rises = torch.empty_like(losses, dtype=torch.int64)
            self._judged_best = torch.empty_like(losses)
            self._judged_stuck = torch.empty_like(losses, dtype=torch.bool)
            self._has_begun = True
        torch.mul(torch.ones_like(losses), 2 * self._ball.radius, out=self.size)
        self.best_points.copy_(start)
        self._best_gradient.copy_(self._gradient)
        self._best_losses.copy_(losses)
        self._judged_best.copy_(losses)
        self._judged_stuck.fill_(True)
        # So the authors' implementation judges the first step: against 0, not against the loss at
        # the start.
        self._last_losses.zero_()
        self._rises.zero_()

    def take_step(self, own: float) -> None:
        """Go a step, of which the share `own` is that of this step, the rest momentum."""
        points, change, proposed = self._points, self._change, self._proposed
        torch.sub(points, self._previous, out=change)
        self._previous.copy_(points)
        self._ball.step(points, self._gradient, self.size, out=proposed)
        proposed.sub_(points).mul_(own).add_(points).add_(change.mul_(1 - own))
        self._ball.project_(proposed)
        points.copy_(proposed)

        losses = self._evaluate(self._leaf, self._gradient)
        self._rises += losses > self._last_losses
        self._last_losses.copy_(losses)
        better = losses > self._best_losses
        torch.where(better, points, self.best_points, out=self.best_points)
        torch.where(better, self._gradient, self._best_gradient, out=self._best_gradient)
        torch.where(better, losses, self._best_losses, out=self._best_losses)

    def judge(self, n_steps: int) -> None:
        """Halve the step, and go back to the best point, where samples have got stuck.

        That is where the loss rose in few of the `n_steps` since the last checkpoint, or its best
        has not moved since at a size that was kept there.
        """
        stuck = self._rises <= _RISING_SHARE * n_steps
        stuck |= ~self._judged_stuck & (self._judged_best >= self._best_losses)
        self._judged_stuck.copy_(stuck)
        self._judged_best.copy_(self._best_losses)
        self._rises.zero_()
        torch.where(stuck, self.size / 2, self.size, out=self.size)
        torch.where(stuck, self.best_points, self._points, out=self._points)
        torch.where(stuck, self._best_gradient, self._gradient, out=self._gradient)


def pgd(
    objective: Objective, ball: Ball, start: Tensor, *, n_iter: int, asked: object = None
) -> Tensor:
    """Climb an objective by `n_iter` equal steps; returns the last points (n, n_features).

    What adversarial training defends from. Madry, Makelov, Schmidt, Tsipras & Vladu (2018), Towards
    deep learning models resistant to adversarial attacks, ICLR. With `asked`, the model that the
    objective calls, a step may be a CUDA graph; without, it is made as it is, which can itself be
    part of one.
    """
    size = torch.ones_like(start[:, :1]) * (REACH * ball.radius / n_iter)
    points, moved = start.detach().clone(), torch.empty_like(start)
    ball.project_(points)
    leaf = points.detach().requires_grad_()  # the same memory, for the model

    def step() -> None:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(leaf).sum(), leaf)
        ball.step(points, gradient, size, out=moved)
        points.copy_(moved)

    repeated = step
    if asked is not None:
        repeated = Repeated(step, points.device, name="a step of PGD", asked=asked)
    for _ in range(n_iter):
        repeated()
    return points
