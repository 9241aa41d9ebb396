from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from nnmf_cuda import ops
from tests.helpers import DEVICES


def problem(n: int, k: int, *, seed: int = 0, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Draw the gram matrix of a basis (2 k, k) and its products with n targets."""
    rng = np.random.default_rng(seed)
    A, targets = rng.standard_normal((2 * k, k)), rng.standard_normal((n, 2 * k))
    return torch.tensor(A.T @ A, device=device), torch.tensor(targets @ A, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (40, 2), (31, 7), (64, 15), (9, 33)])
def test_nnls_equals_scipy(device: str, n: int, k: int) -> None:
    rng = np.random.default_rng(k)
    A, targets = rng.standard_normal((k + 5, k)), rng.standard_normal((n, k + 5))
    gram, cross = (torch.tensor(v, device=device) for v in (A.T @ A, targets @ A))
    h, residual = ops.nnls(gram, cross, return_residual=True)
    want = np.stack([scipy.optimize.nnls(A, target)[0] for target in targets])
    np.testing.assert_allclose(h.cpu().numpy(), want, rtol=1e-7, atol=1e-9)
    assert residual.shape == (n,)
    assert residual.max() < 1e-10


@pytest.mark.parametrize("device", DEVICES)
def test_nnls_float32_is_solved_in_float64(device: str) -> None:
    gram, cross = problem(200, 15, device=device)
    h, residual = ops.nnls(gram, cross.float(), return_residual=True)
    assert h.dtype == torch.float32
    assert residual.max() < 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_nnls_closed_forms(device: str) -> None:
    cross = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]], device=device)
    got = ops.nnls(2 * torch.eye(3, device=device), cross)
    assert torch.equal(got, cross.clamp_min(0) / 2)
    assert torch.equal(
        ops.nnls(2 * torch.eye(3, device=device), cross, return_residual=True)[1],
        torch.zeros(3, dtype=torch.float64, device=device),
    )


@pytest.mark.parametrize("device", DEVICES)
def test_nnls_batch_equals_loop(device: str) -> None:
    problems = [problem(8, 5, seed=seed, device=device) for seed in range(3)]
    gram, cross = (torch.stack(tensors) for tensors in zip(*problems, strict=True))
    batched = ops.nnls(gram, cross)
    for b in range(3):
        torch.testing.assert_close(batched[b], ops.nnls(gram[b], cross[b]), rtol=1e-13, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "k"), [(0, 3), (3, 0), (0, 0)])
def test_nnls_empty(device: str, n: int, k: int) -> None:
    gram, cross = torch.eye(k, device=device), torch.ones(n, k, device=device)
    h, residual = ops.nnls(gram, cross, return_residual=True)
    assert h.shape == (n, k)
    assert residual.shape == (n,)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "case", ["duplicate", "rank one", "more variables than rows", "zero column"]
)
def test_nnls_degenerate_problems_end_at_an_optimum(device: str, case: str) -> None:
    rng = np.random.default_rng(7)
    A = rng.random((12, 6))
    if case == "duplicate":
        A[:, 3] = A[:, 1]
    elif case == "rank one":
        A = np.outer(A[:, 0], A[0])
    elif case == "more variables than rows":
        A = A[:4]
    else:
        A[:, 2] = 0
    targets = rng.standard_normal((50, len(A)))
    gram, cross = (torch.tensor(v, device=device) for v in (A.T @ A, targets @ A))
    h, residual = ops.nnls(gram, cross, return_residual=True)
    assert (h >= 0).all()
    assert residual.max() < 1e-7
    got = np.linalg.norm(targets - h.cpu().numpy() @ A.T, axis=1)
    want = np.array([scipy.optimize.nnls(A, target)[1] for target in targets])
    np.testing.assert_allclose(got, want, rtol=1e-7)


def test_nnls_symmetrises_gram() -> None:
    gram, cross = problem(5, 4)
    skew = torch.arange(16.0, dtype=torch.float64).reshape(4, 4)
    torch.testing.assert_close(ops.nnls(gram + skew - skew.T, cross), ops.nnls(gram, cross))


@pytest.mark.parametrize("batch", [None, 2])
def test_nnls_gradcheck(batch: int | None) -> None:
    problems = [problem(4, 3, seed=seed) for seed in range(batch or 1)]
    gram, cross = (torch.stack(tensors) for tensors in zip(*problems, strict=True))
    if batch is None:
        gram, cross = gram[0], cross[0]
    h = ops.nnls(gram, cross)
    # Both kinds of variable, and none at the edge of the active set, where the gradient jumps.
    assert (h == 0).any()
    assert (h > 1e-3).any()
    assert not ((h > 0) & (h < 1e-4)).any()
    assert torch.autograd.gradcheck(ops.nnls, (gram.requires_grad_(), cross.requires_grad_()))


def test_nnls_gradgradcheck() -> None:
    gram, cross = problem(4, 3)
    h = ops.nnls(gram, cross)
    assert (h == 0).any()
    assert not ((h > 0) & (h < 1e-4)).any()
    assert torch.autograd.gradgradcheck(ops.nnls, (gram.requires_grad_(), cross.requires_grad_()))


@pytest.mark.parametrize("device", DEVICES)
def test_nnls_backward_equals_linear_solve(device: str) -> None:
    gram, _ = problem(1, 5, device=device)
    h = torch.tensor([[0.5, 0, 2, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], device=device)
    grad = torch.arange(15.0, device=device).reshape(3, 5)
    got = torch.ops.nnmf_cuda.nnls_backward(gram[None], h[None], grad[None])[0]
    assert got.dtype == torch.float64
    for row in range(3):
        free = h[row] > 0
        want = torch.zeros(5, dtype=torch.float64, device=device)
        block = gram[free][:, free]
        want[free] = torch.linalg.solve(block, grad[row, free].double())
        torch.testing.assert_close(got[row], want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_nnls_gradient_is_minimum_norm_on_a_singular_block(device: str) -> None:
    rng = np.random.default_rng(5)
    A = rng.random((4, 6))  # more variables than rows
    A[:, 1] = 3 * A[:, 0]
    gram = torch.tensor(A.T @ A, device=device)
    h = torch.tensor(rng.random((9, 6)) - 0.3, device=device).clamp_min(0)
    grad = torch.tensor(rng.standard_normal((9, 6)), device=device)
    got = torch.ops.nnmf_cuda.nnls_backward(gram[None], h[None], grad[None])[0]
    for row in range(9):
        free = h[row] > 0
        want = torch.zeros(6, dtype=torch.float64, device=device)
        inverse = torch.linalg.pinv(gram[free][:, free], hermitian=True, rtol=1e-10)
        want[free] = inverse @ grad[row, free]
        torch.testing.assert_close(got[row], want, rtol=1e-6, atol=1e-6 * float(want.abs().max()))


def test_nnls_gradient_is_finite_where_columns_repeat() -> None:
    gram = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    cross = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    ops.nnls(gram, cross).sum().backward()
    assert gram.grad.isfinite().all()
    assert cross.grad.isfinite().all()


def test_nnls_zero_row_has_zero_gradient() -> None:
    gram, _ = problem(1, 3)
    cross = torch.full((1, 3), -1.0, dtype=torch.float64, requires_grad=True)
    ops.nnls(gram, cross).sum().backward()
    assert torch.equal(cross.grad, torch.zeros_like(cross))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_nnls_opcheck(device: str, requires_grad: bool) -> None:
    for gram_dtype in (torch.float64, torch.float32):
        gram, cross = problem(5, 3, device=device)
        gram = gram.to(gram_dtype)[None].requires_grad_(requires_grad)
        cross = cross[None].requires_grad_(requires_grad)
        torch.library.opcheck(torch.ops.nnmf_cuda.nnls.default, (gram, cross))


def test_nnls_backward_opcheck() -> None:
    gram, cross = problem(5, 3)
    h = ops.nnls(gram, cross)
    for dtype in (torch.float64, torch.float32):
        grad = torch.ones(1, 5, 3, dtype=dtype, requires_grad=True)
        arguments = (gram[None].requires_grad_(), h[None].to(dtype), grad)
        torch.library.opcheck(torch.ops.nnmf_cuda.nnls_backward.default, arguments)


def test_nnls_opcheck_takes_any_strides() -> None:
    gram, cross = problem(5, 3)
    cross = cross.T.contiguous().T[None]
    assert not cross.is_contiguous()
    torch.library.opcheck(torch.ops.nnmf_cuda.nnls.default, (gram[None], cross))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nnls_does_not_hide_what_is_not_finite(value: float) -> None:
    gram, cross = problem(4, 3)
    want = ops.nnls(gram, cross)
    cross[1, 2] = value
    h, residual = ops.nnls(gram, cross, return_residual=True)
    assert h[1].isnan().all()
    assert residual[1].isnan()
    torch.testing.assert_close(h[[0, 2, 3]], want[[0, 2, 3]])
    gram[0, 0] = value
    assert ops.nnls(gram, cross).isnan().all()


def test_nnls_compiles_without_graph_breaks() -> None:
    gram, cross = problem(5, 3)
    compiled = torch.compile(ops.nnls, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(gram, cross), ops.nnls(gram, cross))
    leaf = cross.clone().requires_grad_()
    compiled(gram, leaf).square().sum().backward()
    want = cross.clone().requires_grad_()
    ops.nnls(gram, want).square().sum().backward()
    torch.testing.assert_close(leaf.grad, want.grad)


@pytest.mark.parametrize(
    ("gram", "cross", "error", "message"),
    [
        ([[1.0]], torch.ones(1, 1), TypeError, "gram must be a torch.Tensor, got list"),
        (torch.eye(2).half(), torch.ones(1, 2), TypeError, "gram must be float32 or float64"),
        (
            torch.eye(2),
            torch.ones(1, 1, 1, 2),
            ValueError,
            "cross must have 1 or 2 or 3 dimensions",
        ),
        (torch.eye(2)[None], torch.ones(2), ValueError, "gram must have 2 dimensions"),
        (torch.eye(2)[None], torch.ones(1, 2), ValueError, "gram must have 2 dimensions"),
        (torch.eye(3), torch.ones(1, 2), ValueError, r"gram must have shape .* = \(2, 2\)"),
    ],
)
def test_nnls_errors(gram: Tensor, cross: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.nnls(gram, cross)
