"""Sparse CSR data of `nnmf_mu`, `nnmf_hals`, `nnmf_divergence` and `project`: ops of their own.

They take the three tensors of a CSR tensor, since a schema with one of that layout would hide from
fake kernels and the stable ABI what is in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import scipy.sparse
import torch
from torch import Tensor

from nnmf_cuda.ops._schema import (
    LIBRARY,
    raise_in_backward,
    require_tensor,
    serving,
)

_BLOCK_NONZEROS = 2**16
"""Non-zeros of X, about as many, in one of its `row_blocks`."""


def require_data(X: object) -> None:
    """Raise TypeError or ValueError unless X is a dense tensor or one matrix in CSR."""
    if not isinstance(X, Tensor) or X.layout != torch.sparse_csr:
        if isinstance(X, Tensor) and X.layout != torch.strided:
            raise TypeError(
                f"X must be dense or torch.sparse_csr, got layout {X.layout}: use .to_sparse_csr()"
            )
        require_tensor("X", X)
        return
    if X.dim() != 2:
        raise ValueError(
            "sparse X must have 2 dimensions, as all problems of a batch share it, got shape "
            f"{tuple(X.shape)}"
        )


def is_sparse(X: Tensor) -> bool:
    """Whether X is given by its non-zeros."""
    return X.layout == torch.sparse_csr


def csr_tensor(
    crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, ...], *, check: bool = False
) -> Tensor:
    """Return the matrix in CSR that these are the parts of, not copied.

    With `check` torch raises RuntimeError where the columns of a row do not ascend or are beyond X.
    """
    with warnings.catch_warnings():
        # torch calls the layout new, once in a process.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=check)


def transposed_parts(X: Tensor, *, empty: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three tensors of the CSR of X^T, indices of X's type; or of one without values."""
    if empty:
        crow, col, values = X.crow_indices(), X.col_indices(), X.values()
        return crow.new_zeros(X.shape[1] + 1), col.new_empty(0), values.new_empty(0)
    index = X.col_indices().dtype
    if X.device.type != "cpu":
        csc = X.detach().to_sparse_csc()
        return csc.ccol_indices().to(index), csc.row_indices().to(index), csc.values()
    # torch sorts the non-zeros, which takes longer and twice the memory.
    given = (X.values().detach(), X.col_indices(), X.crow_indices())
    view = scipy.sparse.csr_array(tuple(part.numpy() for part in given), shape=X.shape)
    view.check_format(full_check=True)  # SciPy writes where the indices say
    turned = view.tocsc()
    crow, col, values = map(torch.from_numpy, (turned.indptr, turned.indices, turned.data))
    return crow.to(index), col.to(index), values


def serving_data(name: str, X: Tensor, W: Tensor, H: Tensor) -> Callable[..., Any]:
    """Return what serves the op `name` for X, dense or CSR, called with W, H and options."""
    if not is_sparse(X):
        return partial(serving(name, W, H), X)
    parts = X.crow_indices(), X.col_indices(), X.values()
    return partial(serving(name.replace("nnmf_", "nnmf_sparse_"), *parts[2:], W, H), *parts)


def row_blocks(X: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows of X, CSR, in `dtype`; one block without rows where X has none."""
    n = len(X)
    crow, col, values = X.crow_indices(), X.col_indices(), X.values().detach()
    n_blocks = max(1, len(values) // _BLOCK_NONZEROS)
    cuts = [n * block // n_blocks for block in range(n_blocks + 1)]
    places = crow[cuts].tolist()
    for begin, end, first, last in zip(cuts, cuts[1:], places, places[1:], strict=False):
        rows = csr_tensor(
            crow[begin : end + 1] - crow[begin],
            col[first:last],
            values[first:last].to(dtype),
            (end - begin, X.shape[1]),
        )
        yield slice(begin, end), rows


def product_with(X: Tensor, right: Tensor) -> Tensor:
    """Return X (n, f), CSR, times `right` (f, k) or (B, f, k), both in float64; shape (..., n, k).

    Differentiable in `right`.
    """
    if right.dim() == 3:
        return torch.stack([product_with(X, one) for one in right])
    right = right.double()
    return torch.cat([block @ right for _, block in row_blocks(X, right.dtype)])


def unfilled(W: Tensor, H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a solver's op returns for W (B, n, k) and H (B, k, f), with nothing in it."""
    return (
        torch.empty_like(W, memory_format=torch.contiguous_format),
        torch.empty_like(H, memory_format=torch.contiguous_format),
        W.new_empty((W.shape[0],), dtype=torch.float64),
    )


@torch.library.register_fake("nnmf_cuda::nnmf_sparse_hals", lib=LIBRARY)
@torch.library.register_fake("nnmf_cuda::nnmf_sparse_mu", lib=LIBRARY)
def _(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    W: Tensor,
    H: Tensor,
    active: Tensor | None = None,
    **_options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return unfilled(W, H)


@torch.library.register_fake("nnmf_cuda::nnmf_sparse_divergence", lib=LIBRARY)
def _(crow: Tensor, col: Tensor, values: Tensor, W: Tensor, H: Tensor, **_options: Any) -> Tensor:
    return W.new_empty((W.shape[0],), dtype=torch.float64)


REMEDY = "detach its inputs, or reach the features through nnmf_cuda.ops.project"
for _name in ("nnmf_sparse_mu", "nnmf_sparse_hals", "nnmf_sparse_divergence"):
    raise_in_backward(_name, REMEDY)
