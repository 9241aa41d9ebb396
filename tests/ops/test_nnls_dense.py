from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from nnmf_cuda import ops
from tests.helpers import DEVICES, hard_bases

on_every_device = pytest.mark.parametrize("device", DEVICES)


def conditioned(m: int, k: int, condition: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, m, k])
    U, _, V = np.linalg.svd(rng.standard_normal((m, k)), full_matrices=False)
    return U * np.logspace(0, -np.log10(condition), k) @ V


def distances(A: np.ndarray, B: np.ndarray, h: Tensor) -> np.ndarray:
    return np.linalg.norm(B - h.cpu().numpy() @ A.T, axis=1)


def scipy_distances(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    return np.array([scipy.optimize.nnls(A, b, maxiter=100 * A.shape[1])[1] for b in B])


@on_every_device
@pytest.mark.parametrize(("n", "m", "k"), [(1, 1, 1), (5, 3, 2), (7, 20, 9), (3, 65, 33)])
def test_equals_scipy(device: str, n: int, m: int, k: int) -> None:
    rng = np.random.default_rng(k)
    A, B = rng.standard_normal((m, k)), rng.standard_normal((n, m))
    h, info = ops.nnls_dense(
        torch.tensor(A, device=device), torch.tensor(B, device=device), return_info=True
    )
    want = np.stack([scipy.optimize.nnls(A, b)[0] for b in B])
    np.testing.assert_allclose(h.cpu().numpy(), want, rtol=1e-9, atol=1e-12 * max(1, want.max()))
    assert torch.equal(info.passive, h > 0)
    assert info.residual.max() < 1e-13
    assert not info.pivots.any()  # the Gram matrix knows such problems well


@on_every_device
@pytest.mark.parametrize("condition", [1e2, 1e6, 1e8, 1e10, 1e12])
@pytest.mark.parametrize(("m", "k"), [(12, 12), (30, 10), (70, 40)])
def test_consistent_data_are_reached_to_rounding(
    device: str, m: int, k: int, condition: float
) -> None:
    A = conditioned(m, k, condition)
    rng = np.random.default_rng(1)
    B = (rng.random((6, k)) * (rng.random((6, k)) < 0.7)) @ A.T
    arguments = torch.tensor(A, device=device), torch.tensor(B, device=device)
    norms = np.linalg.norm(B, axis=1)
    assert (distances(A, B, ops.nnls_dense(*arguments)) <= 1e-13 * norms).all()
    cold = torch.zeros(6, k, dtype=torch.bool, device=device)
    assert (distances(A, B, ops.nnls_dense(*arguments, passive=cold)) <= 1e-13 * norms).all()
    if condition == 1e8:  # which is why it is there
        gram = arguments[0].mT @ arguments[0]
        assert (distances(A, B, ops.nnls(gram, arguments[1] @ arguments[0])) > 1e-11 * norms).any()


@pytest.mark.parametrize("k", [4, 15, 40])
@pytest.mark.parametrize("name", list(hard_bases(4)))
def test_hard_problems_reach_scipys_distance(name: str, k: int) -> None:
    A = hard_bases(k)[name]
    rng = np.random.default_rng(2)
    for B in (rng.standard_normal((8, len(A))), rng.random((8, k)) @ A.T):
        for start in (None, torch.ones(8, k, dtype=torch.bool)):
            h = ops.nnls_dense(torch.tensor(A), torch.tensor(B), passive=start)
            assert h.isfinite().all()
            assert (h >= 0).all()
            # Where answers are huge, A h is no better than rounding: 1e-4 at a condition of 1e12.
            atol = 1e-12 * np.linalg.norm(B, axis=1).max() + 1e-15 * float(h.sum(1).max())
            np.testing.assert_allclose(
                distances(A, B, h), scipy_distances(A, B), rtol=1e-10, atol=atol
            )


@pytest.mark.parametrize("seed", range(60))
def test_no_random_problem_ends_above_scipy(seed: int) -> None:
    """Any shape, rank and units, consistent or not."""
    rng = np.random.default_rng(seed)
    m, k, rank = rng.integers(1, 21, 3)
    A = rng.standard_normal((m, min(rank, m))) @ rng.standard_normal((min(rank, m), k))
    A *= 10.0 ** rng.uniform(-rng.uniform(0, 9), 0, k)
    B = rng.random((3, k)) @ A.T if seed % 2 else rng.standard_normal((3, m))
    h = ops.nnls_dense(torch.tensor(A), torch.tensor(B))
    norms = np.linalg.norm(B, axis=1)
    assert (distances(A, B, h) <= scipy_distances(A, B) * (1 + 1e-10) + 1e-12 * norms).all()


def test_batches_rows_and_single_targets() -> None:
    rng = np.random.default_rng(0)
    A, B = torch.tensor(rng.random((3, 9, 4))), torch.tensor(rng.standard_normal((3, 5, 9)) + 0.3)
    h, info = ops.nnls_dense(A, B, return_info=True)
    assert [tuple(value.shape) for value in (h, *info)] == [(3, 5, 4), (3, 5), (3, 5, 4), (3, 5)]
    for b in range(3):
        own, residual = ops.nnls_dense(A[b], B[b], return_residual=True)
        torch.testing.assert_close(own, h[b], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(residual, info.residual[b], rtol=0, atol=1e-13)
    one, of_one = ops.nnls_dense(A[1], B[1, 2], return_info=True)
    assert [tuple(value.shape) for value in (one, *of_one)] == [(4,), (), (4,), ()]
    torch.testing.assert_close(one, h[1, 2], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ops.nnls_dense(A[0], B[0]), ops.project(B[0], A[0].T.contiguous()))


def test_float32_is_solved_in_float64() -> None:
    A = torch.tensor(conditioned(30, 8, 1e5), dtype=torch.float32)
    B = torch.rand(4, 8, generator=torch.Generator().manual_seed(0)) @ A.T
    h = ops.nnls_dense(A, B)
    assert h.dtype == torch.float32
    torch.testing.assert_close(h, ops.nnls_dense(A.double(), B.double()).float(), rtol=0, atol=0)


def test_start_and_tol() -> None:
    rng = np.random.default_rng(0)
    A = torch.tensor(rng.standard_normal((60, 30)))
    B = torch.tensor(rng.standard_normal((5, 60)))
    h, info = ops.nnls_dense(A, B, return_info=True)
    pivots = []
    for tol in (0.0, 0.05, 0.5):
        none = torch.zeros_like(info.passive)
        _, own = ops.nnls_dense(A, B, passive=none, tol=tol, return_info=True)
        assert own.residual.max() <= max(tol, 1e-13)
        assert (own.pivots >= own.passive.sum(1)).all()
        pivots.append(int(own.pivots.sum()))
    assert pivots[0] > pivots[1] > pivots[2] > 0
    for start in (info.passive, torch.ones_like(info.passive)):
        again = ops.nnls_dense(A, B, passive=start)
        torch.testing.assert_close(again, h, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_nothing_to_solve(shape: tuple[int, int]) -> None:
    A = torch.ones(shape, dtype=torch.float64)
    h, info = ops.nnls_dense(A, torch.ones(3, shape[0], dtype=torch.float64), return_info=True)
    assert torch.equal(h, torch.zeros(3, shape[1], dtype=torch.float64))
    assert info.pivots.shape == (3,)
    none = ops.nnls_dense(torch.ones(5, 4), torch.ones(0, 5))
    assert none.shape == (0, 4)
    assert ops.nnls_dense(torch.ones(0, 5, 4), torch.ones(0, 3, 5)).shape == (0, 3, 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(value: float) -> None:
    rng = np.random.default_rng(0)
    A, B = torch.tensor(rng.random((6, 3))), torch.tensor(rng.standard_normal((4, 6)))
    want = ops.nnls_dense(A, B)
    B[1, 2] = value
    h, info = ops.nnls_dense(A, B, return_info=True)
    assert h[1].isnan().all()
    assert not info.passive[1].any()
    assert info.residual[1].isnan()
    torch.testing.assert_close(h[[0, 2, 3]], want[[0, 2, 3]])
    A[0, 0] = value
    assert ops.nnls_dense(A, B).isnan().all()


def leaves(condition: float = 30.0) -> tuple[Tensor, Tensor]:
    A = torch.tensor(conditioned(9, 4, condition))
    B = torch.tensor(np.random.default_rng(3).standard_normal((3, 9)))
    h = ops.nnls_dense(A, B)
    assert (h == 0).any()
    assert (h > 1e-3).any()
    assert not ((h > 0) & (h < 1e-4)).any()
    return A.requires_grad_(), B.requires_grad_()


def test_gradcheck_twice() -> None:
    A, B = leaves()
    assert torch.autograd.gradcheck(ops.nnls_dense, (A, B))
    assert torch.autograd.gradgradcheck(ops.nnls_dense, (A, B))
    assert torch.autograd.gradcheck(ops.nnls_dense, (torch.stack([A, -A]), torch.stack([B, B])))


def test_gradients_are_those_of_nnls() -> None:
    A, B = leaves()
    weights = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)
    got = torch.autograd.grad((ops.nnls_dense(A, B) * weights).sum(), (A, B))
    want = torch.autograd.grad((ops.nnls(A.mT @ A, B @ A) * weights).sum(), (A, B))
    for value, plain in zip(got, want, strict=True):
        torch.testing.assert_close(value, plain, rtol=1e-9, atol=1e-11)


def test_gradient_keeps_its_digits_at_a_condition_of_1e8() -> None:
    A = torch.tensor(conditioned(20, 6, 1e8))
    h = torch.rand(2, 6, generator=torch.Generator().manual_seed(0)).double() + 0.5
    B = (h @ A.mT).requires_grad_()
    direction = torch.tensor(np.random.default_rng(0).standard_normal((2, 6)))
    (grad,) = torch.autograd.grad((ops.nnls_dense(A, B) * direction).sum(), B)
    # All variables are free: the gradient is that of the pseudoinverse.
    want = direction @ torch.linalg.pinv(A)
    torch.testing.assert_close(grad, want, rtol=0, atol=1e-6 * float(want.abs().max()))


def test_transforms_of_torch_func() -> None:
    A, B = (tensor.detach() for tensor in leaves())

    def loss(A: Tensor, B: Tensor) -> Tensor:
        return ops.nnls_dense(A, B).square().sum()

    own = A.clone().requires_grad_(), B.clone().requires_grad_()
    want = torch.autograd.grad(loss(*own), own)
    for got, plain in zip(torch.func.grad(loss, argnums=(0, 1))(A, B), want, strict=True):
        torch.testing.assert_close(got, plain)
    jacobian = torch.func.jacrev(ops.nnls_dense, argnums=1)(A, B)
    plain = torch.autograd.functional.jacobian(lambda B: ops.nnls_dense(A, B), B)
    torch.testing.assert_close(jacobian, plain)
    As, Bs = torch.stack([A, 2 * A]), torch.stack([B, B.flip(0)])
    for dims, arguments in (((0, 0), (As, Bs)), ((None, 0), (A, Bs)), ((0, None), (As, B))):
        both = list(zip(dims, arguments, strict=True))
        pairs = [tuple(v if dim is None else v[i] for dim, v in both) for i in (0, 1)]
        got = torch.func.vmap(ops.nnls_dense, in_dims=dims)(*arguments)
        torch.testing.assert_close(got, torch.stack([ops.nnls_dense(*pair) for pair in pairs]))
        rows = torch.func.vmap(torch.func.grad(loss), in_dims=dims)(*arguments)
        torch.testing.assert_close(rows, torch.stack([torch.func.grad(loss)(*p) for p in pairs]))
    with pytest.raises(RuntimeError, match="no forward-mode gradient"):
        torch.func.jacfwd(ops.nnls_dense)(A, B)


@pytest.mark.parametrize(
    ("A", "B", "options", "error", "message"),
    [
        ([[1.0]], torch.ones(1), {}, TypeError, "A must be a torch.Tensor, got list"),
        (torch.ones(3, 2).half(), torch.ones(3), {}, TypeError, "A must be float32 or float64"),
        (torch.ones(3, 2), torch.ones(3).double(), {}, TypeError, "B must be float32, got"),
        (torch.ones(3, 2, 1), torch.ones(3), {}, ValueError, "A must have 2 dimensions"),
        (
            torch.ones(3, 2),
            torch.ones(5, 4),
            {},
            ValueError,
            r"B must have shape \(..., rows of A\) = \(5, 3\), got \(5, 4\)",
        ),
        (torch.ones(3, 2), torch.ones(3), {"tol": -1}, ValueError, "tol must be a finite number"),
        (
            torch.ones(3, 2),
            torch.ones(3),
            {"passive": torch.ones(3, dtype=torch.bool)},
            ValueError,
            "passive must have shape that of h",
        ),
    ],
)
def test_errors(
    A: Any, B: Tensor, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.nnls_dense(A, B, **options)
