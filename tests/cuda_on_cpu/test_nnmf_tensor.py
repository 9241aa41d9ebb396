"""The CUDA kernels of nnmf_mu on tensor cores, within the bound of bench/tf32.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import tf32
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

HALF_STEP = "nnmf/cuda/tensor_half_step.cuh"
PARTS = "nnmf/cuda/tensor_parts.cuh"
CORE = tf32.CORES["4 at once, 1 bit more"]  # that of tensor_core.h
ROUNDINGS = 6 * 2.0**-24  # of an update, besides its sums
BOUND = tf32.Bound.of(CORE, 16, 512).numerator + ROUNDINGS
DEFAULTS = {"l1_reg_W": 0.0, "l1_reg_H": 0.0, "l2_reg_W": 0.0, "l2_reg_H": 0.0, "n_fixed": 0}
DEFAULTS |= {"floor": reference.EPSILON, "n_inner": 0, "beta_loss": 1.0, "update_H": True}


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("nnmf_tensor.cpp")


def problem(
    batch: int, n: int, f: int, k: int, dtype: torch.dtype, *, shared: bool = True
) -> dict[str, Tensor]:
    """Draw X, with zeros, and a start."""
    generator = torch.Generator().manual_seed(n + f + k)
    shape = (n, f) if shared else (batch, n, f)
    X = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    if dtype == torch.float32:
        X = X.float() * torch.rand(shape, generator=generator)
    W = torch.rand((batch, n, k), generator=generator) + 0.1
    H = torch.rand((batch, k, f), generator=generator) + 0.1
    return {"X": X, "W": W, "H": H}


def run(
    kernels: Path,
    tensors: dict[str, Tensor],
    *,
    multiprocessors: int = 1,
    active: Tensor | None = None,
    n_iter: int = 1,
    seeds: tuple[int, ...] = (0, 1),
    **options: float,
) -> dict[str, Tensor]:
    if active is None:
        active = torch.ones(len(tensors["W"]), dtype=torch.bool)
    numbers = {**DEFAULTS, **options, "multiprocessors": multiprocessors, "n_iter": n_iter}
    given = {**tensors, "active": active.byte()}
    return run_kernels(kernels, "nnmf_tensor", given, numbers, seeds=seeds)


def half_step(
    X: Tensor, W: Tensor, H: Tensor, floor: float, l1: float, l2: float, of_zero: float
) -> Tensor:
    """Return the new W in float64, written from the formula."""
    numerator = (X / torch.einsum("bnk,bkf->bnf", W, H).clamp(min=floor)) @ H.mT
    sums = H.sum(2)[:, None]
    denominator = torch.where(sums == 0, of_zero, sums) + l1 + l2 * W
    return W * numerator / torch.where(denominator == 0, reference.EPSILON, denominator)


def check(
    kernels: Path,
    tensors: dict[str, Tensor],
    *,
    bound: float = BOUND,
    multiprocessors: int = 1,
    seeds: tuple[int, ...] = (0, 1),
    **options: float,
) -> float:
    """Assert that each half-step of an iteration is exact within the bound; return the error."""
    got = run(kernels, tensors, multiprocessors=multiprocessors, seeds=seeds, **options)
    o = {**DEFAULTS, **options}
    X = as_float(tensors["X"], torch.float64).double()
    W0, H0, W1, H1 = (t.double() for t in (tensors["W"], tensors["H"], got["W"], got["H"]))
    want_W = half_step(X, W0, H0, o["floor"], o["l1_reg_W"], o["l2_reg_W"], 0.0)
    # From the W that the kernels have: what its rounding makes of H is not theirs to answer for.
    want_H = half_step(X.mT, H0.mT, W1.mT, o["floor"], o["l1_reg_H"], o["l2_reg_H"], 1.0).mT
    want_H[want_H < 2.0**-52] = 0
    want_H[:, : o["n_fixed"]] = H0[:, : o["n_fixed"]]
    error = 0.0
    for name, have, want in (("W", W1, want_W), ("H", H1, want_H)):
        torch.testing.assert_close(
            have, want, rtol=bound, atol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
        error = max(error, float(((have - want).abs() / want.clamp(min=1e-300)).max()))
    return error


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize(
    ("batch", "n", "f", "k", "shared", "options"),
    [
        (1, 1, 1, 1, True, {}),
        (1, 17, 9, 2, True, {}),
        (2, 33, 70, 15, False, {"l1_reg_W": 0.1, "l2_reg_W": 0.2, "l1_reg_H": 0.3}),
        (3, 16, 65, 16, True, {"l2_reg_H": 0.5, "multiprocessors": 1000}),
        (1, 70, 300, 8, True, {"n_fixed": 3, "floor": 5.0}),  # two blocks of columns
        (1, 3, 1100, 5, True, {"multiprocessors": 4}),  # more than 512 terms
    ],
)
def test_each_half_step_is_within_the_bound(kernels, dtype, batch, n, f, k, shared, options):
    error = check(kernels, problem(batch, n, f, k, dtype, shared=shared), **options)
    assert error < 1.5e-6  # expected of numbers that do not conspire


@pytest.mark.parametrize("f", [36, 37])  # pieces of 4 bytes, and bytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_any_alignment(kernels, dtype, f):
    check(kernels, problem(2, 20, f, 3, dtype, shared=False))


def test_several_iterations(kernels):
    tensors = problem(1, 20, 45, 7, torch.uint8)
    X, W, H = (tensors[name] for name in "XWH")
    wanted = reference.nnmf_mu(
        as_float(X, torch.float64), W.double(), H.double(), beta_loss=1.0, n_iter=4
    )
    got = run(kernels, tensors, n_iter=4)
    for name, want in zip("WH", wanted, strict=False):
        torch.testing.assert_close(got[name].double(), want, rtol=4 * BOUND, atol=0)
    alone = run(kernels, tensors, n_iter=4, update_H=False)
    assert torch.equal(alone["H"], H)


@pytest.mark.parametrize(
    ("of_W", "of_H"), [(1e-12, 1e-12), (1e15, 1e-15), (1e-30, 1e30), (1e9, 1e9)]
)
def test_any_scale(kernels, of_W, of_H):
    tensors = problem(1, 18, 40, 6, torch.float32)
    tensors["W"], tensors["H"] = tensors["W"] * of_W, tensors["H"] * of_H
    tensors["X"] = tensors["X"] * of_W * of_H
    check(kernels, tensors, floor=max(1e-7 * of_W * of_H, 1e-37))


def test_wide_ranges_and_numbers_that_lose_most(kernels):
    rng = np.random.default_rng(0)
    for draw in (tf32._wide, tf32._midway, tf32._one_large):
        step = draw(rng, 20, 50, 16)
        tensors = {"X": step.X, "W": step.W[None], "H": step.H[None]}
        tensors = {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}
        got = run(kernels, tensors, update_H=False)["W"].double()
        X, W, H = (tensors[name].double() for name in "XWH")
        want = half_step(X, W, H, reference.EPSILON, 0.0, 0.0, 0.0)
        seen = (want > 1e-30) & (want < 1e38) & ((X / (W @ H)) @ H.mT < 1e38)
        assert seen.double().mean() > 0.5
        torch.testing.assert_close(got[seen], want[seen], rtol=BOUND, atol=0)


def test_rows_of_zeros_and_nan_stay_where_they_are(kernels):
    tensors = problem(1, 40, 50, 5, torch.float32)
    tensors["X"][3] = 0
    tensors["W"][0, 4] = 0
    tensors["W"][0, :, 2] = 0
    tensors["X"][7, 3] = torch.nan
    got = run(kernels, tensors, update_H=False)["W"]
    assert (got[0, 3] == 0).all()
    assert (got[0, 4] == 0).all()
    assert got[0, 7].isnan().all()
    assert got.isnan().sum() == 5
    tensors["X"][7, 3] = 1
    check(kernels, tensors)  # a component without W: H becomes 0, as the sum of nothing counts as 1


def test_problems_that_are_not_active_stay(kernels):
    tensors = problem(3, 20, 45, 5, torch.float32)
    active = torch.tensor([True, False, True])
    got, alone = run(kernels, tensors, active=active), run(kernels, tensors)
    for name in ("W", "H"):
        assert torch.equal(got[name][1], tensors[name][1])
        assert torch.equal(got[name][::2], alone[name][::2])


@pytest.mark.parametrize("multiprocessors", [108, 132, 148])
@pytest.mark.parametrize("step", [32, 64])  # float32 and uint8
@pytest.mark.parametrize(
    ("batch", "length", "depth", "least"),
    [(1, 1500, 16384, 0.8), (1, 16384, 1500, 0.75), (64, 1500, 4096, 0.85), (1, 40, 30, 0.0)],
)
def test_a_cut_keeps_all_multiprocessors_busy(
    kernels, multiprocessors, step, batch, length, depth, least
):
    numbers = {"batch": batch, "length": length, "depth": depth, "step": step}
    numbers["multiprocessors"] = multiprocessors
    got = run_kernels(kernels, "tensor_cut", {}, numbers, seeds=(0,))["cut"]
    tiles, splits, each = got.tolist()
    assert tiles == -(-length // 256)
    assert (splits - 1) * each < -(-depth // step) <= splits * each
    assert each * step <= 512  # terms of a sum in float32
    turns = -(-batch * tiles * splits // (2 * multiprocessors))  # of two blocks at a time
    work = batch * length / 256 * depth / step
    assert work >= least * turns * each * 2 * multiprocessors


def test_lanes_read_parts_from_all_banks(kernels):
    """Of 16 bytes a lane, a quarter of a warp at a time, as shared memory serves them."""
    got = run_kernels(kernels, "part_places", {}, {}, seeds=(0,))
    for name in ("first", "second"):
        pieces = got[name].view(4, 4, 8) // 4  # tile and half (or depth), quarter, lane
        for quarter in pieces.flatten(0, 1):
            assert sorted((quarter % 8).tolist()) == list(range(8))
        assert sorted(pieces.flatten().tolist()) == list(range(128))  # all of a unit, once


# The product and the parts of a number ------------------------------------------------------------


def test_mma_is_the_product_of_matrices_laid_out_as_ptx_says(kernels):
    generator = torch.Generator().manual_seed(0)
    A, B, C = (torch.randint(-9, 10, s, generator=generator) for s in ((16, 8), (8, 8), (16, 8)))
    given = {"A": A.float(), "B": B.float(), "C": C.float()}
    assert torch.equal(run_kernels(kernels, "mma", given, {})["D"], (A @ B + C).float())
    given = {name: torch.rand(t.shape, generator=generator) for name, t in given.items()}
    read = {
        n: (t.view(torch.int32) & ~0x1FFF).view(torch.float32).double() for n, t in given.items()
    }
    want = given["C"].double() + read["A"] @ read["B"]
    got = run_kernels(kernels, "mma", given, {})["D"].double()
    torch.testing.assert_close(got, want, rtol=CORE.mma_error, atol=0)
    assert (got <= want).all()  # cut off
    assert (got < want).any()


def test_a_number_is_split_as_the_study_does(kernels):
    rng = np.random.default_rng(0)
    x = (10 ** rng.uniform(-45, 38, 1000)).astype(np.float32)
    x = np.append(x, np.float32([0, -1.5, 1 + 2.0**-11, 3.4e38, 2.0**-149]))
    got = run_kernels(kernels, "split", {"x": torch.from_numpy(x)}, {})
    for name, want in zip(("hi", "lo"), tf32.split(x), strict=True):
        assert np.array_equal(got[name].numpy(), want.astype(np.float32))
    odd = torch.tensor([torch.nan, torch.inf, torch.finfo(torch.float32).max])
    odd = torch.cat((odd, torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)))
    got = run_kernels(kernels, "split", {"x": odd}, {})
    assert (got["hi"] + got["lo"]).isnan().all()


# Mistakes -----------------------------------------------------------------------------------------

LEFT_OUT = share_a_build(
    [
        *without_each_barrier(HALF_STEP),
        *(
            Mutation("nnmf/cuda/tensor_mma.cuh", f"mma(c, a.{left}, b.{right});", ";")
            for left, right in (("lo", "hi"), ("hi", "lo"), ("hi", "hi"))
        ),
        Mutation(HALF_STEP, "add_large(wh, own[i][1], across[1]);", ";"),
        Mutation(HALF_STEP, "add_small(added[i][half], quotients, down[half]);", ";"),
        Mutation(HALF_STEP, "components.clear();", ";"),
    ]
)
INDICES = share_a_build(
    Mutation(file, old, new)
    for file, old, new in (
        (HALF_STEP, "(rows_left > 0 ? row : 0)", "row"),
        (HALF_STEP, "if (of_warp < rows_left", "if (of_warp <= rows_left"),
        (PARTS, "i < layout.length;", "i <= layout.length;"),
    )
)
PERMUTED = [
    Mutation(PARTS, "part_place(deep, g / 2,", "part_place(deep, g % 4,"),
    Mutation(HALF_STEP, "at % 2 * 2 + at / 2", "at"),
    Mutation(HALF_STEP, "of_unit % 2 * 2 + tile", "of_unit % 2 + 2 * tile"),
    Mutation(HALF_STEP, "part_of_first(half, 0, g, t)", "part_of_first(1 - half, 0, g, t)"),
]


def check_mutant(build: Builder, mutation: Mutation) -> None:
    """Run several tiles, more than there are stages, and splits."""
    kernels = build("nnmf_tensor.cpp", "-DFEW_KERNELS", mutation=mutation)
    tensors = problem(1, 70, 133, 9, torch.float32)
    check(kernels, tensors, seeds=(0, 1, 2))
    check(kernels, tensors, multiprocessors=1000, seeds=(0, 1, 2, 3))


@pytest.mark.parametrize("mutations", [LEFT_OUT, INDICES], ids=["left out", "indices"])
def test_the_kernels_without_a_mutation(build: Builder, mutations: list[Mutation]) -> None:
    check_mutant(build, none_of(mutations))


@pytest.mark.parametrize("mutation", LEFT_OUT, ids=str)
def test_every_barrier_is_needed(build: Builder, mutation: Mutation) -> None:
    """And every product."""
    with pytest.raises((AssertionError, KernelError)):
        check_mutant(build, mutation)


@pytest.mark.parametrize("mutation", PERMUTED, ids=str)
def test_a_wrong_permutation_is_seen(build: Builder, mutation: Mutation) -> None:
    with pytest.raises(AssertionError):
        check_mutant(build, mutation)


@pytest.mark.parametrize("mutation", INDICES, ids=str)
def test_an_index_that_is_one_too_large_is_seen(build: Builder, mutation: Mutation) -> None:
    require_sanitizers()
    with pytest.raises(KernelError):
        check_mutant(build, mutation)
