"""A batch of starts on its way to the minimum, and what becomes of each."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from nnmf_cuda.graphs import Repeated
from nnmf_cuda.nnmf.problem import Iterate, Problem
from nnmf_cuda.nnmf.solvers import SOLVERS, Solver

CHECK_EVERY = 10
"""Iterations between two tests of convergence (scikit-learn's)."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One start and what became of it."""

    restart: int
    W: Tensor  # (n_samples, n_components)
    H: Tensor  # (n_components, n_features)
    iterations: tuple[int, ...]  # of each record, from 0 to the last
    objective: tuple[float, ...]  # divergence plus penalty at each record
    divergence: float  # at the end
    converged: bool

    @property
    def n_components(self) -> int:
        """Rank of the factorisation."""
        return len(self.H)

    @property
    def error(self) -> float:
        """sqrt(2 * divergence) at the end."""
        return math.sqrt(2 * max(self.divergence, 0.0))

    def order(self) -> tuple[float, int]:
        """Sort key: lowest final objective first, overflowed runs last."""
        final = self.objective[-1]
        return (final if math.isfinite(final) else math.inf, self.restart)


@dataclass(frozen=True)
class State:
    """Where a batch of starts stands at a record: all that its further way depends on."""

    at: Iterate  # of those that run
    running: tuple[int, ...]  # the start of each place in the batch
    iterations: tuple[int, ...]  # of each record, from 0
    objectives: tuple[tuple[float, ...], ...]  # of every start, up to the record where it ended
    memory: Mapping[str, Tensor]  # of the solver
    best: Run | None = None  # of those that have ended

    @classmethod
    def of_starts(cls, problem: Problem, W: Tensor, H: Tensor) -> State:
        """Return the state at the starts W (B, n, k), H (B, k, f)."""
        at = problem.at(W, H)
        objectives = tuple((objective,) for objective in at.objective.tolist())
        return cls(at, tuple(range(len(W))), (0,), objectives, {})


class Minimisation:
    """A batch of starts on its way from `state`, one record after the other.

    One rule decides for each start on its own: every `CHECK_EVERY` iterations, with error =
    sqrt(2 objective), it has converged when the error has not risen and fell by no more than tol
    times itself, or by its rounding. Such a start leaves the batch, so each ends as it would have
    ended alone.

    Starts of smaller rank join in with `ranks` (B,): their last columns of W and rows of H are
    zeros, and stay so. A multiplicative update multiplies them; in HALS a row of H that is zero
    leaves its column of W as it is, or moves it to -l1 / l2 or less, which is zero. Neither
    changes W H, a sum that an update is made of, or the penalty.

    On a GPU the host waits for the device once in a record, for three numbers of each start, and
    once more at the end and when a start leaves. The iterations of a record are a CUDA graph there,
    as long as no start leaves.
    """

    def __init__(
        self,
        problem: Problem,
        state: State,
        *,
        solver: str,
        tol: float,
        ranks: Sequence[int] | None = None,
    ) -> None:
        SOLVERS[solver].check_data(problem.X)
        self.problem, self.tol = problem, tol
        self._at, self.running = state.at, list(state.running)
        self.iterations = list(state.iterations)
        self.objectives = [list(objectives) for objectives in state.objectives]
        rank = state.at.W.shape[2]
        self._ranks = [rank] * len(self.objectives) if ranks is None else ranks
        (n_inner,) = {SOLVERS[solver].sweeps(problem.X, rank) for rank in self._ranks}
        self._stepper = SOLVERS[solver](problem, n_inner)
        self._stepper.recall(state.memory)
        self._block: Repeated[_Block] | None = None
        # Processes that have rows of one X wait for each other.
        if not self._stepper.waits and problem.X.own is problem.X:
            block = partial(_block, self._stepper)
            self._block = Repeated(
                block, problem.X.device, name=f"{CHECK_EVERY} iterations of {solver!r}", n_plain=1
            )

    @property
    def iteration(self) -> int:
        """How many iterations are done."""
        return self.iterations[-1]

    def state(self, best: Run | None = None) -> State:
        """Return where it stands, without a copy of any tensor; `best` is handed through."""
        return State(
            at=self._at,
            running=tuple(self.running),
            iterations=tuple(self.iterations),
            objectives=tuple(map(tuple, self.objectives)),
            memory=self._stepper.memory(),
            best=best,
        )

    def advance(self, n_iter: int) -> Iterator[Run]:
        """Run `n_iter` iterations and make a record; return the starts that have converged."""
        before = self._at.error
        at, counts = self._advanced(n_iter)
        tested = self.tol > 0 and n_iter == CHECK_EVERY
        met = counts & self._stands_still(before, at.error) if tested else torch.zeros_like(counts)
        # One transfer for all starts.
        table = torch.stack([at.objective.double(), at.divergence.double(), met.double()], 1)
        objectives, divergences, converged = zip(*table.tolist(), strict=True)
        ended = [place for place, yes in enumerate(converged) if yes]
        left = [place for place, yes in enumerate(converged) if not yes]
        self._at = at
        if ended:
            chosen = torch.tensor(left, dtype=torch.int64, device=at.W.device)
            self._at = at[chosen]
            self._stepper.keep(chosen)
        self.iterations.append(self.iteration + n_iter)
        for start, objective in zip(self.running, objectives, strict=True):
            self.objectives[start].append(objective)
        starts, self.running = self.running, [self.running[place] for place in left]
        return (
            self._run(at, place, starts[place], divergences[place], converged=True)
            for place in ended
        )

    def rest(self) -> Iterator[Run]:
        """Return those that still run, as they stand."""
        divergences = self._at.divergence.tolist()
        return (
            self._run(self._at, place, start, divergences[place], converged=False)
            for place, start in enumerate(self.running)
        )

    def _advanced(self, n_iter: int) -> tuple[Iterate, Tensor]:
        """Run `n_iter` iterations of the solver; results are those of `Solver.advance`."""
        if self._block is None or not self._block.records or n_iter != CHECK_EVERY:
            return self._stepper.advance(self._at, n_iter)
        memory = self._stepper.memory().values()
        at, counts, memory_after = self._block(*vars(self._at).values(), *memory)
        # Copies, as the next block overwrites what was recorded.
        self._stepper.recall({name: value.clone() for name, value in memory_after.items()})
        return Iterate(*(value.clone() for value in vars(at).values())), counts

    def _stands_still(self, before: Tensor, error: Tensor) -> Tensor:
        fall = before - error
        return (fall >= 0) & (fall <= self.tol * error + self.problem.rounding(error))

    def _run(
        self, at: Iterate, place: int, start: int, divergence: float, *, converged: bool
    ) -> Run:
        objective, rank = tuple(self.objectives[start]), self._ranks[start]
        _logger.debug("start %d of rank %d: %g", start, rank, objective[-1])
        return Run(
            restart=start,
            W=at.W[place, :, :rank].clone(),
            H=at.H[place, :rank].clone(),
            iterations=tuple(self.iterations[: len(objective)]),
            objective=objective,
            divergence=divergence,
            converged=converged,
        )


_Block = tuple[Iterate, Tensor, dict[str, Tensor]]


def _block(stepper: Solver, *tensors: Tensor) -> _Block:
    """Run the iterations of a record from an iterate and the solver's memory, tensor by tensor.

    Returns what `Solver.advance` does, and the memory afterwards.
    """
    n_of_iterate = len(fields(Iterate))
    names = stepper.memory()
    stepper.recall(dict(zip(names, tensors[n_of_iterate:], strict=True)))
    at, counts = stepper.advance(Iterate(*tensors[:n_of_iterate]), CHECK_EVERY)
    return at, counts, stepper.memory()


def all_runs(
    problem: Problem,
    W: Tensor,
    H: Tensor,
    *,
    solver: str,
    max_iter: int,
    tol: float,
    ranks: Sequence[int] | None = None,
) -> Iterator[Run]:
    """Minimise from every start W (B, n, k), H (B, k, f) and yield each run when it ends."""
    starts = State.of_starts(problem, W, H)
    minimisation = Minimisation(problem, starts, solver=solver, tol=tol, ranks=ranks)
    del starts, W, H
    while minimisation.running and minimisation.iteration < max_iter:
        yield from minimisation.advance(min(CHECK_EVERY, max_iter - minimisation.iteration))
    yield from minimisation.rest()
