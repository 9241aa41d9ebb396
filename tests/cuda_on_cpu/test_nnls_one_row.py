"""The CUDA kernels of nnls, its gradient and project for more than 256 variables, a block a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from nnmf_cuda import reference
from nnmf_cuda.reference.nnmf import as_float
from tests.cuda_on_cpu.harness import (
    Builder,
    KernelError,
    Mutation,
    none_of,
    run_kernels,
    without_each_barrier,
)
from tests.cuda_on_cpu.test_nnls import (
    COLD,
    assert_least_norm,
    backward,
    kkt_residual,
    products,
    solve,
)
from tests.helpers import hard_bases

ONE_ROW = "nnls/cuda/one_row.cuh"


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    """Build the kernels for any number of variables."""
    return build("nnls_one_row.cpp")


@pytest.fixture(scope="module")
def all_kernels(build: Builder) -> Path:
    """Build what chooses between kernels by the number of variables."""
    return build("nnls.cpp")


@pytest.fixture(scope="module")
def slow(build: Builder) -> Path:
    """Build the kernels without block pivoting: its patience is over with the first exchange."""
    old, new = "fewest = k_ + 1, patience = 3;", "fewest = -1, patience = 0;"
    return build("nnls_one_row.cpp", "-DFEW_KERNELS", mutation=Mutation(ONE_ROW, old, new))


def dense(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a basis (k + 40, k) and targets (n, k + 40); about half of the variables are free."""
    rng = np.random.default_rng([seed, n, k])
    A = rng.standard_normal((k + 40, k))
    weights = rng.standard_normal((n, k)) + 0.2
    return A, weights @ A.T + 0.1 * rng.standard_normal((n, k + 40))


def scipy_nnls(A: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.stack([scipy.optimize.nnls(A, target)[0] for target in targets])


@pytest.mark.parametrize(("n", "k"), [(2, 257), (1, 400), (1, 1030)])
def test_equals_scipy_and_goes_on_from_a_passive_set(all_kernels: Path, n: int, k: int) -> None:
    A, targets = dense(n, k)
    gram, cross = products(A[None], targets[None])
    want = scipy_nnls(A, targets)
    # The free variables of the answer but a few: what a neighbouring problem would give.
    start = torch.tensor(want[None] > 0)
    start[:, :, :: k // 5] ^= True
    pivots = []
    for passive in (start, None):
        got = solve(all_kernels, gram, cross, passive=passive)
        np.testing.assert_allclose(got["h"][0].numpy(), want, rtol=1e-6, atol=1e-8 * want.max())
        assert kkt_residual(gram, cross, got["h"]).max() < 1e-11
        assert torch.equal(got["free"].bool(), torch.tensor(want[None] > 0))
        assert torch.equal(got["pivots"], reference.nnls(gram, cross, passive)[2])
        pivots.append(got["pivots"])
    assert (pivots[1] > 3 * pivots[0]).all()


# One corner of 64 columns, several; one turn of the threads, two.
@pytest.mark.parametrize("k", [1, 2, 15, 63, 64, 65, 130, 258])
def test_sets_and_pivots_are_those_of_the_reference(kernels: Path, k: int) -> None:
    A, targets = dense(3, k, seed=1)
    gram, cross = products(A[None], targets[None])
    generator = torch.Generator().manual_seed(k)
    some = torch.rand(1, 3, k, generator=generator) < 0.5
    starts = (None, some, torch.zeros_like(some)) if k < 200 else (some,)
    for start in starts:
        for tol in (0.0, 1e-2):
            got = solve(kernels, gram, cross, passive=start, tol=tol, seeds=(0, 1))
            h, free, pivots = reference.nnls(gram, cross, start, tol=tol)
            torch.testing.assert_close(got["h"], h, rtol=1e-8, atol=1e-9 * float(h.max()))
            assert torch.equal(got["free"], free.to(torch.uint8))
            assert torch.equal(got["pivots"], pivots)
            assert kkt_residual(gram, cross, got["h"]).max() <= max(tol, 1e-12)


@pytest.mark.parametrize("k", [2, 15, 70, 130])
def test_a_factor_that_follows_its_variables(build: Builder, k: int) -> None:
    """As it does where few of many come or go; here at every exchange."""
    always = Mutation(ONE_ROW, "kColumnsPerUpdate = 128", "kColumnsPerUpdate = 1")
    kernels = build("nnls_one_row.cpp", "-DFEW_KERNELS", mutation=always)
    A, targets = dense(3, k, seed=8)
    gram, cross = products(A[None], targets[None])
    generator = torch.Generator().manual_seed(k)
    some = torch.rand(1, 3, k, generator=generator) < 0.5
    got = solve(kernels, gram, cross, passive=some, seeds=(0, 1))
    h, free, pivots = reference.nnls(gram, cross, some)
    torch.testing.assert_close(got["h"], h, rtol=1e-8, atol=1e-9 * float(h.max()))
    assert torch.equal(got["free"], free.to(torch.uint8))
    assert torch.equal(got["pivots"], pivots)


@pytest.mark.parametrize("k", [1, 15, 70, 130])
def test_one_variable_at_a_time(slow: Path, k: int) -> None:
    A, targets = dense(2, k, seed=2)
    gram, cross = products(A[None], targets[None])
    want = scipy_nnls(A, targets)
    start = torch.tensor(want[None] > 0)
    start[:, :, ::7] ^= True
    for passive in (None, start):
        got = solve(slow, gram, cross, passive=passive, seeds=(0, 1))
        np.testing.assert_allclose(got["h"][0].numpy(), want, rtol=1e-7, atol=1e-9 * want.max())
        assert torch.equal(got["free"].bool(), got["h"] > 0)


@pytest.mark.parametrize("quickly", [True, False])
@pytest.mark.parametrize("k", [4, 70])
@pytest.mark.parametrize("name", list(hard_bases(4)))
def test_hard_problems_end_at_an_optimum(
    kernels: Path, slow: Path, name: str, k: int, quickly: bool
) -> None:
    A = hard_bases(k)[name]
    rng = np.random.default_rng(1)
    n = 3
    targets = np.concatenate([rng.standard_normal((n, len(A))), rng.random((n, k)) @ A.T])
    gram, cross = products(A[None], targets[None])
    h = solve(kernels if quickly else slow, gram, cross)["h"]
    assert h.isfinite().all()
    assert (h >= 0).all()
    # Rounding moves G h by eps |G| |h|, which is what an ill-conditioned problem can ask for.
    scale = gram.abs().max() * h.sum(-1) / cross.abs().amax(-1).clamp_min(1e-300)
    assert (kkt_residual(gram, cross, h) <= 1e-11 * k * scale.clamp_min(1)).all()
    if "condition" not in name:
        got = np.linalg.norm(targets - h[0].numpy() @ A.T, axis=1)
        want = [scipy.optimize.nnls(A, target)[1] for target in targets]
        # A Gram matrix knows a distance only up to the root of rounding.
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-6 * np.abs(targets).max())


def singular_basis(k: int) -> np.ndarray:
    """Return half as many rows as columns, some of which are the same."""
    A = np.random.default_rng(k).random((k // 2, k))
    A[:, 3::17] = A[:, 2:3]
    return A


def test_singular_gram_matrix(all_kernels: Path) -> None:
    A = singular_basis(270)
    targets = np.random.default_rng(1).random((1, 270)) @ A.T
    gram, cross = products(A[None], targets[None])
    h = solve(all_kernels, gram, cross)["h"]
    assert (h >= 0).all()
    assert kkt_residual(gram, cross, h).max() < 1e-10


def test_units_float32_and_rows_that_are_not_finite(kernels: Path) -> None:
    A, targets = dense(4, 70)
    gram, cross = products(np.stack([A, 2 * A]), np.stack([targets, targets]))
    want = solve(kernels, gram, cross)["h"]
    # Powers of two round nothing, so the answer is the same to the last bit.
    units = 2.0 ** (torch.arange(70, dtype=torch.float64) % 9 - 4)
    got = solve(kernels, gram * units * units[:, None], cross * units * 2.0**20)["h"]
    torch.testing.assert_close(got * units * 2.0**-20, want, rtol=0, atol=0)
    narrow = solve(kernels, gram.float(), cross.float())["h"]
    exact = solve(kernels, gram.float().double(), cross.float().double())["h"]
    torch.testing.assert_close(narrow, exact.float(), rtol=0, atol=0)
    broken = cross.clone()
    broken[0, 1, 69] = torch.nan
    got = solve(kernels, gram, broken)
    assert got["h"][0, 1].isnan().all()
    assert not got["free"][0, 1].any()
    assert got["pivots"][0, 1] == 0
    others = torch.ones(2, 4, dtype=torch.bool)
    others[0, 1] = False
    torch.testing.assert_close(got["h"][others], want[others], rtol=0, atol=0)
    gram[1, 69, 0] = torch.inf
    assert solve(kernels, gram, cross)["h"][1].isnan().all()


def test_rows_take_turns_at_the_memory(kernels: Path, build: Builder) -> None:
    A, targets = dense(10, 20)
    gram, cross = products(A[None], targets[None])
    want = solve(kernels, gram, cross)["h"]
    less = Mutation(ONE_ROW, "kWideRowBytes = int64_t{1} << 30", "kWideRowBytes = 1")
    few = build("nnls_one_row.cpp", "-DFEW_KERNELS", mutation=less)
    got = solve(few, gram, cross)["h"]  # eight at a time
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def assert_same_gradient(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7 * float(want.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 15, 64, 130])
def test_backward_equals_reference(kernels: Path, k: int, dtype: torch.dtype) -> None:
    A, targets = dense(3, k, seed=3)
    gram, cross = products(np.stack([A, A]), np.stack([targets, targets]))
    gram[1, :, 0] = gram[1, 0, :] = 0  # singular where that variable is free
    grad, h = cross.to(dtype), cross.clamp_min(0).to(dtype)
    got = backward(kernels, gram, h, grad)
    assert_same_gradient(got["u"], reference.nnls_backward(gram, h, grad))
    singular = torch.stack([torch.zeros(h.shape[1]), h[1, :, 0] > 0]).bool()
    assert torch.equal(got["unsolved"].bool(), singular.reshape(-1))


@pytest.mark.parametrize("k", [257, 400])
def test_backward_of_many_variables(all_kernels: Path, k: int) -> None:
    A, targets = dense(1, k, seed=4)
    gram, cross = products(A[None], targets[None])
    h = cross.clamp_min(0)
    assert_same_gradient(
        backward(all_kernels, gram, h, cross)["u"], reference.nnls_backward(gram, h, cross)
    )


@pytest.mark.parametrize("k", [6, 20, 90])
def test_gradient_is_of_least_norm_on_a_singular_block(kernels: Path, k: int) -> None:
    assert_least_norm(kernels, k, n=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("shared", [True, False])
def test_project_equals_reference(all_kernels: Path, dtype: torch.dtype, shared: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    batch, n, f, k = 2 - shared, 2, 300, 257
    floating = torch.float64 if dtype == torch.float64 else torch.float32
    H = torch.rand((batch, k, f), generator=generator, dtype=floating)
    H = (H - 0.8).clamp_min(0) + torch.eye(k, f, dtype=floating)
    X = torch.rand((n, f) if shared else (batch, n, f), generator=generator, dtype=floating)
    X = (255 * X).to(dtype) if dtype == torch.uint8 else X
    tensors = {"X": X, "H": H, "passive": COLD}
    got = run_kernels(all_kernels, "project", tensors, {"tol": 0, "prepared": 1}, seeds=(0,))["h"]
    want, _, _ = reference.project(as_float(X, floating).double(), H.double())
    assert (want == 0).any()
    atol = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)


# Barriers of one_row.cuh whose want cannot be seen.
GUARDS = {
    # A start that is wrong is found out by its gradient, and computed again.
    Mutation(ONE_ROW, "__syncthreads();", ";", 0),
    # x is read for the size of rounding alone before there is another barrier.
    Mutation(ONE_ROW, "__syncthreads();", ";", 3),
    # The same threads read what they have written, while both cut the matrix into the same tiles;
    # the last column is read by others only where no variable depends on those before it.
    Mutation(ONE_ROW, "__syncthreads();", ";", 4),
    Mutation(ONE_ROW, "__syncthreads();", ";", 5),
}
MUTATIONS = [
    mutation
    for mutation in without_each_barrier(
        "nnls/cuda/free_factor.cuh", "nnls/cuda/wide_gram.cuh", ONE_ROW
    )
    if mutation not in GUARDS
]


def neighbour(k: int) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """Draw a problem of two rows, their free variables but for the least important, answers."""
    rng = np.random.default_rng(k)
    A = rng.standard_normal((9 * k, k))
    targets = rng.standard_normal((2, k)) @ A.T
    want = scipy_nnls(A, targets)
    start = torch.tensor(want[None] > 0)
    gradient = np.where(want > 0, np.inf, want @ A.T @ A - targets @ A)
    start[0, 0, np.where(want > 0, want, np.inf)[0].argmin()] = False
    start[0, 1, gradient[1].argmin()] = True
    return *products(A[None], targets[None]), start, want


def check_mutant(build: Builder, mutation: Mutation) -> None:
    """Run what reaches every line: several corners, both ways, variables that come and go."""
    kernels = build("nnls_one_row.cpp", "-DFEW_KERNELS", mutation=mutation)
    gram, cross, start, want = neighbour(280)
    tensors = {"gram": gram, "cross": cross, "passive": start.to(torch.uint8)}
    # Without some barriers it would go on for long.
    got = run_kernels(kernels, "nnls", tensors, {"tol": 0}, seeds=(0, 1), timeout=30)
    np.testing.assert_allclose(got["h"][0].numpy(), want, rtol=1e-7, atol=1e-9 * want.max())
    assert torch.equal(got["pivots"], torch.ones(1, 2, dtype=torch.int64))
    A, targets = dense(3, 100, seed=7)
    gram, cross = products(A[None], targets[None])
    got = solve(kernels, gram, cross, seeds=(0, 1))
    want = scipy_nnls(A, targets)
    np.testing.assert_allclose(got["h"][0].numpy(), want, rtol=1e-7, atol=1e-9 * want.max())
    assert torch.equal(got["pivots"], reference.nnls(gram, cross)[2])
    A = hard_bases(70)["wide, signed"]
    targets = np.random.default_rng(1).standard_normal((2, len(A)))
    gram, cross = products(A[None], targets[None])
    h = solve(kernels, gram, cross, seeds=(0, 1))["h"]
    assert kkt_residual(gram, cross, h).max() < 1e-9
    assert_least_norm(kernels, 90, n=5)


def test_the_few_kernels_without_a_mutation(build: Builder) -> None:
    check_mutant(build, none_of(MUTATIONS))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_every_barrier_is_needed(build: Builder, mutation: Mutation) -> None:
    with pytest.raises((AssertionError, KernelError)):
        check_mutant(build, mutation)
