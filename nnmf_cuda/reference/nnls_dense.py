"""Non-negative least squares by QR factorisations of columns, for matrices of any condition.

Lawson & Hanson (1974), chapter 23, with all rows of a problem advanced together and without a
tolerance on the gradient: at a condition number of 1e8 one of 1e-16 can hide a distance of 1e-8.
Gradients come from what is left of b after two projections, so that they have the digits of that,
not of b.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnmf_cuda.reference.nnls import restore_feasibility

__all__ = ["nnls_dense", "solve_normal_equations"]

_SYSTEM_ENTRIES = 2**22
"""Entries of the systems of several rows that are in memory together."""

_EPS = torch.finfo(torch.float64).eps


def nnls_dense(A: Tensor, B: Tensor, start: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Solve min_{h>=0} ||A h^T - b^T|| for every row b of B (n, m), with A (m, k), in float64.

    `start` (n, k) are the free variables to begin with. Returns h, the variables that are free at
    the end, both (n, k), and how many have changed sides (n,). A row may end where its KKT residual
    is at most `tol`. Rows with NaN or infinity, and all rows of such an A, become NaN.
    """
    finite = B.isfinite().all(1) & A.isfinite().all()
    R, unit, Q = _triangle(A.nan_to_num(posinf=0, neginf=0))
    targets = B.nan_to_num(posinf=0, neginf=0) @ Q
    cross = (targets @ R / unit).abs()
    slack = tol * (cross.amax(1, keepdim=True) if A.shape[1] else cross) * unit
    h, free = torch.zeros_like(start, dtype=torch.float64), start & finite.unsqueeze(1)
    pivots = torch.zeros(len(B), dtype=torch.int64, device=B.device)
    for rows in _blocks(len(B), R):
        x, free[rows], pivots[rows] = _search(R, targets[rows], free[rows], slack[rows])
        h[rows] = x * unit
    return h.masked_fill(~finite.unsqueeze(1), torch.nan), free, pivots


def solve_normal_equations(A: Tensor, free: Tensor, C: Tensor) -> Tensor:
    """Solve A_F^T A_F u_F = c_F on each row's free set F.

    A (m, k), free and C (n, k); returns u (n, k), zero elsewhere. The free columns of A must be
    independent.
    """
    R, unit, _ = _triangle(A)
    u = torch.zeros_like(C)
    for rows in _blocks(len(C), R):
        order, own, _, T = _factorise(R, free[rows])
        right = torch.where(own, (C[rows] * unit).gather(1, order), 0).unsqueeze(-1)
        half = torch.linalg.solve_triangular(T.mT, right, upper=False)
        solved = torch.linalg.solve_triangular(T, half, upper=True).squeeze(-1)
        u[rows] = torch.zeros_like(C[rows]).scatter(1, order, torch.where(own, solved, 0)) * unit
    return u


def _triangle(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return R and Q of A with columns scaled by powers of two to a norm near one, and these."""
    largest = A.abs().amax(0) if len(A) else A.new_zeros(A.shape[1])
    largest = torch.where(largest > 0, largest, 1)
    norms = largest * torch.linalg.vector_norm(A / largest, dim=0)
    unit = torch.where(norms > 0, torch.exp2(-norms.log2().round()), 1)
    Q, R = torch.linalg.qr(A * unit)
    return R, unit, Q


def _blocks(n: int, R: Tensor) -> list[slice]:
    """Cut n rows into slices whose systems fit into memory."""
    size = max(1, _SYSTEM_ENTRIES // max(1, sum(R.shape) * R.shape[1]))
    return [slice(start, start + size) for start in range(0, n, size)]


def _factorise(R: Tensor, free: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Factorise the free columns of each row, and the identity where a row has fewer than others.

    Returns where the columns come from and which are a row's own, both (n, most), and Q and R.
    """
    count = free.sum(1, keepdim=True)
    most = int(count.max()) if free.numel() else 0
    order = free.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    own = torch.arange(most, device=free.device) < count
    columns = torch.where(own.unsqueeze(1), R.mT[order].mT, 0)
    Q, T = torch.linalg.qr(torch.cat([columns, torch.diag_embed((~own).to(R.dtype))], 1))
    return order, own, Q[:, : len(R)], T


def _solve(R: Tensor, b: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Return the minimisers over the free variables and b less its projections onto their columns.

    A variable that depends on those before it is NaN. What is left of b is orthogonal to the
    columns as far as its own size goes, not that of b, so that small gradients have a sign.
    """
    order, own, Q, T = _factorise(R, free)
    pivots = T.diagonal(dim1=-2, dim2=-1)
    dependent = own & (pivots.abs() <= 4 * max(R.shape) * _EPS)
    pivots.masked_fill_(dependent, 1)
    right = (b.unsqueeze(1) @ Q).mT
    left = b.unsqueeze(-1) - Q @ right
    left = left - Q @ (Q.mT @ left)
    solved = torch.linalg.solve_triangular(T, right, upper=True).squeeze(-1)
    solved = torch.where(own, solved.masked_fill(dependent, torch.nan), 0)
    goal = torch.zeros(free.shape, dtype=b.dtype, device=b.device).scatter(1, order, solved)
    return goal, left.squeeze(-1)


def _search(R: Tensor, b: Tensor, free: Tensor, slack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lawson-Hanson from the free variables that are positive at their optimum."""
    k = R.shape[1]
    x, free, left, pivots = _keep_positive(R, b, free)
    exact = _EPS * torch.linalg.vector_norm(b, dim=1)

    def solve(rows: Tensor) -> Tensor:
        goal, left[rows] = _solve(R, b[rows], free[rows])
        return goal

    # Thrown out at once: not offered again until another variable has entered.
    blocked = torch.zeros_like(free)
    rows = torch.arange(len(b), device=b.device)
    for _ in range(30 * k):  # a bound against rounding only; about k steps are usual
        descent = left[rows] @ R
        distance = torch.linalg.vector_norm(left[rows], dim=1, keepdim=True)
        least = torch.maximum(slack[rows], k * _EPS * distance)
        eligible = ~free[rows] & ~blocked[rows] & (descent > least)
        unfinished = eligible.any(1) & (distance.squeeze(1) > exact[rows])
        rows = rows[unfinished]
        if rows.numel() == 0:
            break
        entering = descent[unfinished].masked_fill(~eligible[unfinished], -torch.inf).argmax(1)
        each = torch.arange(len(rows), device=b.device)
        trial = free[rows]
        trial[each, entering] = True
        goal, _ = _solve(R, b[rows], trial)
        fits = goal[each, entering] > 0  # and not NaN: independent of the others
        blocked[rows[~fits], entering[~fits]] = True
        rows, trial = rows[fits], trial[fits]
        free[rows] = trial
        restore_feasibility(solve, x, free, rows)
        pivots[rows] += 1 + (trial & ~free[rows]).sum(1)
        blocked[rows] = False
    return x, free, pivots


def _keep_positive(R: Tensor, b: Tensor, free: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take away free variables that depend on others or are not positive, until none is left.

    Returns x, the free variables, what is left of b, and how many have gone.
    """
    free, left = free.clone(), b.clone()
    x = torch.zeros(free.shape, dtype=b.dtype, device=b.device)
    pivots = torch.zeros(len(b), dtype=torch.int64, device=b.device)
    rows = torch.arange(len(b), device=b.device)
    while rows.numel():
        x[rows], left[rows] = _solve(R, b[rows], free[rows])
        leaving = free[rows] & ~(x[rows] > 0)
        free[rows] &= ~leaving
        pivots[rows] += leaving.sum(1)
        rows = rows[leaving.any(1)]
    return x, free, left, pivots
