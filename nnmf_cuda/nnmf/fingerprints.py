"""What tells a fit from others in a few words: its data, parameters, and what it was given."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.nnmf.graph import Graph
from nnmf_cuda.nnmf.matrix import Dense, Matrix, row_slices
from nnmf_cuda.nnmf.sparse_matrix import Sparse

_FREE = (
    "device",
    "forget_factor",
    "fresh_restarts_max_iter",
    "max_iter",
    "missing_values",
    "transform_max_iter",
    "transform_solver",
    "verbose",
)
"""Parameters of `NNMF` that do not decide how a fit goes, but at most where it ends.

What is missing is part of X.
"""

_NO_SEED = "not an integer"  # a generator, or the global one: nothing to compare

_DIGITS = 16  # of a digest

_ROWS = 2**10  # of sparse X that are at hand together


def description_of_fit(
    X: Matrix,
    parameters: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    of_rows: Mapping[str, Any],
    graph: Graph | None,
) -> dict[str, Any]:
    """Return in JSON what decides how a fit goes: data, parameters, and factors `given` to it.

    Of `of_rows`, what is given has a row for each row of X. The words are the same however rows are
    dealt among processes, all of which call this together.
    """
    fit = {name: value for name, value in parameters.items() if name not in _FREE}
    fit["beta_loss"] = ops.beta_loss_to_float(fit["beta_loss"])
    if not isinstance(fit["random_state"], Integral):
        fit["random_state"] = _NO_SEED
    fit["graph"] = None if graph is None else _of_graph(X, graph)
    if graph is None:
        fit["alpha_graph"] = None
    return {
        "X": f"{X.kind} {X.whole_shape} {_of_data(X)}",
        **{name: described(value) for name, value in {**fit, **given}.items()},
        **{name: _described_rows(X, value) for name, value in of_rows.items()},
    }


def described(value: Any) -> Any:
    """Return in JSON what tells a value from others."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    tensor = _numbers(value)
    return repr(value) if tensor is None else f"{tuple(tensor.shape)} {digest(_as_rows(tensor))}"


def digest(X: Matrix) -> str:
    """Return what tells a matrix from others, made of its bytes: the same on every device."""
    sha256 = hashlib.sha256()
    for part in X.parts():
        sha256.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return sha256.hexdigest()[:_DIGITS]


def digest_of_rows(own: Matrix, X: Matrix, *, weighted: bool = False) -> str:
    """Return what tells rows from others of which each process has those of its part of X.

    It does not depend on which part that is: each row has a digest of its bytes and its place among
    all, and these are added up.
    """
    total = 0
    for place, row in enumerate(_rows_as_bytes(own, weighted=weighted), X.own_rows.start):
        sha256 = hashlib.sha256(place.to_bytes(8, "little"))
        sha256.update(row)
        total += int.from_bytes(sha256.digest(), "little")
    total = sum(X.gathered(total)) % 2 ** (4 * _DIGITS)
    return f"{total:0{_DIGITS}x}"


def _of_data(X: Matrix) -> str:
    return digest(X) if X.own is X else digest_of_rows(X.own, X, weighted=X.weighted)


def _of_graph(X: Matrix, graph: Graph) -> str:
    # The first factor has the rows of A, or the class of each sample, which says all.
    return graph.digest() if X.own is X else digest_of_rows(Sparse(graph.factors[0]), X)


def _described_rows(X: Matrix, value: Any) -> Any:
    """Return `described` of a factor of which each process has its rows."""
    tensor = None if value is None or X.own is X else _numbers(value)
    if tensor is None:
        return described(value)
    return f"{(X.whole_shape[0], *tensor.shape[1:])} {digest_of_rows(_as_rows(tensor), X)}"


def _numbers(value: Any) -> Tensor | None:
    """Return real numbers as float64, since a start may be given in any type; None for others."""
    if isinstance(value, Tensor):
        return value.detach().double()
    array = np.asarray(value)
    return torch.from_numpy(array.astype(np.float64)) if array.dtype.kind in "biuf" else None


def _as_rows(tensor: Tensor) -> Dense:
    return Dense(tensor.reshape(len(tensor), math.prod(tensor.shape[1:])))


def _rows_as_bytes(own: Matrix, *, weighted: bool) -> Iterator[memoryview]:
    """Yield of each row the bytes that tell it from others, with its weights if `weighted`."""
    if isinstance(own, Sparse):
        yield from _sparse_rows(own.tensor)
        return
    for rows in row_slices(*own.shape, device=own.device):
        block = _bytes_of(own.tensor[rows])
        if not weighted:
            yield from block
            continue
        weights = own.weights_of(rows, own.factor_dtype)
        if weights is None:  # here all entries count, elsewhere not
            weights = torch.ones(own.tensor[rows].shape, dtype=own.factor_dtype)
        for row, of_row in zip(block, _bytes_of(weights), strict=True):
            yield memoryview(bytes(row) + bytes(of_row))


def _sparse_rows(tensor: Tensor) -> Iterator[memoryview]:
    crow = tensor.crow_indices().tolist()
    for first in range(0, len(crow) - 1, _ROWS):
        ends = crow[first : first + _ROWS + 1]
        # Of either type of index, the same bytes.
        col = tensor.col_indices()[ends[0] : ends[-1]].cpu().long().numpy()
        values = tensor.values()[ends[0] : ends[-1]].cpu().numpy()
        for low, high in zip(ends, ends[1:], strict=False):
            part = slice(low - ends[0], high - ends[0])
            yield memoryview(col[part].tobytes() + values[part].tobytes())


def _bytes_of(block: Tensor) -> Iterator[memoryview]:
    """Yield the bytes of each row of a dense block."""
    return (row.data for row in block.cpu().contiguous().view(torch.uint8).numpy())
