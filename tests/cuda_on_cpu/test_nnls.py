"""The CUDA kernels of nnls and nnls_backward against scipy and the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from nnmf_cuda import reference
from tests.cuda_on_cpu.harness import Builder, run_kernels


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("nnls.cpp")


def bases(batch: int, n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw bases (batch, 2 k + 1, k) and targets; every fourth variable is hardly ever free."""
    rng = np.random.default_rng([seed, batch, n, k])
    A = rng.standard_normal((batch, 2 * k + 1, k))
    weights = rng.standard_normal((batch, n, k)) + 0.3 - 2.0 * (np.arange(k) % 4 == 3)
    noise = 0.1 * rng.standard_normal((batch, n, 2 * k + 1))
    return A, weights @ A.transpose(0, 2, 1) + noise


def products(A: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.tensor(A.transpose(0, 2, 1) @ A), torch.tensor(targets @ A)


def scipy_nnls(A: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            np.stack([scipy.optimize.nnls(basis, target)[0] for target in rows])
            for basis, rows in zip(A, targets, strict=True)
        ]
    )


def solve(kernels: Path, gram: Tensor, cross: Tensor, **options: object) -> dict[str, Tensor]:
    return run_kernels(kernels, "nnls", {"gram": gram, "cross": cross}, {}, **options)


def backward(kernels: Path, gram: Tensor, h: Tensor, grad: Tensor) -> dict[str, Tensor]:
    return run_kernels(kernels, "nnls_backward", {"gram": gram, "h": h, "grad": grad}, {})


def kkt_residual(gram: Tensor, cross: Tensor, h: Tensor) -> Tensor:
    violation = torch.minimum(h, h @ gram - cross).abs().amax(-1)
    return violation / cross.abs().amax(-1).clamp_min(1e-300)


# Teams of 8, 16 and 32 lanes, and of blocks; their edges; 4 columns a panel.
@pytest.mark.parametrize(
    ("batch", "n", "k"),
    [
        *[(batch, n, k) for k in (1, 2, 3, 7, 8, 9) for batch, n in ((1, 1), (1, 37), (3, 5))],
        *[(3, n, k) for k in (15, 16, 17, 31, 32) for n in (1, 5)],
        (1, 100, 15),
        (1, 37, 31),
        *[(2, 3, k) for k in (33, 34, 35, 36, 40, 64, 65)],
        (1, 2, 100),
        (1, 2, 128),
    ],
)
def test_equals_scipy(kernels: Path, batch: int, n: int, k: int) -> None:
    A, targets = bases(batch, n, k)
    gram, cross = products(A, targets)
    got = solve(kernels, gram, cross, seeds=(0, 1) if k <= 32 else (0,))
    want = scipy_nnls(A, targets)
    np.testing.assert_allclose(got["h"].numpy(), want, rtol=1e-7, atol=1e-9 * want.max())
    assert kkt_residual(gram, cross, got["h"]).max() < 1e-12
    assert not got["unsolved"].any()  # the quick way ends well
