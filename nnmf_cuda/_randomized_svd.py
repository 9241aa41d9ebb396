"""Truncated singular value decomposition of an X that only ever is multiplied."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils.extmath import svd_flip
from torch import Tensor

from nnmf_cuda._row_blocks import factor_dtype, product, transposed_product

_OVERSAMPLES = 10
FloatArray = NDArray[Any]


def randomized_svd(
    X: Tensor, n_components: int, random_state: Any
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return U (n, k), S (k,) and V^T (k, f) of the leading singular vectors of X.

    The algorithm of Halko, Martinsson & Tropp (2011) with the choices and the random draw of
    :func:`sklearn.utils.extmath.randomized_svd`, which needs X as a floating-point array. Here
    products with X run on its device, block by block; all else has the size of the factors.
    """
    wide = X.shape[0] < X.shape[1]
    times, transposed = partial(_times, X, product), partial(_times, X, transposed_product)
    if wide:  # work on the transpose, as scikit-learn does
        times, transposed = transposed, times
    rng = check_random_state(random_state)
    size = n_components + _OVERSAMPLES
    dtype = torch.empty(0, dtype=factor_dtype(X)).numpy().dtype
    Q = rng.normal(size=(min(X.shape), size)).astype(dtype, copy=False)
    for _ in range(7 if n_components < 0.1 * min(X.shape) else 4):
        Q = _normalised(times(Q))
        Q = _normalised(transposed(Q))
    Q, _ = scipy.linalg.qr(times(Q), mode="economic", check_finite=False)
    U, S, Vt = scipy.linalg.svd(transposed(Q).T, full_matrices=False)
    U, Vt = svd_flip(Q @ U, Vt, u_based_decision=not wide)
    U, S, Vt = U[:, :n_components], S[:n_components], Vt[:n_components]
    return (Vt.T, S, U.T) if wide else (U, S, Vt)


def _times(
    X: Tensor, multiply: Callable[[Tensor, Tensor], Tensor], right: FloatArray
) -> FloatArray:
    result = multiply(X, torch.from_numpy(np.ascontiguousarray(right)).to(X.device))
    return result.cpu().numpy()


def _normalised(Q: FloatArray) -> FloatArray:
    lower: FloatArray = scipy.linalg.lu(Q, permute_l=True, check_finite=False)[0]
    return lower
