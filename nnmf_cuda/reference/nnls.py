"""Non-negative least squares for many right-hand sides, and its gradient.

Block principal pivoting of Kim & Park (2011) exchanges many variables at once; a row that it does
not bring to its end is solved by the active-set method of Lawson & Hanson (1974, chapter 23) in the
Gram form of Bro & De Jong (1997). All rows of a problem advance together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nnmf_cuda.reference.nnmf import as_float

__all__ = ["nnls", "nnls_backward", "prepare_components", "project"]

_SYSTEM_ENTRIES = 2**22
"""Entries of the (rows, k, k) systems that are in memory together."""

_PACKED_COMPONENTS = 256
"""Up to as many a warp of a GPU multiplies with H feature by feature."""

_EPS = torch.finfo(torch.float64).eps
_MOST_EXCHANGES = 40
_PATIENCE = 3
"""Exchanges of all variables on the wrong side that may follow each other without progress."""


def nnls(
    gram: Tensor, cross: Tensor, passive: Tensor | None = None, *, tol: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve min_{h>=0} 1/2 h G h^T - c h^T for every row c of `cross`.

    gram (B, k, k) is symmetrised and factorised in float64; cross (B, n, k); `passive` (B, n, k)
    are the free variables to start from, by default all. Returns h, the variables that are free at
    the end, both (B, n, k), and how many have changed sides (B, n). A row may end where its KKT
    residual is at most `tol` times its largest abs(c). Rows with NaN or infinity, and all rows of
    such a gram, become NaN.
    """
    solved = torch.empty_like(cross, memory_format=torch.contiguous_format)
    free = torch.zeros(cross.shape, dtype=torch.bool, device=cross.device)
    pivots = torch.zeros(cross.shape[:-1], dtype=torch.int64, device=cross.device)
    for b, (G, C) in enumerate(zip(_symmetric(gram), cross.double(), strict=True)):
        usable = G.isfinite().all()
        unit = _units(G)
        scaled = G.nan_to_num() * unit * unit.unsqueeze(1)
        for rows in _blocks(*C.shape):
            finite = C[rows].isfinite().all(1) & usable
            c = C[rows].nan_to_num()
            slack = tol * _largest(c).unsqueeze(1) * unit
            problem = _Rows(scaled, c * unit, slack)
            start = None if passive is None else passive[b, rows]
            x, free[b, rows], pivots[b, rows] = _solve(problem, start)
            h = (x * unit).masked_fill(~finite.unsqueeze(1), torch.nan)
            solved[b, rows] = h.to(cross.dtype)
            free[b, rows] &= finite.unsqueeze(1)
            pivots[b, rows] *= finite
    return solved, free, pivots


def prepare_components(H: Tensor) -> tuple[Tensor, Tensor]:
    """Return room for what kernels keep of H (B, k, f), with nothing in it: `project` looks at H.

    That is H once more, feature by feature, on a GPU where its kernels read it so, and float64
    numbers for each problem.
    """
    B, k, f = H.shape
    reads = H.is_cuda and k <= min(_PACKED_COMPONENTS, f)
    width = max(8, 1 << (k - 1).bit_length()) if k else 8
    grams = H.new_zeros((B, 2 * k * k + 50 * k + 8), dtype=torch.float64)
    return H.new_zeros((B, f if reads else 0, width)), grams


def project(
    X: Tensor,
    H: Tensor,
    passive: Tensor | None = None,
    packed: Tensor | None = None,
    grams: Tensor | None = None,
    *,
    tol: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve min_{h>=0} ||x - h H||^2 for every row x of X; X (n, f) or (B, n, f), H (B, k, f).

    All products are formed in float64; `packed` and `grams` are not looked at. The rest is as in
    `nnls`.
    """
    wide = H.double()
    h, free, pivots = nnls(
        wide @ wide.mT, as_float(X, torch.float64).double() @ wide.mT, passive, tol=tol
    )
    return h.to(H.dtype), free, pivots


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


def _units(G: Tensor) -> Tensor:
    """Return powers of two, which round nothing, that bring the diagonal into [1/2, 2]."""
    square = G.diagonal()
    usable = (square > 0) & square.isfinite()
    return torch.where(usable, torch.exp2(-(square.log2() / 2).round()), 1)


def _largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(-1) if rows.shape[-1] else rows.new_zeros(rows.shape[:-1])


@dataclass(frozen=True)
class _Rows:
    """Problems of one scaled Gram matrix G (k, k) with right-hand sides C (n, k).

    `slack` (n, k) is how far below zero the gradient of a variable that is held at zero may be.
    """

    G: Tensor
    C: Tensor
    slack: Tensor

    def of(self, rows: Tensor) -> _Rows:
        return _Rows(self.G, self.C[rows], self.slack[rows])

    def rounding(self, x: Tensor) -> Tensor:
        """Return the size of what is rounding in the gradients at x."""
        sums = x.abs().sum(1, keepdim=True)
        return 10 * x.shape[1] * _EPS * torch.maximum(self.C.abs(), sums)


def _solve(problem: _Rows, start: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, the free variables and the number of those that have changed sides."""
    x, free, pivots, unsolved = _block_pivoting(problem, start)
    if unsolved.numel():
        x[unsolved], free[unsolved], more = _active_set(problem.of(unsolved))
        pivots[unsolved] += more
    return x, free, pivots


def _block_pivoting(problem: _Rows, start: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Exchange all variables on the wrong side while that makes progress, then the last alone.

    The fourth result are the rows that are not solved: they meet singular systems or rounding, or
    do not end.
    """
    n, k = problem.C.shape
    cold = start is None
    free = torch.ones_like(problem.C, dtype=torch.bool) if start is None else start.clone()
    x = torch.zeros_like(problem.C)
    fewest = torch.full((n,), k + 1, device=x.device)
    patience, pivots = torch.full_like(fewest, _PATIENCE), torch.zeros_like(fewest)
    solved = torch.zeros(n, dtype=torch.bool, device=free.device)
    rows = torch.arange(n, device=free.device)
    for step in range(_MOST_EXCHANGES + cold):
        if rows.numel() == 0 or k == 0:
            break
        part, own = problem.of(rows), free[rows]
        _, factor, smallest = _factorise(part.G, own)
        singular = smallest <= 4 * k * _EPS
        goal = torch.cholesky_solve(torch.where(own, part.C, 0).unsqueeze(-1), factor).squeeze(-1)
        goal = torch.where(own & ~singular.unsqueeze(1), goal, 0)
        gradient, rounding = goal @ part.G - part.C, part.rounding(goal)
        wrong = torch.where(own, goal < 0, gradient < -torch.maximum(rounding, part.slack))
        exact = ~(own & ~(gradient.abs() <= 10 * rounding)).any(1)
        count = wrong.sum(1)
        ended = ~singular & (count == 0)
        x[rows], solved[rows] = goal, ended & exact

        progress = count < fewest[rows]
        whole = progress | (patience[rows] > 0)
        if step > 0 or not cold:  # that the unconstrained minimum is far says nothing
            fewest[rows] = torch.where(progress, count, fewest[rows])
            patience[rows] = torch.where(progress, _PATIENCE, (patience[rows] - 1).clamp_min(0))
        last = wrong & (wrong.flip(1).cumsum(1).flip(1) == 1)
        change = torch.where(whole.unsqueeze(1), wrong, last) & ~singular.unsqueeze(1)
        free[rows] = own ^ change
        pivots[rows] += change.sum(1)
        rows = rows[~ended & ~singular]
    return x, free, pivots, (~solved).nonzero().squeeze(1) if k else rows[:0]


def _active_set(problem: _Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Lawson-Hanson, from zero; every accepted step lowers the objective."""
    G, C = problem.G, problem.C
    n, k = C.shape
    h = torch.zeros_like(C)
    free = torch.zeros_like(C, dtype=torch.bool)
    pivots = torch.zeros(n, dtype=torch.int64, device=C.device)
    # Entered and thrown out at once by rounding: not offered again until the row makes progress.
    blocked = torch.zeros_like(free)
    rows = torch.arange(n, device=C.device)
    for _ in range(30 * k):  # a bound against rounding only; about k steps are usual
        descent = C[rows] - h[rows] @ G
        scale = torch.maximum(C[rows].abs(), h[rows] @ G.abs()).amax(1, keepdim=True)
        least = torch.maximum(10 * k * _EPS * scale, problem.slack[rows])
        eligible = ~free[rows] & ~blocked[rows] & (descent > least)
        unfinished = eligible.any(1)
        rows = rows[unfinished]
        if rows.numel() == 0:
            break
        entering = descent[unfinished].masked_fill(~eligible[unfinished], -torch.inf).argmax(1)
        free[rows, entering] = True
        count = free[rows].sum(1)
        restore_feasibility(lambda rows: _solve_free(G, C[rows], free[rows]), h, free, rows)
        pivots[rows] += 1 + count - free[rows].sum(1)
        stayed = free[rows, entering]
        blocked[rows[stayed]] = False
        blocked[rows[~stayed], entering[~stayed]] = True
    return h, free, pivots


def restore_feasibility(
    solve: Callable[[Tensor], Tensor], h: Tensor, free: Tensor, rows: Tensor
) -> None:
    """Move `h[rows]` to the optimum of its free set, dropping variables that would go negative.

    ``solve(rows)`` gives that optimum, whatever its signs are.
    """
    while rows.numel():
        goal = solve(rows)
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


def _factorise(G: Tensor, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factorise G_FF for each row's free set F, with zeros elsewhere, by Cholesky's method.

    Returns it, its factor with the identity elsewhere, and the smallest pivot, which is infinite
    where nothing is free and zero where the factor does not exist.
    """
    block = torch.where(free.unsqueeze(-1) & free.unsqueeze(-2), G, 0)
    factor, failed = torch.linalg.cholesky_ex(block + torch.diag_embed((~free).to(G.dtype)))
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    smallest = torch.where(free, pivots, torch.inf).amin(-1)
    return block, factor, smallest.masked_fill((failed > 0) | smallest.isnan(), 0)


def _solve_free(G: Tensor, C: Tensor, free: Tensor, *, rank_rtol: float | None = None) -> Tensor:
    """Solve G_FF h_F = c_F for each row's free set F, with zeros elsewhere.

    Blocks with a pivot up to `rank_rtol` of the largest diagonal entry, by default rounding, are
    singular: they get the solution of least norm.
    """
    rank_rtol = free.shape[-1] * _EPS if rank_rtol is None else rank_rtol
    block, factor, smallest = _factorise(G, free)
    rhs = torch.where(free, C, 0).unsqueeze(-1)
    goal = torch.cholesky_solve(rhs, factor)
    singular = smallest <= rank_rtol * block.diagonal(dim1=-2, dim2=-1).amax(-1)
    if bool(singular.any()):
        inverse = torch.linalg.pinv(block[singular], hermitian=True, rtol=rank_rtol)
        goal[singular] = inverse @ rhs[singular]
    return goal.squeeze(-1)
