"""The CUDA kernels of nnls and nnls_backward against scipy and the reference."""

from __future__ import annotations

from collections.abc import Sequence
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
from tests.helpers import hard_bases


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("nnls.cpp")


def bases(batch: int, n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw bases (batch, 2 k + 1, k) and targets; every fourth variable is hardly ever free."""
    rng = np.random.default_rng([seed, batch, n, k])
    A = rng.standard_normal((batch, 2 * k + 1, k))
    weights = rng.standard_normal((batch, n, k)) + 0.3 - 2.0 * (np.arange(k) % 4 == 3)
    noise = 0.1 * rng.standard_normal((batch, n, 2 * k + 1))
    return A, weights @ A.transpose(0, 2, 1) + noise


def products(A: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.tensor(A.transpose(0, 2, 1) @ A), torch.tensor(targets @ A)


def scipy_nnls(A: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            np.stack([scipy.optimize.nnls(basis, target)[0] for target in rows])
            for basis, rows in zip(A, targets, strict=True)
        ]
    )


COLD = torch.zeros(0, 1, 1, dtype=torch.uint8)


def solve(
    kernels: Path,
    gram: Tensor,
    cross: Tensor,
    *,
    passive: Tensor | None = None,
    tol: float = 0,
    slowly: bool = False,
    seeds: Sequence[int] = (0,),
) -> dict[str, Tensor]:
    """Run nnls; `slowly`: every row by Lawson-Hanson."""
    start = COLD if passive is None else passive.to(torch.uint8)
    tensors = {"gram": gram, "cross": cross, "passive": start}
    return run_kernels(kernels, "nnls", tensors, {"slowly": slowly, "tol": tol}, seeds=seeds)


def backward(kernels: Path, gram: Tensor, h: Tensor, grad: Tensor) -> dict[str, Tensor]:
    tensors = {"gram": gram, "h": h, "grad": grad}
    return run_kernels(kernels, "nnls_backward", tensors, {}, seeds=(0, 1))


def kkt_residual(gram: Tensor, cross: Tensor, h: Tensor) -> Tensor:
    violation = torch.minimum(h, h @ gram - cross).abs().amax(-1)
    return violation / cross.abs().amax(-1).clamp_min(1e-300)


# Teams of 8, 16 and 32 lanes, and of blocks; their edges; 4 columns a panel.
@pytest.mark.parametrize(
    ("batch", "n", "k"),
    [
        *[(batch, n, k) for k in (1, 2, 3, 7, 8, 9) for batch, n in ((1, 1), (1, 37), (3, 5))],
        *[(3, n, k) for k in (15, 16, 17, 31, 32) for n in (1, 5)],
        (1, 100, 15),
        (1, 37, 31),
        *[(2, 3, k) for k in (33, 34, 35, 36, 40, 64, 65)],
        (1, 2, 100),
        (1, 2, 128),
        (2, 1, 130),  # systems in global memory
    ],
)
def test_equals_scipy(kernels: Path, batch: int, n: int, k: int) -> None:
    A, targets = bases(batch, n, k)
    gram, cross = products(A, targets)
    got = solve(kernels, gram, cross, seeds=(0, 1))
    want = scipy_nnls(A, targets)
    np.testing.assert_allclose(got["h"].numpy(), want, rtol=1e-7, atol=1e-9 * want.max())
    assert kkt_residual(gram, cross, got["h"]).max() < 1e-12
    assert not got["unsolved"].any()  # the quick way ends well


@pytest.mark.parametrize("k", [1, 2, 8, 15, 32, 33, 70])
def test_lawson_hanson_equals_scipy(kernels: Path, k: int) -> None:
    A, targets = bases(2, 3 if k > 32 else 35, k)
    gram, cross = products(A, targets)
    got = solve(kernels, gram, cross, slowly=True, seeds=(0, 1))
    want = scipy_nnls(A, targets)
    np.testing.assert_allclose(got["h"].numpy(), want, rtol=1e-7, atol=1e-9 * want.max())


@pytest.mark.parametrize("gram_dtype", [torch.float32, torch.float64])
def test_float32_rows_are_solved_in_float64(kernels: Path, gram_dtype: torch.dtype) -> None:
    gram, cross = products(*bases(2, 20, 15))
    gram, cross = gram.to(gram_dtype), cross.float()
    h = solve(kernels, gram, cross)["h"]
    assert h.dtype == torch.float32
    exact = solve(kernels, gram.double(), cross.double())["h"]
    torch.testing.assert_close(h, exact.float(), rtol=0, atol=0)


@pytest.mark.parametrize("k", [4, 15, 40])
@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize("name", list(hard_bases(4)))
def test_hard_problems_end_at_an_optimum(kernels: Path, name: str, slowly: bool, k: int) -> None:
    A = hard_bases(k)[name]
    rng = np.random.default_rng(1)
    n = 10 if k < 40 else 3
    targets = np.concatenate([rng.standard_normal((n, len(A))), rng.random((n, k)) @ A.T])
    gram, cross = products(A[None], targets[None])
    solved = solve(kernels, gram, cross, slowly=slowly)
    h = solved["h"]
    assert h.isfinite().all()
    assert (h >= 0).all()
    # Rounding moves G h by eps |G| |h|, which is what an ill-conditioned problem can ask for.
    scale = gram.abs().max() * h.sum(-1) / cross.abs().amax(-1).clamp_min(1e-300)
    # Lawson-Hanson leaves out variables that depend on the free ones but for rounding. Which rows
    # end with it depends on how the processor at hand has rounded the products.
    handed_over = torch.ones(len(targets)) if slowly else solved["unsolved"].reshape(-1)
    rounding = torch.where(handed_over.bool(), 1e-11, 1e-13)
    assert (kkt_residual(gram, cross, h) <= rounding * k * scale.clamp_min(1)).all()
    if "condition" not in name:
        got = np.linalg.norm(targets - h[0].numpy() @ A.T, axis=1)
        want = [scipy.optimize.nnls(A, target)[1] for target in targets]
        # A Gram matrix knows a distance only up to the root of rounding.
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-6 * np.abs(targets).max())


def test_rows_that_end_unsafely_are_solved_by_lawson_hanson(kernels: Path) -> None:
    A = hard_bases(15)["condition 1e12"]
    gram, cross = products(A[None], np.random.default_rng(1).standard_normal((1, 40, len(A))))
    quick, slow = solve(kernels, gram, cross), solve(kernels, gram, cross, slowly=True)
    unsafe = quick["unsolved"].bool()[None]
    assert unsafe.any()
    torch.testing.assert_close(quick["h"][unsafe], slow["h"][unsafe], rtol=0, atol=0)


@pytest.mark.parametrize("k", [2, 40])
def test_unbounded_and_indefinite_problems_end(kernels: Path, k: int) -> None:
    gram = torch.zeros(3, k, k, dtype=torch.float64)
    gram[0, 1, 1] = 1
    gram[1] = torch.eye(k).double() + 2 * torch.eye(k).flip(0).double()
    gram[2] = -torch.eye(k)
    h = solve(kernels, gram, torch.ones(3, 2, k, dtype=torch.float64))["h"]
    assert h.isfinite().all()
    assert (h >= 0).all()
    assert (h[0, :, 1] == 1).all()


@pytest.mark.parametrize("k", [1, 7, 15, 16, 32, 33, 70])
def test_sets_and_pivots_are_those_of_the_reference(kernels: Path, k: int) -> None:
    gram, cross = products(*bases(2, 5, k))
    generator = torch.Generator().manual_seed(k)
    some = torch.rand(2, 5, k, generator=generator) < 0.5
    for start in (None, some, torch.zeros_like(some)):
        for tol in (0.0, 1e-2):
            got = solve(kernels, gram, cross, passive=start, tol=tol, seeds=(0, 1))
            h, free, pivots = reference.nnls(gram, cross, start, tol=tol)
            torch.testing.assert_close(got["h"], h, rtol=1e-8, atol=1e-9 * float(h.max()))
            assert torch.equal(got["free"], free.to(torch.uint8))
            assert torch.equal(got["pivots"], pivots)
            assert not got["unsolved"].any()
            assert kkt_residual(gram, cross, got["h"]).max() <= max(tol, 1e-12)


@pytest.mark.parametrize("k", [8, 40])
def test_sets_and_pivots_of_lawson_hanson(kernels: Path, k: int) -> None:
    gram, cross = products(*bases(2, 4, k))
    got = solve(kernels, gram, cross, slowly=True)
    assert torch.equal(got["free"].bool(), got["h"] > 0)
    assert (got["pivots"] >= got["free"].sum(-1)).all()
    loose = solve(kernels, gram, cross, slowly=True, tol=0.1)
    residual = kkt_residual(gram, cross, loose["h"])
    assert (residual <= 0.1).all()
    assert (residual > 1e-6).any()
    assert loose["pivots"].sum() < got["pivots"].sum()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("k", [3, 15, 31, 40])
def test_rows_that_are_not_finite_are_nan(kernels: Path, k: int, value: float) -> None:
    gram, cross = products(*bases(2, 6, k))
    want = solve(kernels, gram, cross)["h"]
    cross[0, 1, k // 2] = cross[1, 0, k - 1] = value
    got = solve(kernels, gram, cross)
    h, not_finite = got["h"], ~cross.isfinite().all(-1)
    assert h[not_finite].isnan().all()
    assert not got["free"][not_finite].any()
    assert not got["pivots"][not_finite].any()
    torch.testing.assert_close(h[~not_finite], want[~not_finite], rtol=0, atol=0)
    gram[0, 0, k - 1] = value
    h = solve(kernels, gram, cross)["h"]
    assert h[0].isnan().all()
    torch.testing.assert_close(h[1, 1:], want[1, 1:], rtol=0, atol=0)


@pytest.mark.parametrize("k", [5, 15, 33])
def test_neighbours_do_not_change_a_bit_of_a_row(kernels: Path, k: int) -> None:
    gram, cross = products(*bases(1, 20, k))
    together = solve(kernels, gram, cross)["h"]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shuffled = solve(kernels, gram, cross[:, order])["h"]
    torch.testing.assert_close(shuffled, together[:, order], rtol=0, atol=0)
    alone = solve(kernels, gram, cross[:, 7:8].clone())["h"]
    torch.testing.assert_close(alone, together[:, 7:8], rtol=0, atol=0)


def test_units_do_not_matter(kernels: Path) -> None:
    gram, cross = products(*bases(1, 20, 7))
    want = solve(kernels, gram, cross)["h"]
    # Powers of two round nothing, so the answer is the same to the last bit.
    units = 2.0 ** torch.arange(-12, 16, 4, dtype=torch.float64)
    got = solve(kernels, gram * units * units[:, None], cross * units * 2.0**20)["h"]
    torch.testing.assert_close(got * units * 2.0**-20, want, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 15, 16, 31, 32, 33, 65, 130])
def test_backward_equals_reference(kernels: Path, k: int, dtype: torch.dtype) -> None:
    gram, cross = products(*bases(2, 9 if k < 33 else 3, k))
    gram[1, :, 0] = gram[1, 0, :] = 0  # singular where that variable is free
    grad, h = cross.to(dtype), cross.clamp_min(0).to(dtype)
    got = backward(kernels, gram, h, grad)
    want = reference.nnls_backward(gram, h, grad)
    torch.testing.assert_close(got["u"], want, rtol=1e-8, atol=1e-8 * float(want.abs().max()))
    singular = torch.stack([torch.zeros(h.shape[1]), h[1, :, 0] > 0]).bool()
    assert torch.equal(got["unsolved"].bool(), singular.reshape(-1))


@pytest.mark.parametrize("k", [6, 20, 40])
def test_gradient_is_of_least_norm_on_a_singular_block(kernels: Path, k: int) -> None:
    assert_least_norm(kernels, k)


def assert_least_norm(kernels: Path, k: int, n: int = 9) -> None:
    rng = np.random.default_rng(5)
    A = rng.random((k - 2, k))
    A[:, 1] = 3 * A[:, 0]
    gram = torch.tensor(A.T @ A)[None]
    h = torch.tensor(rng.random((1, n, k)) - 0.05).clamp_min(0)
    grad = torch.tensor(rng.standard_normal((1, n, k)))
    got = backward(kernels, gram, h, grad)
    assert got["unsolved"].any()
    for row in range(n):
        free = h[0, row] > 0
        want = torch.zeros(k, dtype=torch.float64)
        inverse = torch.linalg.pinv(gram[0][free][:, free], hermitian=True, rtol=1e-10)
        want[free] = inverse @ grad[0, row, free]
        tolerance = 1e-6 * float(want.abs().max())
        torch.testing.assert_close(got["u"][0, row], want, rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize(
    ("batch", "n", "f", "k", "shared"),
    [(1, 1, 1, 1, True), (2, 9, 70, 5, False), (3, 5, 33, 15, True), (1, 3, 1100, 40, True)],
)
def test_project_equals_reference(
    kernels: Path, dtype: torch.dtype, batch: int, n: int, f: int, k: int, shared: bool
) -> None:
    generator = torch.Generator().manual_seed(k)
    floating = torch.float64 if dtype == torch.float64 else torch.float32
    H = torch.rand((batch, k, f), generator=generator, dtype=floating)
    X = torch.rand((n, f) if shared else (batch, n, f), generator=generator, dtype=floating)
    X = (255 * X).to(dtype) if dtype == torch.uint8 else X
    tensors = {"X": X, "H": H, "passive": COLD}
    got = run_kernels(kernels, "project", tensors, {"tol": 0, "prepared": 0}, seeds=(0,))["h"]
    for how in (1, 2):  # the same launches, some of them before
        again = run_kernels(kernels, "project", tensors, {"tol": 0, "prepared": how}, seeds=(0,))
        assert torch.equal(again["h"], got)
    exact = as_float(X, floating).double()
    want, _, _ = reference.project(exact, H.double())
    assert (want == 0).any() or k == 1
    atol = 1e-10 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_wide_components_of_both_signs_reach_float32_rows(
    kernels: Path, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    H = torch.randn((1, 100, 30), generator=generator)
    X = torch.rand((2, 30), generator=generator)
    X = (255 * X).to(dtype) if dtype == torch.uint8 else X
    tensors = {"X": X, "H": H, "passive": COLD}
    h = run_kernels(kernels, "project", tensors, {"tol": 0, "prepared": 1}, seeds=(0,))["h"][0]
    exact = X.double() / 255 if dtype == torch.uint8 else X.double()
    error = (h.double() @ H[0].double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < 1e-5


# Barriers after which memory is written anew. They can only be missed where a thread runs far
# ahead, past barriers that what follows happens to have.
GUARDS = {
    Mutation("nnls/cuda/active_set.cuh", "__syncthreads();", ";", 3),
    Mutation("nnls/cuda/active_set.cuh", "__syncthreads();", ";", 5),
    Mutation("nnls/cuda/lane_team.cuh", "__syncwarp();", ";", 0),
    # x is read for the size of rounding alone; of the variables that are kept only the first is
    # read before another barrier.
    Mutation("nnls/cuda/row_by_row.cuh", "__syncthreads();", ";", 3),
    Mutation("nnls/cuda/row_by_row.cuh", "__syncthreads();", ";", 4),
    Mutation("nnls/cuda/row_by_row.cuh", "__syncthreads();", ";", 6),
}
MUTATIONS = [
    mutation
    for mutation in without_each_barrier(
        "nnls/cuda/active_set.cuh",
        "nnls/cuda/lane_team.cuh",
        "nnls/cuda/block_team.cuh",
        "nnls/cuda/row_by_row.cuh",
    )
    if mutation not in GUARDS
]


def check_mutant(build: Builder, mutation: Mutation) -> None:
    """Run what reaches every line, with teams of lanes and of blocks."""
    kernels = build("nnls.cpp", "-DFEW_KERNELS", mutation=mutation)
    for n, k in ((12, 15), (3, 40)):
        A, targets = bases(2, n, k)
        gram, cross = products(A, targets)
        want = torch.tensor(scipy_nnls(A, targets))
        for slowly in (False, True):
            got = solve(kernels, gram, cross, slowly=slowly, seeds=(0, 1))
            torch.testing.assert_close(got["h"], want, rtol=1e-7, atol=1e-9)
            # The slow way would make up for what goes wrong.
            assert slowly or not got["unsolved"].any()
        gram[1, :, 0] = gram[1, 0, :] = 0
        h = cross.clamp_min(0)
        got = backward(kernels, gram, h, cross)
        want = reference.nnls_backward(gram, h, cross)
        torch.testing.assert_close(got["u"], want, rtol=1e-8, atol=1e-8 * float(want.abs().max()))


def test_the_small_kernels_without_a_mutation(build: Builder) -> None:
    check_mutant(build, Mutation("nnls/cuda/launches.cuh", "kNnlsBlocks = 4096", "kNnlsBlocks = 2"))
    check_mutant(build, none_of(MUTATIONS))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_every_barrier_is_needed(build: Builder, mutation: Mutation) -> None:
    with pytest.raises((AssertionError, KernelError)):
        check_mutant(build, mutation)
