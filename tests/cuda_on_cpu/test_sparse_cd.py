"""The CUDA kernels of nnmf_sparse_cd against the reference, and against a loop in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnmf_cuda import reference
from tests.cuda_on_cpu.harness import (
    SEEDS,
    Builder,
    KernelError,
    Mutation,
    require_sanitizers,
    run_kernels,
    without_each_barrier,
)
from tests.cuda_on_cpu.test_sparse import problem

Array = NDArray[np.float64]
EPSILON = reference.EPSILON
LONG = 300  # more non-zeros than a warp takes


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("sparse_cd.cpp")


def options_of(penalty: float = 0.0, l2: float = 0.0, **given: float) -> dict[str, float]:
    names = ("l1_reg_W", "l1_reg_H", "l2_reg_W", "l2_reg_H")
    penalties = dict(zip(names, (penalty, 2 * penalty, l2, 3 * l2), strict=True))
    wanted = {"n_iter": 2, "n_inner": 1, "update_H": True, "n_fixed": 0, "floor": EPSILON}
    return {**wanted, **penalties, **given}


def csr_of(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    crow = torch.zeros(len(X) + 1, dtype=torch.int64)
    crow[1:] = (X != 0).sum(1).cumsum(0)
    return crow, X.nonzero()[:, 1].contiguous(), X[X != 0]


def parts_of(X: Tensor) -> dict[str, Tensor]:
    """Return X by rows and by columns, as the op takes it."""
    names = ("crow", "col", "values", "ccol", "row", "column_values")
    return dict(zip(names, (*csr_of(X), *csr_of(X.T.contiguous())), strict=True))


def run(
    kernels: Path,
    tensors: dict[str, Tensor],
    options: dict[str, float],
    *,
    index: torch.dtype = torch.int32,
    seeds: Sequence[int] = SEEDS,
) -> dict[str, Tensor]:
    parts = parts_of(tensors["X"])
    if not options["update_H"]:  # then X by columns is not read
        parts |= {name: parts[name][:0] for name in ("row", "column_values")}
    for name in ("crow", "col", "ccol", "row"):
        parts[name] = parts[name].to(index)
    given = {**parts, "W": tensors["W"], "H": tensors["H"]}
    return run_kernels(kernels, "sparse_cd", given, options, seeds=seeds)


def objective(X: Array, W: Array, H: Array, options: dict[str, float]) -> float:
    """Return sum of W H - X log(W H), floored, and of the penalties."""
    WH = np.maximum(W @ H, options["floor"])
    penalties = sum(
        options[f"l1_reg_{name}"] * F.sum() + options[f"l2_reg_{name}"] / 2 * (F**2).sum()
        for name, F in (("W", W), ("H", H))
    )
    return float((W @ H).sum() - (X * np.log(WH))[X > 0].sum() + penalties)


def swept_row(
    x: Array, w: Array, H: Array, l1: float, l2: float, options: dict[str, float], *, first: int
) -> Array:
    """Return one row of W after its sweeps, from the formulas, one entry after the other."""
    places = x > 0
    x, Hx, w = x[places], H[:, places], w.copy()

    def phi(i: int, t: float) -> tuple[float, float]:
        at = w.copy()
        at[i] = t
        ratio = Hx[i] / np.maximum(at @ Hx, options["floor"])
        return float(x @ ratio), float(x @ ratio**2)

    def pole(t: float, S: float, D: float, a: float) -> float:
        """Return the positive root of a + l2 s = p / (q + s) with that value and slope at t."""
        p, q = S**2 / D, S / D - t
        roots = np.roots([l2, a + l2 * q, a * q - p]) if l2 else np.array([p / a - q])
        return max(0.0, float(roots.real.max()))

    for _ in range(int(options["n_inner"])):
        for i in range(first, len(w)):
            a = H[i].sum() + l1
            S, D = phi(i, w[i])
            if S == 0:
                w[i] = 0 if a > 0 or l2 > 0 else w[i]
                continue
            rises = a + l2 * w[i] - S
            roots = np.roots([l2, a, -w[i] * S]) if l2 else np.array([w[i] * S / a])
            fallback = max(0.0, float(roots.real.max()))
            t = pole(w[i], S, D, a)
            for _ in range(4):
                if t >= w[i]:
                    break
                S, D = phi(i, t)
                if a + l2 * t - S + rises >= 0:
                    break
                t = min(pole(t, S, D, a), fallback)
            else:
                t = fallback
            w[i] = t
    return w


def oracle(tensors: dict[str, Tensor], options: dict[str, float]) -> tuple[Array, Array]:
    """Return W and H of the first problem."""
    X, W, H = (tensors[name].double().numpy().copy() for name in ("X", "W", "H"))
    W, H = W[0], H[0]
    for _ in range(int(options["n_iter"])):
        l1, l2 = options["l1_reg_W"], options["l2_reg_W"]
        W = np.array([swept_row(X[i], W[i], H, l1, l2, options, first=0) for i in range(len(X))])
        if options["update_H"]:
            l1, l2, first = options["l1_reg_H"], options["l2_reg_H"], int(options["n_fixed"])
            columns = [
                swept_row(X[:, j], H[:, j], W.T, l1, l2, options, first=first)
                for j in range(X.shape[1])
            ]
            H = np.array(columns).T
    return W, H


def spread(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Start from factors of many magnitudes, with zeros, whose steps overshoot."""
    generator = torch.Generator().manual_seed(seed)
    start = {}
    for name in ("W", "H"):
        shape = tensors[name].shape
        drawn = (2 * torch.randn(shape, generator=generator)).exp()
        kept = torch.rand(shape, generator=generator) > 0.2
        start[name] = (drawn * kept).to(tensors[name].dtype)
    return {**tensors, **start}


def assert_near(got: Tensor, want: Tensor, rtol: float, name: str) -> None:
    error = (got.double() - want).abs().max()
    assert error <= rtol * want.abs().max(), f"{name}: {error}"


def check(
    kernels: Path,
    tensors: dict[str, Tensor],
    options: dict[str, float],
    *,
    rtol: float | None = None,
) -> dict[str, Tensor]:
    """Return what the kernels give, which is asserted to be the reference's factors."""
    got = run(kernels, tensors, options)
    exact = {name: value.double() for name, value in tensors.items()}
    wanted = reference.nnmf_sparse_cd(**parts_of(exact["X"]), W=exact["W"], H=exact["H"], **options)
    rtol = rtol or (1e-9 if tensors["W"].dtype == torch.float64 else 1e-3)
    for name, want in zip(("W", "H"), wanted, strict=False):
        assert_near(got[name], want, rtol, name)
    return got


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("batch", "n", "f", "k", "density", "n_inner", "update_H", "n_fixed", "l1", "l2"),
    [
        (1, 1, 1, 1, 2.0, 1, True, 0, 0.0, 0.0),
        (2, 17, 41, 5, 0.3, 1, True, 2, 0.2, 0.0),
        (1, 20, 9, 11, 0.3, 2, True, 0, 0.0, 0.3),
        (1, 9, LONG, 3, 0.7, 1, False, 0, 0.1, 0.1),
        (1, LONG, 3, 2, 2.0, 1, True, 1, 0.0, 0.0),
        (1, 4, 7, 67, 0.5, 1, True, 0, 0.0, 0.0),
    ],
)
def test_kernels_match_reference(
    kernels, dtype, batch, n, f, k, density, n_inner, update_H, n_fixed, l1, l2
):
    tensors = problem(batch, n, f, k, dtype, density=density)
    options = options_of(l1, l2, n_inner=n_inner, update_H=update_H, n_fixed=n_fixed)
    got = check(kernels, tensors, options)
    assert torch.equal(got["H"][:, :n_fixed], tensors["H"][:, :n_fixed])


@pytest.mark.parametrize(
    ("n", "f", "k", "l1", "l2"),
    [
        (12, 20, 4, 0.0, 0.0),
        (12, 20, 4, 0.3, 0.0),
        (15, 6, 9, 0.0, 0.5),
        (15, 6, 9, 0.2, 2.0),
        (5, LONG, 3, 0.0, 0.0),
    ],
)
def test_kernels_match_a_loop_in_numpy(kernels, n, f, k, l1, l2):
    tensors = spread(problem(1, n, f, k, torch.float64), seed=n)
    options = options_of(l1, l2, n_inner=2, n_iter=1 if f == LONG else 2)
    got = run(kernels, tensors, options, seeds=(0,))
    for name, want in zip(("W", "H"), oracle(tensors, options), strict=True):
        assert_near(got[name][0], torch.from_numpy(want), 1e-8, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.3, 0.5)])
@pytest.mark.parametrize(("n", "f", "k"), [(12, 20, 4), (LONG, 4, 3)])
def test_the_objective_never_rises(kernels, dtype, n, f, k, l1, l2):
    tensors = spread(problem(1, n, f, k, dtype), seed=n + k)
    options = options_of(l1, l2, n_iter=1)
    X = tensors["X"].double().numpy()
    before = np.inf
    for _ in range(4):
        got = run(kernels, tensors, options, seeds=(0,))
        W, H = (got[name][0].double().numpy() for name in ("W", "H"))
        assert np.isfinite(W).all()
        assert np.isfinite(H).all()
        assert (W >= 0).all()
        assert (H >= 0).all()
        now = objective(X, W, H, options)
        rounding = 1e-12 if dtype == torch.float64 else 1e-5
        assert now <= before + rounding * abs(now)
        before, tensors = now, {**tensors, **got}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_indices_give_the_same(kernels, dtype):
    tensors = problem(1, 6, LONG, 3, dtype)
    short, long = (
        run(kernels, tensors, options_of(n_iter=1), index=index, seeds=(0,))
        for index in (torch.int32, torch.int64)
    )
    assert all(torch.equal(short[name], long[name]) for name in short)


def test_long_sums_go_on_in_float64(kernels):
    tensors = problem(1, 1, 40000, 2, torch.float32, density=2)
    options = options_of(n_iter=1, update_H=False)
    check(kernels, tensors, options, rtol=2e-6)


def test_no_non_zeros(kernels):
    tensors = problem(1, 5, 7, 3, torch.float32)
    tensors["X"].zero_()
    got = run(kernels, tensors, options_of(n_iter=1))
    assert (got["W"] == 0).all()
    assert torch.equal(got["H"], tensors["H"])  # nothing depends on it


def test_a_component_that_is_zero_stays_what_it_is(kernels):
    tensors = problem(1, 9, 12, 3, torch.float64)
    tensors["H"][:, 1] = 0
    got = run(kernels, tensors, options_of(n_iter=1, update_H=False))
    assert torch.equal(got["W"][..., 1], tensors["W"][..., 1])
    check(kernels, tensors, options_of(n_iter=1, update_H=False))


@pytest.mark.parametrize("options", [{"n_iter": 0}, {"n_inner": 0}])
def test_no_sweeps_change_nothing(kernels, options):
    tensors = problem(2, 9, 12, 3, torch.float32)
    got = run(kernels, tensors, options_of(**options))
    assert torch.equal(got["W"], tensors["W"])
    assert torch.equal(got["H"], tensors["H"])


def check_mutant(build: Builder, mutation: Mutation) -> None:
    """Rows of several registers a lane, and long ones, two of them in a block."""
    kernels = build("sparse_cd.cpp", "-DFEW_KERNELS", mutation=mutation)
    tensors = problem(1, 9, LONG, 3, torch.float64, density=0.5)
    tensors["X"][5] = tensors["X"][8] = tensors["X"][3]
    options = options_of(0.1, n_iter=1, n_inner=2, update_H=False)
    check(kernels, spread(tensors, seed=1), options)


def test_the_few_kernels_without_a_mutation(build: Builder) -> None:
    mutation = Mutation("sparse/cuda/descent.cuh", "128 * kThreads", "1 * kThreads")
    check_mutant(build, mutation)


@pytest.mark.parametrize("mutation", without_each_barrier("sparse/cuda/descent.cuh"), ids=str)
def test_every_barrier_is_needed(build: Builder, mutation: Mutation) -> None:
    with pytest.raises((AssertionError, KernelError)):
        check_mutant(build, mutation)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("inside = at < count_", "inside = at <= count_"),
        ("p < last;", "p <= last;"),
        ("p < end;", "p <= end;"),
        ("c < task.n_components; ++c) {", "c <= task.n_components; ++c) {"),
        ("i + 1 < k ? i + 1", "i + 1 <= k ? i + 1"),
        ("row >= task.x.length", "row > task.x.length"),
    ],
)
def test_an_index_that_is_one_too_large_is_seen(build: Builder, old: str, new: str) -> None:
    require_sanitizers()
    with pytest.raises((AssertionError, KernelError)):
        check_mutant(build, Mutation("sparse/cuda/descent.cuh", old, new))


def test_a_step_without_its_guard_is_seen(build: Builder) -> None:
    mutation = Mutation(
        "sparse/coordinate.h", "c.slope(w, at_w.S) >= 0", "c.slope(w, at_w.S) >= -1e30"
    )
    with pytest.raises(AssertionError):
        check_mutant(build, mutation)
