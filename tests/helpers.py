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


def assert_as_accurate_as_torch(got: Tensor, plain: Tensor, truth: Tensor, slack: float) -> None:
    """Assert that a kernel's error is at most twice that of plain torch in the same dtype.

    `slack` (absolute, relative to the largest entry) covers cases where plain torch happens to be
    exact.
    """
    scale = float(truth.abs().max())
    error = float((got.double() - truth).abs().max())
    of_torch = float((plain.double() - truth).abs().max())
    assert error <= 2 * of_torch + slack * scale, f"error {error:.3e}, plain torch {of_torch:.3e}"


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
