"""Rows that are solved one at a time, with a factor that follows the free variables."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

from nnmf_cuda import ops, reference
from tests.helpers import INSTRUCTION_SETS, hard_bases, run_with_instruction_set

pytestmark = pytest.mark.needs_ext

# Larger than what is solved side by side; tiles have 4, 8 and 16 rows, panels 64 columns.
SIZES = [129, 130, 135, 144, 191, 192, 200, 257]


def problem(n: int, k: int, m: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a basis (m, k) and targets; every fourth variable is hardly ever free."""
    rng = np.random.default_rng([seed, n, k, m])
    A = rng.standard_normal((m, k))
    weights = rng.standard_normal((n, k)) + 0.3 - 2.0 * (np.arange(k) % 4 == 3)
    return A, weights @ A.T + 0.1 * rng.standard_normal((n, m))


def distances(A: np.ndarray, targets: np.ndarray, h: np.ndarray) -> np.ndarray:
    return np.linalg.norm(targets - h @ A.T, axis=1)


@pytest.mark.parametrize("k", SIZES)
def test_equals_scipy(k: int) -> None:
    A, targets = problem(5, k, 2 * k + 1)
    gram, cross = torch.tensor(A.T @ A), torch.tensor(targets @ A)
    h, info = ops.nnls(gram, cross, return_info=True)
    want = np.stack([scipy.optimize.nnls(A, target)[0] for target in targets])
    np.testing.assert_allclose(h.numpy(), want, rtol=1e-7, atol=1e-9 * want.max())
    assert torch.equal(info.passive, h > 0)
    assert info.residual.max() < 1e-12


@pytest.mark.parametrize("name", list(hard_bases(4)))
def test_hard_problems_end_at_an_optimum(name: str) -> None:
    k = 140
    A = hard_bases(k)[name]
    rng = np.random.default_rng(1)
    # Where the Gram matrix is singular but for rounding, it says no more.
    rounding = 1e-11 if name == "condition 1e12" else 1e-13
    for targets in (rng.standard_normal((6, len(A))), rng.random((6, k)) @ A.T):
        gram, cross = torch.tensor(A.T @ A), torch.tensor(targets @ A)
        h, info = ops.nnls(gram, cross, return_info=True)
        assert h.isfinite().all()
        assert (h >= 0).all()
        assert not h[~info.passive].any()
        # Rounding moves G h by eps |G| |h|, which is what an ill-conditioned problem can ask for.
        scale = gram.abs().max() * h.sum(1) / cross.abs().amax(1).clamp_min(1e-300)
        assert (info.residual <= rounding * k * scale.clamp_min(1)).all()
        if "condition" not in name:
            want = [scipy.optimize.nnls(A, target, maxiter=9 * k)[1] for target in targets]
            # A Gram matrix knows a distance only up to the root of rounding.
            atol = 1e-6 * np.abs(targets).max()
            np.testing.assert_allclose(distances(A, targets, h.numpy()), want, rtol=1e-9, atol=atol)
        warm, own = ops.nnls(gram, cross, passive=info.passive, return_info=True)
        assert (own.residual <= rounding * k * scale.clamp_min(1)).all()
        assert (own.pivots <= info.pivots).all()


@pytest.mark.parametrize(("k", "m"), [(40, 30), (128, 100), (129, 100), (200, 150), (465, 384)])
@pytest.mark.parametrize("kind", ["uniform", "sparse", "signed"])
def test_more_components_than_features_inside_the_cone(kind: str, k: int, m: int) -> None:
    """Consistent systems, of which many minimisers are exact: the residual is scipy's zero."""
    rng = np.random.default_rng([k, m])
    H = rng.standard_normal((k, m)) if kind == "signed" else rng.random((k, m))
    if kind == "sparse":
        H *= rng.random((k, m)) < 0.2
    weights = rng.random((4, k))
    X = weights @ H
    h, info = ops.project(torch.tensor(X), torch.tensor(H), return_info=True)
    norms = np.linalg.norm(X, axis=1)
    assert (distances(H.T, X, h.numpy()) <= 1e-11 * norms).all()
    assert distances(H.T, X[:1], scipy.optimize.nnls(H.T, X[0])[0][None]) <= 1e-11 * norms[0]
    assert (h >= 0).all()
    assert info.residual.max() < 1e-12
    assert (info.passive.sum(1) <= m).all()  # a basis: its variables are independent
    assert (info.pivots <= 20 * k).all()  # ended, and not at the bound of 30 k


def test_gradient_of_a_wide_problem_is_of_least_norm() -> None:
    rng = np.random.default_rng(3)
    A = rng.random((120, 150))
    gram = torch.tensor(A.T @ A)
    h = torch.tensor(rng.random((3, 150)) - 0.1).clamp_min(0)
    h[2] *= torch.arange(150) < 60  # independent
    grad = torch.tensor(rng.random((3, 120)) @ A)
    got = torch.ops.nnmf_cuda.nnls_backward(gram[None], h[None], grad[None])[0]
    for row in range(3):
        free = h[row] > 0
        inverse = torch.linalg.pinv(gram[free][:, free], hermitian=True, rtol=1e-10)
        want = torch.zeros(150, dtype=torch.float64)
        want[free] = inverse @ grad[row, free]
        torch.testing.assert_close(got[row], want, rtol=1e-6, atol=1e-6 * float(want.abs().max()))


def test_gradients_through_a_wide_projection() -> None:
    """Finite differences where the minimiser is unique, and a chain rule where it is not."""
    rng = np.random.default_rng(4)
    H = torch.tensor(rng.random((150, 120)))
    X = torch.tensor(rng.standard_normal((2, 120)))  # outside the cone: unique and sparse
    X.requires_grad_()
    h = ops.project(X, H)
    direction = torch.tensor(rng.standard_normal((2, 150)))
    (grad,) = torch.autograd.grad((h * direction).sum(), X)
    move = torch.tensor(rng.standard_normal((2, 120)))
    step = 1e-6
    with torch.no_grad():
        ahead, behind = ops.project(X + step * move, H), ops.project(X - step * move, H)
    numeric = ((ahead - behind) * direction).sum(1) / (2 * step)
    torch.testing.assert_close((grad * move).sum(1), numeric, rtol=1e-5, atol=1e-7)
    # Inside the cone x = h H however h is chosen, so that gradients of h H to x are the identity.
    X = (torch.tensor(rng.random((2, 150))) @ H).requires_grad_()
    fitted = ops.project(X, H) @ H
    (grad,) = torch.autograd.grad((fitted * move).sum(), X)
    torch.testing.assert_close(grad, move, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [131, 200])
def test_backward_equals_reference(k: int) -> None:
    A, targets = problem(5, k, 2 * k)
    gram = torch.tensor(np.stack([A.T @ A] * 2))
    cross = torch.tensor(np.stack([targets @ A] * 2))
    gram[1, :, 0] = gram[1, 0, :] = 0  # singular where that variable is free
    h = cross.clamp_min(0)
    got = torch.ops.nnmf_cuda.nnls_backward(gram, h, cross)
    want = reference.nnls_backward(gram, h, cross)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * float(want.abs().max()))


def test_units_threads_and_neighbours_do_not_change_a_bit() -> None:
    k = 150
    A, targets = problem(11, k, 2 * k)
    gram, cross = torch.tensor(A.T @ A), torch.tensor(targets @ A)
    cross[4, 7] = torch.nan
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            h = ops.nnls(gram, cross)
            results.append((h, torch.ops.nnmf_cuda.nnls_backward(gram[None], h[None], cross[None])))
    finally:
        torch.set_num_threads(threads)
    same = {"rtol": 0, "atol": 0, "equal_nan": True}
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, want, **same)
    want = results[0][0]
    assert want[4].isnan().all()
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ops.nnls(gram, cross[order]), want[order], **same)
    torch.testing.assert_close(ops.nnls(gram, cross[9:10]), want[9:10], **same)
    unit = 2.0 ** torch.arange(150.0, dtype=torch.float64).remainder(7)
    got = ops.nnls(gram * unit * unit[:, None], cross * unit * 2.0**20)
    torch.testing.assert_close(got * unit * 2.0**-20, want, **same)
    gram[3, 5] = torch.inf
    assert ops.nnls(gram, cross).isnan().all()


def test_unbounded_and_indefinite_problems_end() -> None:
    k = 140
    gram = torch.zeros(3, k, k, dtype=torch.float64)
    gram[0, 1, 1] = 1
    gram[1] = torch.eye(k).double() + 2 * torch.eye(k).flip(0).double()
    gram[2] = -torch.eye(k)
    h = ops.nnls(gram, torch.ones(3, 2, k))
    assert h.isfinite().all()
    assert (h >= 0).all()
    assert (h[0, :, 1] == 1).all()


def test_many_small_changes_keep_the_factor_exact() -> None:
    """From no variable at all, tol 0, a badly conditioned basis: every variable enters alone."""
    k = 200
    A = hard_bases(k)["condition 1e3"]
    rng = np.random.default_rng(0)
    cross = torch.tensor((rng.random((3, k)) @ A.T + 0.01 * rng.standard_normal((3, 2 * k))) @ A)
    gram = torch.tensor(A.T @ A)
    want = ops.nnls(gram, cross)
    start = torch.zeros(3, k, dtype=torch.bool)
    start[:, ::3] = True
    h, info = ops.nnls(gram, cross, passive=start, return_info=True)
    assert info.residual.max() < 1e-12
    torch.testing.assert_close(h, want, rtol=0, atol=1e-8 * float(want.max()))


@pytest.mark.slow
def test_a_thousand_components_that_drift_need_few_pivots() -> None:
    k, n = 1285, 64
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    basis = torch.randn(k, 2 * k, **options)
    targets = torch.randn(n, k, **options) @ basis + torch.randn(n, 2 * k, **options)
    gram = basis @ basis.mT
    _, info = ops.nnls(gram, targets @ basis.mT, return_info=True)
    for _ in range(3):
        targets += 0.03 * k**0.5 * torch.randn(n, 2 * k, **options)
        cross = targets @ basis.mT
        cold, of_cold = ops.nnls(gram, cross, return_info=True)
        before = info.passive
        warm, info = ops.nnls(gram, cross, passive=before, return_info=True)
        torch.testing.assert_close(warm, cold, rtol=1e-9, atol=1e-10 * float(cold.max()))
        assert (info.passive ^ before).any()
        assert info.residual.max() < 1e-12
        assert 5 * info.pivots.sum() < of_cold.pivots.sum()
    lower = np.linalg.cholesky(gram.numpy())
    want, _ = scipy.optimize.nnls(lower.T, np.linalg.solve(lower, cross[0].numpy()))
    np.testing.assert_allclose(warm[0].numpy(), want, rtol=1e-7, atol=1e-9 * want.max())


VARIANT = """
import numpy as np, scipy.optimize, torch
from nnmf_cuda import ops
worst = 0.0
for k, m in ((129, 200), (150, 300), (140, 100)):
    rng = np.random.default_rng(k)
    A, targets = rng.random((m, k)), rng.standard_normal((3, m)) + 0.5
    for X in (targets, rng.random((3, k)) @ A.T):
        h = ops.nnls(torch.tensor(A.T @ A), torch.tensor(X @ A)).numpy()
        want = np.array([scipy.optimize.nnls(A, x)[1] for x in X])
        got = np.linalg.norm(X - h @ A.T, axis=1)
        worst = max(worst, np.abs(got - want).max() / np.linalg.norm(X, axis=1).max())
print(worst)
"""


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set_gives_the_answer(isa: str) -> None:
    result = run_with_instruction_set(isa, "-c", VARIANT)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1e-10
