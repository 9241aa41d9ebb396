from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from nnmf_cuda import _extension, ops, reference
from tests.helpers import DEVICES, INSTRUCTION_SETS, float32_ulps, run_with_instruction_set

NAMES = ("n_steps", "n_rows", "n_draws", "n_features")

# Flat rows and features around the block of a task (32 rows, 256 features) and the vectors in it.
SHAPES = [
    (1, 1, 1, 1),
    (3, 1, 1, 2),
    (2, 7, 3, 5),
    (1, 31, 1, 3),
    (1, 4, 8, 3),
    (2, 3, 11, 1),
    (1, 5, 13, 4),
    (2, 1, 70, 2),
    (1, 2, 1, 255),
    (2, 9, 1, 256),
    (2, 3, 2, 257),
    (1, 33, 1, 513),
]
SEEDS = [0, 1, 2**32 - 1, 2**32, 7 * 2**40 + 5, 2**63 - 1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_reference_within_an_ulp(
    seed: int, shape: tuple[int, int, int, int], device: str
) -> None:
    got = ops.philox_normal(seed, shape, device=device)
    assert (got.shape, got.dtype, got.device.type) == (shape, torch.float32, device)
    assert got.is_contiguous()
    assert float32_ulps(got.cpu(), reference.philox_normal(seed, shape)).max() <= 1


@pytest.mark.parametrize("device", DEVICES)
def test_hardly_any_of_many_draws_differs_from_the_reference(device: str) -> None:
    shape = (2, 401, 13, 15)
    got = ops.philox_normal(11, shape, device=device).cpu()
    want = reference.philox_normal(11, shape)
    assert float32_ulps(got, want).max() <= 1
    assert (got != want).double().mean() < 1e-5


@pytest.mark.needs_ext
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set(isa: str) -> None:
    if isa == _extension.cpu_isa():
        pytest.skip(f"{isa} is what the other tests run")
    options = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops/test_philox.py")
    done = run_with_instruction_set(isa, *options, "-k", "reference or alone or float64")
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
def test_float64_holds_the_float32_numbers(shape: tuple[int, int, int, int], device: str) -> None:
    wide = ops.philox_normal(3, shape, dtype=torch.float64, device=device)
    assert wide.dtype == torch.float64
    assert torch.equal(wide, ops.philox_normal(3, shape, device=device).double())


@pytest.mark.parametrize("device", DEVICES)
def test_entry_depends_on_its_indices_alone(device: str) -> None:
    whole = ops.philox_normal(5, (3, 45, 7, 300), device=device)
    for part in [(1, 1, 7, 1), (2, 45, 7, 299), (3, 44, 7, 256), (3, 5, 7, 9), (2, 20, 3, 257)]:
        inside = whole[tuple(slice(size) for size in part)]
        assert torch.equal(ops.philox_normal(5, part, device=device), inside)
    assert not torch.equal(ops.philox_normal(6, whole.shape, device=device), whole)


def test_threads_do_not_change_a_bit() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ops.philox_normal(8, (2, 300, 3, 17))
        torch.set_num_threads(2)
        assert torch.equal(ops.philox_normal(8, (2, 300, 3, 17)), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def million() -> Tensor:
    return ops.philox_normal(2024, (5, 200, 25, 40), dtype=torch.float64)


def test_draws_are_normal(million: Tensor) -> None:
    assert scipy.stats.kstest(million.flatten().numpy(), "norm").pvalue > 1e-3
    tail = 2 * scipy.stats.norm.sf(4) * million.numel()
    assert abs(int((million.abs() > 4).sum()) - tail) < 5 * math.sqrt(tail)


@pytest.mark.parametrize("axis", range(4), ids=NAMES)
def test_neighbours_along_every_axis_are_independent(million: Tensor, axis: int) -> None:
    for values in (million, million.square() - 1):  # of both, the mean of products is 0
        for lag in (1, 2, 4):
            size = million.shape[axis] - lag
            products = values.narrow(axis, 0, size) * values.narrow(axis, lag, size)
            error = float(products.std()) / math.sqrt(products.numel())
            assert abs(float(products.mean())) < 5 * error


def test_seeds_that_share_a_half_are_independent(million: Tensor) -> None:
    for seed in (2025, 2024 + 2**32):
        products = million * ops.philox_normal(seed, million.shape)
        assert abs(float(products.mean())) < 5 / math.sqrt(products.numel())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", range(4), ids=NAMES)
def test_empty(axis: int, device: str) -> None:
    shape = [2**32 - 1, 3, 2, 4]
    shape[axis] = 0
    assert ops.philox_normal(0, shape, device=device).shape == tuple(shape)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        ops.philox_normal(-1, (1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*63\)"):
        ops.philox_normal(2**63, (1, 1, 1, 1))
    with pytest.raises(TypeError, match="seed must be an integer"):
        ops.philox_normal(0.5, (1, 1, 1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape must be \(n_steps, n_rows, n_draws, n_features\)"):
        ops.philox_normal(0, (1, 1, 1))
    with pytest.raises(ValueError, match="n_draws of shape must be >= 0, got -2"):
        ops.philox_normal(0, (1, 1, -2, 1))
    with pytest.raises(TypeError, match="dtype must be float32 or float64, got torch.float16"):
        ops.philox_normal(0, (1, 1, 1, 1), dtype=torch.float16)
    for axis, name in enumerate(NAMES):
        shape = [0, 0, 0, 0]
        shape[axis] = 2**32
        with pytest.raises(ValueError, match=rf"{name} of shape must be < 2\*\*32"):
            ops.philox_normal(0, shape)


@pytest.mark.needs_ext
def test_the_kernel_checks_its_arguments_too() -> None:
    sizes = dict.fromkeys(NAMES, 1)
    op = torch.ops.nnmf_cuda.philox_normal
    with pytest.raises(RuntimeError, match="like must be float32 or float64"):
        op(torch.empty(0, dtype=torch.int64), seed=0, **sizes)
    for name in NAMES:
        for size in (-1, 2**32):
            with pytest.raises(RuntimeError, match=rf"{name} must be in \[0, 2\*\*32\)"):
                op(torch.empty(0), seed=0, **(dict.fromkeys(NAMES, 0) | {name: size}))


def test_reference_path() -> None:
    with ops.reference_path():
        inside = ops.philox_normal(4, (2, 3, 2, 5))
    assert torch.equal(inside, reference.philox_normal(4, (2, 3, 2, 5)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype, device: str) -> None:
    like = torch.empty(0, dtype=dtype, device=device)
    sizes = dict(zip(NAMES, (2, 3, 4, 5), strict=True))
    torch.library.opcheck(torch.ops.nnmf_cuda.philox_normal.default, (like,), {"seed": 9, **sizes})
