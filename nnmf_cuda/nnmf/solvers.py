"""What `NNMF` minimises, the solvers that lower it, and the run of a batch of starts to its end."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.nnmf.graph import Graph, graph_updates
from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.nnmf.semi import semi_updates
from nnmf_cuda.nnmf.sparse_matrix import Sparse
from nnmf_cuda.nnmf.weighted_matrix import Weighted

CHECK_EVERY = 10
"""Iterations between two tests of convergence (scikit-learn's)."""

_ROUNDINGS = 8  # that a block of updates adds up to: up to 5 were seen on counts in float32
# Chosen on MR images, sparse counts and dense noise: fewest iterations without blocks undone.
MOMENTUM_MAX = 0.95
DESCENT_MOMENTUM_MAX = 0.8  # on sparse counts 0.5, 0.8 and 0.9 took about the same time
FALL_MAX, RISE_MAX = 0.9, 2.0  # what one extrapolation may multiply an entry by

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Penalty:
    """Regularisation as the ops take it, already scaled by the size of X."""

    l1_reg_W: float = 0.0
    l1_reg_H: float = 0.0
    l2_reg_W: float = 0.0
    l2_reg_H: float = 0.0

    def value(self, W: Tensor, H: Tensor) -> Tensor:
        """Return the penalty of each start of the batch, (B,) float64."""
        total = W.new_zeros(len(W), dtype=torch.float64)
        for factor, l1_reg, l2_reg in (
            (W, self.l1_reg_W, self.l2_reg_W),
            (H, self.l1_reg_H, self.l2_reg_H),
        ):
            if l1_reg or l2_reg:  # a copy of the factor, and one at a time
                wide = factor.double()
                total += l1_reg * wide.sum((1, 2))
                # A factor that is float64 is no copy.
                square = wide.square() if wide is factor else wide.square_()
                total += l2_reg * square.sum((1, 2)) / 2
        return total


@dataclass(frozen=True)
class Objective:
    """A beta-divergence plus a penalty."""

    beta_loss: float
    penalty: Penalty
    floor: float = ops.EPSILON  # of W H where it is divided by; see `Units.floor`
    signed: bool = False  # X and H may have any sign: Semi-NMF


@dataclass(frozen=True)
class Problem:
    """The data (n_samples, n_features) and what is minimised over W and H."""

    X: Matrix
    objective: Objective
    n_fixed: int = 0  # the first rows of H, which are held
    graph: Graph | None = None  # whose penalty is part of the objective

    @cached_property
    def _mean_power(self) -> Tensor:
        return self.X.mean_power(self.objective.beta_loss)

    def rounding(self, error: Tensor) -> Tensor:
        """Return how far errors of this size, (B,) float64, move by rounding alone.

        A factorisation whose entries are off by a relative e has the error
        e * sqrt(sum X ** beta_loss), for d(x | x + e x) = e ** 2 / 2 * x ** beta_loss near x; of
        that, the rounding of each of the N entries on its own moves about one part in sqrt(N).
        """
        beta_loss = self.objective.beta_loss
        eps = _ROUNDINGS * torch.finfo(self.X.factor_dtype).eps
        of_factors = eps * self._mean_power.sqrt()
        if beta_loss in (0, 1, 2) and not self.X.sums_cancel:
            return of_factors.expand_as(error)
        # Kernels make other divergences of differences: what is left has the rounding of the sums.
        scale = torch.finfo(torch.float64).eps / (abs(beta_loss * (beta_loss - 1)) or 1)
        of_sums = scale * self.X.n_entries * self._mean_power
        return of_factors + of_sums / error.clamp_min(torch.finfo(torch.float64).tiny)

    def at(self, W: Tensor, H: Tensor, divergence: Tensor | None = None) -> Iterate:
        """Return the factors with their objective; the divergence is computed if not at hand."""
        if divergence is None:
            beta_loss, floor = self.objective.beta_loss, self.objective.floor
            divergence = self.X.divergence(W, H, beta_loss=beta_loss, floor=floor)
        penalty = self.objective.penalty.value(W, H)
        if self.graph is not None:
            penalty += self.graph.value(W)
        return Iterate(W, H, divergence, divergence + penalty)

    def moves(self, H: Tensor) -> bool:
        """Whether any row of H (..., k, f) is learnt."""
        return self.n_fixed < H.shape[-2]

    def updated(
        self,
        W: Tensor,
        H: Tensor,
        n_iter: int,
        *,
        update_H: bool = True,
        compute_divergence: bool = False,
        n_sweeps: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run `n_iter` multiplicative updates; options and results are those of `ops.nnmf_mu`.

        Where X has any sign, H goes to its minimum instead, and W by `n_sweeps` of HALS if above 0.
        """
        objective = self.objective
        of_loss: dict[str, Any] = {"beta_loss": objective.beta_loss, "floor": objective.floor}
        shared: dict[str, Any] = {
            "n_iter": n_iter,
            "update_H": update_H and self.moves(H),
            "n_fixed": self.n_fixed,
            **vars(objective.penalty),
        }
        if self.graph is None and not objective.signed:
            shared["compute_divergence"] = compute_divergence
            return self.X.mu(W, H, **of_loss, **shared)
        single = W.ndim == 2
        if single:
            W, H = W[None], H[None]
        if objective.signed:
            W, H = semi_updates(self.X, W, H, n_sweeps=n_sweeps, graph=self.graph, **shared)
        else:
            assert self.graph is not None
            W, H = graph_updates(self.X, W, H, self.graph, **of_loss, **shared)
        divergence = W.new_full((len(W),), torch.nan, dtype=torch.float64)
        if compute_divergence:
            divergence = self.X.divergence(W, H, **of_loss)
        return (W[0], H[0], divergence[0]) if single else (W, H, divergence)


@dataclass(frozen=True)
class Iterate:
    """Where a batch of starts stands."""

    W: Tensor  # (B, n_samples, n_components)
    H: Tensor  # (B, n_components, n_features)
    divergence: Tensor  # (B,) float64
    objective: Tensor  # (B,) float64, with the penalty

    @property
    def error(self) -> Tensor:
        """sqrt(2 objective), (B,) float64: what the rule of `tol` looks at."""
        return (2 * self.objective.clamp_min(0)).sqrt()

    def __getitem__(self, chosen: Tensor) -> Iterate:
        return Iterate(*(value[chosen] for value in vars(self).values()))


def _each(values: Tensor) -> Tensor:
    """Return what is given for each start, (B,), for all entries of its factors: (B, 1, 1)."""
    return values[:, None, None]


class Solver(ABC):
    """One way to lower the objective; may hold state for each start of a batch."""

    keeps_zeros: ClassVar[bool] = False  # entries that are zero at the start stay so
    takes_graph: ClassVar[bool] = True  # lowers the penalty of a graph too
    signed: ClassVar[bool] = False  # is for X and H of any sign: Semi-NMF
    squares_floor: ClassVar[bool] = False  # divides by the square of the floor of W H

    def __init__(self, problem: Problem, n_inner: int = 1) -> None:
        self.problem = problem
        self.n_inner = n_inner

    @staticmethod  # noqa: B027  (most lower every divergence)
    def check(beta_loss: float) -> None:
        """Raise unless the solver lowers this divergence."""

    @staticmethod  # noqa: B027  (most read any X)
    def check_data(X: Matrix) -> None:
        """Raise unless the solver reads such X."""

    @staticmethod
    def sweeps(X: Matrix, n_components: int) -> int:
        """Return the `n_inner` of a rank: only starts that agree in it can share a batch."""
        return 1

    @abstractmethod
    def update(self, W: Tensor, H: Tensor, n_iter: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return W (B, n, k), H (B, k, f) and their divergence (B,) after `n_iter` iterations."""

    def advance(self, start: Iterate, n_iter: int) -> tuple[Iterate, Tensor]:
        """Run `n_iter` iterations.

        Also tells, (B,) bool, of which starts the outcome counts: False for those that the
        solver has put back to where they stood, to go on more carefully.
        """
        end = self.problem.at(*self.update(start.W, start.H, n_iter))
        return end, torch.ones_like(end.objective, dtype=torch.bool)

    def keep(self, left: Tensor) -> None:  # noqa: B027  (most hold no state)
        """Forget the starts whose indices are not in the (n_left,) int64 `left`."""

    def memory(self) -> dict[str, Tensor]:
        """Return the state by names, its tensors not copied: nothing changes them in place."""
        return {}

    def recall(self, memory: Mapping[str, Tensor]) -> None:  # noqa: B027  (most hold no state)
        """Take up the state that `memory` has returned."""


class MultiplicativeUpdates(Solver):
    """The updates of Lee & Seung as they are."""

    keeps_zeros = True

    def update(self, W: Tensor, H: Tensor, n_iter: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return W, H and their divergence after `n_iter` updates of both."""
        return self.problem.updated(W, H, n_iter, compute_divergence=True)


class SemiUpdates(MultiplicativeUpdates):
    """Semi-NMF: updates of W, and for each the H of any sign that fits it best."""

    signed = True

    @staticmethod
    def check(beta_loss: float) -> None:
        """Raise unless the divergence is the Frobenius norm's."""
        _check_signed_loss(beta_loss)


def _check_signed_loss(beta_loss: float) -> None:
    if beta_loss != 2:
        raise ValueError(
            "solver='semi' and 'semi-hals' minimise beta_loss='frobenius' (2) only, for no other "
            f"divergence knows entries below 0, got {beta_loss:g}; use beta_loss='frobenius'"
        )


class Hals(Solver):
    """Hierarchical alternating least squares, `n_inner` sweeps for each time that X is read."""

    takes_graph = False

    @staticmethod
    def check(beta_loss: float) -> None:
        """Raise unless the divergence is the Frobenius norm's."""
        if beta_loss != 2:
            raise ValueError(
                f"solver='hals' minimises beta_loss='frobenius' (2) only, got {beta_loss:g}; use "
                "beta_loss='frobenius' or solver='accelerated-mu'"
            )

    @staticmethod
    def sweeps(X: Matrix, n_components: int) -> int:
        """Return how often to sweep over the factors for each time that X is read."""
        return X.sweeps(n_components)

    def update(self, W: Tensor, H: Tensor, n_iter: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return W, H and their divergence after `n_iter` passes over X."""
        return self.problem.X.hals(
            W,
            H,
            n_iter=n_iter,
            n_inner=self.n_inner,
            update_H=self.problem.moves(H),
            n_fixed=self.problem.n_fixed,
            compute_divergence=True,
            **vars(self.problem.objective.penalty),
        )


class SemiHals(Hals):
    """Semi-NMF: `n_inner` sweeps over the columns of W, and then the H of any sign that fits."""

    signed = True

    @staticmethod
    def check(beta_loss: float) -> None:
        """Raise unless the divergence is the Frobenius norm's."""
        _check_signed_loss(beta_loss)

    def update(self, W: Tensor, H: Tensor, n_iter: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return W, H and their divergence after `n_iter` iterations."""
        return self.problem.updated(W, H, n_iter, compute_divergence=True, n_sweeps=self.n_inner)


class AcceleratedUpdates(MultiplicativeUpdates):
    """Multiplicative updates from a point ahead: extrapolation with restart.

    Before each update every entry goes on by the factor by which it last changed, to the power
    of Nesterov's momentum. A geometric step keeps entries positive, where a linear one would end
    at zeros that no update leaves; for the same reason no step multiplies an entry by less than
    `FALL_MAX`. A block that raised a start's objective is undone for that start, and its next
    block has no momentum: plain updates, which raise the objective by rounding only (then the
    start stands still) or, seldom, on the way to a minimum with a squared penalty.
    """

    momentum_max: ClassVar[float] = MOMENTUM_MAX
    _before: tuple[Tensor, Tensor] | None = None  # the factors before the present ones
    _pace: Tensor  # (B,) the t of Nesterov's sequence
    _plain: Tensor  # (B,) bool: no momentum in this block

    @staticmethod
    def check(beta_loss: float) -> None:
        """Raise unless the divergence is convex in each factor."""
        if not 1 <= beta_loss <= 2:
            raise ValueError(
                "solver='accelerated-mu' needs a beta_loss in [1, 2], where the divergence is "
                f"convex in each factor, got {beta_loss:g}; use solver='mu'"
            )

    def advance(self, start: Iterate, n_iter: int) -> tuple[Iterate, Tensor]:
        """Run `n_iter` iterations; they count where the objective has not risen."""
        W, H, divergence = start.W, start.H, start.divergence
        if self._before is None:
            self._before = W, H
            self._pace = W.new_ones(len(W))
            self._plain = torch.zeros_like(divergence, dtype=torch.bool)
        ahead = torch.empty_like(W), torch.empty_like(H)
        for left in range(n_iter, 0, -1):
            self.go_ahead(W, H, *ahead)
            self._before = W, H
            W, H, divergence = self._iteration(*ahead, compute_divergence=left == 1)
        del ahead
        end = self.problem.at(W, H, divergence)
        lower = end.objective <= start.objective
        # What plain updates do stands, be it a rise or an overflow, as in `MultiplicativeUpdates`;
        # where they only round up, the start stands still and counts: it has converged.
        rounded_up = end.error <= start.error + self.problem.rounding(start.error)
        lower |= self._plain & ~rounded_up
        counts = lower | self._plain
        for factor, at_start in zip(self._before, (start.W, start.H), strict=True):
            _put_back(factor, at_start, lower)
        self._pace = self._pace.where(counts, 1)
        self._plain = ~counts
        _put_back(end.W, start.W, lower)
        _put_back(end.H, start.H, lower)
        divergence = end.divergence.where(lower, start.divergence)
        objective = end.objective.where(lower, start.objective)
        return Iterate(end.W, end.H, divergence, objective), counts

    def keep(self, left: Tensor) -> None:
        """Forget the starts whose indices are not in the (n_left,) int64 `left`."""
        assert self._before is not None
        self._before = self._before[0][left], self._before[1][left]
        self._pace, self._plain = self._pace[left], self._plain[left]

    def memory(self) -> dict[str, Tensor]:
        """Return the state by names; there is none before the first block."""
        if self._before is None:
            return {}
        W, H = self._before
        return {"W_before": W, "H_before": H, "pace": self._pace, "plain": self._plain}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Take up the state that `memory` has returned."""
        if memory:
            self._before = memory["W_before"], memory["H_before"]
            self._pace, self._plain = memory["pace"], memory["plain"]

    def _iteration(
        self, W: Tensor, H: Tensor, *, compute_divergence: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one update from these factors."""
        return self.problem.updated(W, H, 1, compute_divergence=compute_divergence)

    @staticmethod
    def _beyond(now: Tensor, before: Tensor, momentum: Tensor, *, to: Tensor) -> None:
        """Write ``now * (now / before) ** momentum`` within bounds; zeros stay."""
        torch.clamp(before, min=torch.finfo(now.dtype).tiny, out=to)
        torch.div(now, to, out=to).pow_(momentum).clamp_(FALL_MAX, RISE_MAX).mul_(now)

    def go_ahead(self, W: Tensor, H: Tensor, W_ahead: Tensor, H_ahead: Tensor) -> None:
        """Write the factors from which to update, and count the step."""
        assert self._before is not None
        pace = (1 + (1 + 4 * self._pace.square()).sqrt()) / 2
        momentum = ((self._pace - 1) / pace).clamp_max(self.momentum_max)
        self._pace = pace.where(~self._plain, 1)
        momentum = _each(momentum.where(~self._plain, 0))
        W_before, H_before = self._before
        self._beyond(W, W_before, momentum, to=W_ahead)
        n_fixed = self.problem.n_fixed
        H_ahead[:, :n_fixed] = H[:, :n_fixed]
        self._beyond(H[:, n_fixed:], H_before[:, n_fixed:], momentum, to=H_ahead[:, n_fixed:])


def _put_back(factor: Tensor, at_start: Tensor, counts: Tensor) -> None:
    """Make a factor what it was at the start of a block where that does not count.

    It is one that the block has made, or that of the start itself.
    """
    torch.where(_each(counts), factor, at_start, out=factor)


class CoordinateDescent(AcceleratedUpdates):
    """Coordinate descent for Kullback-Leibler on sparse X, by rows of X and by rows of X^T.

    From a point ahead too, one on the line through the last two: coordinates can leave zero. No
    iteration without momentum raises the objective.
    """

    keeps_zeros = False
    takes_graph = False
    squares_floor = True
    momentum_max = DESCENT_MOMENTUM_MAX

    @staticmethod
    def check(beta_loss: float) -> None:
        """Raise unless the divergence is Kullback-Leibler's."""
        if beta_loss == 2:
            raise ValueError(
                "solver='cd' minimises beta_loss='kullback-leibler' (1) only, got 2; what "
                "scikit-learn calls 'cd', coordinate descent for beta_loss='frobenius', is "
                "solver='hals' here"
            )
        if beta_loss != 1:
            raise ValueError(
                "solver='cd' minimises beta_loss='kullback-leibler' (1) only, got "
                f"{beta_loss:g}; use beta_loss='kullback-leibler' or solver='mu'"
            )

    @staticmethod
    def check_data(X: Matrix) -> None:
        """Raise unless X is sparse."""
        if not isinstance(X, Sparse):
            if isinstance(X, Weighted):
                raise ValueError(
                    "solver='cd' reads the non-zeros of X and knows no missing values, mask or "
                    "weights; use solver='accelerated-mu' or 'mu'"
                )
            raise ValueError(
                "solver='cd' reads the non-zeros of X and takes sparse X only, got it dense; where "
                "most entries are zeros give scipy.sparse.csr_array(X), else use "
                "solver='accelerated-mu' or 'mu'"
            )

    def _iteration(
        self, W: Tensor, H: Tensor, *, compute_divergence: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one iteration from these factors."""
        objective = self.problem.objective
        return self.problem.X.cd(
            W,
            H,
            n_iter=1,
            n_inner=self.n_inner,
            update_H=self.problem.moves(H),
            n_fixed=self.problem.n_fixed,
            compute_divergence=compute_divergence,
            floor=objective.floor,
            **vars(objective.penalty),
        )

    def go_ahead(self, W: Tensor, H: Tensor, W_ahead: Tensor, H_ahead: Tensor) -> None:
        """Write the factors from which to update, and count the step; no component is lost."""
        super().go_ahead(W, H, W_ahead, H_ahead)
        penalty = self.problem.objective.penalty
        if penalty.l1_reg_W or penalty.l2_reg_W:
            # Where H fell as fast as a penalty can make it, all of a component is beyond zero. W,
            # which comes next, would leave it too, and then neither factor could bring it back.
            lost = ~H_ahead.any(2, keepdim=True)
            torch.where(lost, H, H_ahead, out=H_ahead)

    @staticmethod
    def _beyond(now: Tensor, before: Tensor, momentum: Tensor, *, to: Tensor) -> None:
        """Write ``now + momentum * (now - before)``, zero where that is negative."""
        torch.sub(now, before, out=to).mul_(momentum).add_(now).clamp_min_(0)


SOLVERS: dict[str, type[Solver]] = {
    "mu": MultiplicativeUpdates,
    "accelerated-mu": AcceleratedUpdates,
    "hals": Hals,
    "cd": CoordinateDescent,
    "semi": SemiUpdates,
    "semi-hals": SemiHals,
}
"""What the parameter `solver` of `NNMF` may be."""

SIGNED = tuple(name for name, solver in SOLVERS.items() if solver.signed)
"""Those of Semi-NMF."""


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
    once more at the end and when a start leaves.
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
        at, counts = self._stepper.advance(self._at, n_iter)
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
