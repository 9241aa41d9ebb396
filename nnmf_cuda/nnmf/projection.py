"""The W of rows whose components are known.

Those are new rows, a mini-batch, and the rows of a fit that holds H: what starts, streams and the
estimator share.
"""

from __future__ import annotations

from torch import Tensor

from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.nnmf.problem import Problem

TRANSFORM_SOLVERS = ("nnls", "mu", "same")


def solve_W(problem: Problem, H: Tensor, *, solver: str, n_iter: int) -> Tensor:
    """Return W (n, k) of the rows X on the components H (k, f); each row's result is its own.

    `solver` is one of `TRANSFORM_SOLVERS`; `n_iter` is the number of multiplicative updates, where
    those are made.
    """
    if solver == "nnls":
        return problem.X.project(H)
    if solver == "same" and problem.objective.beta_loss == 2:
        penalty = problem.objective.penalty
        return problem.X.project(H, l1_reg=penalty.l1_reg_W, l2_reg=penalty.l2_reg_W)
    return updated_W(problem, H, n_iter=n_iter)


def updated_W(problem: Problem, H: Tensor, *, n_iter: int) -> Tensor:
    """Run `n_iter` multiplicative updates of W from `constant_W`; H (k, f) is fixed."""
    if not problem.objective.signed and bool((H < 0).any()):
        raise ValueError(
            "components_ has entries below 0, as of a fit with solver='semi': multiplicative "
            "updates for X >= 0 would go astray; set the solver back, or fit anew"
        )
    start = constant_W(problem.X, H, signed=problem.objective.signed)
    return problem.updated(start, H, n_iter, update_H=False)[0]


def constant_W(X: Matrix, H: Tensor, *, signed: bool = False) -> Tensor:
    """Return the W (n, k) with one number in a row at which the row of W H has the mean of X's.

    Where X and H are `signed` means say nothing: there it is the largest share that a component
    alone would have, of either sign.
    """
    if signed:
        longest = H.square().sum(1).max()
        shares = X.product(H.mT).abs().amax(1, keepdim=True) / longest.masked_fill(longest == 0, 1)
        return shares.expand(-1, len(H)).contiguous()
    of_one = H.sum() / H.shape[1]  # the mean of W H for W of ones
    means = X.row_means().to(H.dtype) / of_one.masked_fill(of_one == 0, 1)
    return means.expand(-1, len(H)).contiguous()
