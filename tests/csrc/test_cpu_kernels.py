"""What is particular to the compiled CPU kernels: tiles, panels, threads, their own checks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nnmf_cuda.ops  # noqa: F401  (defines the ops)
from nnmf_cuda import reference
from nnmf_cuda.reference.nnmf import as_float

pytestmark = pytest.mark.needs_ext

BETA_LOSSES = [2.0, 1.0, 0.0, -1.2, -4.0, 0.5, 1.5, 3.0]


def problem(
    batch: int, n: int, f: int, k: int, dtype: torch.dtype, *, pixels: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + f + k)
    X = torch.rand((n, f), generator=generator, dtype=dtype) + 0.1
    if pixels:
        X = torch.randint(1, 256, (n, f), generator=generator, dtype=torch.uint8)
    W = torch.rand((batch, n, k), generator=generator, dtype=dtype) + 0.1
    H = torch.rand((batch, k, f), generator=generator, dtype=dtype) + 0.1
    return X, W, H


# One entry more or less than a panel (4 rows), a block (32), a summed part (64), a tile (256
# columns of float32, 128 of float64), and more components than a vector has lanes.
@pytest.mark.parametrize(
    ("batch", "n", "f", "k"),
    [(1, 5, 257, 17), (2, 33, 255, 3), (3, 65, 129, 2), (1, 31, 1030, 40), (1, 129, 7, 1)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
def test_edges_of_tiles(
    batch: int, n: int, f: int, k: int, dtype: torch.dtype, beta_loss: float
) -> None:
    X, W, H = problem(batch, n, f, k, dtype, pixels=f % 2 == 1)
    options = {"beta_loss": beta_loss, "n_iter": 2, "compute_divergence": True}
    got = torch.ops.nnmf_cuda.nnmf_mu(X, W, H, **options)
    exact_X = as_float(X, dtype).double()
    wanted = reference.nnmf_mu(exact_X, W.double(), H.double(), **options)
    # Two iterations of well-conditioned sums of positive numbers: some tens of roundings.
    rtol = 5e-6 if dtype == torch.float32 else 1e-13
    for ours, truth in zip(got[:2], wanted[:2], strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=rtol, atol=0)
    torch.testing.assert_close(got[2], wanted[2], rtol=1e-4 if rtol > 1e-9 else 1e-9, atol=0)


@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.5])
def test_number_of_threads_does_not_change_a_bit(beta_loss: float) -> None:
    X, W, H = problem(2, 70, 600, 7, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            options = {"beta_loss": beta_loss, "n_iter": 5, "compute_divergence": True}
            results.append(torch.ops.nnmf_cuda.nnmf_mu(X, W, H, **options))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_long_sums_keep_their_precision() -> None:
    """Numerators over 20 000 samples: no slower growth of the error than float64 sums allow."""
    X, W, H = problem(1, 20_000, 3, 2, torch.float32)
    got = torch.ops.nnmf_cuda.nnmf_mu(X, W, H, beta_loss=1.0, n_iter=1)
    wanted = reference.nnmf_mu(X.double(), W.double(), H.double(), beta_loss=1.0, n_iter=1)
    # 64 rows at a time are summed in float32: a plain float32 sum errs by 4e-6 here.
    torch.testing.assert_close(got[1].double(), wanted[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, W, H: (X, W[0], H), r"W must have 3 dimensions, got shape \(4, 2\)"),
        (lambda X, W, H: (X, W, H.double()), "H must have W's dtype Float, got Double"),
        (lambda X, W, H: (X.double(), W, H), "X must have W's dtype Float, got Double"),
        (lambda X, W, H: (X.half(), W.half(), H.half()), "W must be float32 or float64, got Half"),
        (lambda X, W, H: (X, W, H[:, :1]), r"H must have size 2 \(n_components of W\)"),
        (lambda X, W, H: (X[:3], W, H), r"X must have size 4 \(n_samples of W\)"),
        (lambda X, W, H: (X[:, :5], W, H), r"X must have size 6 \(n_features of H\)"),
        (lambda X, W, H: (torch.stack([X, X, X]), W, H), r"X must have size 1 \(batch of W\)"),
    ],
)
def test_op_names_the_wrong_argument(change, message: str) -> None:
    arguments = change(*problem(1, 4, 6, 2, torch.float32))
    for op, options in (("nnmf_mu", {"n_iter": 1}), ("nnmf_divergence", {})):
        with pytest.raises(RuntimeError, match=message):
            getattr(torch.ops.nnmf_cuda, op)(*arguments, beta_loss=1.0, **options)
