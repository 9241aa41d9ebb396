"""Non-negative least squares for many right-hand sides, and its gradient.

The active-set method is Lawson & Hanson (1974, chapter 23) in the Gram form of Bro & De Jong
(1997), with all rows of a problem advanced together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnmf_cuda.reference.nnmf import as_float

__all__ = ["nnls", "nnls_backward", "project"]

_SYSTEM_ENTRIES = 2**22
"""Entries of the (rows, k, k) systems that are in memory together."""

_EPS = torch.finfo(torch.float64).eps


def nnls(gram: Tensor, cross: Tensor) -> Tensor:
    """Solve min_{h>=0} 1/2 h G h^T - c h^T for every row c of `cross`.

    gram (B, k, k) is symmetrised and factorised in float64; cross (B, n, k); returns (B, n, k).
    Rows with NaN or infinity, and all rows of such a gram, become NaN.
    """
    solved = torch.empty_like(cross, memory_format=torch.contiguous_format)
    for problem, (G, C) in enumerate(zip(_symmetric(gram), cross.double(), strict=True)):
        for rows in _blocks(*C.shape):
            finite = C[rows].isfinite().all(1, keepdim=True) & G.isfinite().all()
            h = _active_set(G.nan_to_num(), C[rows].nan_to_num())
            solved[problem, rows] = h.masked_fill(~finite, torch.nan).to(cross.dtype)
    return solved


def project(X: Tensor, H: Tensor) -> Tensor:
    """Solve min_{h>=0} ||x - h H||^2 for every row x of X; X (n, f) or (B, n, f), H (B, k, f)."""
    gram = H.double() @ H.double().mT
    return nnls(gram, as_float(X, H.dtype) @ H.mT)


def nnls_backward(gram: Tensor, h: Tensor, grad: Tensor) -> Tensor:
    """Solve G_FF u_F = grad_F on the free variables F = {h > 0} of each row, u = 0 elsewhere.

    gram (B, k, k); h and grad (B, n, k); returns float64 (B, n, k), of least norm where G_FF is
    singular. It is the gradient to cross; the one to gram is -(u^T h + h^T u) / 2.
    """
    u = torch.zeros(grad.shape, dtype=torch.float64, device=grad.device)
    for problem, G in enumerate(_symmetric(gram)):
        for rows in _blocks(*grad.shape[1:]):
            free = h[problem, rows] > 0
            u[problem, rows] = _solve_free(G, grad[problem, rows].double(), free, rank_rtol=1e-12)
    return u


def _blocks(n: int, k: int) -> list[slice]:
    """Cut n rows into slices whose (rows, k, k) systems fit into memory."""
    size = max(1, _SYSTEM_ENTRIES // max(1, k * k))
    return [slice(start, start + size) for start in range(0, n, size)]


def _symmetric(gram: Tensor) -> Tensor:
    return (gram.double() + gram.double().mT) / 2


def _active_set(G: Tensor, C: Tensor) -> Tensor:
    """Lawson-Hanson for the rows of C (n, k); every accepted step lowers the objective."""
    n, k = C.shape
    h = torch.zeros_like(C)
    free = torch.zeros_like(C, dtype=torch.bool)
    # Entered and thrown out at once by rounding: not offered again until the row makes progress.
    blocked = torch.zeros_like(free)
    rows = torch.arange(n, device=C.device)
    for _ in range(30 * k):  # a bound against rounding only; about k steps are usual
        descent = C[rows] - h[rows] @ G
        scale = torch.maximum(C[rows].abs(), h[rows] @ G.abs()).amax(1, keepdim=True)
        eligible = ~free[rows] & ~blocked[rows] & (descent > 10 * k * _EPS * scale)
        unfinished = eligible.any(1)
        rows = rows[unfinished]
        if rows.numel() == 0:
            break
        entering = descent[unfinished].masked_fill(~eligible[unfinished], -torch.inf).argmax(1)
        free[rows, entering] = True
        _restore_feasibility(G, C, h, free, rows)
        stayed = free[rows, entering]
        blocked[rows[stayed]] = False
        blocked[rows[~stayed], entering[~stayed]] = True
    return h


def _restore_feasibility(G: Tensor, C: Tensor, h: Tensor, free: Tensor, rows: Tensor) -> None:
    """Move `h[rows]` to the optimum of its free set, dropping variables that would go negative."""
    while rows.numel():
        goal = _solve_free(G, C[rows], free[rows])
        negative = free[rows] & (goal <= 0)
        feasible = ~negative.any(1)
        h[rows[feasible]] = goal[feasible]
        rows, goal, negative = rows[~feasible], goal[~feasible], negative[~feasible]
        here = h[rows]
        step = torch.where(negative, here / (here - goal), torch.inf).nan_to_num(
            0, posinf=torch.inf
        )
        moved = here + step.amin(1, keepdim=True) * (goal - here)
        dropped = free[rows] & ((step == step.amin(1, keepdim=True)) | (moved <= 0))
        h[rows] = moved.masked_fill(dropped | ~free[rows], 0)
        free[rows] &= ~dropped


def _solve_free(G: Tensor, C: Tensor, free: Tensor, *, rank_rtol: float | None = None) -> Tensor:
    """Solve G_FF h_F = c_F for each row's free set F, with zeros elsewhere.

    Blocks with a pivot up to `rank_rtol` of the largest diagonal entry, by default rounding, are
    singular: they get the solution of least norm.
    """
    rank_rtol = free.shape[-1] * _EPS if rank_rtol is None else rank_rtol
    both = free.unsqueeze(-1) & free.unsqueeze(-2)
    block = torch.where(both, G, 0)
    rhs = torch.where(free, C, 0).unsqueeze(-1)
    factor, failed = torch.linalg.cholesky_ex(block + torch.diag_embed((~free).to(G.dtype)))
    goal = torch.cholesky_solve(rhs, factor)
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    largest = block.diagonal(dim1=-2, dim2=-1).amax(-1)
    smallest = torch.where(free, pivots.square(), torch.inf).amin(-1)
    singular = (failed > 0) | (smallest <= rank_rtol * largest)
    if bool(singular.any()):
        inverse = torch.linalg.pinv(block[singular], hermitian=True, rtol=rank_rtol)
        goal[singular] = inverse @ rhs[singular]
    return goal.squeeze(-1)
