"""Where a factorisation starts: singular vectors by blocks of X, and what NNDSVD makes of them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.utils.extmath import randomized_svd as svd_of_scikit_learn

from nnmf_cuda.nnmf import matrix, starts
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.starts import Origin, initial_factors, randomized_svd


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(matrix, "BLOCK_ENTRIES", 33)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize(("shape", "k"), [((23, 11), 3), ((11, 23), 3), ((9, 9), 2), ((80, 70), 5)])
def test_randomized_svd_is_that_of_scikit_learn(rng, shape, k, dtype):
    X = rng.integers(0, 256, shape).astype(dtype)
    dense = X.astype(np.float32) / 255 if dtype == np.uint8 else X
    ours = randomized_svd(Dense(torch.from_numpy(X)), k, 3)
    for a, b in zip(ours, svd_of_scikit_learn(dense, k, random_state=3), strict=True):
        assert a.dtype == b.dtype
        # The same algorithm and draw; sums in another order, seven power iterations.
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, atol=1e4 * np.finfo(b.dtype).eps * scale, rtol=0)


def test_randomized_svd_finds_the_leading_singular_vectors(rng):
    low_rank = rng.random((60, 4)) @ rng.random((4, 45))
    U, S, Vt = randomized_svd(Dense(torch.from_numpy(low_rank)), 4, 0)
    np.testing.assert_allclose(S, np.linalg.svd(low_rank, compute_uv=False)[:4], rtol=1e-10)
    np.testing.assert_allclose((U * S) @ Vt, low_rank, rtol=1e-9)


def test_randomized_svd_of_few_rows_has_no_more_vectors_than_rows(rng):
    X = torch.from_numpy(rng.random((3, 40)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        U, S, Vt = randomized_svd(Dense(X), 3, 0)
    assert (U.shape, S.shape, Vt.shape) == ((3, 3), (3,), (3, 40))
    np.testing.assert_allclose((U * S) @ Vt, X, rtol=1e-9)


def test_nndsvd_survives_vectors_without_a_common_sign(monkeypatch):
    # The rounding noise that a rank-deficient matrix has for trailing vectors can look like this.
    U = np.array([[1.0, 0.6], [1.0, 0.8]])
    Vt = np.array([[1.0, 1.0, 1.0], [-1.0, 0.0, 0.0]])
    monkeypatch.setattr(starts, "randomized_svd", lambda *_: (U, np.ones(2), Vt))
    W, H = initial_factors(Dense(torch.ones(2, 3)), 2, Origin("nndsvd", random_state=0))
    np.testing.assert_array_equal(W[0], [[1, 0], [1, 0]])
    np.testing.assert_array_equal(H[0], [[1, 1, 1], [0, 0, 0]])
