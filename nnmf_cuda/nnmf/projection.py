"""The W of rows whose components are known.

Those are new rows, a mini-batch, and the rows of a fit that holds H: what starts, streams and the
estimator share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.nnmf.inputs import product, row_means
from nnmf_cuda.nnmf.solvers import Problem

TRANSFORM_SOLVERS = ("nnls", "mu", "same")


def solve_W(problem: Problem, H: Tensor, *, solver: str, n_iter: int) -> Tensor:
    """Return W (n, k) of the rows X on the components H (k, f); each row's result is its own.

    `solver` is one of `TRANSFORM_SOLVERS`; `n_iter` is the number of multiplicative updates, where
    those are made.
    """
    if solver == "nnls":
        return ops.project(problem.X, H)
    if solver == "same" and problem.objective.beta_loss == 2:
        return _least_squares(problem, H)
    return updated_W(problem, H, n_iter=n_iter)


def updated_W(problem: Problem, H: Tensor, *, n_iter: int) -> Tensor:
    """Run `n_iter` multiplicative updates of W from `constant_W`; H (k, f) is fixed."""
    return problem.updated(constant_W(problem.X, H), H, n_iter, update_H=False)[0]


def constant_W(X: Tensor, H: Tensor) -> Tensor:
    """Return the W (n, k) with one number in a row at which the row of W H has the mean of X's."""
    of_one = H.sum() / H.shape[1]  # the mean of W H for W of ones
    means = row_means(X).to(H.dtype) / of_one.masked_fill(of_one == 0, 1)
    return means.expand(-1, len(H)).contiguous()


def _least_squares(problem: Problem, H: Tensor) -> Tensor:
    """Minimise half the squared error plus l1 sum(W) + l2 / 2 sum(W ** 2), exactly."""
    penalty = problem.objective.penalty
    if penalty.l1_reg_W == penalty.l2_reg_W == 0:
        return ops.project(problem.X, H)
    # The sums in float64, or components that are nearly dependent would lose what tells them apart.
    wide = H.double()
    ridge = penalty.l2_reg_W * torch.eye(len(H), dtype=wide.dtype, device=H.device)
    cross = product(problem.X, wide.mT) - penalty.l1_reg_W
    solution: Tensor = ops.nnls(wide @ wide.mT + ridge, cross).to(H.dtype)
    return solution
