"""The solvers of `NNMF`: what lowers its objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.nnmf.problem import Iterate, Problem
from nnmf_cuda.nnmf.sharded_matrix import Sharded
from nnmf_cuda.nnmf.sparse_matrix import Sparse

# Chosen on MR images, sparse counts and dense noise: fewest iterations without blocks undone.
MOMENTUM_MAX = 0.95
DESCENT_MOMENTUM_MAX = 0.8  # on sparse counts 0.5, 0.8 and 0.9 took about the same time
FALL_MAX, RISE_MAX = 0.9, 2.0  # what one extrapolation may multiply an entry by


def _each(values: Tensor) -> Tensor:
    """Return what is given for each start, (B,), for all entries of its factors: (B, 1, 1)."""
    return values[:, None, None]


class Solver(ABC):
    """One way to lower the objective; may hold state for each start of a batch."""

    keeps_zeros: ClassVar[bool] = False  # entries that are zero at the start stay so
    takes_graph: ClassVar[bool] = True  # lowers the penalty of a graph too
    signed: ClassVar[bool] = False  # is for X and H of any sign: Semi-NMF
    squares_floor: ClassVar[bool] = False  # divides by the square of the floor of W H
    waits: ClassVar[bool] = False  # for the device within iterations: no CUDA graph can hold them

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
    waits = True  # for decompositions

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
    waits = True  # for decompositions

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
        if not isinstance(X.own, Sparse):
            if X.weighted:
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
        objective, X = self.problem.objective, self.problem.X
        assert isinstance(X, Sparse | Sharded)  # `check_data`
        return X.cd(
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
