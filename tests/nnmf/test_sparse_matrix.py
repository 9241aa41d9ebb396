"""What is asked of sparse X beside the ops, and how it is read: as the dense X of its entries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
import torch

from nnmf_cuda.nnmf import sparse_matrix
from nnmf_cuda.nnmf.fingerprints import digest
from nnmf_cuda.nnmf.inputs import as_matrix
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.problem import Objective, Penalty, Problem
from nnmf_cuda.nnmf.sparse_matrix import Sparse
from tests.helpers import DEVICES

CPU = torch.device("cpu")


def sparse_counts(rng, shape=(31, 23), share=0.2, dtype=np.float64):
    """Draw a matrix with a row and a column of zeros, as SciPy's CSR."""
    X = rng.poisson(2.0, shape) * (rng.random(shape) < share)
    X[shape[0] // 2] = X[:, shape[1] // 3] = 0
    return scipy.sparse.csr_array(X.astype(dtype))


def read(X, device=CPU) -> Sparse:
    matrix, *_ = as_matrix(X, torch.device(device), "NNMF")
    assert isinstance(matrix, Sparse)
    return matrix


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block", [7, 2**17])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 50), (31, 23), (3, 40)])
def test_sparse_X_answers_as_the_dense_one(rng, monkeypatch, shape, dtype, block, device):
    monkeypatch.setattr(sparse_matrix, "BLOCK_ENTRIES", block)
    X = sparse_counts(rng, shape, dtype=dtype)
    sparse, dense = read(X, device), Dense(torch.from_numpy(X.toarray()).to(device))
    assert (sparse.shape, sparse.device, sparse.factor_dtype, sparse.n_entries) == (
        (dense.shape, dense.device, dense.factor_dtype, dense.n_entries)
    )
    assert sparse.n_read == X.nnz
    assert sparse.extremes() == dense.extremes()
    assert sparse.mean() == dense.mean()  # to the bit: starts scale with it
    close = {"rtol": 30 * np.finfo(dtype).eps, "atol": 1e-30}
    for exponent in (0.5, 1, 2, 3):
        want = dense.mean_power(exponent)
        torch.testing.assert_close(sparse.mean_power(exponent), want, rtol=1e-12, atol=0)
    torch.testing.assert_close(sparse.row_means(), dense.row_means(), **close)
    for kind in (torch.float32, torch.float64):
        right, left = (torch.from_numpy(rng.random((n, 4))).to(device, kind) for n in shape[::-1])
        close = {"rtol": 30 * np.finfo(np.float32).eps, "atol": 1e-30}
        if kind == torch.float64:
            close["rtol"] = 1e-13
        torch.testing.assert_close(sparse.product(right), dense.product(right), **close)
        torch.testing.assert_close(
            sparse.transposed_product(left), dense.transposed_product(left), **close
        )
    np.testing.assert_array_equal(sparse.tensor.to_dense().cpu(), X.toarray())  # as it was


def test_sparse_X_without_entries(rng):
    sparse = read(scipy.sparse.csr_array((4, 3)))
    assert sparse.extremes() == (0, 0)
    assert sparse.mean() == 0
    assert not sparse.row_means().any()
    full = read(scipy.sparse.csr_array(rng.random((4, 3)) + 1))
    assert full.extremes()[0] > 1  # no zero that is not there


def test_sparse_means_that_overflow_are_inf():
    assert read(scipy.sparse.csr_array(np.full((2, 3), 1.7e308))).mean() == math.inf


def test_projection_with_a_penalty_is_that_of_dense_X(rng):
    X, H = sparse_counts(rng), torch.from_numpy(rng.random((4, 23)))
    dense = Dense(torch.from_numpy(X.toarray()))
    for penalty in ({}, {"l1_reg": 0.3}, {"l1_reg": 0.1, "l2_reg": 2.0}):
        got, want = read(X).project(H, **penalty), dense.project(H, **penalty)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


# --- reading --------------------------------------------------------------------------------------

AS_TENSOR = {
    "torch int64": lambda X: torch.from_numpy(X.toarray()).to_sparse_csr(),
    "torch int32": lambda X: torch.sparse_csr_tensor(
        *(torch.from_numpy(part) for part in (X.indptr, X.indices, X.data)),
        size=X.shape,
        check_invariants=False,
    ),
}
LAYOUTS = {
    "csr_array": scipy.sparse.csr_array,
    "csr_matrix": scipy.sparse.csr_matrix,
    "csc_array": scipy.sparse.csc_array,
    "csc_matrix": scipy.sparse.csc_matrix,
    **AS_TENSOR,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_matrix(rng, layout):
    X = sparse_counts(rng)
    matrix = read(LAYOUTS[layout](X))
    np.testing.assert_array_equal(matrix.tensor.to_dense(), X.toarray())
    assert matrix.kind == "sparse float64"
    assert digest(matrix) == digest(read(X))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_csr_is_shared_and_not_copied(rng, dtype):
    X = sparse_counts(rng, dtype=dtype)
    tensor = read(X).tensor
    assert tensor.values().data_ptr() == X.data.ctypes.data
    assert tensor.col_indices().data_ptr() == X.indices.ctypes.data
    again = read(tensor.clone().requires_grad_()).tensor
    assert not again.values().requires_grad


@pytest.mark.parametrize(
    ("dtype", "want"),
    [
        (np.float16, torch.float32),
        (np.int8, torch.float64),
        (np.uint32, torch.float64),
        (bool, torch.float64),
    ],
)
def test_sparse_types_become_those_of_dense_X(rng, dtype, want):
    X = sparse_counts(rng)
    tensors = []
    if dtype is not np.float16:  # SciPy has none
        tensors.append(read(X.astype(dtype)).tensor)
    if dtype is not np.uint32:
        tensors.append(read(torch.from_numpy(X.toarray().astype(dtype)).to_sparse_csr()).tensor)
    for tensor in tensors:
        assert tensor.dtype == want
        np.testing.assert_array_equal(tensor.to_dense(), X.toarray().astype(dtype))


def test_sparse_uint8_are_pixels(rng):
    X = sparse_counts(rng).astype(np.uint8)
    dense = Dense(torch.from_numpy(X.toarray()))
    for matrix in (read(X), read(torch.from_numpy(X.toarray()).to_sparse_csr())):
        assert matrix.pixels
        assert matrix.factor_dtype == torch.float32
        assert matrix.mean() == pytest.approx(dense.mean(), rel=1e-7)
        assert matrix.converted(torch.float64).pixels


def test_entries_out_of_order_or_twice_are_put_right_in_a_copy(rng):
    # Rows and columns of the entries (0, 2), (0, 1), (1, 0), (1, 0), the third stored as a zero.
    data, indices, indptr = np.array([1.0, 2, 0, 4]), np.array([2, 1, 0, 0]), np.array([0, 2, 4])
    X = scipy.sparse.csr_array((data.copy(), indices.copy(), indptr), shape=(2, 3))
    matrix = read(X)
    assert matrix.tensor.to_dense().tolist() == [[0, 2, 1], [4, 0, 0]]
    assert matrix.tensor.col_indices().tolist() == [1, 2, 0]
    np.testing.assert_array_equal(X.data, data)
    np.testing.assert_array_equal(X.indices, indices)


def test_read_only_and_reversed_parts_are_read(rng):
    X = sparse_counts(rng)
    for part in (X.data, X.indices, X.indptr):
        part.setflags(write=False)
    np.testing.assert_array_equal(read(X).tensor.to_dense(), X.toarray())
    reversed_data = X.data[::-1].copy()[::-1]
    X = scipy.sparse.csr_array((reversed_data, X.indices, X.indptr), shape=X.shape)
    np.testing.assert_array_equal(read(X).tensor.to_dense(), X.toarray())


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
def test_bad_entries_are_named_with_their_place(rng, value):
    X = sparse_counts(rng)
    X.data[X.indptr[20]] = value
    where = f"1 of 713 entries .* row 20, column {X.indices[X.indptr[20]]}"
    message = "smallest entry of X is -0.5" if value == -0.5 else where
    for X_like in (X, AS_TENSOR["torch int64"](X)):
        with pytest.raises(ValueError, match=message):
            read(X_like)


@pytest.mark.parametrize(
    ("crow", "col"),
    [([0, 2, 2], [1, 0]), ([0, 2, 2], [1, 1]), ([0, 1, 2], [1, 9]), ([0, 2, 1], [0, 1])],
)
def test_tensors_that_are_not_in_csr_are_refused(crow, col):
    X = torch.sparse_csr_tensor(crow, col, [1.0, 2.0], size=(2, 3), check_invariants=False)
    with pytest.raises(ValueError, match=r"X is not a matrix in CSR: .* sum_duplicates"):
        read(X)


# --- the rounding of its divergence ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", [0.5, 1, 1.5, 2, 3])
def test_rounding_bounds_what_rounded_factors_do_to_the_error(rng, beta_loss, dtype):
    # A factorisation with zeros, nearly met: in float64 what is left is the rounding of sums.
    W, H = (torch.from_numpy(rng.random(shape) + 0.1) for shape in ((1, 40, 5), (1, 5, 50)))
    H[0] *= torch.eye(5).repeat_interleave(10, dim=1)
    W *= torch.from_numpy(rng.random((1, 40, 5)) < 0.3)
    X = (W[0] @ H[0]).to(dtype)
    problem = Problem(read(X.to_sparse_csr()), Objective(beta_loss, Penalty()))

    def rounded(factor):
        noise = torch.from_numpy(rng.uniform(-0.5, 0.5, factor.shape))
        return (factor * (1 + torch.finfo(dtype).eps * noise)).to(dtype)

    errors = [problem.at(rounded(W), rounded(H)).error.item() for _ in range(20)]
    rounding = problem.rounding(torch.tensor(errors[:1], dtype=torch.float64)).item()
    assert max(errors) - min(errors) <= 4 * rounding
