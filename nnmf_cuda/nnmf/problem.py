"""What `NNMF` minimises over W and H, and where a batch of starts stands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.nnmf.graph import Graph, graph_updates
from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.nnmf.semi import semi_updates

_ROUNDINGS = 8  # that a block of updates adds up to: up to 5 were seen on counts in float32


@dataclass(frozen=True)
class Penalty:
    """Regularisation as the ops take it, already scaled by the size of X."""

    l1_reg_W: float = 0.0
    l1_reg_H: float = 0.0
    l2_reg_W: float = 0.0
    l2_reg_H: float = 0.0

    def value(self, X: Matrix, W: Tensor, H: Tensor) -> Tensor:
        """Return the penalty of each start of the batch, (B,) float64."""
        total = W.new_zeros(len(W), dtype=torch.float64)
        if self.l1_reg_W or self.l2_reg_W:
            (of_W,) = X.totals(_elastic_net(W, self.l1_reg_W, self.l2_reg_W))
            total += of_W
        if self.l1_reg_H or self.l2_reg_H:
            total += _elastic_net(H, self.l1_reg_H, self.l2_reg_H)
        return total


def _elastic_net(factor: Tensor, l1_reg: float, l2_reg: float) -> Tensor:
    """Return l1 sum(factor) + l2 / 2 sum(factor ** 2) of each start, (B,) float64."""
    wide = factor.double()
    total = l1_reg * wide.sum((1, 2))
    # A factor that is float64 is no copy.
    square = wide.square() if wide is factor else wide.square_()
    return total + l2_reg * square.sum((1, 2)) / 2


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
    precision: str = "float32"  # of `ops.nnmf_mu`

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
        penalty = self.objective.penalty.value(self.X, W, H)
        if self.graph is not None:
            (of_graph,) = self.X.totals(self.graph.value_of_rows(W))
            # Rounding may leave less than nothing of neighbours that are all alike.
            penalty += of_graph.clamp_min(0)
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
            if self.precision != "float32":  # only X that `check_precision` allows takes it
                shared["precision"] = self.precision
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
