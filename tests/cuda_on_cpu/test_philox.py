"""The CUDA kernel of philox_normal, and how both devices make a normal of words."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnmf_cuda import reference
from tests.cuda_on_cpu.harness import Builder, Mutation, run_kernels
from tests.helpers import KNOWN_PHILOX_ANSWERS, float32_ulps

WORD = 2**32 - 1
FUSED = "-O2"  # so that the compiler makes multiply-adds wherever it may, as in the extension


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("philox.cpp")


@pytest.fixture(scope="module")
def vectors(build: Builder) -> Path:
    return build("philox_vectors.cpp", FUSED)


def draw(
    kernels: Path,
    seed: int,
    shape: tuple[int, ...],
    *,
    wide: bool = False,
    multiprocessors: int = 3,
) -> Tensor:
    names = ("n_steps", "n_rows", "n_draws", "n_features")
    numbers = dict(zip(names, shape, strict=True))
    numbers |= {"wide": wide, "multiprocessors": multiprocessors}
    tensors = {"seed": torch.tensor([seed])}
    return run_kernels(kernels, "philox_normal", tensors, numbers, seeds=(0, 1))["draws"]


def words_of(first: Tensor, second: Tensor) -> Tensor:
    """Return words that give two uniforms, each a number of 53 bits, the first of them minus 1.

    The bits that no uniform has are set.
    """
    halves = [(first >> 26, 5), (first & (2**26 - 1), 6), (second >> 26, 5)]
    halves.append((second & (2**26 - 1), 6))
    return torch.stack([(half << unused) | ((1 << unused) - 1) for half, unused in halves], -1)


def normals_of(first: Tensor, second: Tensor) -> Tensor:
    """Box-Muller in plain torch on the same two numbers."""
    u, v = (first + 1).double() / 2**53, second.double() / 2**53
    return (torch.sqrt(-2 * torch.log(u)) * torch.cos(2 * math.pi * v)).float()


def hard_numbers() -> tuple[Tensor, Tensor]:
    """Pairs of 53-bit numbers: both ends, the neighbours of every eighth, and powers of two."""
    eighths = [2**50 * i + d for i in range(9) for d in (-3, -2, -1, 0, 1, 2, 3, 1000, -70000)]
    powers = [2**i for i in range(53)] + [2**53 - 2**i for i in range(53)]
    # Where 1 + rest of a logarithm changes its exponent.
    roots = [int(2**53 / math.sqrt(2) ** i) + d for i in range(1, 9) for d in (-1, 0, 1)]
    numbers = torch.tensor(sorted({n for n in eighths + powers + roots if 0 <= n < 2**53}))
    first, second = torch.meshgrid(numbers, numbers, indexing="ij")
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(2**53, (2, 50_000), generator=generator)
    return torch.cat((first.flatten(), random[0])), torch.cat((second.flatten(), random[1]))


@pytest.mark.parametrize(("counter", "key", "want"), KNOWN_PHILOX_ANSWERS)
def test_known_answers(kernels: Path, counter: str, key: str, want: str) -> None:
    words, halves, expected = ([int(w, 16) for w in text.split()] for text in (counter, key, want))
    tensors = {"counter": torch.tensor([words]), "key": torch.tensor(halves)}
    got = run_kernels(kernels, "philox_4x32", tensors, {}, seeds=(0,))["words"]
    assert got.tolist() == [expected]


def test_words_equal_the_references(kernels: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    counter = torch.randint(2**32, (1000, 4), generator=generator)
    key = torch.tensor([0x89ABCDEF, WORD])
    tensors = {"counter": counter, "key": key}
    got = run_kernels(kernels, "philox_4x32", tensors, {}, seeds=(0,))["words"]
    assert torch.equal(got, reference.philox_4x32(counter, (0x89ABCDEF, WORD)))


# Fewer entries than threads, and more than threads of a grid: those come again.
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 7, 3, 5), (3, 1, 13, 2), (1, 257, 1, 1), (2, 3, 5, 211)]
)
@pytest.mark.parametrize("seed", [0, 7 * 2**32 + 5, 2**63 - 1])
def test_kernel_equals_reference(kernels: Path, shape: tuple[int, ...], seed: int) -> None:
    got, want = draw(kernels, seed, shape, multiprocessors=1), reference.philox_normal(seed, shape)
    assert got.shape == want.shape
    assert float32_ulps(got, want).max() <= 1
    assert torch.equal(draw(kernels, seed, shape, wide=True), got.double())


def test_every_normal_is_the_references_within_an_ulp(kernels: Path, vectors: Path) -> None:
    first, second = hard_numbers()
    tensors = {"words": words_of(first, second)}
    want = normals_of(first, second)
    assert (want.abs() < 1e-15).any()  # where a cosine is all rounding
    scalar = run_kernels(kernels, "normal_from_words", tensors, {}, seeds=(0,))
    results = scalar | run_kernels(vectors, "normals_from_words", tensors, {}, seeds=(0,))
    assert {"scalar", "baseline"} <= results.keys()
    for name, got in results.items():
        assert got.isfinite().all(), name
        assert float32_ulps(got, want).max() <= 1, name
        assert (got != want).double().mean() < 1e-4, name


def test_ends_of_the_uniforms_are_finite(kernels: Path, vectors: Path) -> None:
    words = torch.tensor([[0, 0, 0, 0], [WORD, WORD, 0, 0], [WORD] * 4, [0, 0, WORD, WORD]])
    scalar = run_kernels(kernels, "normal_from_words", {"words": words}, {}, seeds=(0,))
    results = scalar | run_kernels(vectors, "normals_from_words", {"words": words}, {}, seeds=(0,))
    largest = math.sqrt(2 * 53 * math.log(2))  # of the smallest uniform, 2^-53
    for got in results.values():
        torch.testing.assert_close(got, torch.tensor([largest, 0, 0, largest]), rtol=1e-7, atol=0)


MUTATIONS = [
    Mutation("diffusion/cpu/philox_normals.h", "(high - x) + low", "high - x"),
    Mutation("diffusion/cpu/philox_normals.h", "+ 0x1p-53", "+ 0"),
    Mutation("diffusion/cpu/philox_normals.h", "u >= 0.5", "u > 0.5"),
    Mutation("diffusion/cpu/philox_normals.h", "0x7ffffff", "0xfffffff"),
    Mutation("diffusion/philox.h", "(high - x) + low", "high - x"),
]


def check_mutant(build: Builder, mutation: Mutation) -> None:
    mutants = [
        build("philox.cpp", mutation=mutation),
        build("philox_vectors.cpp", FUSED, mutation=mutation),
    ]
    with pytest.raises(AssertionError):
        test_every_normal_is_the_references_within_an_ulp(*mutants)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_every_rounding_matters(build: Builder, mutation: Mutation) -> None:
    check_mutant(build, mutation)


def test_the_angle_must_be_rounded(build: Builder, vectors: Path) -> None:
    """2 pi u is rounded before a quarter of a turn is taken from it."""
    words = {"words": torch.zeros(1, 4, dtype=torch.int64)}
    if "avx2" not in run_kernels(vectors, "normals_from_words", words, {}, seeds=(0,)):
        pytest.skip("no multiply-adds here")
    check_mutant(
        build, Mutation("common/inline.h", "__builtin_assoc_barrier(product)", "(product)")
    )
