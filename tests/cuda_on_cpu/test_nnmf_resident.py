"""The CUDA kernel of nnmf_mu for small problems, all iterations in one launch."""

from __future__ import annotations

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
from tests.cuda_on_cpu.test_nnmf import options_of, problem

SOURCE = "nnmf/cuda/resident.cuh"


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("resident.cpp")


def run(
    kernels: Path,
    tensors: dict[str, Tensor],
    options: dict[str, float],
    active: Tensor | None = None,
) -> dict[str, Tensor]:
    if active is None:
        active = torch.ones(len(tensors["W"]), dtype=torch.bool)
    given = {"n_inner": 0, "n_fixed": 0, "floor": reference.EPSILON, "multiprocessors": 132}
    given = {**tensors, "active": active.byte()}, {**given, **options}
    return run_kernels(kernels, "nnmf_resident", *given)


def check(
    kernels: Path, tensors: dict[str, Tensor], options: dict[str, float]
) -> dict[str, Tensor]:
    """Assert that the kernel gives the reference's factors, and return its own."""
    got = run(kernels, tensors, options)
    X = as_float(tensors["X"], torch.float32).double()
    wanted = reference.nnmf_mu(X, tensors["W"].double(), tensors["H"].double(), **options)
    # Sums of some hundred terms in float32 and a few iterations: some tens of roundings.
    for name, want in zip(("W", "H"), wanted, strict=False):
        torch.testing.assert_close(got[name].double(), want, rtol=1e-5, atol=0)
    return got


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize(
    ("batch", "n", "f", "k", "shared", "update_H", "penalty"),
    [
        (1, 1, 1, 1, True, True, 0.0),
        (3, 64, 64, 5, True, True, 0.0),
        (2, 31, 70, 16, False, True, 0.2),
        (1, 5, 300, 3, True, False, 0.1),
        (1, 300, 3, 17, True, True, 0.0),
        (2, 129, 65, 15, False, True, 0.1),
        (1, 16, 33, 32, False, True, 0.1),
        (1, 600, 20, 4, True, True, 0.0),
        (2, 0, 7, 3, False, True, 0.0),
    ],
)
def test_resident_matches_reference(kernels, dtype, batch, n, f, k, shared, update_H, penalty):
    tensors = problem(batch, n, f, k, dtype, shared=shared)
    check(kernels, tensors, options_of(1.0, penalty, update_H=update_H, n_iter=4))


def test_no_iteration_changes_nothing(kernels: Path) -> None:
    tensors = problem(2, 20, 31, 6, torch.float32, shared=False)
    got = run(kernels, tensors, options_of(1.0, n_iter=0))
    assert torch.equal(got["W"], tensors["W"])
    assert torch.equal(got["H"], tensors["H"])


@pytest.mark.parametrize(("k", "n_fixed"), [(6, 2), (9, 9), (31, 17)])
def test_held_rows_and_a_floor(kernels: Path, k: int, n_fixed: int) -> None:
    tensors = problem(2, 21, 90, k, torch.float32, shared=False)
    tensors["H"][:, 0, 3] = 1e-17  # held as it is, where an update would make it zero
    floor = (tensors["W"][0] @ tensors["H"][0]).median().item()
    options = options_of(1.0, 0.1, n_iter=2) | {"floor": floor, "n_fixed": n_fixed}
    got = check(kernels, tensors, options)
    assert torch.equal(got["H"][:, :n_fixed], tensors["H"][:, :n_fixed])


def test_problems_that_are_not_active_stay(kernels: Path) -> None:
    tensors = problem(3, 20, 45, 5, torch.float32, shared=True)
    got = run(kernels, tensors, options_of(1.0), torch.tensor([True, False, True]))
    alone = run(kernels, tensors, options_of(1.0))
    for name in ("W", "H"):
        assert torch.equal(got[name][1], tensors[name][1])
        assert torch.equal(got[name][::2], alone[name][::2])


def test_nan_of_a_row_stays_in_its_row_of_W(kernels: Path) -> None:
    tensors = problem(1, 40, 50, 5, torch.float32, shared=True)
    tensors["X"][7, 3] = torch.nan
    got = run(kernels, tensors, options_of(1.0, update_H=False))
    assert got["W"][0, 7].isnan().all()
    assert got["W"].isnan().sum() == 5


@pytest.mark.parametrize(
    ("size", "stays"),
    [
        ((1, 64, 64, 5), True),
        ((5000, 64, 64, 32), True),
        ((5000, 64, 64, 9), True),
        ((8 * 132, 64, 64, 8), True),
        ((8 * 132 + 1, 64, 64, 8), False),  # tiles multiply eight components, not sixteen
        ((1, 96, 128, 16), True),
        ((1, 97, 128, 16), False),  # more entries than are faster by one block
        ((1, 96, 128, 32), True),
        ((1, 64, 64, 33), False),
        ((1, 4, 2000, 5), False),  # X is small, H is not
        ((1, 1, 1 << 40, 5), False),
    ],
)
def test_what_is_small(kernels: Path, size: tuple[int, ...], stays: bool) -> None:
    numbers = {"shared_bytes": 228 * 1024}
    got = run_kernels(kernels, "stays_resident", {"sizes": torch.tensor([size])}, numbers)
    assert bool(got["stays"]) == stays
    if stays:  # where a multiprocessor has less memory, less is small
        got = run_kernels(
            kernels, "stays_resident", {"sizes": torch.tensor([size])}, {"shared_bytes": 48 * 1024}
        )
        assert not bool(got["stays"])


def test_it_can_be_switched_off(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNMF_CUDA_RESIDENT", "0")
    tensors, numbers = {"sizes": torch.tensor([[1, 64, 64, 5]])}, {"shared_bytes": 228 * 1024}
    assert not bool(run_kernels(kernels, "stays_resident", tensors, numbers)["stays"])


BARRIERS = without_each_barrier(SOURCE)
INDICES = share_a_build(
    Mutation(SOURCE, old, new)
    for old, new in (
        ("row < rows;", "row <= rows;"),
        ("d < side.depth; d += kResidentThreads", "d <= side.depth; d += kResidentThreads"),
        ("row < side.rows ? row : 0", "row <= side.rows ? row : 0"),
        ("d < side.depth; d += side.parts", "d <= side.depth; d += side.parts"),
        ("row >= side.rows)", "row > side.rows)"),
    )
)


def check_mutant(build: Builder, mutation: Mutation) -> None:
    kernels = build("resident.cpp", mutation=mutation)
    for n, f in ((37, 70), (300, 11)):
        check(kernels, problem(2, n, f, 7, torch.float32, shared=False), options_of(1.0, n_iter=2))


@pytest.mark.parametrize("mutations", [BARRIERS, INDICES])
def test_the_kernel_without_a_mutation(build: Builder, mutations: list[Mutation]) -> None:
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
