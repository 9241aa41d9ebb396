"""Run a batch of NNMF starts until each has converged, and keep the best."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nnmf_cuda._solvers import Problem, make_solver

CHECK_EVERY = 10
"""Iterations between two tests of convergence (scikit-learn's)."""

_logger = logging.getLogger(__name__)


@dataclass
class Run:
    """One start and what became of it."""

    restart: int
    iterations: list[int] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    converged: bool = False
    divergence: float = math.nan
    W: Tensor | None = None  # (n_samples, n_components), set when the run ends
    H: Tensor | None = None  # (n_components, n_features)

    def rank(self) -> tuple[float, int]:
        """Sort key: lowest final objective first, overflowed runs last."""
        final = self.objective[-1]
        return (final if math.isfinite(final) else math.inf, self.restart)


def best_run(
    problem: Problem,
    W: Tensor,
    H: Tensor,
    *,
    solver: str,
    max_iter: int,
    tol: float,
    progress: Callable[[int], object],
) -> Run:
    """Minimise from every start W (B, n, k), H (B, k, f) and return the best run.

    The rule of scikit-learn decides for each start on its own: every 10 iterations, with
    error = sqrt(2 divergence), stop when the error fell by no more than tol times the error of
    the start. A start that stopped leaves the batch, so each ends as it would have ended alone.
    """
    stepper = make_solver(solver, problem)
    at = problem.at(W, H)
    error_at_start = previous = _error(at.divergence)
    runs = [Run(restart) for restart in range(len(W))]
    _record(runs, 0, at.objective)
    best: Run | None = None
    n_iter = 0
    while runs:
        steps = min(CHECK_EVERY, max_iter - n_iter)
        at, counts = stepper.advance(at, steps)
        n_iter += steps
        progress(steps)
        _record(runs, n_iter, at.objective)
        error = _error(at.divergence)
        converged = torch.zeros_like(counts)
        if tol > 0 and steps == CHECK_EVERY:
            converged = counts & (previous - error <= tol * error_at_start)
        stopped = converged if n_iter < max_iter else torch.ones_like(converged)
        for index in stopped.nonzero().flatten().tolist():
            run = runs[index]
            run.W, run.H = at.W[index].clone(), at.H[index].clone()
            run.converged = bool(converged[index])
            run.divergence = float(at.divergence[index])
            _logger.debug("restart %d: objective %g", run.restart, run.objective[-1])
            best = run if best is None or run.rank() < best.rank() else best
        if bool(stopped.any()):
            left = ~stopped
            at, error, error_at_start = at[left], error[left], error_at_start[left]
            stepper.keep(left)
            runs = [run for run, goes_on in zip(runs, left.tolist(), strict=True) if goes_on]
        previous = error
    assert best is not None
    return best


def _error(divergence: Tensor) -> Tensor:
    return (2 * divergence.double().clamp_min(0)).sqrt()


def _record(runs: list[Run], n_iter: int, objective: Tensor) -> None:
    for run, value in zip(runs, objective.tolist(), strict=True):
        run.iterations.append(n_iter)
        run.objective.append(value)
