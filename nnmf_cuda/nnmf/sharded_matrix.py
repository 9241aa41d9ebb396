"""X whose rows are dealt among processes, as the process that has some of them sees it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.distributed.ranks import Ranks
from nnmf_cuda.nnmf.dealt_columns import DealtColumns
from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.nnmf.row_sums import normal_equations, row_terms, swept, times_H
from nnmf_cuda.nnmf.sparse_matrix import Sparse
from nnmf_cuda.nnmf.weighted_matrix import SWEEPS
from nnmf_cuda.reference.nnmf import CLAMP, EPSILON, mm_exponent, no_divergence


class Sharded(Matrix):
    """X of which this process has the rows `own`, and the other ranks the others.

    A rank's W is that of its rows, H is the same on all of them: what updates it is made of sums
    over rows, which each rank makes of its own and `Ranks` adds up. All methods that tell of X as a
    whole, update H or return a divergence are called by all ranks together.
    """

    def __init__(self, own: Matrix, ranks: Ranks, starts: Ranks | None = None) -> None:
        super().__init__(own.tensor, pixels=own.pixels)
        self.ranks, self._own = ranks, own
        self.starts = starts  # who have the same rows, for other starts
        told = ranks.gathered((own.shape[0], own.n_read, own.weighted))
        self.counts = tuple(int(count) for count, _, _ in told)  # the rows of each rank
        self._n_read = sum(int(n_read) for _, n_read, _ in told)
        self.weighted = any(weighted for _, _, weighted in told)
        self._first = sum(self.counts[: ranks.rank])
        self._whole_shape = sum(self.counts), own.shape[1]
        self.reading_cost, self.sums_cancel = own.reading_cost, own.sums_cancel

    @property
    def whole_shape(self) -> tuple[int, int]:
        """(n_samples, n_features) with the rows of all processes."""
        return self._whole_shape

    @property
    def own_rows(self) -> slice:
        """Which of all rows this process has."""
        return slice(self._first, self._first + self.shape[0])

    @property
    def own(self) -> Matrix:
        """What this process has of it."""
        return self._own

    @property
    def leads(self) -> bool:
        """Whether this process tells the user what all have in common."""
        return self.ranks.rank == 0 and (self.starts is None or self.starts.rank == 0)

    def totals(self, *of_rows: Tensor) -> tuple[Tensor, ...]:
        """Return sums over all rows, given those over the rows of this process."""
        return self.ranks.totals(*of_rows)

    def like(self, own: Matrix) -> Matrix:
        """Return X of which this process has these rows, in place of its own."""
        return type(self)(own, self.ranks, self.starts)

    def whole_rows(self, own: Tensor) -> Tensor:
        """Return what there is of all rows, (n_samples, ...), given that of this process's."""
        return self.ranks.rows(own, self.counts)

    def gathered(self, value: Any) -> list[Any]:
        """Return what each process gives, in the order of their rows."""
        return self.ranks.gathered(value)

    def place(self, count: int) -> tuple[int, int]:
        """Return how many there are in the processes before this one, and in all, with `count`."""
        counts = self.ranks.gathered(count)
        return sum(counts[: self.ranks.rank]), sum(counts)

    def same_generator(self, rng: np.random.RandomState) -> np.random.RandomState:
        """Return the generator in the state that rank 0's is in."""
        state = self.ranks.gathered(rng.get_state() if self.ranks.rank == 0 else None)[0]
        rng.set_state(state if self.starts is None else self.starts.gathered(state)[0])
        return rng

    @property
    def n_read(self) -> int:
        """How many entries one pass over X reads."""
        return self._n_read

    def sweeps(self, n_components: int) -> int:
        """Return how often HALS is to sweep over the factors for each time that X is read."""
        return SWEEPS if self.weighted else super().sweeps(n_components)

    @property
    def kind(self) -> str:
        """What entries it has, in a word or two that a checkpoint can compare."""
        return self._own.kind

    def parts(self) -> Iterator[Tensor]:
        """Yield tensors whose bytes, one after the other, tell its own rows from others."""
        return self._own.parts()

    def converted(self, dtype: torch.dtype) -> Self:
        """Return it for factors of this type; pixels go with both as they are."""
        return type(self)(self._own.converted(dtype), self.ranks, self.starts)

    def weights_of(self, rows: slice, dtype: torch.dtype) -> Tensor | None:
        """Return the weights of a block of its own rows; None where all entries count alike."""
        return self._own.weights_of(rows, dtype)

    def extremes(self) -> tuple[float, float]:
        """Return the smallest and the largest entry, of pixels as fractions; NaN reaches both."""
        own = self._own.extremes() if self.shape[0] else (math.inf, -math.inf)
        lows, highs = zip(*self.ranks.gathered(own), strict=True)
        return float(np.min(lows)), float(np.max(highs))

    def sum_and_count(self) -> tuple[float, float]:
        """Return the sum of the entries, of pixels as they are, and how many: by their weights."""
        own = torch.tensor(self._own.sum_and_count(), dtype=torch.float64, device=self.device)
        total, count = self.totals(own)[0].tolist()
        return total, count

    def columns_seen(self) -> Tensor:
        """Return in which columns something counts, (f,) bool."""
        own = self._own.columns_seen() if self.shape[0] else torch.zeros(self.shape[1])
        return self.totals(own.double().to(self.device))[0] > 0

    def mean_power(self, exponent: float) -> Tensor:
        """Return the mean of X ** exponent, of pixels as fractions: () float64 on X's device."""
        own = torch.zeros((), dtype=torch.float64, device=self.device)
        if self.shape[0]:
            own = self._own.mean_power(exponent) * self._own.n_entries
        return self.totals(own)[0] / self.n_entries

    def row_means(self) -> Tensor:
        """Return the mean of each of its own rows, (n, 1), of pixels as fractions."""
        return self._own.row_means()

    def product(self, right: Tensor) -> Tensor:
        """Return X @ right for its own rows, in right's type, of pixels as fractions."""
        return self._own.product(right)

    def transposed_product(self, right: Tensor) -> Tensor:
        """Return X^T @ right in right's type, of pixels as fractions; right has its own rows."""
        return self.totals(self._own.transposed_product(right))[0]

    @property
    def transposed(self) -> Self:
        """Not there: no process has a row of it."""
        raise NotImplementedError("X^T of rows that are dealt among processes: take own.transposed")

    @property
    def unit(self) -> int:
        """What stands for a 1 in X."""
        return self._own.unit

    def project(self, H: Tensor, *, l1_reg: float = 0.0, l2_reg: float = 0.0) -> Tensor:
        """Return the W (n, k) >= 0 of least squared error on H (k, f), exactly, of its own rows."""
        if not self.shape[0]:
            return H.new_empty(0, len(H))
        return self._own.project(H, l1_reg=l1_reg, l2_reg=l2_reg)

    def divergence(self, W: Tensor, H: Tensor, *, beta_loss: float, floor: float) -> Tensor:
        """Return the divergence of X from each W H, (B,) float64, as `ops.nnmf_divergence`."""
        own = W.new_zeros(W.shape[:-2], dtype=torch.float64)
        if self.shape[0]:
            own = self._own.divergence(W, H, beta_loss=beta_loss, floor=floor)
        return self.totals(own)[0]

    def mu(
        self,
        W: Tensor,
        H: Tensor,
        *,
        beta_loss: float = 1.0,
        floor: float = EPSILON,
        n_iter: int = 1,
        update_H: bool = True,
        l1_reg_H: float = 0.0,
        l2_reg_H: float = 0.0,
        n_fixed: int = 0,
        compute_divergence: bool = False,
        **of_W: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run multiplicative updates; options and results are those of `ops.nnmf_mu`.

        In each of them a rank updates both factors as if its rows were all. H is then the mean of
        what the ranks have made of it, by the weight of their denominators, as what a rank has
        multiplied H by is the quotient of its own sums (to a power).
        """
        single = W.ndim == 2
        if single:
            W, H = W[None], H[None]
        of_loss = {"beta_loss": beta_loss, "floor": floor}
        if update_H:
            for _ in range(n_iter):
                W, pull, hold = self._pulled(W, H, of_loss, of_W)
                hold = hold + l1_reg_H + l2_reg_H * H.double()
                moved = (pull / hold.masked_fill(hold == 0, EPSILON)) ** mm_exponent(beta_loss)
                if beta_loss <= 1:
                    moved = moved.masked_fill(moved < CLAMP, 0)
                H = torch.cat((H[:, :n_fixed], moved[:, n_fixed:].to(H.dtype)), dim=1)
        elif self.shape[0]:
            W = self._own.mu(W, H, n_iter=n_iter, update_H=False, **of_loss, **of_W)[0]
        divergence = self._divergence_if(compute_divergence, W, H, of_loss)
        return (W[0], H[0], divergence[0]) if single else (W, H, divergence)

    def _pulled(
        self, W: Tensor, H: Tensor, of_loss: dict[str, float], of_W: dict[str, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return W updated, and of the update of H its two sums over all rows, (B, k, f) float64.

        The first is that of the numerator times H ** (1 / gamma).
        """
        of_terms: dict[str, Any] = {**of_loss, "weighted": self.weighted}
        of_times = {name: of_terms[name] for name in ("beta_loss", "weighted")}
        moved = H
        if self.shape[0]:
            W, moved, _ = self._own.mu(W, H, n_iter=1, **of_loss, **of_W)
        terms = row_terms(self, W, H, **of_terms)
        power = 1 / mm_exponent(of_loss["beta_loss"])
        pull, terms = self.totals(moved.double() ** power * times_H(terms, H, **of_times), terms)
        return W, pull, times_H(terms, H, **of_times)

    def hals(
        self,
        W: Tensor,
        H: Tensor,
        *,
        n_iter: int = 1,
        n_inner: int = 1,
        update_H: bool = True,
        l1_reg_H: float = 0.0,
        l2_reg_H: float = 0.0,
        n_fixed: int = 0,
        compute_divergence: bool = False,
        **of_W: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run alternating least squares; options and results are those of `ops.nnmf_hals`."""
        for _ in range(n_iter):
            if self.shape[0]:
                W = self._own.hals(W, H, n_iter=1, n_inner=n_inner, update_H=False, **of_W)[0]
            if update_H:
                cross, gram = self.totals(*normal_equations(self._own, W, weighted=self.weighted))
                H = swept(H, cross - l1_reg_H, gram, l2_reg_H, n_sweeps=n_inner, n_fixed=n_fixed)
        return W, H, self._divergence_if(compute_divergence, W, H, {"beta_loss": 2.0})

    def cd(
        self,
        W: Tensor,
        H: Tensor,
        *,
        n_iter: int = 1,
        n_inner: int = 1,
        update_H: bool = True,
        l1_reg_W: float = 0.0,
        l1_reg_H: float = 0.0,
        l2_reg_W: float = 0.0,
        l2_reg_H: float = 0.0,
        floor: float = EPSILON,
        n_fixed: int = 0,
        compute_divergence: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run coordinate descent; options and results are those of `ops.nnmf_cd`.

        Each rank finds the W of its rows, and then the H of its columns, for which it has all of W.
        """
        assert n_fixed == 0 or not update_H  # `ShardMixin` sees to it
        options: dict[str, Any] = {"n_iter": 1, "n_inner": n_inner, "floor": floor}
        options["update_H"] = False
        of_W = {**options, "l1_reg_W": l1_reg_W, "l2_reg_W": l2_reg_W}
        of_H = {**options, "l1_reg_W": l1_reg_H, "l2_reg_W": l2_reg_H}
        for _ in range(n_iter):
            if self.shape[0]:
                W = ops.nnmf_cd(self.tensor, W, H, **of_W)[0]
            if update_H:
                dealt = self._columns
                whole_W = self.whole_rows(W.transpose(0, 1)).permute(1, 2, 0)
                own_H = H[:, :, dealt.columns].mT
                if own_H.shape[1]:
                    own_H = ops.nnmf_cd(dealt.tensor, own_H, whole_W, **of_H)[0]
                H = dealt.joined(own_H.mT)
        return W, H, self._divergence_if(compute_divergence, W, H, {"floor": floor})

    @cached_property
    def _columns(self) -> DealtColumns:
        assert isinstance(self._own, Sparse)  # `CoordinateDescent.check_data`
        return DealtColumns(self._own, self.ranks)

    def _divergence_if(
        self, asked: bool, W: Tensor, H: Tensor, of_loss: dict[str, float]
    ) -> Tensor:
        """Return the divergence, or what stands for it where nobody asks."""
        if not asked:
            return no_divergence(W)
        return self.divergence(W, H, **{"beta_loss": 1.0, "floor": EPSILON, **of_loss})
