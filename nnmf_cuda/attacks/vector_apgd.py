"""APGD for feature vectors and random models: any loss, any box, the best point of every sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks._ascent import climb
from nnmf_cuda.attacks.balls import BALLS, Ball, Box
from nnmf_cuda.attacks.checks import check_ball, frozen, isolated
from nnmf_cuda.attacks.objectives import ExpectedLoss, Objective, is_random, standing

__all__ = ["ascend", "ascend_objective", "vector_apgd"]

N_JUDGED = 20
"""Answers of a random model by which the best of several points is chosen."""


def vector_apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attack_eps: float,
    norm: str = "Linf",
    box: Box = (0.0, 1.0),
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
    attack_eps : float
        Radius of the ball, in units of the features.
    norm : {"Linf", "L2"}, default="Linf"
        Norm of the ball.
    box : pair of float or Tensor of shape (n_features,), default=(0, 1)
        Lowest and highest value of each feature.
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
    nnmf_cuda.attacks.apgd.apgd_attack : as the authors run it, for samples that still hold.
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
            attack_eps=attack_eps,
            norm=norm,
            box=box,
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
    attack_eps: float,
    norm: str = "Linf",
    box: Box = (0.0, 1.0),
    n_iter: int = 100,
    n_restarts: int = 1,
    starts: Sequence[Tensor] = (),
) -> Tensor:
    """Climb any objective, and return of each sample the point that `judge` is worst on.

    The arguments are those of `vector_apgd`; draws from torch's generators as they are.
    """
    check_ball(x, attack_eps=attack_eps, norm=norm, box=box)
    if n_iter < 1 or n_restarts + len(starts) < 1:
        raise ValueError(f"n_iter={n_iter}, n_restarts={n_restarts}: need at least one of each")
    ball = BALLS[norm](x, attack_eps, box)
    n_judged = N_JUDGED if is_random(judge, x) else 1
    best, reached = x.clone(), standing(judge, x, y, n_judged)
    for start in [*starts, *[None] * n_restarts]:
        begin = ball.random_start() if start is None else start.clone()
        points = ascend(objective, ball, begin, n_iter=n_iter)
        worse = standing(judge, points, y, n_judged)
        better = worse > reached
        best = torch.where(better.unsqueeze(1), points, best)
        reached = torch.where(better, worse, reached)
    return best


def ascend(objective: Objective, ball: Ball, start: Tensor, *, n_iter: int) -> Tensor:
    """Climb an objective from one start by APGD's steps; returns the points of highest loss."""

    def evaluate(leaf: Tensor, gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            losses = objective(leaf)
            (found,) = torch.autograd.grad(losses.sum(), leaf)
        gradient.copy_(found)
        return losses.detach().unsqueeze(1)

    ball.project_(start)
    with torch.no_grad():
        return climb(evaluate, ball, start, n_iter=n_iter)
