"""One mini-batch at a time: online NNMF with statistics that forget (`NNMF.partial_fit`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.nnmf.problem import Objective, Problem
from nnmf_cuda.nnmf.projection import updated_W
from nnmf_cuda.nnmf.row_sums import denominators_of_H
from nnmf_cuda.reference.nnmf import CLAMP, mm_exponent


@dataclass(frozen=True)
class Statistics:
    """What is remembered of the rows seen: H = (numerator / denominator) ** gamma."""

    numerator: Tensor  # (n_components, n_features)
    denominator: Tensor  # (n_components, n_features)


def minibatch_step(
    problem: Problem, H: Tensor, past: Statistics, *, n_iter: int, forget_factor: float
) -> tuple[Tensor, Statistics]:
    """Find the W of the rows X by `n_iter` updates, then update H from all that is remembered.

    The steps are those of :meth:`sklearn.decomposition.MiniBatchNMF.partial_fit`, except where the
    rows say nothing of H, having no share of a component or nothing that counts in a column: there
    H stays, which scikit-learn lowers by numbers that do not have the units of X. The numerators
    of the update of H are not computed again: they are what `ops.nnmf_mu` has multiplied H by,
    times denominators that do not need X.
    """
    beta_loss = problem.objective.beta_loss
    gamma = mm_exponent(beta_loss)
    W, updated, _ = problem.updated(updated_W(problem, H, n_iter=n_iter - 1), H, 1)
    denominator = _denominator(W, H, problem.objective, problem.X)
    statistics = Statistics(
        forget_factor * past.numerator + updated ** (1 / gamma) * denominator,
        forget_factor * past.denominator + denominator,
    )
    # Of less the quotient would be that of two roundings; NaN is the caller's to report.
    limits = torch.finfo(H.dtype)
    unknown = statistics.denominator < limits.tiny / limits.eps
    quotient = statistics.numerator / statistics.denominator.masked_fill(unknown, 1)
    moved = torch.where(unknown, H, quotient**gamma)
    if beta_loss <= 1:
        moved = moved.masked_fill(moved < CLAMP, 0)
    return torch.cat((H[: problem.n_fixed], moved[problem.n_fixed :])), statistics


def statistics_of_start(H: Tensor, mean: float, beta_loss: float) -> Statistics:
    """Return what a stream begins with at H (k, f), for X of this mean.

    At the mean 1 they are those of scikit-learn, H and ones; at another they weigh as much beside
    those of a mini-batch, whose denominators have the units of W^T (W H)^(beta_loss - 1), where W
    and H have those of sqrt(mean).
    """
    unit = mean ** (beta_loss - 0.5)
    of_power = mean ** (0.5 / mm_exponent(beta_loss) - 0.5)  # of H ** (1 / gamma) beside H
    return Statistics(of_power * unit * H, unit * torch.ones_like(H))


def statistics_of_fit(W: Tensor, H: Tensor, objective: Objective, X: Matrix) -> Statistics:
    """Return what a fit that ended at W (n, k), H (k, f) would remember of its rows.

    All their entries count alike: the weights that they had are not kept. They were dealt among
    processes as those of X are.
    """
    denominator = _denominator(W, H, objective, X, weighted=False)
    return Statistics(H ** (1 / mm_exponent(objective.beta_loss)) * denominator, denominator)


def _denominator(
    W: Tensor, H: Tensor, objective: Objective, X: Matrix, *, weighted: bool = True
) -> Tensor:
    """Return the denominators (k, f) of the update of H, as `ops.nnmf_mu` has them.

    With the weights of X, where it has some. They are 0 where the rows say nothing of H.
    """
    penalty = objective.penalty
    of_loss = {"beta_loss": objective.beta_loss, "floor": objective.floor}
    total = denominators_of_H(X, W[None], H[None], **of_loss, weighted=weighted and X.weighted)[0]
    return total.to(H.dtype) + penalty.l1_reg_H + penalty.l2_reg_H * H
