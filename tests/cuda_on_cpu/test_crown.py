"""The CUDA kernels of crown_bounds against the reference and against points of the boxes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnmf_cuda import ops, reference
from tests.cuda_on_cpu.harness import (
    Builder,
    KernelError,
    Mutation,
    none_of,
    run_kernels,
    without_each_barrier,
)
from tests.ops.test_crown import answers, boxes, cnn, drawn, exact_range, mlp

F64 = torch.float64
NONE = torch.zeros(0, dtype=F64)
SHARED, SCRATCH = 96 * 1024, 0  # bytes: where what is known of a box lies
# Fewer and more units than threads, rows than a warp, channels than a tile.
CNNS = [
    (15, 16, 32, 64, 2),
    (2, 1, 1, 1, 2),
    (3, 3, 5, 7, 3),
    (8, 6, 3, 70, 5),
]
MLPS = [
    (1, 1, 2),
    (15, 40, 70, 3),
    (3, 1, 1, 1, 1, 2),
    (4, 9, 8, 7, 6, 2),
    (2, 130, 2),
]


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("crown.cpp")


def bound(
    kernels: Path,
    low: Tensor,
    high: Tensor,
    weights: list[Tensor],
    objective: Tensor,
    *,
    shared_bytes: int = SHARED,
    seeds: tuple[int, ...] = (0, 1),
    **around: Tensor,
) -> ops.CrownBounds:
    tensors = {"lower": low, "upper": high, "objective": objective}
    for name in ("center", "radius", "hidden_lower", "hidden_upper"):
        tensors[name] = around.get(name, NONE)
    for i in range(0, len(weights), 2):
        tensors |= {f"weight{i // 2}": weights[i], f"bias{i // 2}": weights[i + 1]}
    numbers = {
        "n_layers": len(weights) // 2,
        "multiprocessors": 1,
        "shared_bytes": shared_bytes,
    }
    found = run_kernels(kernels, "crown_bounds", tensors, numbers, seeds=seeds)
    return ops.CrownBounds(*(found[name] for name in ("bound", "slope", "low", "high")))


def network(sizes: tuple[int, ...]) -> list[Tensor]:
    return cnn(*sizes) if sizes in CNNS else mlp(*sizes)


def check(
    kernels: Path, sizes: tuple[int, ...], eps: float, *, ball: bool, shared_bytes: int = SHARED
) -> None:
    n_boxes, weights = 6, network(sizes)
    x, low, high = boxes(sizes[0], n_boxes, eps)
    objective = drawn(n_boxes, sizes[-1], seed=3) - 0.5
    around = {"center": x, "radius": eps * drawn(n_boxes, seed=4)} if ball else {}
    got = bound(kernels, low, high, weights, objective, shared_bytes=shared_bytes, **around)
    want = reference.crown_bounds(low, high, weights, objective, **around)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", CNNS + MLPS, ids=str)
@pytest.mark.parametrize(("eps", "ball"), [(0.0, False), (0.05, True), (0.3, False)])
def test_kernels_equal_reference(
    kernels: Path, sizes: tuple[int, ...], eps: float, ball: bool
) -> None:
    check(kernels, sizes, eps, ball=ball)


@pytest.mark.parametrize("sizes", [CNNS[0], CNNS[2], MLPS[1]], ids=str)
def test_kernels_in_memory_of_the_device(kernels: Path, sizes: tuple[int, ...]) -> None:
    """More boxes than blocks, which have scratch memory instead of shared memory."""
    check(kernels, sizes, 0.1, ball=False, shared_bytes=SCRATCH)


@pytest.mark.parametrize("sizes", [CNNS[2], MLPS[3]], ids=str)
def test_no_point_is_outside(kernels: Path, sizes: tuple[int, ...]) -> None:
    n, weights = sizes[0], network(sizes)
    _, low, high = boxes(n, 5, 0.3)
    share = drawn(5, 500, n, seed=10)
    share[:, ::2] = share[:, ::2].round()
    points = low[:, None] + (high - low)[:, None] * share
    z, logits = (v.view(5, 500, -1) for v in answers(weights, points.flatten(0, 1)))
    objective = drawn(5, sizes[-1], seed=1) - 0.5
    found = bound(kernels, low, high, weights, objective)
    assert ((logits * objective[:, None]).sum(2).amin(1) >= found.bound - 1e-12).all()
    assert (z.amin(1) >= found.hidden_lower - 1e-12).all()
    assert (z.amax(1) <= found.hidden_upper + 1e-12).all()


@pytest.mark.parametrize("sizes", [CNNS[2], MLPS[3]], ids=str)
def test_what_is_no_number_bounds_nothing(kernels: Path, sizes: tuple[int, ...]) -> None:
    n, weights = sizes[0], network(sizes)
    _, low, high = boxes(n, 4, 0.1)
    objective = drawn(4, sizes[-1], seed=1)
    for bad in (float("nan"), float("inf")):
        given = [low.clone(), high.clone(), objective.clone()]
        for i, value in enumerate(given):
            value[i, 1] = bad
        found = bound(kernels, *given[:2], weights, given[2])
        assert (found.bound == -torch.inf).tolist() == [True, True, True, False]
        assert not any(part.isnan().any() for part in found)
        for i in range(len(weights)):
            broken = [w.clone() for w in weights]
            broken[i].view(-1)[0] = bad
            found = bound(kernels, low, high, broken, objective, seeds=(0,))
            assert (found.bound == -torch.inf).all()
            assert (found.hidden_lower == -torch.inf).all()
            assert (found.hidden_upper == torch.inf).all()


@pytest.mark.parametrize("sizes", [CNNS[2], MLPS[3], MLPS[0]], ids=str)
def test_what_is_known_counts(kernels: Path, sizes: tuple[int, ...]) -> None:
    n, weights = sizes[0], network(sizes)
    _, low, high = boxes(n, 4, 0.3)
    objective = drawn(4, sizes[-1], seed=1) - 0.5
    alone = bound(kernels, low, high, weights, objective)
    narrow = (alone.hidden_lower.abs(), alone.hidden_lower.abs() + 1)
    told = bound(
        kernels, low, high, weights, objective, hidden_lower=narrow[0], hidden_upper=narrow[1]
    )
    want = reference.crown_bounds(low, high, weights, objective)
    torch.testing.assert_close(
        told.hidden_lower, torch.maximum(narrow[0], want.hidden_lower), rtol=1e-9, atol=1e-9
    )
    known = ops.crown_bounds(low, high, weights, objective, hidden=narrow)
    torch.testing.assert_close(told.bound, known.bound, rtol=1e-9, atol=1e-9)


CUDA = [f"crown/cuda/{name}.cuh" for name in ("box", "cnn", "mlp", "launches")]
MUTATIONS = without_each_barrier(*CUDA)


def check_growth(kernels: Path) -> None:
    """Layers that enlarge numbers by 1e100 and 1e60, the first in its last unit: too much."""
    weights = mlp(2, 128, 1, 2)
    for i in range(4):
        weights[i].zero_()
    weights[0][-1, 0], weights[2][0, -1] = 1e100, 1e60
    _, low, high = boxes(2, 2, 0.1)
    found = bound(kernels, low, high, weights, drawn(2, 2, seed=1), seeds=tuple(range(5)))
    assert (found.bound == -torch.inf).all()


def check_mutant(build: Builder, mutation: Mutation) -> None:
    kernels = build("crown.cpp", mutation=mutation)
    for sizes in (CNNS[3], MLPS[1]):
        for eps in (0.3, 0.0):  # units whose sign is open, and none
            check(kernels, sizes, eps, ball=False, shared_bytes=SCRATCH)
    check_growth(kernels)


def test_without_a_mutation(build: Builder) -> None:
    check_mutant(build, Mutation(CUDA[3], "kCrownBlocks = 4", "kCrownBlocks = 1"))
    check_mutant(build, none_of(MUTATIONS))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_every_barrier_is_needed(build: Builder, mutation: Mutation) -> None:
    with pytest.raises((AssertionError, KernelError)):
        check_mutant(build, mutation)


# What rounding can do, and offsets that are a little too small.
FALSE = [
    Mutation("crown/problem.h", "return 4 *", "return 0 *"),
    Mutation("crown/relaxation.h", "planes.offset + corners.rounding", "0.999 * planes.offset"),
    Mutation("crown/relaxation.h", "(1 + 16 * kHalfUlp)", "0.99"),
]


def tight(*layers: tuple[object, list[float]]) -> list[Tensor]:
    return [torch.tensor(values, dtype=F64) for layer in layers for values in layer]


def check_where_nothing_is_to_spare(kernels: Path) -> None:
    """-max(x, 0) and -max(x, -1, 0) have their least value where the chord, or plane, touches."""
    line = tight(([[1.0]], [0.0]), ([[-1.0], [0.0]], [0.0, 0.0]))
    plane = tight(
        ([[[0.0, 1.0, 0.0]]], [10.0]),
        ([[[0.0, 1.0, 0.0]]], [-10.0]),
        ([[-1.0]], [5.0]),
        ([[1.0], [0.0]], [0.0, 0.0]),
    )
    objective = torch.tensor([[1.0, 0.0]], dtype=F64)
    for weights, n, constant in ((line, 1, 0), (plane, 2, 5)):
        for top in (1.0, 0.25):
            low = -torch.ones(1, n, dtype=F64)
            high = low.clone()
            high[:, 0] = top
            found = bound(kernels, low, high, weights, objective)
            assert constant - top - 1e-9 < float(found.bound) <= constant - top


def check_in_rationals(kernels: Path) -> None:
    """Bounds of boxes in which one feature moves, or none, against exact ranges."""
    check_where_nothing_is_to_spare(kernels)
    for sizes in ((3, 2, 3, 4, 2), (2, 5, 4, 2)):
        weights = cnn(*sizes) if len(sizes) == 5 else mlp(*sizes)
        x = drawn(12, sizes[0], seed=30)
        high = x.clone()
        high[6:, 0] += 0.3
        objective = drawn(12, 2, seed=31) - 0.5
        found = bound(kernels, x, high, weights, objective, seeds=(0,))
        for i in range(12):
            least, hidden = exact_range(weights, x[i], high[i], objective[i])
            assert least >= Fraction(float(found.bound[i]))
            for unit in range(len(hidden[0])):
                assert min(at[unit] for at in hidden) >= Fraction(
                    float(found.hidden_lower[i, unit])
                )
                assert max(at[unit] for at in hidden) <= Fraction(
                    float(found.hidden_upper[i, unit])
                )


def test_bounds_hold_in_rationals(kernels: Path) -> None:
    check_in_rationals(kernels)


@pytest.mark.parametrize("mutation", FALSE, ids=str)
def test_false_bounds_are_found(build: Builder, mutation: Mutation) -> None:
    kernels = build("crown.cpp", mutation=mutation)
    with pytest.raises(AssertionError):
        check_in_rationals(kernels)
