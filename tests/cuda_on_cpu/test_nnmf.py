"""The CUDA kernels of nnmf_mu, nnmf_hals and nnmf_divergence against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnmf_cuda import reference
from nnmf_cuda.reference.nnmf import as_float
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

SOURCES = tuple(
    f"nnmf/cuda/{name}.cuh"
    for name in ("warp_tile", "half_step", "factor_kernels", "iterations", "divergence")
)


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("nnmf.cpp")


def problem(
    batch: int, n: int, f: int, k: int, dtype: torch.dtype, *, shared: bool
) -> dict[str, Tensor]:
    """Draw X of `dtype`, uint8 included, and a start W, H."""
    generator = torch.Generator().manual_seed(n + f + k)
    floating = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (n, f) if shared else (batch, n, f)
    X = torch.rand(shape, generator=generator).add(0.1).to(floating)
    if dtype == torch.uint8:
        X = torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)
    W = torch.rand((batch, n, k), generator=generator, dtype=floating) + 0.1
    H = torch.rand((batch, k, f), generator=generator, dtype=floating) + 0.1
    return {"X": X, "W": W, "H": H}


def run(
    kernels: Path,
    tensors: dict[str, Tensor],
    options: dict[str, float],
    *,
    multiprocessors: int = 4,
    active: Tensor | None = None,
) -> dict[str, Tensor]:
    """Run the kernels on a device of so many multiprocessors."""
    if active is None:
        active = torch.ones(len(tensors["W"]), dtype=torch.bool)
    given = {"n_inner": 0, "n_fixed": 0, "floor": reference.EPSILON}
    numbers = {**given, **options, "multiprocessors": multiprocessors}
    return run_kernels(kernels, "nnmf", {**tensors, "active": active.byte()}, numbers)


def check(
    kernels: Path, tensors: dict[str, Tensor], options: dict[str, float], *, multiprocessors=4
) -> dict[str, Tensor]:
    """Assert that the kernels give the reference's factors, and the divergence of their own.

    Return both.
    """
    X, W, H = tensors["X"], tensors["W"], tensors["H"]
    got = run(kernels, tensors, options, multiprocessors=multiprocessors)
    exact_X = as_float(X, W.dtype).double()
    wanted = reference.nnmf_mu(exact_X, W.double(), H.double(), **options)
    # Sums of at most 512 terms in float32 and three iterations: some tens of roundings.
    rtol = 1e-11 if W.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(got["W"].double(), wanted[0], rtol=rtol, atol=0)
    torch.testing.assert_close(got["H"].double(), wanted[1], rtol=rtol, atol=0)
    exact = reference.nnmf_divergence(
        exact_X,
        got["W"].double(),
        got["H"].double(),
        beta_loss=options["beta_loss"],
        floor=options.get("floor", reference.EPSILON),
    )
    # W H is rounded in the factors' dtype, which counts near an exact fit.
    rtol, each = (1e-12, 1e-15) if W.dtype == torch.float64 else (3e-6, 1e-9)
    torch.testing.assert_close(got["divergence"], exact, rtol=rtol, atol=each * X[0].numel())
    return got


def assert_near(got: dict[str, Tensor], wanted: Sequence[Tensor], tolerance: float) -> None:
    """Assert that no value of a factor is farther off than `tolerance` of the largest."""
    for name, want in zip(("W", "H"), wanted, strict=False):
        error = (got[name].double() - want).abs().max()
        assert error <= tolerance * want.abs().max(), name


def check_descent(
    kernels: Path,
    tensors: dict[str, Tensor],
    penalty: float = 0.0,
    *,
    n_iter: int,
    update_H: bool = True,
    n_inner: int = 1,
    n_fixed: int = 0,
) -> None:
    """Assert that the kernels give the factors of the reference's coordinate descent."""
    options = options_of(2.0, penalty, update_H=update_H, n_iter=n_iter)
    options |= {"n_inner": n_inner, "n_fixed": n_fixed}
    got = run(kernels, tensors, options)
    del options["beta_loss"]
    W, H = tensors["W"].double(), tensors["H"].double()
    X = as_float(tensors["X"], tensors["W"].dtype).double()
    wanted = reference.nnmf_hals(X, W, H, **options)
    exact = tensors["W"].dtype == torch.float64
    assert_near(got, wanted, 1e-11 if exact else 1e-4)  # differences: absolute


def options_of(beta_loss: float, penalty: float = 0.0, *, update_H: bool = True, n_iter: int = 3):
    penalties = ("l1_reg_W", "l1_reg_H", "l2_reg_W", "l2_reg_H")
    return {
        "beta_loss": beta_loss,
        "n_iter": n_iter,
        "update_H": update_H,
        **{name: penalty * times for times, name in enumerate(penalties, 1)},
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.0, -0.5, 0.5, 1.5, 3.0])
@pytest.mark.parametrize(
    ("batch", "n", "f", "k", "shared", "update_H", "penalty"),
    [
        (1, 1, 1, 1, True, True, 0.0),
        (3, 33, 31, 5, True, True, 0.0),
        (2, 31, 70, 9, False, True, 0.2),
        (1, 5, 1100, 3, True, False, 0.1),
        (1, 130, 34, 17, True, True, 0.0),
        (2, 9, 144, 33, False, True, 0.0),
        (1, 12, 50, 128, True, True, 0.1),
    ],
)
def test_kernels_match_reference(
    kernels, dtype, beta_loss, batch, n, f, k, shared, update_H, penalty
):
    tensors = problem(batch, n, f, k, dtype, shared=shared)
    check(kernels, tensors, options_of(beta_loss, penalty, update_H=update_H))


@pytest.mark.parametrize("beta_loss", [1.0, 2.0, 0.0])
@pytest.mark.parametrize("multiprocessors", [1, 50, 1000])
def test_any_number_of_splits_gives_the_same(kernels, beta_loss, multiprocessors):
    """One split (for Kullback-Leibler updated within the kernel) up to one for each tile."""
    tensors = problem(2, 37, 350, 6, torch.float32, shared=False)
    check(kernels, tensors, options_of(beta_loss, 0.1), multiprocessors=multiprocessors)


@pytest.mark.parametrize("rows", ["2", "4"])  # 15 components and less have kernels of their own
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("multiprocessors", [1, 4, 1000])
@pytest.mark.parametrize(("n", "f", "k"), [(70, 131, 15), (65, 64, 9), (129, 36, 16)])
def test_two_rows_a_lane_or_four(kernels, monkeypatch, rows, dtype, multiprocessors, n, f, k):
    monkeypatch.setenv("NNMF_CUDA_OWN_ROWS", rows)
    tensors = problem(2, n, f, k, dtype, shared=False)
    check(kernels, tensors, options_of(1.0, 0.1), multiprocessors=multiprocessors)


@pytest.mark.parametrize("beta_loss", [1.0, 2.0, 0.0])
@pytest.mark.parametrize("f", [32, 36, 37])  # whole pieces of 16 and of 4 bytes, and bytes
def test_pixels_at_any_alignment(kernels, beta_loss, f):
    check(kernels, problem(2, 70, f, 6, torch.uint8, shared=False), options_of(beta_loss))


@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
@pytest.mark.parametrize("k", [7, 200])
def test_pixels_with_float64_factors(kernels, beta_loss, k):
    tensors = problem(1, 5, 37, k, torch.uint8, shared=True)
    tensors["W"], tensors["H"] = tensors["W"].double(), tensors["H"].double()
    check(kernels, tensors, options_of(beta_loss))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize(
    ("batch", "n", "f", "k", "n_inner", "update_H", "penalty", "n_fixed"),
    [
        (1, 1, 1, 1, 1, True, 0.0, 0),
        (2, 40, 65, 6, 3, True, 0.1, 0),
        (1, 33, 20, 19, 2, False, 0.0, 0),
        (2, 33, 20, 19, 2, True, 0.1, 7),
    ],
)
def test_hals_matches_reference(
    kernels, dtype, batch, n, f, k, n_inner, update_H, penalty, n_fixed
):
    tensors = problem(batch, n, f, k, dtype, shared=True)
    tensors["H"][:, 0] = 0  # a component without curvature stays as it is
    options = {"update_H": update_H, "n_inner": n_inner, "n_fixed": n_fixed}
    check_descent(kernels, tensors, penalty, n_iter=2, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.0, 0.5, 1.5])
@pytest.mark.parametrize("multiprocessors", [1, 1000])  # one split, and one for each tile
@pytest.mark.parametrize(("k", "n_fixed"), [(6, 2), (9, 9), (33, 17), (128, 127)])
def test_held_rows_and_a_floor(kernels, dtype, beta_loss, multiprocessors, k, n_fixed):
    tensors = problem(2, 21, 90, k, dtype, shared=False)
    tensors["H"][:, 0, 3] = 1e-17  # held as it is, where an update would make it zero
    product = tensors["W"][0] @ tensors["H"][0]
    floor = product.median().item()
    options = options_of(beta_loss, 0.1, n_iter=2) | {"floor": floor, "n_fixed": n_fixed}
    got = check(kernels, tensors, options, multiprocessors=multiprocessors)
    assert torch.equal(got["H"][:, :n_fixed], tensors["H"][:, :n_fixed])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", [1.0, 0.0, 0.5])
@pytest.mark.parametrize("k", [5, 40])
def test_small_units_with_a_floor_of_theirs(kernels, dtype, beta_loss, k):
    """What an absolute floor would drown."""
    tensors = problem(1, 20, 40, k, dtype, shared=True)
    root = 2.0**-20
    tensors = {name: value * (root if name != "X" else root**2) for name, value in tensors.items()}
    options = options_of(beta_loss, n_iter=2) | {"floor": reference.EPSILON * root**2}
    check(kernels, tensors, options)


@pytest.mark.parametrize("multiprocessors", [1, 1000])
@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_problems_that_are_not_active_stay(kernels, beta_loss, multiprocessors):
    tensors = problem(3, 20, 45, 5, torch.float32, shared=True)
    active = torch.tensor([True, False, True])
    options = options_of(beta_loss)
    got = run(kernels, tensors, options, multiprocessors=multiprocessors, active=active)
    alone = run(kernels, tensors, options, multiprocessors=multiprocessors)
    for name in ("W", "H"):
        assert torch.equal(got[name][1], tensors[name][1])
        assert torch.equal(got[name][::2], alone[name][::2])


def test_nan_of_a_row_stays_in_its_row_of_W(kernels):
    tensors = problem(1, 40, 50, 5, torch.float32, shared=True)
    tensors["X"][7, 3] = torch.nan
    got = run(kernels, tensors, options_of(1.0, update_H=False))
    assert got["W"][0, 7].isnan().all()
    assert got["W"].isnan().sum() == 5


BARRIERS = without_each_barrier(*SOURCES)
INDICES = share_a_build(
    Mutation(file, old, new)
    for file, old, new in (
        ("nnmf/cuda/warp_tile.cuh", "at < row_limit ?", "at <= row_limit ?"),
        ("nnmf/cuda/warp_tile.cuh", "left >= kEntries ? kEntries", "left >= 0 ? kEntries"),
        ("nnmf/cuda/warp_tile.cuh", "row_limit >= rows &&", "row_limit + 1 >= rows &&"),
        ("nnmf/cuda/warp_tile.cuh", "at < valid;", "at <= valid;"),
        ("nnmf/cuda/half_step.cuh", "place.row(i) < cut.length", "place.row(i) <= cut.length"),
        ("nnmf/cuda/half_step.cuh", "if (at < count)", "if (at <= count)"),
        ("nnmf/cuda/half_step.cuh", "at < count && at", "at <= count && at"),
        ("nnmf/cuda/factor_kernels.cuh", "if (at >= size) return", "if (at > size) return"),
        ("nnmf/cuda/factor_kernels.cuh", "at * step < parts)", "at * step <= parts)"),
        ("nnmf/cuda/factor_kernels.cuh", "if (pair >= pairs) return", "if (pair > pairs) return"),
        ("nnmf/cuda/iterations.cuh", "if (at >= values) return", "if (at > values) return"),
    )
)


def check_mutant(build: Builder, mutation: Mutation) -> None:
    """Run what reaches every line: several tiles, splits and problems, one split, all losses."""
    kernels = build("nnmf.cpp", "-DFEW_KERNELS", mutation=mutation)
    problems = ((208, 1.0, 1), (203, 1.0, 1000), (203, 2.0, 1000), (203, 0.0, 1000))
    for f, beta_loss, multiprocessors in problems:
        # 63: a tile that lacks one row; 208: whole pieces of 16 bytes.
        tensors = problem(2, 63, f, 7, torch.float32, shared=False)
        check(kernels, tensors, options_of(beta_loss, n_iter=2), multiprocessors=multiprocessors)
    check_descent(kernels, problem(2, 63, 203, 7, torch.float32, shared=False), n_iter=2)


@pytest.mark.parametrize("mutations", [BARRIERS, INDICES])
def test_the_small_kernels_without_a_mutation(build: Builder, mutations: list[Mutation]) -> None:
    check_mutant(build, none_of(mutations))


@pytest.mark.parametrize("mutation", BARRIERS, ids=str)
def test_every_barrier_is_needed(build: Builder, mutation: Mutation) -> None:
    with pytest.raises((AssertionError, KernelError)):
        check_mutant(build, mutation)


@pytest.mark.parametrize("mutation", INDICES, ids=str)
def test_an_index_that_is_one_too_large_is_seen(build: Builder, mutation: Mutation) -> None:
    require_sanitizers()
    with pytest.raises(KernelError):
        check_mutant(build, mutation)
