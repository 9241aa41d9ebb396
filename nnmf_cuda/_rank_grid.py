"""Runs of many ranks, as few batches as memory and the kernels allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from torch import Tensor

from nnmf_cuda._restarts import Run, all_runs
from nnmf_cuda._row_blocks import factor_dtype
from nnmf_cuda._solvers import Problem, sweeps_of

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
