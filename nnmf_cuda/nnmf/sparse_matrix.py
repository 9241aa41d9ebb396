"""X of which most entries are zeros: its non-zeros, which are all that is ever read or held."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Self

import scipy.sparse
import torch
from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.nnmf.matrix import BLOCK_ENTRIES, Matrix
from nnmf_cuda.ops.nnmf_sparse import csr_tensor, row_blocks, transposed_parts

_SUMMED = 2**15
"""Non-zeros that are in float64 together: few beside those of a small X too."""


class Sparse(Matrix):
    """X by its non-zeros: a tensor in torch's CSR, float32 or float64, the columns in order.

    Entries that are stored although they are zero change nothing. Pixels come as fractions.
    """

    reading_cost = 3.0  # its rows of the factors lie anywhere (seen on counts in float32)
    sums_cancel = True

    @property
    def n_read(self) -> int:
        """How many entries one pass over X reads."""
        return self._values.numel()

    @property
    def kind(self) -> str:
        """What entries it has, in a word or two that a checkpoint can compare."""
        dtype = str(self.tensor.dtype).removeprefix("torch.")
        return f"sparse {dtype}{' pixels' if self.pixels else ''}"

    def parts(self) -> Iterator[Tensor]:
        """Yield tensors whose bytes, one after the other, tell it from others of its kind."""
        for indices in (self.tensor.crow_indices(), self.tensor.col_indices()):
            for part in indices.split(BLOCK_ENTRIES):  # of either type of index, the same bytes
                yield part.long()
        yield from self._values.split(BLOCK_ENTRIES)

    def converted(self, dtype: torch.dtype) -> Self:
        """Return it for factors of this type."""
        if dtype == self.tensor.dtype:
            return self
        parts = (self.tensor.crow_indices(), self.tensor.col_indices(), self._values.to(dtype))
        return type(self)(csr_tensor(*parts, self.shape), pixels=self.pixels)

    def extremes(self) -> tuple[float, float]:
        """Return the smallest and the largest entry; NaN reaches both."""
        if self.n_read == 0:
            return 0.0, 0.0
        low, high = torch.stack(torch.aminmax(self._values)).tolist()
        if self.n_read < self.n_entries:
            low, high = min(low, 0.0), max(high, 0.0)  # NaN, given first, stays
        return low, high

    def sum_and_count(self) -> tuple[float, float]:
        """Return the sum of the entries and how many."""
        total = sum(part.double().sum().item() for part in self._values.split(_SUMMED))
        return total, self.n_entries

    def mean_power(self, exponent: float) -> Tensor:
        """Return the mean of X ** exponent: () float64 on X's device; of zeros, that is 0."""
        total = self._values.new_zeros((), dtype=torch.float64)
        for part in self._values.split(_SUMMED):
            total += part.double().pow(exponent).sum()
        return total / self.n_entries

    def row_means(self) -> Tensor:
        """Return the mean of each row, (n, 1)."""
        sums = torch.segment_reduce(
            self._values, "sum", offsets=self.tensor.crow_indices().long(), initial=0
        )
        return sums[:, None] / self.shape[1]

    def product(self, right: Tensor) -> Tensor:
        """Return X @ right in right's type."""
        if right.dtype == self.tensor.dtype:
            return self.tensor @ right
        result = right.new_empty(self.shape[0], right.shape[1])
        for rows, block in row_blocks(self.tensor, right.dtype):
            result[rows] = block @ right
        return result

    def transposed_product(self, right: Tensor) -> Tensor:
        """Return X^T @ right in right's type."""
        if self.device.type != "cpu":
            return self.converted(right.dtype).tensor.mT @ right
        # torch sorts the non-zeros by columns in every call, which takes ten times as long.
        parts = (self._values, self.tensor.col_indices(), self.tensor.crow_indices())
        view = scipy.sparse.csr_array(tuple(part.numpy() for part in parts), shape=self.shape)
        return torch.from_numpy(view.T @ right.numpy()).to(right.dtype)

    def cd(self, W: Tensor, H: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Run coordinate descent; options and results are those of `ops.nnmf_cd`."""
        by_columns = self.transposed.tensor if options.get("update_H", True) else None
        return ops.nnmf_cd(self.tensor, W, H, transposed=by_columns, **options)

    def project(self, H: Tensor, *, l1_reg: float = 0.0, l2_reg: float = 0.0) -> Tensor:
        """Return the W (n, k) >= 0 of least squared error on H (k, f), exactly.

        What each row of W minimises is that of `Matrix.project`. In float64, a few rows at a time.
        """
        wide = H.mT.to(torch.float64, memory_format=torch.contiguous_format)
        gram = wide.mT @ wide
        gram.diagonal().add_(l2_reg)
        result = H.new_empty(self.shape[0], len(H))
        for rows, block in row_blocks(self.tensor, wide.dtype):
            result[rows] = ops.nnls(gram, block @ wide - l1_reg).to(H.dtype)
        return result

    @cached_property
    def transposed(self) -> Self:
        """X^T, made at the first call and kept."""
        parts = transposed_parts(self.tensor)
        return type(self)(csr_tensor(*parts, self.shape[::-1]), pixels=self.pixels)

    @property
    def _values(self) -> Tensor:
        return self.tensor.values()
