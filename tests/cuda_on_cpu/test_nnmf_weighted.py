"""The CUDA kernels of nnmf_weighted_mu, nnmf_weighted_hals and nnmf_weighted_divergence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnmf_cuda import ops, reference
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
from tests.cuda_on_cpu.test_nnmf import assert_near, options_of, problem, run

SOURCES = tuple(f"nnmf/cuda/weighted_{name}.cuh" for name in ("iterations", "divergence"))


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("nnmf_weighted.cpp")


def with_weights(tensors: dict[str, Tensor], kind: str, *, own: bool) -> dict[str, Tensor]:
    """Add weights, about 30 % of them 0; X is NaN or 255 there."""
    X, W = tensors["X"], tensors["W"]
    shape = X.shape if own else X.shape[-2:]
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(X.shape[-1])).to(W.dtype)
    numbers = torch.where(drawn > 0.3, 3 * drawn, 0)
    weights = ops.pack_mask(numbers > 0) if kind == "bits" else numbers
    filler = 255 if X.dtype == torch.uint8 else torch.nan
    X = torch.where(numbers > 0, X, torch.tensor(filler, dtype=X.dtype))
    return {**tensors, "X": X, "weights": weights}


def check(
    kernels: Path, tensors: dict[str, Tensor], options: dict[str, float]
) -> dict[str, Tensor]:
    """Assert that the kernels give the reference's factors, and the divergence of their own.

    Return both.
    """
    W, H = tensors["W"].double(), tensors["H"].double()
    weights = tensors["weights"]
    weights = weights if weights.dtype == torch.uint8 else weights.double()
    X = as_float(tensors["X"], tensors["W"].dtype).double()
    got = run(kernels, tensors, options)
    if options.get("n_inner", 0) > 0:
        rest = {name: value for name, value in options.items() if name != "beta_loss"}
        wanted = reference.nnmf_hals(X, W, H, weights=weights, **rest)
        tolerance = 1e-10 if tensors["W"].dtype == torch.float64 else 1e-3  # small curvatures
    else:
        rest = {name: value for name, value in options.items() if name != "n_inner"}
        wanted = reference.nnmf_mu(X, W, H, weights=weights, **rest)
        tolerance = 1e-11 if tensors["W"].dtype == torch.float64 else 1e-5
    assert_near(got, wanted, tolerance)
    exact = reference.nnmf_divergence(
        X, got["W"].double(), got["H"].double(), weights, beta_loss=options["beta_loss"]
    )
    rtol, each = (1e-12, 1e-15) if tensors["W"].dtype == torch.float64 else (3e-6, 1e-9)
    torch.testing.assert_close(got["divergence"], exact, rtol=rtol, atol=each * X[0].numel())
    return got


@pytest.mark.parametrize("kind", ["bits", "numbers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.0, 0.5, 3.0])
@pytest.mark.parametrize(
    ("batch", "n", "f", "k", "shared", "own", "n_fixed", "penalty"),
    [
        (1, 1, 1, 1, True, False, 0, 0.0),
        (3, 33, 31, 5, True, False, 2, 0.2),
        (2, 9, 70, 17, False, True, 0, 0.1),
        (2, 7, 67, 3, False, False, 0, 0.0),
    ],
)
def test_kernels_match_reference(
    kernels, kind, dtype, beta_loss, batch, n, f, k, shared, own, n_fixed, penalty
):
    tensors = with_weights(problem(batch, n, f, k, dtype, shared=shared), kind, own=own)
    options = options_of(beta_loss, penalty, n_iter=2) | {"n_fixed": n_fixed}
    got = check(kernels, tensors, options)
    assert torch.equal(got["H"][:, :n_fixed], tensors["H"][:, :n_fixed])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "f"), [(5, 1300), (1100, 6)])
def test_blocks_share_a_long_side(kernels, dtype, n, f):
    tensors = with_weights(problem(2, n, f, 3, dtype, shared=True), "bits", own=False)
    check(kernels, tensors, options_of(1.0, 0.1, n_iter=1))


@pytest.mark.parametrize("kind", ["bits", "numbers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize(
    ("batch", "n", "f", "k", "n_inner", "update_H", "n_fixed"),
    [(1, 1, 1, 1, 1, True, 0), (2, 9, 13, 5, 2, True, 2), (1, 9, 300, 3, 1, False, 0)],
)
def test_hals_matches_reference(kernels, kind, dtype, batch, n, f, k, n_inner, update_H, n_fixed):
    tensors = with_weights(problem(batch, n, f, k, dtype, shared=True), kind, own=False)
    tensors["H"][:, k // 2] = 0  # a component without curvature stays as it is
    options = options_of(2.0, 0.1 if k > 1 else 0.0, update_H=update_H, n_iter=2)
    check(kernels, tensors, options | {"n_inner": n_inner, "n_fixed": n_fixed})


@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_problems_that_are_not_active_stay(kernels, beta_loss):
    tensors = with_weights(problem(3, 6, 9, 4, torch.float32, shared=True), "bits", own=False)
    active = torch.tensor([True, False, True])
    options = options_of(beta_loss, n_iter=2)
    got, everything = run(kernels, tensors, options, active=active), run(kernels, tensors, options)
    for name in ("W", "H"):
        assert torch.equal(got[name][1], tensors[name][1])
        assert torch.equal(got[name][::2], everything[name][::2])


def few(build: Builder, mutation: Mutation | None = None) -> Path:
    return build("nnmf_weighted.cpp", "-DFEW_KERNELS", mutation=mutation)


@pytest.mark.parametrize("n_inner", [0, 2])
def test_parts_of_a_problem_and_groups_of_problems_give_the_same(build: Builder, n_inner: int):
    """Less memory than a batch needs: some problems at a time; then less than one needs."""
    raw = problem(3, 70, 66, 2, torch.float32, shared=False)
    tensors = with_weights(raw, "bits", own=True)
    options = options_of(2.0 if n_inner else 1.0, 0.1, n_iter=1) | {"n_inner": n_inner}
    whole = run(few(build), tensors, options)
    for room in (2 * 70 * 2 * (66 * 4 + 2 * 8), 1):
        mutation = Mutation("nnmf/cuda/wide_iterations.cuh", "int64_t{128} << 20", str(room))
        got = run(few(build, mutation), tensors, options)
        assert all(torch.equal(got[name], whole[name]) for name in got)


BARRIERS = without_each_barrier(*SOURCES)
INDICES = share_a_build(
    Mutation(file, old, new)
    for file, old, new in (
        ("nnmf/cuda/weighted_iterations.cuh", "row >= task.rows ||", "row > task.rows ||"),
        ("nnmf/cuda/weighted_iterations.cuh", "deep < task.depth;", "deep <= task.depth;"),
        ("nnmf/cuda/weighted_divergence.cuh", "row >= s.n_samples ||", "row > s.n_samples ||"),
    )
)


def check_mutant(build: Builder, mutation: Mutation) -> None:
    """Several tiles along every side, each with a rest, and several terms for a thread."""
    kernels = few(build, mutation)
    tensors = with_weights(problem(2, 65, 270, 19, torch.float32, shared=True), "bits", own=False)
    check(kernels, tensors, options_of(1.0, n_iter=1))
    tensors = with_weights(problem(2, 5, 270, 3, torch.float32, shared=True), "bits", own=False)
    check(kernels, tensors, options_of(2.0, n_iter=1) | {"n_inner": 1})
    # Tiles of many rows, where there are few components.
    tensors = with_weights(problem(1, 270, 37, 15, torch.float32, shared=True), "bits", own=False)
    check(kernels, tensors, options_of(1.0, n_iter=1))


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
