"""What is asked of X beside the kernels, block of rows by block: no temporary has the size of X.

X may be a memory map larger than memory, and pixels are four times as large as floats.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK_ENTRIES = 2**19


def factor_dtype(X: Tensor) -> torch.dtype:
    """Return the type of the factors of X: its own, float32 for uint8 pixels."""
    return torch.float32 if X.dtype == torch.uint8 else X.dtype


def row_slices(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Yield the rows of each block of a matrix of this shape."""
    step = max(1, _BLOCK_ENTRIES // max(1, n_columns))
    for first in range(0, n_rows, step):
        yield slice(first, first + step)


def extremes(X: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest entry; NaN reaches both."""
    low = high = X[:1, :1].reshape(())
    for rows in row_slices(*X.shape):
        bounds = torch.aminmax(X[rows])
        low, high = torch.minimum(low, bounds.min), torch.maximum(high, bounds.max)
    low, high = torch.stack((low, high)).tolist()
    return low, high


def mean(X: Tensor) -> float:
    """Return the mean entry, of pixels as fractions."""
    total = sum(block.sum().item() for _, block in _blocks_as(torch.float64, X))
    return total / X.numel() / _unit(X)


def row_means(X: Tensor) -> Tensor:
    """Return the mean of each row, (n, 1), of pixels as fractions."""
    result = torch.empty(len(X), 1, dtype=factor_dtype(X), device=X.device)
    for rows, block in _blocks_as(result.dtype, X):
        torch.mean(block, 1, keepdim=True, out=result[rows])
    return result.div_(_unit(X))


def product(X: Tensor, right: Tensor) -> Tensor:
    """Return X @ right, of pixels as fractions."""
    result = right.new_empty(len(X), right.shape[1])
    for rows, block in _blocks_as(right.dtype, X):
        torch.mm(block, right, out=result[rows])
    return result.div_(_unit(X))


def transposed_product(X: Tensor, right: Tensor) -> Tensor:
    """Return X^T @ right, of pixels as fractions."""
    result = right.new_zeros(X.shape[1], right.shape[1])
    for rows, block in _blocks_as(right.dtype, X):
        result.addmm_(block.mT, right[rows])
    return result.div_(_unit(X))


def _blocks_as(dtype: torch.dtype, X: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows in `dtype`; they share one buffer, or a heap of them would grow."""
    buffer: Tensor | None = None
    for rows in row_slices(*X.shape):
        block = X[rows]
        if X.dtype != dtype:
            if buffer is None:
                buffer = torch.empty_like(block, dtype=dtype)
            block = buffer[: len(block)].copy_(block)
        yield rows, block


def _unit(X: Tensor) -> int:
    return 255 if X.dtype == torch.uint8 else 1
