"""What is asked of X beside the kernels, block of rows by block: no temporary has the size of X.

X may be a memory map larger than memory, and pixels are four times as large as floats.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK_ENTRIES = 2**20


def factor_dtype(X: Tensor) -> torch.dtype:
    """Return the type of the factors of X: its own, float32 for uint8 pixels."""
    return torch.float32 if X.dtype == torch.uint8 else X.dtype


def row_blocks(X: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield consecutive blocks of rows of X, each with the number of its first row."""
    for rows in row_slices(*X.shape):
        yield rows.start, X[rows]


def row_slices(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Yield the rows of each block of a matrix of this shape."""
    step = max(1, _BLOCK_ENTRIES // max(1, n_columns))
    for first in range(0, n_rows, step):
        yield slice(first, first + step)


def extremes(X: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest entry; NaN reaches both."""
    bounds = torch.stack([bound for _, block in row_blocks(X) for bound in torch.aminmax(block)])
    low, high = torch.aminmax(bounds)
    return low.item(), high.item()


def mean(X: Tensor) -> float:
    """Return the mean entry, of pixels as fractions."""
    total = sum(block.sum(dtype=torch.float64).item() for _, block in row_blocks(X))
    return total / X.numel() / _unit(X)


def row_means(X: Tensor) -> Tensor:
    """Return the mean of each row, (n, 1), of pixels as fractions."""
    dtype = factor_dtype(X)
    return torch.cat([b.mean(1, keepdim=True, dtype=dtype) for _, b in row_blocks(X)]) / _unit(X)


def product(X: Tensor, right: Tensor) -> Tensor:
    """Return X @ right, of pixels as fractions."""
    return torch.cat([block.to(right.dtype) @ right for _, block in row_blocks(X)]) / _unit(X)


def transposed_product(X: Tensor, right: Tensor) -> Tensor:
    """Return X^T @ right, of pixels as fractions."""
    total = right.new_zeros(X.shape[1], right.shape[1])
    for first, block in row_blocks(X):
        total.addmm_(block.to(right.dtype).mT, right[first : first + len(block)])
    return total / _unit(X)


def _unit(X: Tensor) -> int:
    return 255 if X.dtype == torch.uint8 else 1
