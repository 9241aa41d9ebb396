"""What `NNMF` is given: parameters, a device, and X, checked."""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnmf_cuda.distributed.shard import Shard
from nnmf_cuda.nnmf.matrix import Dense, Matrix, row_slices
from nnmf_cuda.nnmf.sparse_matrix import Sparse
from nnmf_cuda.nnmf.weighted_matrix import NOTHING_TOLD, Told, weighted_matrix
from nnmf_cuda.ops.nnmf_sparse import csr_tensor


def check_integer(name: str, value: Any, *, low: int, high: float = math.inf) -> None:
    """Raise unless `value` is an integer in [low, high]."""
    _check_number(name, value, Integral, "an integer", low, high)


def check_real(name: str, value: Any, *, low: float, high: float = math.inf) -> None:
    """Raise unless `value` is a finite number in [low, high]."""
    _check_number(name, value, Real, "a finite number", low, high)


def _check_number(name: str, value: Any, kind: Any, what: str, low: float, high: float) -> None:
    bounds = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} must be {what} {bounds}, got {value!r}")
    if value == math.inf or not low <= value <= high:
        raise ValueError(f"{name} must be {what} {bounds}, got {value}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r} does not exist; choose one of {', '.join(choices)}")


def resolve_device(device: Any, X: Any) -> torch.device:
    """Return where to compute: a named device, "auto" (CUDA if there is one), None (X's own)."""
    home = X.device if isinstance(X, Tensor) else torch.device("cpu")
    if device is None:
        return torch.device(home)
    if device == "auto":
        return torch.device("cuda") if torch.cuda.is_available() else torch.device(home)
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r} is not a torch device; use None, 'auto', 'cpu' or 'cuda'"
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={device!r}, but torch finds no CUDA device; use device='cpu' or 'auto'"
        )
    return chosen


def check_matrix(X: Any, owner: str) -> None:
    """Raise for what scikit-learn does not check, in words of the estimator class `owner`.

    That is a part of X where the whole is needed, an array of images, NumPy's masked arrays, of
    which it reads the data alone, and of tensors all but real matrices, dense or in CSR.
    """
    if isinstance(X, Shard):
        raise TypeError(f"X is a Shard, rows of a larger X, which {owner} does not take")
    if isinstance(X, np.ma.MaskedArray) and np.ma.is_masked(X):
        raise TypeError(
            f"X is a masked array, of which {owner} would not see the mask: fill the entries in, "
            "or give NNMF X.data with mask=~np.ma.getmaskarray(X)"
        )
    if getattr(X, "ndim", 2) > 2:
        raise ValueError(
            f"X has shape {tuple(X.shape)}, but {owner} takes one sample a row; flatten images "
            "with X.reshape(len(X), -1)"
        )
    if not isinstance(X, Tensor):
        return
    if X.layout not in (torch.strided, torch.sparse_csr):
        raise TypeError(
            f"X is a tensor of layout {X.layout}, but {owner} takes dense ones and torch.sparse_csr"
            "; use X.to_sparse_csr()"
        )
    if X.is_complex():
        raise ValueError(f"Complex data not supported: X has dtype {X.dtype}")
    if X.ndim != 2:
        raise ValueError(
            f"Expected 2D array, got a tensor of shape {tuple(X.shape)} instead. Reshape your "
            "data: X.reshape(1, -1) for a single sample, X.reshape(-1, 1) for a single feature"
        )
    for axis, what in enumerate(("sample(s)", "feature(s)")):
        if X.shape[axis] == 0:
            raise ValueError(
                f"Found array with 0 {what} (shape={tuple(X.shape)}) while a minimum of 1 is "
                f"required by {owner}."
            )


def as_matrix(
    X: Any, device: torch.device, owner: str, told: Told = NOTHING_TOLD, *, signed: bool = False
) -> tuple[Matrix, float, float]:
    """Return X (n_samples, n_features), non-negative or `signed`, on `device`, and its extremes.

    A sparse one, SciPy's in CSR or CSC or a tensor in CSR, stays sparse. float32, float64 and uint8
    (pixels) keep their type; half precision becomes float32, other integers and bool become
    float64. Memory is shared where type, device and order allow it; no gradient comes with it. The
    extremes of dense pixels, as fractions, are taken to be 0 and 1. What is `told` of the entries
    may leave some out: those are not checked.
    """
    if scipy.sparse.issparse(X) or (isinstance(X, Tensor) and X.layout == torch.sparse_csr):
        if told:
            raise TypeError(
                f"{told.words} needs dense X: what a sparse X does not store is a zero that counts;"
                " use X.toarray() or X.to_dense()"
            )
        sparse = _sparse(X, device)
        return sparse, *_checked_extremes(sparse, owner, signed=signed)
    _check_held(X, told.missing_values)
    tensor = (_of_tensor(X) if isinstance(X, Tensor) else _of_array(X)).to(device)
    if tensor.stride(1) != 1:  # columns lie apart: once here, not in each call of an op
        tensor = tensor.contiguous()
    matrix = weighted_matrix(tensor, told) if told else Dense(tensor)
    if matrix.pixels:
        return matrix, 0.0, 1.0
    return matrix, *_checked_extremes(matrix, owner, signed=signed)


def empty_matrix(X: Any, device: torch.device) -> Matrix:
    """Return X of no rows, shape (0, n_features), which only goes with the rows of others."""
    if scipy.sparse.issparse(X) or (isinstance(X, Tensor) and X.layout == torch.sparse_csr):
        return _sparse(X, device)
    return Dense((_of_tensor(X) if isinstance(X, Tensor) else _of_array(np.asarray(X))).to(device))


def _check_held(X: Any, missing_values: float | None) -> None:
    """Raise where X, in half precision, cannot have what stands for a missing entry."""
    if missing_values is None or math.isnan(missing_values):
        return
    kind = torch.float16 if X.dtype == np.float16 else X.dtype
    if kind not in (torch.float16, torch.bfloat16):
        return
    nearest = torch.tensor(missing_values, dtype=torch.float64).to(kind).item()
    if nearest != missing_values:
        name = str(kind).removeprefix("torch.")
        raise ValueError(
            f"missing_values={missing_values} is no number of X's type {name}, whose nearest is "
            f"{nearest:g}: give X in float32, or a number that X has for what is missing"
        )


def _of_tensor(X: Tensor) -> Tensor:
    X = X.detach()
    if X.dtype in (torch.uint8, torch.float32, torch.float64):
        return X
    return X.to(torch.float32 if X.is_floating_point() else torch.float64)


def _of_array(X: NDArray[Any]) -> Tensor:
    if X.dtype != np.uint8:
        single = X.dtype.kind == "f" and X.dtype.itemsize <= 4
        X = X.astype(np.float32 if single else np.float64, copy=False)
    return shared_tensor(X)


def shared_tensor(array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor in the same memory, copied only where strides are negative."""
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        # A read-only array (a memory map) is shared without a copy; nothing here writes to it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _sparse(X: Any, device: torch.device) -> Sparse:
    """Return X, sparse, in CSR with the columns of a row in order, sharing memory where it can."""
    if isinstance(X, Tensor):
        crow, col, values = X.crow_indices(), X.col_indices(), X.values()
    else:
        X = X.tocsr()
        if not X.has_canonical_format:  # entries that are there twice are summed, in a copy
            X = X.copy()
            X.sum_duplicates()
        crow, col, values = shared_tensor(X.indptr), shared_tensor(X.indices), _of_array(X.data)
    pixels = values.dtype == torch.uint8
    values = values.float() / 255 if pixels else _of_tensor(values)
    try:
        tensor = csr_tensor(crow, col, values, X.shape, check=True)
    except RuntimeError as error:
        raise ValueError(
            f"X is not a matrix in CSR: {str(error).strip()} Make it anew with SciPy, whose "
            "sum_duplicates() sorts the columns of each row and sums those that are there twice"
        ) from error
    return Sparse(tensor.to(device), pixels=pixels)


def _checked_extremes(X: Matrix, owner: str, *, signed: bool) -> tuple[float, float]:
    """Return the extremes of a floating-point X; raise for NaN, inf and, unless signed, below 0."""
    low, high = X.extremes()
    if not (math.isfinite(low) and math.isfinite(high)):
        what = "NaN" if math.isnan(low) else "inf"
        count, row, column = _not_finite(X)
        may_be_missing = what == "NaN" and isinstance(X, Dense)
        remedy = ", or set missing_values=np.nan to leave them out" if may_be_missing else ""
        raise ValueError(
            f"Input X contains {what}: {count} of {X.n_entries} entries are not finite, the first "
            f"at row {row}, column {column}. Drop those rows or fill the entries in{remedy}."
        )
    if low < 0 and not signed:
        raise ValueError(
            f"Negative values in data passed to {owner}: the smallest entry of X is {low:g}. Shift "
            "or clip X so that every entry is >= 0, for example X - X.min()."
        )
    return low, high


def _not_finite(X: Matrix) -> tuple[int, int, int]:
    """Return how many entries are not finite, and row and column of the first."""
    if isinstance(X, Sparse):
        places = (~torch.isfinite(X.tensor.values())).nonzero().flatten()
        row = torch.searchsorted(X.tensor.crow_indices().long(), places[0], right=True) - 1
        return len(places), int(row), int(X.tensor.col_indices()[places[0]])
    count, where = 0, (-1, -1)
    for rows in row_slices(*X.shape, device=X.device):
        bad = (~torch.isfinite(X.tensor[rows])).nonzero()
        if count == 0 and len(bad):
            row, column = bad[0].tolist()
            where = rows.start + row, column
        count += len(bad)
    return count, *where


def like_input(result: Tensor, X: Any) -> Any:
    """Return `result` as X came: a tensor on X's device, or a NumPy array."""
    X = X.rows if isinstance(X, Shard) else X
    return result.to(X.device) if isinstance(X, Tensor) else result.cpu().numpy()
