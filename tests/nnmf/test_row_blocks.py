"""What is asked of X block by block, with blocks of a few rows."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.utils.extmath import randomized_svd as svd_of_scikit_learn

from nnmf_cuda.nnmf import inputs as _row_blocks
from nnmf_cuda.nnmf.inputs import extremes, mean, product, row_means, row_slices, transposed_product
from nnmf_cuda.nnmf.starts import randomized_svd
from tests.helpers import DEVICES

SHAPES = [(1, 1), (1, 50), (7, 3), (23, 11), (40, 5)]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(_row_blocks, "_BLOCK_ENTRIES", 33)


@pytest.mark.parametrize("shape", [*SHAPES, (5, 0)])
def test_row_slices_cover_every_row_once(shape):
    slices = list(row_slices(*shape))
    assert [i for rows in slices for i in range(shape[0])[rows]] == list(range(shape[0]))
    assert all(len(range(shape[0])[rows]) * shape[1] <= max(33, shape[1]) for rows in slices)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_add_up_to_the_whole(rng, shape, dtype, transposed, device):
    X = rng.integers(0, 256, shape).astype(dtype)
    tensor = torch.from_numpy(X.T.copy()).T if transposed else torch.from_numpy(X)
    tensor = tensor.to(device)
    dense = X / 255 if dtype == np.uint8 else X.astype(np.float64)
    right, left = rng.random((shape[1], 4)), rng.random((shape[0], 4))
    kind = np.float64 if dtype == np.float64 else np.float32
    tolerance = {"rtol": 30 * np.finfo(kind).eps}

    def moved(array):
        return torch.from_numpy(array.astype(kind)).to(device)

    assert extremes(tensor) == (X.min(), X.max())
    assert mean(tensor) == pytest.approx(dense.mean(), rel=1e-12)
    np.testing.assert_allclose(row_means(tensor).cpu(), dense.mean(1, keepdims=True), **tolerance)
    np.testing.assert_allclose(product(tensor, moved(right)).cpu(), dense @ right, **tolerance)
    np.testing.assert_allclose(
        transposed_product(tensor, moved(left)).cpu(), dense.T @ left, **tolerance
    )


@pytest.mark.parametrize("row", [0, 20])
def test_extremes_are_nan_where_an_entry_is(row):
    X = torch.ones(23, 11)
    X[row, 2] = torch.nan
    assert all(math.isnan(bound) for bound in extremes(X))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize(("shape", "k"), [((23, 11), 3), ((11, 23), 3), ((9, 9), 2), ((80, 70), 5)])
def test_randomized_svd_is_that_of_scikit_learn(rng, shape, k, dtype):
    X = rng.integers(0, 256, shape).astype(dtype)
    dense = X.astype(np.float32) / 255 if dtype == np.uint8 else X
    ours = randomized_svd(torch.from_numpy(X), k, 3)
    for a, b in zip(ours, svd_of_scikit_learn(dense, k, random_state=3), strict=True):
        assert a.dtype == b.dtype
        # The same algorithm and draw; sums in another order, seven power iterations.
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, atol=1e4 * np.finfo(b.dtype).eps * scale, rtol=0)


def test_randomized_svd_finds_the_leading_singular_vectors(rng):
    low_rank = rng.random((60, 4)) @ rng.random((4, 45))
    U, S, Vt = randomized_svd(torch.from_numpy(low_rank), 4, 0)
    np.testing.assert_allclose(S, np.linalg.svd(low_rank, compute_uv=False)[:4], rtol=1e-10)
    np.testing.assert_allclose((U * S) @ Vt, low_rank, rtol=1e-9)


def test_randomized_svd_of_few_rows_has_no_more_vectors_than_rows(rng):
    X = torch.from_numpy(rng.random((3, 40)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        U, S, Vt = randomized_svd(X, 3, 0)
    assert (U.shape, S.shape, Vt.shape) == ((3, 3), (3,), (3, 40))
    np.testing.assert_allclose((U * S) @ Vt, X, rtol=1e-9)
