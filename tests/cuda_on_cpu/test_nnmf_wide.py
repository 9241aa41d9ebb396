"""The CUDA kernels of nnmf_mu, nnmf_hals and nnmf_divergence for more than 256 components."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnmf_cuda import reference
from nnmf_cuda.reference.nnmf import as_float
from tests.cuda_on_cpu.harness import (
    Builder,
    KernelError,
    Mutation,
    none_of,
    require_sanitizers,
    share_a_build,
    without_each_barrier,
)
from tests.cuda_on_cpu.test_nnmf import assert_near, check, options_of, problem, run

SOURCES = tuple(f"nnmf/cuda/wide_{name}.cuh" for name in ("product", "iterations", "divergence"))


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("nnmf_wide.cpp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.0, 0.5, 3.0])
@pytest.mark.parametrize(
    ("batch", "n", "f", "k", "shared", "n_fixed", "penalty"),
    [
        (1, 1, 1, 257, True, 0, 0.0),
        (2, 7, 67, 300, False, 131, 0.2),
    ],
)
def test_kernels_match_reference(
    kernels, dtype, beta_loss, batch, n, f, k, shared, n_fixed, penalty
):
    tensors = problem(batch, n, f, k, dtype, shared=shared)
    floor = (tensors["W"][0] @ tensors["H"][0]).median().item()
    options = options_of(beta_loss, penalty, n_iter=2) | {"n_fixed": n_fixed, "floor": floor}
    got = check(kernels, tensors, options)
    assert torch.equal(got["H"][:, :n_fixed], tensors["H"][:, :n_fixed])


@pytest.mark.parametrize(
    ("dtype", "beta_loss", "k", "update_H"),
    [
        (torch.float32, 2.0, 3, True),
        (torch.float32, 2.0, 512, False),
        (torch.float64, 1.0, 512, True),
        (torch.uint8, 0.5, 512, True),
        (torch.float64, 2.0, 1030, False),
        (torch.float32, 1.0, 1030, True),
        (torch.float32, 0.0, 1030, True),
        (torch.uint8, 1.0, 1030, True),
    ],
)
def test_any_number_of_components(kernels, dtype, beta_loss, k, update_H):
    tensors = problem(1, 3, 5, k, dtype, shared=True)
    check(kernels, tensors, options_of(beta_loss, update_H=update_H, n_iter=1))


def test_all_rows_of_H_are_held(kernels):
    tensors = problem(3, 66, 5, 257, torch.float32, shared=True)
    options = options_of(1.0, n_iter=2) | {"n_fixed": 257}
    assert torch.equal(check(kernels, tensors, options)["H"], tensors["H"])


@pytest.mark.parametrize("k", [300, 1030])
def test_pixels_with_float64_factors(kernels, k):
    tensors = problem(1, 5, 37, k, torch.uint8, shared=True)
    tensors["W"], tensors["H"] = tensors["W"].double(), tensors["H"].double()
    check(kernels, tensors, options_of(1.0, n_iter=1))


@pytest.mark.parametrize("beta_loss", [1.0, 2.0, 0.5])
def test_problems_that_are_not_active_stay(kernels, beta_loss):
    tensors = problem(3, 6, 9, 258, torch.float32, shared=True)
    active = torch.tensor([True, False, True])
    options = options_of(beta_loss, n_iter=2)
    got, everything = run(kernels, tensors, options, active=active), run(kernels, tensors, options)
    for name in ("W", "H"):
        assert torch.equal(got[name][1], tensors[name][1])
        assert torch.equal(got[name][::2], everything[name][::2])


@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.0])
def test_parts_of_a_problem_and_groups_of_problems_give_the_same(build: Builder, beta_loss):
    """Less memory than a batch needs: some problems at a time; then less than one needs."""
    tensors = problem(5, 70, 66, 260, torch.float32, shared=False)
    options = options_of(beta_loss, 0.1, n_iter=2)
    few = "nnmf_wide.cpp", "-DFEW_KERNELS"
    whole = run(build(*few), tensors, options)
    for room in (2 * 70 * 2 * (66 * 4 + 260 * 8), 1):
        file, old = "nnmf/cuda/wide_iterations.cuh", "int64_t{128} << 20"
        got = run(build(*few, mutation=Mutation(file, old, str(room))), tensors, options)
        assert all(torch.equal(got[name], whole[name]) for name in got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize(
    ("batch", "n", "f", "k", "n_inner", "update_H", "n_fixed"),
    [
        (1, 1, 1, 257, 1, True, 0),
        (2, 10, 5, 300, 2, True, 33),
        (1, 3, 8, 1030, 1, False, 0),
    ],
)
def test_hals_matches_reference(kernels, dtype, batch, n, f, k, n_inner, update_H, n_fixed):
    tensors = problem(batch, n, f, k, dtype, shared=True)
    tensors["H"][:, 40] = 0  # a component without curvature stays as it is
    W, H = tensors["W"].double(), tensors["H"].double()
    X = as_float(tensors["X"], tensors["W"].dtype).double()
    options = options_of(2.0, 0.1, update_H=update_H, n_iter=1)
    options |= {"n_inner": n_inner, "n_fixed": n_fixed}
    got = run(kernels, tensors, options)
    del options["beta_loss"]
    wanted = reference.nnmf_hals(X, W, H, **options)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4  # differences: absolute
    assert_near(got, wanted, tolerance)


def test_long_sums_go_on_in_float64(kernels):
    tensors = problem(1, 1, 9000, 2, torch.float32, shared=True)
    got = run(kernels, tensors, options_of(1.0, update_H=False, n_iter=1))
    exact = {name: value.double() for name, value in tensors.items()}
    wanted = reference.nnmf_mu(
        exact["X"], exact["W"], exact["H"], **options_of(1.0, update_H=False, n_iter=1)
    )
    torch.testing.assert_close(got["W"].double(), wanted[0], rtol=4e-7, atol=0)


BARRIERS = without_each_barrier(*SOURCES)
INDICES = share_a_build(
    Mutation(file, old, new)
    for file, old, new in (
        ("nnmf/cuda/wide_product.cuh", "row < rows && deep", "row <= rows && deep"),
        ("nnmf/cuda/wide_product.cuh", "deep < depth;", "deep <= depth;"),
        ("nnmf/cuda/wide_product.cuh", "row < task.rows &&", "row <= task.rows &&"),
        ("nnmf/cuda/wide_iterations.cuh", "row >= task.rows ||", "row > task.rows ||"),
        ("nnmf/cuda/wide_iterations.cuh", "at >= task.size)", "at > task.size)"),
        ("nnmf/cuda/wide_iterations.cuh", "row >= task.size)", "row > task.size)"),
    )
)


def check_mutant(build: Builder, mutation: Mutation) -> None:
    """Several tiles along every side, each with a rest, and steps along the components."""
    kernels = build("nnmf_wide.cpp", "-DFEW_KERNELS", mutation=mutation)
    tensors = problem(2, 65, 70, 131, torch.float32, shared=False)
    check(kernels, tensors, options_of(0.0, n_iter=1))
    tensors = problem(2, 9, 21, 131, torch.float32, shared=False)
    W, H = tensors["W"].double(), tensors["H"].double()
    options = options_of(2.0, n_iter=1) | {"n_inner": 2}
    got = run(kernels, tensors, options)
    del options["beta_loss"]
    wanted = reference.nnmf_hals(tensors["X"].double(), W, H, **options)
    torch.testing.assert_close(got["W"].double(), wanted[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mutations", [BARRIERS, INDICES])
def test_the_few_kernels_without_a_mutation(build: Builder, mutations: list[Mutation]) -> None:
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
