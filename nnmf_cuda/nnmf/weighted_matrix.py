"""X of which entries are missing or have weights, and what a user tells of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.nnmf.matrix import Dense, Matrix, real_tensor, refuse_entries, row_slices
from nnmf_cuda.reference.nnmf import unpacked

_GRAM_ENTRIES = 2**22
"""Numbers of components times weights that `project` holds at once, float64."""

SWEEPS = 2
"""Of HALS: on planted factors, with a mask and with weights, 1, 4 and 10 gain less in the same
time."""


@dataclass(frozen=True)
class Told:
    """What a user says of the entries of X, as it came."""

    mask: Any = None
    weights: Any = None
    missing_values: float | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in vars(self).values())

    @property
    def words(self) -> str:
        """Which arguments tell it."""
        return " and ".join(name for name, value in vars(self).items() if value is not None)


NOTHING_TOLD = Told()


def check_missing_values(missing_values: Any) -> None:
    """Raise unless it is None, NaN or a finite number."""
    if missing_values is None:
        return
    if isinstance(missing_values, bool) or not isinstance(missing_values, Real):
        raise TypeError(f"missing_values must be None, np.nan or a number, got {missing_values!r}")
    if math.isinf(missing_values):
        raise ValueError(f"missing_values must be finite or NaN, got {missing_values}")


class Weighted(Dense):
    """X whose entries count by weights: numbers >= 0, or a mask as bits (`ops.pack_mask`).

    Entries of weight 0 are zeros in `tensor`. Means, extremes and whatever else is told of X are
    those of the entries that count, by their weights.
    """

    weighted = True

    def __init__(self, tensor: Tensor, weights: Tensor) -> None:
        super().__init__(tensor)
        self.weights = weights  # (n, f) of factor_dtype, or (n, ceil(f / 8)) uint8

    def sweeps(self, n_components: int) -> int:
        """Return how often HALS is to sweep over the factors for each time that X is read.

        Each sweep visits all entries, which takes longer than what is read for it.
        """
        return SWEEPS

    @property
    def kind(self) -> str:
        """What entries it has, in a word or two that a checkpoint can compare."""
        return f"{super().kind} {'masked' if self._masked else 'weighted'}"

    def parts(self) -> Iterator[Tensor]:
        """Yield tensors whose bytes, one after the other, tell it from others of its kind."""
        yield from super().parts()
        for rows in row_slices(*self.shape, device=self.device):
            yield self.weights[rows]

    def converted(self, dtype: torch.dtype) -> Self:
        """Return it for factors of this type; pixels and bits go with both as they are."""
        tensor = self.tensor if self.pixels else self.tensor.to(dtype)
        return type(self)(tensor, self.weights if self._masked else self.weights.to(dtype))

    def weights_of(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the weights of a block of rows as numbers (n_rows, f)."""
        return unpacked(self.weights[rows], self.shape[1], dtype).to(dtype)

    def extremes(self) -> tuple[float, float]:
        """Return the smallest and the largest entry that counts, of pixels as fractions."""
        low = torch.tensor(math.inf, dtype=self.factor_dtype, device=self.device)
        high = -low
        for _, block, weights in self._weighted_blocks(self.factor_dtype):
            counts = weights > 0
            low = torch.minimum(low, block.where(counts, math.inf).amin())
            high = torch.maximum(high, block.where(counts, -math.inf).amax())
        low, high = torch.stack((low, high)).tolist()
        return low / self.unit, high / self.unit

    def sum_and_count(self) -> tuple[float, float]:
        """Return the sum of the entries, of pixels as they are, and how many: by their weights."""
        total = count = 0.0
        for _, block, weights in self._weighted_blocks(torch.float64):
            total += (weights * block).sum().item()
            count += weights.sum().item()
        return total, count

    def mean_power(self, exponent: float) -> Tensor:
        """Return the sum of weight * X ** exponent over the number of entries: () float64."""
        total = self.tensor.new_zeros((), dtype=torch.float64)
        for _, block, weights in self._weighted_blocks(torch.float64):
            power = (block / self.unit).pow_(exponent)
            total += torch.where(weights > 0, weights * power, 0).sum()
        return total / self.n_entries

    def row_means(self) -> Tensor:
        """Return the mean of each row, (n, 1), of pixels as fractions; 0 where nothing counts."""
        result = self.tensor.new_empty((self.shape[0], 1), dtype=self.factor_dtype)
        for rows, block, weights in self._weighted_blocks(result.dtype):
            total = weights.sum(1, keepdim=True)
            result[rows] = (weights * block).sum(1, keepdim=True) / total.masked_fill(total == 0, 1)
        return result.div_(self.unit)

    def product(self, right: Tensor) -> Tensor:
        """Return X @ right in right's type, what does not count being the mean of its row."""
        result = right.new_empty(self.shape[0], right.shape[1])
        for rows, block in self._filled_blocks(right.dtype):
            torch.mm(block, right, out=result[rows])
        return result.div_(self.unit)

    def transposed_product(self, right: Tensor) -> Tensor:
        """Return X^T @ right in right's type, what does not count being the mean of its row."""
        result = right.new_zeros(self.shape[1], right.shape[1])
        for rows, block in self._filled_blocks(right.dtype):
            result.addmm_(block.mT, right[rows])
        return result.div_(self.unit)

    @cached_property
    def transposed(self) -> Self:
        """X^T with its weights, made at the first call and kept."""
        weights = self.weights_of(slice(None), self.factor_dtype).mT.contiguous()
        if self._masked:
            weights = ops.pack_mask(weights > 0)
        return type(self)(self.tensor.mT.contiguous(), weights)

    def mu(self, W: Tensor, H: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Run multiplicative updates; options and results are those of `ops.nnmf_mu`."""
        return ops.nnmf_mu(self.tensor, W, H, weights=self.weights, **options)

    def hals(self, W: Tensor, H: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Run alternating least squares; options and results are those of `ops.nnmf_hals`."""
        # A row of which nothing counts would stay as it starts: what updates make of it is 0.
        W = W * self.rows_seen().to(W.dtype)
        return ops.nnmf_hals(self.tensor, W, H, weights=self.weights, **options)

    def divergence(self, W: Tensor, H: Tensor, *, beta_loss: float, floor: float) -> Tensor:
        """Return the divergence of X from each W H, (B,) float64, as `ops.nnmf_divergence`."""
        return ops.nnmf_divergence(
            self.tensor, W, H, beta_loss=beta_loss, floor=floor, weights=self.weights
        )

    def project(self, H: Tensor, *, l1_reg: float = 0.0, l2_reg: float = 0.0) -> Tensor:
        """Return the W (n, k) >= 0 of least weighted squared error on H (k, f), exactly.

        What each row of W minimises is half that error plus l1 sum(w) + l2 / 2 sum(w ** 2): least
        squares with a Gram matrix of its own. A row of which nothing counts is 0.
        """
        (k, f), wide = H.shape, H.double()
        result = H.new_zeros(self.shape[0], k)
        ridge = l2_reg * torch.eye(k, dtype=wide.dtype, device=H.device)
        step = max(1, _GRAM_ENTRIES // max(1, k * f))
        for first in range(0, self.shape[0], step):
            rows = slice(first, first + step)
            weights = self.weights_of(rows, wide.dtype)
            seen = weights * self.tensor[rows].double() / self.unit
            # Products of their own for each row: its result does not depend on those beside it.
            gram = torch.bmm(weights[:, None] * wide, wide.mT.expand(len(weights), f, k)) + ridge
            cross = torch.bmm(seen[:, None], wide.mT.expand(len(weights), f, k)) - l1_reg
            solution = ops.nnls(gram, cross).squeeze(1)
            result[rows] = torch.where(weights.any(1, keepdim=True), solution, 0).to(H.dtype)
        return result

    def rows_seen(self) -> Tensor:
        """Return in which rows something counts, (n, 1) bool."""
        return self.weights.any(1, keepdim=True)

    def columns_seen(self) -> Tensor:
        """Return in which columns something counts, (f,) bool."""
        seen = torch.zeros(self.shape[1], dtype=torch.bool, device=self.device)
        for rows in row_slices(*self.shape, device=self.device):
            seen |= self.weights_of(rows, self.factor_dtype).any(0)
        return seen

    @property
    def _masked(self) -> bool:
        """Whether the weights are bits."""
        return self.weights.dtype == torch.uint8

    def _weighted_blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield blocks of rows with their weights, both in `dtype`."""
        for rows, block in self.blocks_as(dtype):
            yield rows, block, self.weights_of(rows, dtype)

    def _filled_blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of rows, what does not count being the mean of its row."""
        means = self.row_means().to(dtype) * self.unit
        for rows, block, weights in self._weighted_blocks(dtype):
            yield rows, torch.where(weights > 0, block, means[rows])


def weighted_matrix(tensor: Tensor, told: Told) -> Dense:
    """Return X (n, f) as what is told of its entries makes it: `Dense` where all count alike.

    The entries that count are not checked here.
    """
    shape, device = tuple(tensor.shape), tensor.device
    mask = None if told.mask is None else _mask(told.mask, shape, device)
    if told.missing_values is not None:
        nan = math.isnan(told.missing_values)
        # As a float: an integer would be brought into the range of pixels, -1 to 255.
        found = ~tensor.isnan() if nan else tensor != float(told.missing_values)
        mask = found if mask is None else mask & found
    dtype = torch.float32 if tensor.dtype == torch.uint8 else tensor.dtype
    weights = None if told.weights is None else _weights(told.weights, shape, device, dtype)
    if weights is not None:
        mask = weights > 0 if mask is None else mask & (weights > 0)
        if bool((weights[mask] == 1).all()):
            weights = None  # a mask in other words
    if mask is None or (weights is None and bool(mask.all())):
        return Dense(tensor)
    if not bool(mask.any()):
        raise ValueError("no entry of X counts: all of them are missing or have the weight 0")
    hidden = torch.where(mask, tensor, torch.zeros((), dtype=tensor.dtype, device=device))
    if weights is None:
        return Weighted(hidden, ops.pack_mask(mask))
    return Weighted(hidden, torch.where(mask, weights, 0))


def check_columns(X: Matrix) -> None:
    """Raise if a column of X has no entry that counts, of which a fit would learn nothing."""
    unseen = (~X.columns_seen()).nonzero().flatten().tolist()
    if unseen:
        raise ValueError(
            f"X has {len(unseen)} column(s) of which no entry counts, the first is {unseen[0]}: "
            "leave them out"
        )


def _mask(mask: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the user's mask, True where an entry counts, checked."""
    tensor = mask.detach() if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
    if tensor.dtype != torch.bool:
        raise TypeError(
            f"mask must be bool, True where an entry of X counts, got {tensor.dtype}; for an array "
            "of 0 and 1 use mask.astype(bool)"
        )
    if tuple(tensor.shape) != shape:
        raise ValueError(f"mask must have X's shape {shape}, got {tuple(tensor.shape)}")
    return tensor.to(device)


def _weights(
    weights: Any, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return the user's weights (n, f), of entries or of samples, checked."""
    tensor = real_tensor("weights", weights)
    if tuple(tensor.shape) not in (shape, shape[:1]):
        raise ValueError(
            f"weights must have X's shape {shape}, or {shape[:1]} for one weight a sample, got "
            f"{tuple(tensor.shape)}"
        )
    tensor = tensor.to(device, dtype)
    kind = str(dtype).removeprefix("torch.")
    refuse_entries(
        "weights",
        tensor,
        ~(torch.isfinite(tensor) & (tensor >= 0)),
        f"must be finite and >= 0, in the type of the factors, {kind}; 0 leaves an entry out",
    )
    return tensor if tensor.ndim == 2 else tensor[:, None].expand(shape)
