"""What several test modules share; imported as `tests.helpers`."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import average, fcluster
from scipy.spatial.distance import squareform
from torch import Tensor

from nnmf_cuda import _extension

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)]
INSTRUCTION_SETS = ["baseline", "avx2", "avx512"]
BETA_LOSSES = [2.0, 1.0, 0.0, -0.5, 0.5, 1.5, 3.0]


def factorisation(
    n: int = 31,
    f: int = 129,
    k: int = 3,
    *,
    batch: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw positive X (n, f) and a start W, H, with a batch where one is asked for."""
    generator = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)

    def draw(*shape: int) -> Tensor:
        uniform = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return (uniform + 0.1).to(device=device, dtype=dtype)

    return draw(n, f), draw(*lead, n, k), draw(*lead, k, f)


KNOWN_PHILOX_ANSWERS = [
    # counter, key and words published with Random123 (kat_vectors, philox4x32 10)
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def float32_ulps(got: Tensor, want: Tensor) -> Tensor:
    """Count the float32 numbers from one to the other, zeros of both signs being one."""

    def place(value: Tensor) -> Tensor:
        bits = value.float().contiguous().view(torch.int32).long()
        return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return (place(got) - place(want)).abs()


AWKWARD_SHAPES = [
    # n, f, k: single rows and columns, primes, and k around the widths that kernels are made for
    (1, 67, 1),
    (67, 1, 2),
    (13, 101, 8),
    (61, 127, 15),
    (64, 128, 16),
    (59, 97, 17),
    (31, 113, 31),
    (37, 64, 32),
    (29, 71, 33),
    (41, 73, 64),
    (23, 103, 100),
    (19, 131, 128),
    (29, 67, 200),
]
LAYOUTS = ["contiguous", "odd row stride", "columns of a wider one", "odd offset", "by columns"]


def random_problem(
    n: int,
    f: int,
    k: int,
    *,
    dtype: torch.dtype = torch.float32,
    batch: int | None = None,
    own_X: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw X in `dtype`, of low rank under noise, and a start, in float32 for uint8 X; on the CPU.

    A few entries of X are zero; no row and no column is.
    """
    generator = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.1

    X_lead = lead if own_X else ()
    X = draw(*X_lead, n, k) @ draw(*X_lead, k, f) / (2 * k) + draw(*X_lead, n, f) / 2
    if min(n, f) > 2:
        X[..., 1, :: max(2, f // 3)] = 0
    X = (150 * X).round().clamp(0, 255).to(torch.uint8) if dtype == torch.uint8 else X.to(dtype)
    factors = torch.float32 if dtype == torch.uint8 else dtype
    return X, draw(*lead, n, k).to(factors), draw(*lead, k, f).to(factors)


def wide(X: Tensor) -> Tensor:
    """Return X in float64, pixels divided by 255."""
    return X.double() / 255 if X.dtype == torch.uint8 else X.double()


def least_squares(
    n: int, k: int, *, batch: int | None = None, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw Gram matrices of 3 k rows and right-hand sides of which about half bind."""
    generator = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)
    basis = torch.rand(*lead, k, 3 * k, generator=generator, dtype=torch.float64) + 0.1
    targets = torch.randn(*lead, n, 3 * k, generator=generator, dtype=torch.float64)
    return basis @ basis.mT, ((targets + 0.3) @ basis.mT).to(dtype)


def poison_free_memory(device: str) -> None:
    """Fill what torch's CUDA allocator will give next with NaN: outputs that stay so are seen."""
    if device != "cuda":
        return
    sizes = [2**i for i in range(7, 26)]
    held = [torch.full((n,), torch.nan, device=device) for n in sizes for _ in range(4)]
    del held


def laid_out(X: Tensor, layout: str) -> Tensor:
    """Return a tensor of X's values whose memory is laid out in another way.

    What lies between its rows and around them is NaN, or 255: nothing may read it.
    """
    n, f = X.shape[-2:]
    filler = 255 if X.dtype == torch.uint8 else torch.nan

    def inside(rows: int, columns: int, first: int) -> Tensor:
        wide = X.new_full((*X.shape[:-2], rows, columns), filler)
        return wide[..., :n, first : first + f]

    if layout == "contiguous":
        return X.clone(memory_format=torch.contiguous_format)
    if layout == "odd row stride":
        view = inside(n + 1, f + 1 + f % 2, 0)
        assert view.stride(-2) % 2 == 1
    elif layout == "columns of a wider one":
        view = inside(n, f + 7, 3)
    elif layout == "odd offset":
        memory = X.new_full((X.numel() + 2,), filler)
        view = memory[1:-1].view(X.shape)
        assert view.is_contiguous()
        assert view.storage_offset() == 1
    elif layout == "by columns":
        view = X.new_full((*X.shape[:-2], f, n), filler).mT
    else:
        raise ValueError(f"no such layout: {layout!r}")
    view.copy_(X)
    return view


def assert_as_accurate_as_torch(got: Tensor, plain: Tensor, truth: Tensor, slack: float) -> None:
    """Assert that a kernel's error is at most twice that of plain torch in the same dtype.

    `slack` (absolute, relative to the largest entry) covers cases where plain torch happens to be
    exact.
    """
    scale = float(truth.abs().max())
    error = float((got.double() - truth).abs().max())
    of_torch = float((plain.double() - truth).abs().max())
    assert error <= 2 * of_torch + slack * scale, f"error {error:.3e}, plain torch {of_torch:.3e}"


def hard_bases(k: int) -> dict[str, np.ndarray]:
    """Matrices (m, k) whose least-squares problems are hard, or only just solvable."""
    rng = np.random.default_rng(k)
    U, _, V = np.linalg.svd(rng.standard_normal((2 * k, k)), full_matrices=False)
    base = rng.random((2 * k, k))
    repeated, nearly, zero = base.copy(), base.copy(), base.copy()
    repeated[:, k // 2] = 2 * base[:, 0]
    nearly[:, k // 2] = base[:, 0] * (1 + 1e-9 * rng.random(2 * k))
    zero[:, 0] = 0
    return {
        "condition 1e3": U * np.logspace(0, -3, k) @ V,
        "condition 1e6": U * np.logspace(0, -6, k) @ V,
        "condition 1e12": U * np.logspace(0, -12, k) @ V,
        "repeated": repeated,
        "nearly repeated": nearly,
        "zero": zero,
        "all zero": np.zeros_like(base),
        "rank one": np.outer(base[:, 0], base[0]),
        "wide": base[: k // 2],
        "wide, signed": base[: k // 2] - 0.5,
        "units": base * 10.0 ** rng.uniform(-8, 8, k),
        "Hilbert": 1 / (1 + np.add.outer(np.arange(2 * k), np.arange(k))),
        "ties": np.eye(2 * k, k),
    }


def run_with_instruction_set(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the kernels of one instruction set, in a process of its own; skip without."""
    if name not in (_extension.build_info() or {}).get("cpu_instruction_sets", ()):
        pytest.skip(f"{name} is not built")
    best = INSTRUCTION_SETS.index(_extension.cpu_isa() or "baseline")
    if INSTRUCTION_SETS.index(name) > best:
        pytest.skip(f"{name} is more than runs here")
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "NNMF_CUDA_CPU_ISA": name},
        capture_output=True,
        text=True,
        check=False,
    )


def plain_consensus(labels: np.ndarray) -> np.ndarray:
    """Brunet et al. 2004: the mean connectivity matrix, written out."""
    n_runs, n = labels.shape
    matrix = np.zeros((n, n))
    for run in labels:
        for i in range(n):
            for j in range(n):
                matrix[i, j] += run[i] == run[j]
    return matrix / n_runs


def plain_cophenetic(matrix: np.ndarray) -> float:
    """Correlate 1 - c with the height at which two samples first share a cluster."""
    n = len(matrix)
    tree = average(squareform(1 - matrix, checks=False))
    heights = np.full((n, n), np.nan)
    for height in np.unique(tree[:, 2])[::-1]:
        flat = fcluster(tree, height + 1e-12, "distance")
        heights[flat[:, None] == flat] = height
    above = np.triu_indices(n, 1)
    return float(np.corrcoef(1 - matrix[above], heights[above])[0, 1])
