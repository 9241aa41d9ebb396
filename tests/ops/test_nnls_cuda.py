"""nnls on CUDA gives the CPU's answers. Streams, graphs and large X are in test_cuda.py.

What can be is run on the CPU too, so that the tests themselves are known to work.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnmf_cuda import ops
from tests.helpers import DEVICES

pytestmark = pytest.mark.needs_ext
on_every_device = pytest.mark.parametrize("device", DEVICES)


def problem(n: int, k: int, *, batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw Gram matrices and rows of which about half the variables are free."""
    generator = torch.Generator().manual_seed(seed + k)
    A = torch.randn(batch, 2 * k + 1, k, generator=generator, dtype=torch.float64)
    weights = torch.randn(batch, n, k, generator=generator, dtype=torch.float64)
    return A.mT @ A, weights @ (A.mT @ A) + 0.1 * torch.randn(n, k, generator=generator).double()


def hard_gram(name: str, k: int) -> Tensor:
    generator = torch.Generator().manual_seed(k)
    A = torch.rand(2 * k, k, generator=generator, dtype=torch.float64)
    if name == "repeated":
        A[:, k // 2] = 2 * A[:, 0]
    elif name == "zero":
        A[:, 0] = 0
    elif name == "rank one":
        A = torch.outer(A[:, 0], A[0])
    elif name == "wide":
        A = A[: k // 2]
    elif name == "condition 1e6":
        U, _, V = torch.linalg.svd(A, full_matrices=False)
        A = U * torch.logspace(0, -6, k, dtype=torch.float64) @ V
    return (A.mT @ A)[None]


@on_every_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 128, 129])
def test_cuda_equals_cpu(device: str, k: int, dtype: torch.dtype) -> None:
    gram, cross = problem(37, k, batch=3)
    cross = cross.to(dtype)
    want = ops.nnls(gram, cross)
    h, residual = ops.nnls(gram.to(device), cross.to(device), return_residual=True)
    rtol = 1e-5 if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(h.cpu(), want, rtol=rtol, atol=rtol * float(want.max()))
    assert residual.max() < (1e-5 if dtype == torch.float32 else 1e-11)
    grad = torch.randn(cross.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    u = torch.ops.nnmf_cuda.nnls_backward(gram.to(device), want.to(device), grad.to(device))
    want_u = torch.ops.nnmf_cuda.nnls_backward(gram, want, grad)
    torch.testing.assert_close(u.cpu(), want_u, rtol=1e-8, atol=1e-8 * float(want_u.abs().max()))


@on_every_device
@pytest.mark.parametrize("k", [4, 15, 40])
@pytest.mark.parametrize("name", ["repeated", "zero", "rank one", "wide", "condition 1e6"])
def test_hard_problems_reach_the_optimum_of_the_cpu(device: str, name: str, k: int) -> None:
    gram = hard_gram(name, k)
    generator = torch.Generator().manual_seed(2)
    cross = torch.rand(1, 60, k, generator=generator, dtype=torch.float64) @ gram
    cross[:, ::2] -= 0.5 * cross[:, ::2].abs().amax(-1, keepdim=True)

    def objective(h: Tensor) -> Tensor:
        return (h @ gram * h / 2 - cross * h).sum(-1)

    want, h = ops.nnls(gram, cross), ops.nnls(gram.to(device), cross.to(device)).cpu()
    assert h.isfinite().all()
    assert (h >= 0).all()
    scale = float(objective(want).abs().max())
    torch.testing.assert_close(objective(h), objective(want), rtol=1e-8, atol=1e-8 * scale)


@on_every_device
@pytest.mark.parametrize("k", [3, 15, 40])
def test_rows_that_are_not_finite_are_nan(device: str, k: int) -> None:
    gram, cross = (tensor.to(device) for tensor in problem(50, k, batch=2))
    cross[0, 3, 0], cross[1, 7, k - 1] = torch.nan, torch.inf
    h = ops.nnls(gram, cross)
    bad = ~cross.isfinite().all(-1)
    assert torch.equal(h.isnan().all(-1), bad)
    assert torch.equal(h.isnan().any(-1), bad)


@on_every_device
@pytest.mark.parametrize("k", [5, 15, 33])
def test_many_rows_and_many_problems(device: str, k: int) -> None:
    many = 401 if device == "cpu" else 100_003 if k < 33 else 5003
    for batch, n in ((1, many), (many, 1)):
        gram, cross = problem(n, k, batch=batch)
        h = ops.nnls(gram.to(device), cross.to(device))
        residual = torch.minimum(h, h @ gram.to(device) - cross.to(device)).abs().amax(-1)
        assert (residual <= 1e-10 * cross.to(device).abs().amax(-1)).all()
        few = slice(-3, None)
        rows = (slice(None), few) if batch == 1 else (few, slice(None))
        want = ops.nnls(gram if batch == 1 else gram[few], cross[rows])
        torch.testing.assert_close(h[rows].cpu(), want, rtol=1e-8, atol=1e-9)


@pytest.mark.needs_cuda
def test_more_than_two_to_the_31_entries() -> None:
    k = 8
    n = 2**31 // k + 5
    if torch.cuda.mem_get_info()[0] < 3.5 * n * k * 4:
        pytest.skip("too little memory on the device")
    gram, some = problem(1000, k)
    cross = torch.zeros(1, n, k, device="cuda")
    cross[:, -1000:] = some.cuda().float()
    h = ops.nnls(gram.cuda(), cross)
    assert not h[:, :-1000:1_000_003].any()
    torch.testing.assert_close(h[:, -1000:].cpu(), ops.nnls(gram, some.float()))


@on_every_device
def test_every_run_gives_the_same_bits(device: str) -> None:
    gram, cross = (tensor.to(device) for tensor in problem(300, 15, batch=2))
    backward = torch.ops.nnmf_cuda.nnls_backward
    want = ops.nnls(gram, cross)
    want_u = backward(gram, want, cross)
    for _ in range(5):
        assert torch.equal(ops.nnls(gram, cross), want)
        assert torch.equal(backward(gram, want, cross), want_u)


@on_every_device
def test_gradients_equal_the_cpu(device: str) -> None:
    gram, cross = problem(20, 9, batch=2)
    results = []
    for place in ("cpu", device):
        leaves = [tensor.to(place).requires_grad_() for tensor in (gram, cross)]
        ops.nnls(*leaves).square().sum().backward()
        results.append([leaf.grad.cpu() for leaf in leaves])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * float(want.abs().max()))


@pytest.mark.needs_cuda
def test_too_many_components_are_refused() -> None:
    with pytest.raises(RuntimeError, match="n_components is 257, but CUDA kernels take at most"):
        ops.nnls(torch.eye(257, device="cuda"), torch.ones(2, 257, device="cuda"))
