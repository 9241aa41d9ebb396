"""Run a batch of NNMF starts, of one rank or several, until each has converged."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor

from nnmf_cuda.nnmf.inputs import factor_dtype
from nnmf_cuda.nnmf.solvers import Problem, make_solver, sweeps_of

CHECK_EVERY = 10
"""Iterations between two tests of convergence (scikit-learn's)."""

_logger = logging.getLogger(__name__)


@dataclass
class Run:
    """One start and what became of it."""

    restart: int
    n_components: int
    iterations: list[int] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    converged: bool = False
    divergence: float = math.nan
    W: Tensor | None = None  # (n_samples, n_components), set when the run ends
    H: Tensor | None = None  # (n_components, n_features)

    def order(self) -> tuple[float, int]:
        """Sort key: lowest final objective first, overflowed runs last."""
        final = self.objective[-1]
        return (final if math.isfinite(final) else math.inf, self.restart)

    def record(self, n_iter: int, objective: float) -> None:
        """Note the objective after `n_iter` iterations."""
        self.iterations.append(n_iter)
        self.objective.append(objective)

    def end(self, W: Tensor, H: Tensor) -> Run:
        """Keep the factors, without the zeros that fill up a smaller rank."""
        self.W, self.H = W[:, : self.n_components].clone(), H[: self.n_components].clone()
        _logger.debug("restart %d: objective %g", self.restart, self.objective[-1])
        return self


def best_run(problem: Problem, W: Tensor, H: Tensor, **options: Any) -> Run:
    """Minimise from every start and return the best run; the options are those of `all_runs`."""
    return min(all_runs(problem, W, H, **options), key=Run.order)


def all_runs(
    problem: Problem,
    W: Tensor,
    H: Tensor,
    *,
    solver: str,
    max_iter: int,
    tol: float,
    progress: Callable[[int], object] = lambda _steps: None,
    ranks: Sequence[int] | None = None,
) -> Iterator[Run]:
    """Minimise from every start W (B, n, k), H (B, k, f) and yield each run when it ends.

    The rule of scikit-learn decides for each start on its own: every 10 iterations, with
    error = sqrt(2 divergence), stop when the error fell by no more than tol times the error of
    the start. A start that stopped leaves the batch, so each ends as it would have ended alone.

    Starts of smaller rank join in with `ranks` (B,): their last columns of W and rows of H are
    zeros, and stay so. A multiplicative update multiplies them; in HALS a row of H that is zero
    leaves its column of W as it is, or moves it to -l1 / l2 or less, which is zero. Neither
    changes W H, a sum that an update is made of, or the penalty.

    On a GPU the host waits for the device once in 10 iterations, for three numbers of each start,
    and once more when a start leaves.
    """
    ranks = [W.shape[2]] * len(W) if ranks is None else ranks
    (n_inner,) = {sweeps_of(solver, problem, rank) for rank in ranks}
    stepper = make_solver(solver, problem, n_inner=n_inner)
    at = problem.at(W, H)
    error_at_start = previous = _error(at.divergence)
    runs = [Run(restart, rank) for restart, rank in enumerate(ranks)]
    for run, objective in zip(runs, at.objective.tolist(), strict=True):
        run.record(0, objective)
    n_iter = 0
    while runs:
        steps = min(CHECK_EVERY, max_iter - n_iter)
        at, counts = stepper.advance(at, steps)
        n_iter += steps
        progress(steps)
        error = _error(at.divergence)
        met = counts & (previous - error <= tol * error_at_start)
        tested, last = tol > 0 and steps == CHECK_EVERY, n_iter == max_iter
        left = []
        for index, numbers in enumerate(_on_host(at.objective, at.divergence, met)):
            run, (objective, divergence, converged) = runs[index], numbers
            run.record(n_iter, objective)
            run.converged = tested and bool(converged)
            if run.converged or last:
                run.divergence = divergence
                yield run.end(at.W[index], at.H[index])
            else:
                left.append(index)
        if 0 < len(left) < len(runs):
            chosen = torch.tensor(left, device=error.device)
            at, error, error_at_start = at[chosen], error[chosen], error_at_start[chosen]
            stepper.keep(chosen)
        runs = [runs[index] for index in left]
        previous = error


def _error(divergence: Tensor) -> Tensor:
    return (2 * divergence.double().clamp_min(0)).sqrt()


def _on_host(*columns: Tensor) -> list[list[float]]:
    """Return the rows of a table of (B,) columns: one transfer for all of them."""
    table: list[list[float]] = torch.stack([column.double() for column in columns], 1).tolist()
    return table


# Runs of many ranks, as few batches as memory and the kernels allow.
BATCH_ENTRIES = 2**26
"""Entries of W and H together in one batch: 256 MiB in float32, and a solver holds some copies."""

_WIDTH_ON_GPU = 8
"""CUDA kernels round the rank up to a multiple of this, so ranks up to it cost one batch no more.

On the CPU the cost of an iteration grows with the rank itself and a batch gains nothing over its
parts: there only starts of one rank share a batch.
"""

Starts = Callable[[int], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class _Start:
    """W (n, k) and H (k, f) on the CPU, the `restart`-th of their rank k."""

    n_components: int
    restart: int
    W: Tensor
    H: Tensor


def grid_runs(
    problem: Problem,
    ranks: Sequence[int],
    n_init: int,
    starts: Starts,
    *,
    solver: str,
    max_iter: int,
    tol: float,
    width: int | None = None,
    batch_entries: int = BATCH_ENTRIES,
) -> Iterator[Run]:
    """Minimise from `n_init` starts of each rank and yield each run when it ends.

    Each run is the one that its start has alone, up to the rounding of sums.

    Parameters
    ----------
    problem : Problem
        What is minimised, and where.
    ranks : sequence of int
        Ascending.
    n_init : int
        Starts of each rank.
    starts : callable
        Gives the `n_init` starts of a rank; called once a rank, in their order.
    solver, max_iter, tol
        As for `all_runs`.
    width : int, optional
        Ranks with the same multiple of it above them share batches, filled up with zeros to the
        largest: every start of a batch costs what that one costs. By default `_WIDTH_ON_GPU` on a
        GPU, 1 on the CPU.
    batch_entries : int, default=BATCH_ENTRIES
        A group with more entries is split into batches of about the same number of starts.
    """
    on_cpu = problem.X.device.type == "cpu"
    step = width or (1 if on_cpu else _WIDTH_ON_GPU)

    def group_of(rank: int) -> tuple[int, int]:
        return -(-rank // step), sweeps_of(solver, problem, rank)

    for _, group in groupby(ranks, group_of):
        members = list(group)
        queue = (
            _Start(rank, restart, W, H)
            for rank in members
            for restart, (W, H) in enumerate(starts(rank))
        )
        entries = sum(problem.X.shape) * members[-1]
        for size in _even_sizes(len(members) * n_init, max(1, batch_entries // entries)):
            batch = list(islice(queue, size))
            runs = all_runs(
                problem,
                *_stacked(problem.X, batch),
                solver=solver,
                max_iter=max_iter,
                tol=tol,
                ranks=[start.n_components for start in batch],
            )
            restarts = [start.restart for start in batch]
            del batch
            for run in runs:
                run.restart = restarts[run.restart]
                yield run


def _even_sizes(total: int, most: int) -> Iterator[int]:
    """Yield the sizes of the fewest batches of at most `most` that hold `total`, alike in size."""
    n_batches = math.ceil(total / most)
    for index in range(n_batches):
        yield total * (index + 1) // n_batches - total * index // n_batches


def _stacked(X: Tensor, batch: Sequence[_Start]) -> tuple[Tensor, Tensor]:
    """Return W (B, n, k_max) and H (B, k_max, f) on X's device, zeros beyond a start's own rank."""
    (n_samples, n_features), width = X.shape, max(start.n_components for start in batch)
    W = X.new_zeros((len(batch), n_samples, width), dtype=factor_dtype(X))
    H = X.new_zeros((len(batch), width, n_features), dtype=factor_dtype(X))
    for index, start in enumerate(batch):
        W[index, :, : start.n_components] = start.W
        H[index, : start.n_components] = start.H
    return W, H
