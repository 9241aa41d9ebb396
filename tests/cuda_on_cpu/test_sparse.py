"""The CUDA kernels of sparse X against the dense reference, which shares no code with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnmf_cuda import reference
from tests.cuda_on_cpu.harness import (
    Builder,
    KernelError,
    Mutation,
    none_of,
    require_sanitizers,
    run_kernels,
    share_a_build,
    without_each_barrier,
)
from tests.cuda_on_cpu.test_nnmf import assert_near, options_of

SOURCES = tuple(
    f"sparse/cuda/{name}.cuh"
    for name in ("columns", "row_sums", "dense_rows", "iterations", "divergence")
)


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("sparse.cpp")


def problem(
    batch: int, n: int, f: int, k: int, dtype: torch.dtype, *, density: float = 0.3
) -> dict[str, Tensor]:
    """Draw X with zeros, dense, and a start; one row is empty, one full, and a column is empty."""
    generator = torch.Generator().manual_seed(n + f + k)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(dtype)

    X = torch.where(draw(n, f) < density, 3 * draw(n, f) + 0.1, 0)
    if n > 3 and f > 3:
        X[1], X[3], X[:, 2] = 0, 1 + draw(f), 0
    return {"X": X, "W": draw(batch, n, k) + 0.1, "H": draw(batch, k, f) + 0.1}


def run(
    kernels: Path,
    tensors: dict[str, Tensor],
    options: dict[str, float],
    *,
    index: torch.dtype = torch.int32,
    active: Tensor | None = None,
) -> dict[str, Tensor]:
    X, W, H = tensors["X"], tensors["W"], tensors["H"]
    places = X.nonzero()
    crow = torch.zeros(len(X) + 1, dtype=torch.int64)
    crow[1:] = (X != 0).sum(1).cumsum(0)
    active = torch.ones(len(W), dtype=torch.bool) if active is None else active
    parts = {
        "crow": crow.to(index),
        "col": places[:, 1].to(index).contiguous(),
        "values": X[X != 0],
        "W": W,
        "H": H,
        "active": active.byte(),
    }
    given = {"n_inner": 0, "n_fixed": 0, "floor": reference.EPSILON}
    return run_kernels(kernels, "sparse", parts, {**given, **options})


def check(
    kernels: Path,
    tensors: dict[str, Tensor],
    options: dict[str, float],
    *,
    index: torch.dtype = torch.int32,
) -> None:
    """Assert that the kernels give the reference's factors, and the divergence of their own."""
    got = run(kernels, tensors, options, index=index)
    exact = {name: value.double() for name, value in tensors.items()}
    options = dict(options)
    beta_loss = options["beta_loss"]
    if options.get("n_inner"):
        del options["beta_loss"]
        wanted = reference.nnmf_hals(exact["X"], exact["W"], exact["H"], **options)
    else:
        wanted = reference.nnmf_mu(exact["X"], exact["W"], exact["H"], **options)
    rtol = 1e-10 if tensors["W"].dtype == torch.float64 else 1e-4
    assert_near(got, wanted, rtol)
    ends = got["W"].double(), got["H"].double()
    floor = options.get("floor", reference.EPSILON)
    want = reference.nnmf_divergence(exact["X"], *ends, beta_loss=beta_loss, floor=floor)
    of_entries = beta_loss in (1, 2)  # in float64; others form W H in the factors' dtype
    rtol = 1e-11 if of_entries or tensors["W"].dtype == torch.float64 else 3e-6
    rounding = 1e-14 * float(exact["X"].sum())  # of the sum over all of W H
    torch.testing.assert_close(got["divergence"], want, rtol=rtol, atol=rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.5, 1.5, 3.0])
@pytest.mark.parametrize(
    ("batch", "n", "f", "k", "update_H", "penalty"),
    [
        (1, 1, 1, 1, True, 0.0),
        (2, 33, 70, 5, True, 0.2),
        (1, 70, 9, 20, True, 0.0),
        (1, 9, 300, 32, False, 0.1),
        (1, 12, 50, 33, True, 0.1),
        (1, 11, 13, 130, True, 0.0),
    ],
)
def test_kernels_match_reference(kernels, dtype, beta_loss, batch, n, f, k, update_H, penalty):
    tensors = problem(batch, n, f, k, dtype, density=2 if n == 1 else 0.3)
    check(kernels, tensors, options_of(beta_loss, penalty, update_H=update_H, n_iter=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", [0.0, -0.5])
def test_data_without_zeros_below_beta_loss_0(kernels, dtype, beta_loss):
    tensors = problem(1, 19, 27, 4, dtype, density=2)
    tensors["X"] += 0.2
    check(kernels, tensors, options_of(beta_loss, 0.1, n_iter=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("batch", "n", "f", "k", "n_inner", "update_H", "n_fixed"),
    [
        (1, 1, 1, 1, 1, True, 0),
        (2, 33, 70, 5, 2, True, 2),
        (1, 9, 30, 33, 1, False, 0),
        (1, 12, 17, 65, 1, True, 3),
    ],
)
def test_hals_matches_reference(kernels, dtype, batch, n, f, k, n_inner, update_H, n_fixed):
    tensors = problem(batch, n, f, k, dtype)
    options = options_of(2.0, 0.5, update_H=update_H, n_iter=2)
    check(kernels, tensors, options | {"n_inner": n_inner, "n_fixed": n_fixed})


@pytest.mark.parametrize("beta_loss", [1.0, 2.0, 0.5])
def test_long_indices_give_the_same(kernels, beta_loss):
    tensors = problem(1, 40, 30, 6, torch.float32)
    options = options_of(beta_loss, n_iter=2)
    short, long = (run(kernels, tensors, options, index=i) for i in (torch.int32, torch.int64))
    assert all(torch.equal(short[name], long[name]) for name in short)


@pytest.mark.parametrize("beta_loss", [1.0, 2.0, 0.5])
def test_problems_that_are_not_active_stay(kernels, beta_loss):
    tensors = problem(3, 12, 17, 6, torch.float32)
    active = torch.tensor([True, False, True])
    options = options_of(beta_loss, n_iter=2) | {"n_fixed": 1}
    got, everything = run(kernels, tensors, options, active=active), run(kernels, tensors, options)
    for name in ("W", "H"):
        assert torch.equal(got[name][1], tensors[name][1])
        assert torch.equal(got[name][::2], everything[name][::2])
    assert torch.equal(got["H"][:, :1], tensors["H"][:, :1])


@pytest.mark.parametrize("k", [3, 40])
def test_long_sums_go_on_in_float64(kernels, k):
    tensors = problem(1, 2, 9000, k, torch.float32, density=2)
    options = options_of(1.0, update_H=False, n_iter=1)
    got = run(kernels, tensors, options)
    exact = {name: value.double() for name, value in tensors.items()}
    wanted = reference.nnmf_mu(exact["X"], exact["W"], exact["H"], **options)
    torch.testing.assert_close(got["W"].double(), wanted[0], rtol=6e-7, atol=0)


def test_no_non_zeros(kernels):
    tensors = problem(1, 5, 7, 3, torch.float32)
    tensors["X"].zero_()
    got = run(kernels, tensors, options_of(1.0, n_iter=1))
    assert (got["W"] == 0).all()
    assert got["divergence"].item() == 0


@pytest.mark.parametrize("beta_loss", [0.5])
def test_dense_rows_in_parts_give_the_same(build: Builder, kernels, beta_loss):
    tensors = problem(1, 37, 29, 5, torch.float32)
    options = options_of(beta_loss, 0.1, n_iter=2)
    whole = run(kernels, tensors, options)
    mutation = Mutation("sparse/cuda/dense_rows.cuh", "int64_t{64} << 20", "1000")
    parts = run(build("sparse.cpp", "-DFEW_KERNELS", mutation=mutation), tensors, options)
    for name in ("W", "H"):
        assert torch.equal(parts[name], whole[name])
    torch.testing.assert_close(parts["divergence"], whole["divergence"], rtol=1e-12, atol=0)


BARRIERS = without_each_barrier(*SOURCES)
INDICES = share_a_build(
    Mutation(f"sparse/cuda/{file}.cuh", old, new)
    for file, old, new in (
        ("columns", "p < task.crow[row + 1]", "p <= task.crow[row + 1]"),
        ("columns", "column >= task.n_features", "column > task.n_features"),
        ("columns", "at < size) counts", "at <= size) counts"),
        ("row_sums", "p < last", "p <= last"),
        ("row_sums", "c < k) to", "c <= k) to"),
        ("row_sums", "lane < count ? static_cast", "lane <= count ? static_cast"),
        ("row_sums", "at.row >= task.x.length", "at.row > task.x.length"),
        ("dense_rows", "i < x.depth", "i <= x.depth"),
        ("divergence", "at.row >= task.x.length", "at.row > task.x.length"),
    )
)


def check_mutant(build: Builder, mutation: Mutation) -> None:
    """Several chunks of rows, rows longer than a warp, and all kinds of row sums."""
    kernels = build("sparse.cpp", "-DFEW_KERNELS", mutation=mutation)
    for k in (6, 35):
        tensors = problem(2, 41, 131, k, torch.float32)
        check(kernels, tensors, options_of(1.0, n_iter=1))
    check(kernels, problem(1, 12, 300, 6, torch.float32, density=2), options_of(1.0, n_iter=1))
    tensors = problem(1, 41, 131, 6, torch.float32)
    check(kernels, tensors, options_of(2.0, 0.5, n_iter=1) | {"n_inner": 1})
    check(kernels, tensors, options_of(0.5, n_iter=1))


def test_the_few_kernels_without_a_mutation(build: Builder) -> None:
    check_mutant(
        build, Mutation("sparse/cuda/columns.cuh", "kMostChunks = 1024", "kMostChunks = 7")
    )


@pytest.mark.parametrize("mutations", [BARRIERS, INDICES])
def test_mutants_without_a_mutation(build: Builder, mutations: list[Mutation]) -> None:
    check_mutant(build, none_of(mutations))


@pytest.mark.parametrize("mutation", BARRIERS, ids=str)
def test_every_barrier_is_needed(build: Builder, mutation: Mutation) -> None:
    with pytest.raises((AssertionError, KernelError)):
        check_mutant(build, mutation)


@pytest.mark.parametrize("mutation", INDICES, ids=str)
def test_an_index_that_is_one_too_large_is_seen(build: Builder, mutation: Mutation) -> None:
    require_sanitizers()
    with pytest.raises((AssertionError, KernelError)):
        check_mutant(build, mutation)
