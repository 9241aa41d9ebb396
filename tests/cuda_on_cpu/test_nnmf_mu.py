"""The CUDA kernels of nnmf_mu and nnmf_divergence against the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnmf_cuda import reference
from nnmf_cuda.reference.nnmf import as_float
from tests.cuda_on_cpu.harness import Builder, run_kernels


@pytest.fixture(scope="module")
def kernels(build: Builder) -> Path:
    return build("nnmf_mu.cpp")


def problem(
    batch: int, n: int, f: int, k: int, dtype: torch.dtype, *, shared: bool
) -> dict[str, Tensor]:
    """Draw X of `dtype`, uint8 included, and a start W, H."""
    generator = torch.Generator().manual_seed(n + f + k)
    floating = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (n, f) if shared else (batch, n, f)
    X = torch.rand(shape, generator=generator).add(0.1).to(floating)
    if dtype == torch.uint8:
        X = torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)
    W = torch.rand((batch, n, k), generator=generator, dtype=floating) + 0.1
    H = torch.rand((batch, k, f), generator=generator, dtype=floating) + 0.1
    return {"X": X, "W": W, "H": H}


def check(
    kernels: Path,
    tensors: dict[str, Tensor],
    options: dict[str, float],
    *,
    multiprocessors: int = 4,
) -> None:
    """Assert that the kernels give the reference's factors, and the divergence of their own."""
    X, W, H = tensors["X"], tensors["W"], tensors["H"]
    got = run_kernels(
        kernels, "nnmf_mu", tensors, {**options, "multiprocessors": multiprocessors}
    )
    exact_X = as_float(X, W.dtype).double()
    wanted = reference.nnmf_mu(exact_X, W.double(), H.double(), **options)
    # Sums of at most 512 terms in float32 and three iterations: some tens of roundings.
    rtol = 1e-11 if W.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(got["W"].double(), wanted[0], rtol=rtol, atol=0)
    torch.testing.assert_close(got["H"].double(), wanted[1], rtol=rtol, atol=0)
    exact = reference.nnmf_divergence(
        exact_X, got["W"].double(), got["H"].double(), beta_loss=options["beta_loss"]
    )
    # W H is rounded in the factors' dtype, which counts near an exact fit.
    rtol, each = (1e-12, 1e-15) if W.dtype == torch.float64 else (3e-6, 1e-9)
    torch.testing.assert_close(got["divergence"], exact, rtol=rtol, atol=each * X[0].numel())


def options_of(beta_loss: float, penalty: float = 0.0, *, update_H: bool = True, n_iter: int = 3):
    penalties = ("l1_reg_W", "l1_reg_H", "l2_reg_W", "l2_reg_H")
    return {
        "beta_loss": beta_loss,
        "n_iter": n_iter,
        "update_H": update_H,
        **{name: penalty * times for times, name in enumerate(penalties, 1)},
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.0, -0.5, 0.5, 1.5, 3.0])
@pytest.mark.parametrize(
    ("batch", "n", "f", "k", "shared", "update_H", "penalty"),
    [
        (1, 1, 1, 1, True, True, 0.0),
        (3, 33, 31, 5, True, True, 0.0),
        (2, 31, 70, 9, False, True, 0.2),
        (1, 5, 1100, 3, True, False, 0.1),
        (1, 130, 34, 17, True, True, 0.0),
        (2, 9, 144, 33, False, True, 0.0),
        (1, 12, 50, 128, True, True, 0.1),
    ],
)
def test_kernels_match_reference(
    kernels, dtype, beta_loss, batch, n, f, k, shared, update_H, penalty
):
    tensors = problem(batch, n, f, k, dtype, shared=shared)
    check(kernels, tensors, options_of(beta_loss, penalty, update_H=update_H))


def test_kernels_add_up_several_splits_of_the_rows(kernels):
    check(kernels, problem(1, 300, 40, 3, torch.float64, shared=True), options_of(1.0))
