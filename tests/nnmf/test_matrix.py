"""What is asked of X beside the ops, block by block."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nnmf_cuda import ops
from nnmf_cuda.nnmf import matrix
from nnmf_cuda.nnmf.matrix import Dense, row_slices
from nnmf_cuda.nnmf.sparse_matrix import Sparse
from nnmf_cuda.nnmf.weighted_matrix import Weighted
from tests.helpers import DEVICES

SHAPES = [(1, 1), (1, 50), (7, 3), (23, 11), (40, 5)]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(matrix, "BLOCK_ENTRIES", 33)


@pytest.mark.parametrize("shape", [*SHAPES, (5, 0)])
@pytest.mark.usefixtures("small_blocks")
def test_row_slices_cover_every_row_once(shape):
    for device, most in (("cpu", 33), ("cuda", 32 * 33)):
        slices = list(row_slices(*shape, device=torch.device(device)))
        assert [i for rows in slices for i in range(shape[0])[rows]] == list(range(shape[0]))
        assert all(len(range(shape[0])[rows]) * shape[1] <= max(most, shape[1]) for rows in slices)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("small_blocks")
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

    read = Dense(tensor)
    assert read.extremes() == (dense.min(), dense.max())
    assert read.mean() == pytest.approx(dense.mean(), rel=2e-12)  # 40 binary digits
    np.testing.assert_allclose(read.row_means().cpu(), dense.mean(1, keepdims=True), **tolerance)
    np.testing.assert_allclose(read.product(moved(right)).cpu(), dense @ right, **tolerance)
    np.testing.assert_allclose(
        read.transposed_product(moved(left)).cpu(), dense.T @ left, **tolerance
    )


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", ["dense", "pixels", "sparse", "masked", "weighted"])
def test_the_transpose_is_another_matrix_of_its_kind(rng, kind):
    X = rng.integers(0, 256, (23, 11)) * (rng.random((23, 11)) < 0.5)
    weights = rng.integers(1, 4, X.shape) * (X > 0)
    tensor = torch.from_numpy(X.astype(np.uint8 if kind == "pixels" else np.float64))

    def made(tensor, weights):
        if kind == "sparse":
            return Sparse(tensor.to_sparse_csr())
        if kind == "masked":
            return Weighted(tensor, ops.pack_mask(torch.from_numpy(weights > 0)))
        if kind == "weighted":
            return Weighted(tensor, torch.from_numpy(weights.astype(np.float64)))
        return Dense(tensor)

    read = made(tensor, weights)
    expected = made(tensor.mT.contiguous(), weights.T)
    assert read.transposed.kind == read.kind
    assert read.transposed is read.transposed
    for part, other in zip(read.transposed.parts(), expected.parts(), strict=True):
        assert torch.equal(part, other)


def test_the_mean_does_not_depend_on_the_order_of_rows_or_on_threads(rng):
    X = torch.from_numpy(rng.gamma(1, size=(3000, 101)))
    threads, seen = torch.get_num_threads(), set()
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            for order in (slice(None), *(rng.permutation(3000) for _ in range(5))):
                seen.add(Dense(X[order]).mean())
    finally:
        torch.set_num_threads(threads)
    (found,) = seen
    assert found == pytest.approx(X.mean().item(), rel=1e-11)
    assert Dense(X / 1024).mean() == found / 1024
    assert Dense(torch.full((2, 3), 255, dtype=torch.uint8)).mean() == 1
    assert Dense(torch.zeros(2, 3)).mean() == 0
    assert Dense(torch.full((2, 3), 1.7e308, dtype=torch.float64)).mean() == math.inf


@pytest.mark.parametrize("row", [0, 20])
@pytest.mark.usefixtures("small_blocks")
def test_extremes_are_nan_where_an_entry_is(row):
    X = torch.ones(23, 11)
    X[row, 2] = torch.nan
    assert all(math.isnan(bound) for bound in Dense(X).extremes())
