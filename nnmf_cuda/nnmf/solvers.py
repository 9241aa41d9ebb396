"""The solvers of `NNMF`: each advances a batch of starts by one block of iterations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

from nnmf_cuda import ops

_INNER_SHARE = 0.5  # of the work on X, spent on more sweeps over the factors (Gillis & Glineur)
_INNER_MAX = 10  # by then a factor hardly moves before X is read again
# Chosen on MR images, sparse counts and dense noise: fewest iterations without blocks undone.
_MOMENTUM_MAX = 0.95
_FALL_MAX, _RISE_MAX = 0.9, 2.0  # what one extrapolation may multiply an entry by


@dataclass(frozen=True)
class Problem:
    """The data (n, f) and what is minimised over W and H."""

    X: Tensor
    objective: Objective

    def at(self, W: Tensor, H: Tensor, divergence: Tensor | None = None) -> Iterate:
        """Return the factors with their objective; the divergence is computed if not at hand."""
        if divergence is None:
            divergence = ops.nnmf_divergence(self.X, W, H, beta_loss=self.objective.beta_loss)
        return Iterate(W, H, divergence, divergence + self.objective.penalty.value(W, H))


@dataclass(frozen=True)
class Iterate:
    """Where a batch of starts stands."""

    W: Tensor  # (B, n_samples, n_components)
    H: Tensor  # (B, n_components, n_features)
    divergence: Tensor  # (B,) float64
    objective: Tensor  # (B,) float64, with the penalty

    def __getitem__(self, chosen: Tensor) -> Iterate:
        return Iterate(
            self.W[chosen], self.H[chosen], self.divergence[chosen], self.objective[chosen]
        )


class Solver(Protocol):
    """One way to lower the objective; may hold state for each start of the batch."""

    def advance(self, start: Iterate, n_iter: int) -> tuple[Iterate, Tensor]:
        """Run `n_iter` iterations.

        Also tells, (B,) bool, of which starts the outcome counts: False for those that the
        solver has put back to where they stood, to go on more carefully.
        """

    def keep(self, left: Tensor) -> None:
        """Forget the starts whose indices are not in the (n_left,) int64 `left`."""


class MultiplicativeUpdates:
    """The updates of Lee & Seung as they are."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def advance(self, start: Iterate, n_iter: int) -> tuple[Iterate, Tensor]:
        """Run `n_iter` iterations; all count."""
        return self.problem.at(*_updated(self.problem, start.W, start.H, n_iter)), _all(start)

    def keep(self, left: Tensor) -> None:
        """Do nothing: there is no state."""


class Hals:
    """Hierarchical alternating least squares, `n_inner` sweeps for each time that X is read."""

    def __init__(self, problem: Problem, n_inner: int) -> None:
        self.problem = problem
        self.n_inner = n_inner

    def advance(self, start: Iterate, n_iter: int) -> tuple[Iterate, Tensor]:
        """Run `n_iter` iterations; all count."""
        problem = self.problem
        factors = ops.nnmf_hals(
            problem.X,
            start.W,
            start.H,
            n_iter=n_iter,
            n_inner=self.n_inner,
            compute_divergence=True,
            **asdict(problem.objective.penalty),
        )
        return problem.at(*factors), _all(start)

    def keep(self, left: Tensor) -> None:
        """Do nothing: there is no state."""


def inner_sweeps(n_samples: int, n_features: int, *, n_components: int) -> int:
    """Return how often to sweep over the factors for each time that X is read."""
    work_on_X = n_samples * n_features
    work_of_sweep = (n_samples + n_features) * n_components
    return min(_INNER_MAX, 1 + int(_INNER_SHARE * work_on_X / work_of_sweep))


class AcceleratedUpdates:
    """Multiplicative updates from a point ahead: extrapolation with restart.

    Before each update every entry goes on by the factor by which it last changed, to the power
    of Nesterov's momentum. A geometric step keeps entries positive, where a linear one would end
    at zeros that no update leaves; for the same reason no step multiplies an entry by less than
    `_FALL_MAX`. A block that raised a start's objective is undone for that start, and its next
    block has no momentum: plain updates, which do not raise the objective.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._before: tuple[Tensor, Tensor] | None = None  # the iterate before the present one
        self._pace = torch.empty(0)  # (B,) the t of Nesterov's sequence
        self._plain = torch.empty(0)  # (B,) bool: no momentum in this block

    def advance(self, start: Iterate, n_iter: int) -> tuple[Iterate, Tensor]:
        """Run `n_iter` iterations; they count where the objective has not risen."""
        W, H, divergence = start.W, start.H, start.divergence
        if self._before is None:
            self._before = W, H
            self._pace = W.new_ones(len(W))
            self._plain = ~_all(start)
        for left in range(n_iter, 0, -1):
            ahead = self._ahead(W, H)
            self._before = W, H
            W, H, divergence = _updated(self.problem, *ahead, 1, compute_divergence=left == 1)
        end = self.problem.at(W, H, divergence)
        lower = end.objective <= start.objective
        # An overflow of plain updates must come to light, as it does in `MultiplicativeUpdates`;
        # where they only round up, the start stands still and counts: it has converged.
        lower |= self._plain & ~end.objective.isfinite()
        counts = lower | self._plain
        self._before = (
            _where(lower, self._before[0], start.W),
            _where(lower, self._before[1], start.H),
        )
        self._pace = self._pace.where(counts, 1)
        self._plain = ~counts
        return _either(lower, end, start), counts

    def keep(self, left: Tensor) -> None:
        """Forget the starts whose indices are not in the (n_left,) int64 `left`."""
        assert self._before is not None
        self._before = self._before[0][left], self._before[1][left]
        self._pace, self._plain = self._pace[left], self._plain[left]

    def _ahead(self, W: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors from which to update, and count the step."""
        assert self._before is not None
        pace = (1 + (1 + 4 * self._pace.square()).sqrt()) / 2
        momentum = ((self._pace - 1) / pace).clamp_max(_MOMENTUM_MAX)
        self._pace = pace.where(~self._plain, 1)
        momentum = momentum.where(~self._plain, 0)[:, None, None]
        W_before, H_before = self._before
        return _extrapolated(W, W_before, momentum), _extrapolated(H, H_before, momentum)


def _extrapolated(now: Tensor, before: Tensor, momentum: Tensor) -> Tensor:
    """Return ``now * (now / before) ** momentum`` within bounds; zeros stay."""
    ratio = now / before.clamp_min(torch.finfo(now.dtype).tiny)
    return ratio.pow_(momentum).clamp_(_FALL_MAX, _RISE_MAX).mul_(now)


def _updated(
    problem: Problem, W: Tensor, H: Tensor, n_iter: int, *, compute_divergence: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    return ops.nnmf_mu(
        problem.X,
        W,
        H,
        beta_loss=problem.objective.beta_loss,
        n_iter=n_iter,
        compute_divergence=compute_divergence,
        **asdict(problem.objective.penalty),
    )


def _all(iterate: Iterate) -> Tensor:
    return torch.ones_like(iterate.objective, dtype=torch.bool)


def _either(first: Tensor, one: Iterate, other: Iterate) -> Iterate:
    """Return the starts in the (B,) bool `first` from `one`, the rest from `other`."""
    return Iterate(
        _where(first, one.W, other.W),
        _where(first, one.H, other.H),
        torch.where(first, one.divergence, other.divergence),
        torch.where(first, one.objective, other.objective),
    )


def _where(first: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(first[:, None, None], one, other)


SOLVERS = ("mu", "accelerated-mu", "hals")


def check_solver(name: str, beta_loss: float) -> None:
    """Raise unless the solver `name` minimises this divergence."""
    if name == "hals" and beta_loss != 2:
        raise ValueError(
            f"solver='hals' minimises beta_loss='frobenius' (2) only, got {beta_loss:g}; use "
            "beta_loss='frobenius' or solver='accelerated-mu'"
        )
    if name == "accelerated-mu" and not 1 <= beta_loss <= 2:
        raise ValueError(
            f"solver='accelerated-mu' needs a beta_loss in [1, 2], where the divergence is convex "
            f"in each factor, got {beta_loss:g}; use solver='mu'"
        )


def make_solver(name: str, problem: Problem, *, n_inner: int) -> Solver:
    """Return the solver that `NNMF` calls `name`, new, without state."""
    if name == "hals":
        return Hals(problem, n_inner)
    return (
        AcceleratedUpdates(problem) if name == "accelerated-mu" else MultiplicativeUpdates(problem)
    )


def sweeps_of(name: str, problem: Problem, n_components: int) -> int:
    """Return the `n_inner` of a rank: only starts that agree in it can share a call."""
    return inner_sweeps(*problem.X.shape, n_components=n_components) if name == "hals" else 1


# What a factorisation minimises.


@dataclass(frozen=True)
class Penalty:
    """Regularisation as the ops take it, already scaled by the size of X."""

    l1_reg_W: float = 0.0
    l1_reg_H: float = 0.0
    l2_reg_W: float = 0.0
    l2_reg_H: float = 0.0

    def value(self, W: Tensor, H: Tensor) -> Tensor:
        """Return the penalty of each start of the batch, (B,) float64."""
        W, H = W.double(), H.double()
        absolute = self.l1_reg_W * W.sum((1, 2)) + self.l1_reg_H * H.sum((1, 2))
        squared = self.l2_reg_W * W.square().sum((1, 2)) + self.l2_reg_H * H.square().sum((1, 2))
        return absolute + squared / 2


@dataclass(frozen=True)
class Objective:
    """A beta-divergence plus a penalty."""

    beta_loss: float
    penalty: Penalty
