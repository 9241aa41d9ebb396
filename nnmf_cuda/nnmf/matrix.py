"""X as a factorisation reads it: what `NNMF`'s parts need to know of it, and X of dense data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from nnmf_cuda import ops

_DIGITS_OF_MEAN = 40

_SWEEPS_SHARE = 0.5  # of the work on X, spent on more sweeps over the factors (Gillis & Glineur)
_SWEEPS_MAX = 10  # by then a factor hardly moves before X is read again

BLOCK_ENTRIES = 2**17
"""Entries of X in one block: whatever is computed beside the kernels holds no more at once."""
_TIMES_ON_CUDA = 32
"""As much more there: a launch takes as long as the sum of such a block."""


class Matrix(ABC):
    """X (n_samples, n_features), non-negative, on a device.

    `tensor` is what the ops take for X; a kind of X that they need more for overrides the methods
    that call them. Where processes share the rows of X (`Sharded`), each has some of them, `shape`,
    `tensor` and W are those of its own, and what is told of X holds for all rows.
    """

    reading_cost = 1.0
    """How long reading an entry takes, beside one of dense X."""

    sums_cancel = False
    """Whether every divergence is a difference of sums, and so has their rounding."""

    weighted = False
    """Whether entries have weights."""

    def __init__(self, tensor: Tensor, *, pixels: bool = False) -> None:
        self.tensor = tensor
        self.pixels = pixels  # came as uint8, which is read as x / 255

    @property
    def shape(self) -> tuple[int, int]:
        """(n_samples, n_features)."""
        n_samples, n_features = self.tensor.shape
        return n_samples, n_features

    @property
    def whole_shape(self) -> tuple[int, int]:
        """(n_samples, n_features) with the rows of all processes."""
        return self.shape

    @property
    def own_rows(self) -> slice:
        """Which of all rows this process has."""
        return slice(0, self.shape[0])

    @property
    def own(self) -> Matrix:
        """What this process has of it."""
        return self

    @property
    def leads(self) -> bool:
        """Whether this process tells the user what all have in common."""
        return True

    def totals(self, *of_rows: Tensor) -> tuple[Tensor, ...]:
        """Return sums over all rows, given those over the rows of this process."""
        return of_rows

    def like(self, own: Matrix) -> Matrix:
        """Return X of which this process has these rows, in place of its own."""
        return own

    def whole_rows(self, own: Tensor) -> Tensor:
        """Return what there is of all rows, (n_samples, ...), given that of this process's."""
        return own

    def gathered(self, value: Any) -> list[Any]:
        """Return what each process gives, in the order of their rows."""
        return [value]

    def place(self, count: int) -> tuple[int, int]:
        """Return how many there are in the processes before this one, and in all, with `count`."""
        return 0, count

    def same_generator(self, rng: np.random.RandomState) -> np.random.RandomState:
        """Return a generator that draws the same in all processes."""
        return rng

    @property
    def n_entries(self) -> int:
        """n_samples * n_features."""
        return math.prod(self.whole_shape)

    @property
    def device(self) -> torch.device:
        """Where it is, and where its factors are."""
        return self.tensor.device

    @property
    def factor_dtype(self) -> torch.dtype:
        """The type of its factors: its own, float32 for uint8 pixels."""
        return torch.float32 if self.tensor.dtype == torch.uint8 else self.tensor.dtype

    @property
    @abstractmethod
    def n_read(self) -> int:
        """How many entries one pass over X reads."""

    def sweeps(self, n_components: int) -> int:
        """Return how often HALS is to sweep over the factors for each time that X is read."""
        work = self.reading_cost * self.n_read / (sum(self.whole_shape) * n_components)
        return min(_SWEEPS_MAX, 1 + int(_SWEEPS_SHARE * work))

    @property
    @abstractmethod
    def kind(self) -> str:
        """What entries it has, in a word or two that a checkpoint can compare."""

    @abstractmethod
    def parts(self) -> Iterator[Tensor]:
        """Yield tensors whose bytes, one after the other, tell it from others of its kind."""

    @abstractmethod
    def converted(self, dtype: torch.dtype) -> Self:
        """Return it for factors of this type; pixels go with both as they are."""

    def weights_of(self, rows: slice, dtype: torch.dtype) -> Tensor | None:
        """Return the weights of a block of rows (n_rows, f); None where all entries count alike."""
        return None

    @abstractmethod
    def extremes(self) -> tuple[float, float]:
        """Return the smallest and the largest entry, of pixels as fractions; NaN reaches both."""

    def mean(self) -> float:
        """Return the mean entry, of pixels as fractions, as `rounded_mean` has it."""
        total, count = self.sum_and_count()
        return rounded_mean(total / count / self.unit) if count else 0.0

    @abstractmethod
    def sum_and_count(self) -> tuple[float, float]:
        """Return the sum of the entries, of pixels as they are, and how many: by their weights."""

    def columns_seen(self) -> Tensor:
        """Return in which columns something counts, (f,) bool."""
        return torch.ones(self.shape[1], dtype=torch.bool, device=self.device)

    @abstractmethod
    def mean_power(self, exponent: float) -> Tensor:
        """Return the mean of X ** exponent, of pixels as fractions: () float64 on X's device."""

    @abstractmethod
    def row_means(self) -> Tensor:
        """Return the mean of each row, (n, 1), of pixels as fractions."""

    @abstractmethod
    def product(self, right: Tensor) -> Tensor:
        """Return X @ right in right's type, of pixels as fractions."""

    @abstractmethod
    def transposed_product(self, right: Tensor) -> Tensor:
        """Return X^T @ right in right's type, of pixels as fractions."""

    @property
    @abstractmethod
    def transposed(self) -> Self:
        """X^T, made at the first call and kept."""

    def products(self, right: Tensor) -> Tensor:
        """Return X @ right for each of right (B, n_features, m): (B, n_samples, m)."""
        return _of_each(self.product, right)

    def transposed_products(self, right: Tensor) -> Tensor:
        """Return X^T @ right for each of right (B, n_samples, m): (B, n_features, m)."""
        return _of_each(self.transposed_product, right)

    def mu(self, W: Tensor, H: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Run multiplicative updates; options and results are those of `ops.nnmf_mu`."""
        return ops.nnmf_mu(self.tensor, W, H, **options)

    def hals(self, W: Tensor, H: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Run alternating least squares; options and results are those of `ops.nnmf_hals`."""
        return ops.nnmf_hals(self.tensor, W, H, **options)

    def divergence(self, W: Tensor, H: Tensor, *, beta_loss: float, floor: float) -> Tensor:
        """Return the divergence of X from each W H, (B,) float64, as `ops.nnmf_divergence`."""
        return ops.nnmf_divergence(self.tensor, W, H, beta_loss=beta_loss, floor=floor)

    @property
    def unit(self) -> int:
        """What stands for a 1 in X."""
        return 1

    def project(self, H: Tensor, *, l1_reg: float = 0.0, l2_reg: float = 0.0) -> Tensor:
        """Return the W (n, k) >= 0 of least squared error on H (k, f), exactly.

        What each row of W minimises is half the squared error plus l1 sum(w) + l2 / 2 sum(w ** 2).
        """
        if l1_reg == l2_reg == 0:
            return ops.project(self.tensor, H)
        # In float64, or components that are nearly dependent would lose what tells them apart.
        wide = H.double()
        ridge = l2_reg * torch.eye(len(H), dtype=wide.dtype, device=H.device)
        cross = self.product(wide.mT) - l1_reg
        solution: Tensor = ops.nnls(wide @ wide.mT + ridge, cross).to(H.dtype)
        return solution


class Dense(Matrix):
    """X with all its entries: a strided tensor, float32, float64 or uint8 (pixels).

    It may be larger than memory (a memory map): beside the kernels it is read by blocks of rows.
    """

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor, pixels=tensor.dtype == torch.uint8)

    @property
    def n_read(self) -> int:
        """How many entries one pass over X reads."""
        return self.n_entries

    @property
    def kind(self) -> str:
        """What entries it has, in a word or two that a checkpoint can compare."""
        return str(self.tensor.dtype).removeprefix("torch.")

    def parts(self) -> Iterator[Tensor]:
        """Yield tensors whose bytes, one after the other, tell it from others of its kind."""
        for rows in row_slices(*self.shape, device=self.device):
            yield self.tensor[rows]

    def converted(self, dtype: torch.dtype) -> Self:
        """Return it for factors of this type; pixels go with both as they are."""
        return self if self.pixels else type(self)(self.tensor.to(dtype))

    def extremes(self) -> tuple[float, float]:
        """Return the smallest and the largest entry, of pixels as fractions; NaN reaches both."""
        low = high = self.tensor[:1, :1].reshape(())
        for rows in row_slices(*self.shape, device=self.device):
            bounds = torch.aminmax(self.tensor[rows])
            low, high = torch.minimum(low, bounds.min), torch.maximum(high, bounds.max)
        low, high = torch.stack((low, high)).tolist()
        return low / self.unit, high / self.unit

    def sum_and_count(self) -> tuple[float, float]:
        """Return the sum of the entries, of pixels as they are, and how many."""
        total = sum(block.sum().item() for _, block in self.blocks_as(torch.float64))
        return total, self.n_entries

    def mean_power(self, exponent: float) -> Tensor:
        """Return the mean of X ** exponent, of pixels as fractions: () float64 on X's device."""
        total = self.tensor.new_zeros((), dtype=torch.float64)
        for _, block in self.blocks_as(torch.float64):
            total += (block / self.unit).pow_(exponent).sum()
        return total / self.n_entries

    def row_means(self) -> Tensor:
        """Return the mean of each row, (n, 1), of pixels as fractions."""
        result = self.tensor.new_empty((self.shape[0], 1), dtype=self.factor_dtype)
        for rows, block in self.blocks_as(result.dtype):
            torch.mean(block, 1, keepdim=True, out=result[rows])
        return result.div_(self.unit)

    def product(self, right: Tensor) -> Tensor:
        """Return X @ right in right's type, of pixels as fractions."""
        result = right.new_empty(self.shape[0], right.shape[1])
        for rows, block in self.blocks_as(right.dtype):
            torch.mm(block, right, out=result[rows])
        return result.div_(self.unit)

    def transposed_product(self, right: Tensor) -> Tensor:
        """Return X^T @ right in right's type, of pixels as fractions."""
        result = right.new_zeros(self.shape[1], right.shape[1])
        for rows, block in self.blocks_as(right.dtype):
            result.addmm_(block.mT, right[rows])
        return result.div_(self.unit)

    @cached_property
    def transposed(self) -> Self:
        """X^T, made at the first call and kept."""
        return type(self)(self.tensor.mT.contiguous())

    def blocks_as(
        self, dtype: torch.dtype, n_entries: int | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of rows in `dtype`; they share one buffer, or a heap of them would grow."""
        buffer: Tensor | None = None
        for rows in row_slices(*self.shape, device=self.device, n_entries=n_entries):
            block = self.tensor[rows]
            if self.tensor.dtype != dtype:
                if buffer is None:
                    buffer = torch.empty_like(block, dtype=dtype)
                block = buffer[: len(block)].copy_(block)
            yield rows, block

    @property
    def unit(self) -> int:
        """What stands for a 1 in X."""
        return 255 if self.pixels else 1


def _of_each(multiply: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """Return the product with each matrix of right (B, m, c), for which X is read once."""
    B, _, c = right.shape
    product = multiply(right.transpose(0, 1).reshape(-1, B * c))
    return product.reshape(-1, B, c).transpose(0, 1).contiguous()


def row_slices(
    n_rows: int, n_columns: int, *, device: torch.device, n_entries: int | None = None
) -> Iterator[slice]:
    """Yield the rows of each block of a matrix of this shape on this device, BLOCK_ENTRIES each."""
    entries = BLOCK_ENTRIES if n_entries is None else n_entries
    entries *= _TIMES_ON_CUDA if device.type == "cuda" else 1
    step = max(1, entries // max(1, n_columns))
    for first in range(0, n_rows, step):
        yield slice(first, first + step)


def rounded_mean(mean: float) -> float:
    """Return a mean of entries to 40 binary digits, inf where it is not finite.

    Sums depend on the device, its threads and the order of rows in later digits only, so that
    starts, which scale with the mean, are the same bits everywhere.
    """
    if not math.isfinite(mean):
        return math.inf
    digits, exponent = math.frexp(mean)
    return math.ldexp(round(math.ldexp(digits, _DIGITS_OF_MEAN)), exponent - _DIGITS_OF_MEAN)


def real_tensor(name: str, values: Any) -> Tensor:
    """Return what a user gives as `name`: a tensor, or what NumPy makes a real array of."""
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} must be an array of real numbers, got {values!r:.80}")
        # A copy: writable, in strides and a type that torch knows.
        values = torch.from_numpy(array.astype(np.float64))
    elif values.is_complex():
        raise TypeError(f"{name} must be a tensor of real numbers, got {values.dtype}")
    detached: Tensor = values.detach()
    return detached


def refuse_entries(name: str, values: Tensor, bad: Tensor, rule: str) -> None:
    """Raise ValueError, with how many entries are bad and the first of them, where any is."""
    places = bad.nonzero()
    if len(places):
        at = tuple(places[0].tolist())
        raise ValueError(
            f"{name} {rule}; got {len(places)} of {values.numel()} entries that are not, the first"
            f" {values[at].item():g} at {at if len(at) > 1 else at[0]}"
        )


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return NumPy's name of a type of torch's."""
    found: np.dtype[Any] = torch.empty(0, dtype=dtype).numpy().dtype
    return found
