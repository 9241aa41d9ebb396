"""Singular vectors of a matrix whose rows are dealt among processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import Tensor

from nnmf_cuda.nnmf.matrix import numpy_dtype
from nnmf_cuda.nnmf.sharded_matrix import Sharded

FloatArray = NDArray[Any]


def sharded_svd(
    X: Sharded, n_components: int, random_state: Any, *, n_oversamples: int, n_power: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return U (n of this process, k), S (k,) and V^T (k, f) of the leading singular vectors of X.

    The draw, the powers of X and the signs are those of `starts.randomized_svd`. That makes bases
    of the spaces between them by LU, of which nothing hangs on which basis it is; for a factor that
    has rows of X it is orthonormal here, from the QR decompositions of each rank's rows and of
    their triangular factors one below the other [1]_.

    References
    ----------
    .. [1] Demmel, Grigori, Hoemmen & Langou (2012), Communication-optimal parallel and sequential
       QR and LU factorizations, SIAM Journal on Scientific Computing 34(1).
    """
    times = partial(array_product, X.product, X.device)
    transposed = partial(array_product, X.transposed_product, X.device)
    rng = X.same_generator(check_random_state(random_state))
    shape = min(X.whole_shape), n_components + n_oversamples
    drawn = rng.normal(size=shape).astype(numpy_dtype(X.factor_dtype))
    if X.whole_shape[0] < X.whole_shape[1]:
        rows = drawn[X.own_rows]
        for _ in range(n_power):
            rows = _orthonormal(X, times(independent_columns(transposed(rows))))[0]
        basis, _ = scipy.linalg.qr(transposed(rows), mode="economic", check_finite=False)
        rows, triangle = _orthonormal(X, times(basis))
        P, S, Tt = scipy.linalg.svd(triangle, full_matrices=False)
        U, Vt = rows @ P, Tt @ basis.T
    else:
        columns = drawn
        for _ in range(n_power):
            columns = independent_columns(transposed(_orthonormal(X, times(columns))[0]))
        rows, _ = _orthonormal(X, times(columns))
        P, S, Vt = scipy.linalg.svd(transposed(rows).T, full_matrices=False)
        U = rows @ P
    signs = _signs(X, U)
    return (U * signs)[:, :n_components], S[:n_components], (Vt * signs[:, None])[:n_components]


def array_product(
    multiply: Callable[[Tensor], Tensor], device: torch.device, right: FloatArray
) -> FloatArray:
    """Return what a product on a device makes of an array, as an array."""
    result = multiply(torch.from_numpy(np.ascontiguousarray(right)).to(device))
    return np.asarray(result.cpu().numpy())


def independent_columns(columns: FloatArray) -> FloatArray:
    """Return another basis of the same space, in which rounding does not grow with powers."""
    lower: FloatArray = scipy.linalg.lu(columns, permute_l=True, check_finite=False)[0]
    return lower


def _orthonormal(X: Sharded, rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the QR decomposition of a matrix of which each rank has rows: its own of Q, and R."""
    width = rows.shape[1]
    Q, R = rows, np.empty((0, width), rows.dtype)
    if len(rows):
        Q, R = scipy.linalg.qr(rows, mode="economic", check_finite=False)
    triangles = X.ranks.gathered(R)
    parts, R = scipy.linalg.qr(np.concatenate(triangles), mode="economic", check_finite=False)
    begin = sum(map(len, triangles[: X.ranks.rank]))
    end = begin + len(triangles[X.ranks.rank])
    return (Q @ parts[begin:end] if len(rows) else parts[:0]), R


def _signs(X: Sharded, U: FloatArray) -> FloatArray:
    """Return signs at which the largest entry of each column is positive, the first of equal."""
    largest = np.zeros(U.shape[1], U.dtype)
    if len(U):
        largest = U[np.abs(U).argmax(0), np.arange(U.shape[1])]
    of_ranks = np.stack(X.ranks.gathered(largest))
    signs: FloatArray = np.sign(of_ranks[np.abs(of_ranks).argmax(0), np.arange(U.shape[1])])
    return signs
