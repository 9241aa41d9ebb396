"""What is particular to nnls and project on CUDA: the CPU's answers, streams, graphs, sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nnmf_cuda import ops

pytestmark = [pytest.mark.needs_cuda, pytest.mark.needs_ext]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 128, 129])
def test_cuda_equals_cpu(k: int, dtype: torch.dtype) -> None:
    gram, cross = problem(37, k, batch=3)
    cross = cross.to(dtype)
    want = ops.nnls(gram, cross)
    h, residual = ops.nnls(gram.cuda(), cross.cuda(), return_residual=True)
    rtol = 1e-5 if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(h.cpu(), want, rtol=rtol, atol=rtol * float(want.max()))
    assert residual.max() < (1e-5 if dtype == torch.float32 else 1e-11)
    grad = torch.randn(cross.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    u = torch.ops.nnmf_cuda.nnls_backward(gram.cuda(), want.cuda(), grad.cuda())
    want_u = torch.ops.nnmf_cuda.nnls_backward(gram, want, grad)
    torch.testing.assert_close(u.cpu(), want_u, rtol=1e-8, atol=1e-8 * float(want_u.abs().max()))


@pytest.mark.parametrize("k", [4, 15, 40])
@pytest.mark.parametrize("name", ["repeated", "zero", "rank one", "wide", "condition 1e6"])
def test_hard_problems_reach_the_optimum_of_the_cpu(name: str, k: int) -> None:
    gram = hard_gram(name, k)
    generator = torch.Generator().manual_seed(2)
    cross = torch.rand(1, 60, k, generator=generator, dtype=torch.float64) @ gram
    cross[:, ::2] -= 0.5 * cross[:, ::2].abs().amax(-1, keepdim=True)

    def objective(h: Tensor) -> Tensor:
        return (h @ gram * h / 2 - cross * h).sum(-1)

    want, h = ops.nnls(gram, cross), ops.nnls(gram.cuda(), cross.cuda()).cpu()
    assert h.isfinite().all()
    assert (h >= 0).all()
    scale = float(objective(want).abs().max())
    torch.testing.assert_close(objective(h), objective(want), rtol=1e-8, atol=1e-8 * scale)


@pytest.mark.parametrize("k", [3, 15, 40])
def test_rows_that_are_not_finite_are_nan(k: int) -> None:
    gram, cross = (tensor.cuda() for tensor in problem(50, k, batch=2))
    cross[0, 3, 0], cross[1, 7, k - 1] = torch.nan, torch.inf
    h = ops.nnls(gram, cross)
    bad = ~cross.isfinite().all(-1)
    assert torch.equal(h.isnan().all(-1), bad)
    assert torch.equal(h.isnan().any(-1), bad)


@pytest.mark.parametrize("k", [5, 15, 33])
def test_many_rows_and_many_problems(k: int) -> None:
    for batch, n in ((1, 100_003), (70_001, 1)) if k < 33 else ((1, 5_003), (5_001, 1)):
        gram, cross = problem(n, k, batch=batch)
        h = ops.nnls(gram.cuda(), cross.cuda())
        residual = torch.minimum(h, h @ gram.cuda() - cross.cuda()).abs().amax(-1)
        assert (residual <= 1e-10 * cross.cuda().abs().amax(-1)).all()
        few = slice(-3, None)
        rows = (slice(None), few) if batch == 1 else (few, slice(None))
        want = ops.nnls(gram if batch == 1 else gram[few], cross[rows])
        torch.testing.assert_close(h[rows].cpu(), want, rtol=1e-8, atol=1e-9)


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


def calls() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    gram, cross = (tensor.cuda() for tensor in problem(300, 15, batch=2))
    H = torch.rand(15, 700, device="cuda")
    pixels = torch.randint(0, 256, (300, 700), dtype=torch.uint8, device="cuda")
    backward = torch.ops.nnmf_cuda.nnls_backward
    return {
        "nnls": (ops.nnls, [gram, cross]),
        "nnls_backward": (backward, [gram, cross.clamp_min(0), cross]),
        "project": (ops.project, [pixels, H]),
    }


@pytest.mark.parametrize("name", ["nnls", "nnls_backward", "project"])
def test_every_run_gives_the_same_bits(name: str) -> None:
    op, arguments = calls()[name]
    want = op(*arguments)
    for _ in range(5):
        assert torch.equal(op(*arguments), want)


@pytest.mark.parametrize("name", ["nnls", "nnls_backward", "project"])
def test_runs_on_the_current_stream(name: str) -> None:
    op, arguments = calls()[name]
    want = op(*arguments)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # What the op reads is there only when the stream gets to it.
        torch.cuda._sleep(100_000_000)
        late = [argument.clone() for argument in arguments]
        got = op(*late)
        assert not stream.query()  # nothing has waited for the device
    stream.synchronize()
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["nnls", "nnls_backward", "project"])
def test_can_be_captured_in_a_graph(name: str) -> None:
    op, arguments = calls()[name]
    want = op(*arguments)
    static = [torch.zeros_like(argument) for argument in arguments]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        op(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = op(*static)
    for _ in range(2):
        for to, argument in zip(static, arguments, strict=True):
            to.copy_(argument)
        graph.replay()
        assert torch.equal(got, want)
        got.zero_()


def test_gradients_equal_the_cpu() -> None:
    gram, cross = problem(20, 9, batch=2)
    results = []
    for device in ("cpu", "cuda"):
        leaves = [tensor.to(device).requires_grad_() for tensor in (gram, cross)]
        ops.nnls(*leaves).square().sum().backward()
        results.append([leaf.grad.cpu() for leaf in leaves])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * float(want.abs().max()))


def test_too_many_components_are_refused() -> None:
    with pytest.raises(RuntimeError, match="n_components is 257, but CUDA kernels take at most"):
        ops.nnls(torch.eye(257, device="cuda"), torch.ones(2, 257, device="cuda"))
