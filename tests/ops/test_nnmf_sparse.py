"""Sparse X: the dense ops in float64 are the oracle, which share no code with what is tested."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.decomposition import non_negative_factorization
from torch import Tensor

from nnmf_cuda import ops, reference
from tests.helpers import DEVICES, assert_as_accurate_as_torch

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")

SLACK = {torch.float32: 5e-6, torch.float64: 5e-14}
"""A few units in the last place, relative to the largest entry."""

SHAPES = [
    # n, f, k: one row, one column, one component, k around the widths of registers, and above 256
    (1, 67, 1),
    (67, 1, 2),
    (1, 1, 3),
    (13, 101, 8),
    (61, 127, 15),
    (40, 90, 16),
    (59, 97, 17),
    (33, 70, 20),
    (31, 113, 31),
    (37, 64, 32),
    (29, 71, 33),
    (41, 73, 64),
    (23, 103, 65),
    (19, 131, 130),
    (11, 50, 257),
    (300, 500, 24),
]
PENALTIES = {"l1_reg_W": 0.3, "l1_reg_H": 0.1, "l2_reg_W": 0.2, "l2_reg_H": 0.7}


def counts(
    n: int,
    f: int,
    k: int,
    *,
    density: float = 0.2,
    dtype: torch.dtype = torch.float64,
    batch: int | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw X with many zeros, dense, and a start; a row and a column are empty, another is full."""
    generator = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    X = torch.where(draw(n, f) < density, (4 * draw(n, f)).exp().round(), 0)
    if n > 3 and f > 3:
        X[1], X[:, 2], X[3] = 0, 0, 1 + draw(f)
    W, H = draw(*lead, n, k) + 0.1, draw(*lead, k, f) + 0.1
    return tuple(t.to(device=device, dtype=dtype) for t in (X, W, H))


def csr(X: Tensor, index: torch.dtype = torch.int64) -> Tensor:
    """Return X as CSR with indices of this type."""
    sparse = X.to_sparse_csr()
    return torch.sparse_csr_tensor(
        sparse.crow_indices().to(index),
        sparse.col_indices().to(index),
        sparse.values(),
        size=X.shape,
        check_invariants=True,
    )


def with_batch(*factors: Tensor) -> list[Tensor]:
    return [t if t.ndim == 3 else t[None] for t in factors]


def assert_right(
    name: str, X: Tensor, W: Tensor, H: Tensor, got: tuple[Tensor, ...], **options: Any
) -> None:
    """Compare W, H and their divergence with the dense reference in float64."""
    solve = getattr(reference, name)
    factors = with_batch(W, H)
    plain = solve(X, *factors, **options)
    truth = solve(X.double(), *(t.double() for t in factors), **options)
    for found, torchs, true in zip(got[:2], plain[:2], truth[:2], strict=True):
        assert found.dtype == W.dtype
        found = found.reshape(true.shape)
        slack = SLACK[W.dtype] * (100 if name == "nnmf_hals" else 1)  # it solves, and so amplifies
        assert_as_accurate_as_torch(found, torchs, true, slack=slack)
    assert_divergence_right(X, *got, options.get("beta_loss", 2.0))


def assert_divergence_right(X: Tensor, W: Tensor, H: Tensor, got: Tensor, beta_loss: float) -> None:
    ends = [t.double() for t in with_batch(W, H)]
    want = reference.nnmf_divergence(X.double(), *ends, beta_loss=beta_loss)
    assert got.dtype == torch.float64
    # The rounding of W H and of what it is summed to.
    unit = 1e-14 * float((ends[0].sum(-2) * ends[1].sum(-1)).sum(-1).max())
    rtol = 1e-6 if W.dtype == torch.float32 else 1e-11
    torch.testing.assert_close(got.reshape(-1), want, rtol=rtol, atol=unit)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "f", "k"), SHAPES)
@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_mu_of_sparse_X_is_that_of_dense_X(
    device: str, dtype: torch.dtype, n: int, f: int, k: int, beta_loss: float
) -> None:
    X, W, H = counts(n, f, k, dtype=dtype, device=device, seed=n + f + k)
    options = {"beta_loss": beta_loss, "n_iter": 3, "compute_divergence": True}
    got = ops.nnmf_mu(csr(X), W, H, **options)
    assert_right("nnmf_mu", X, W, H, got, **options)
    alone = ops.nnmf_divergence(csr(X), *got[:2], beta_loss=beta_loss)
    torch.testing.assert_close(alone, got[2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("k", [5, 33])
def test_mu_of_sparse_X_with_penalties(
    device: str, dtype: torch.dtype, beta_loss: float, k: int
) -> None:
    X, W, H = counts(37, 131, k, dtype=dtype, device=device, seed=k)
    options = {"beta_loss": beta_loss, "n_iter": 3, "compute_divergence": True, **PENALTIES}
    got = ops.nnmf_mu(csr(X), W, H, **options)
    assert_right("nnmf_mu", X, W, H, got, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", [0.0, -0.5])
def test_mu_of_sparse_X_without_zeros_below_beta_loss_0(
    device: str, dtype: torch.dtype, beta_loss: float
) -> None:
    X, W, H = counts(23, 61, 5, dtype=dtype, device=device, density=2)
    X = X + 0.5
    options = {"beta_loss": beta_loss, "n_iter": 3, "compute_divergence": True, **PENALTIES}
    got = ops.nnmf_mu(csr(X), W, H, **options)
    assert_right("nnmf_mu", X, W, H, got, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "f", "k"), SHAPES)
def test_hals_of_sparse_X_is_that_of_dense_X(
    device: str, dtype: torch.dtype, n: int, f: int, k: int
) -> None:
    X, W, H = counts(n, f, k, dtype=dtype, device=device, seed=n + f + k)
    # Without the penalty some minima are so flat that rounding decides where a sweep ends.
    options = {"n_iter": 2, "l2_reg_W": 20.0, "l2_reg_H": 20.0, "compute_divergence": True}
    got = ops.nnmf_hals(csr(X), W, H, **options)
    assert_right("nnmf_hals", X, W, H, got, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_inner", [1, 3])
def test_hals_of_sparse_X_with_penalties_and_fixed_rows(
    device: str, dtype: torch.dtype, n_inner: int
) -> None:
    X, W, H = counts(37, 131, 9, dtype=dtype, device=device, batch=3, seed=n_inner)
    options = {"n_iter": 3, "n_inner": n_inner, "n_fixed": 2, "compute_divergence": True}
    options |= PENALTIES
    got = ops.nnmf_hals(csr(X), W, H, **options)
    assert_right("nnmf_hals", X, W, H, got, **options)
    assert torch.equal(got[1][:, :2], H[:, :2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("solver", ["nnmf_mu", "nnmf_hals"])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_indices_of_both_widths_give_the_same_bits(
    device: str, solver: str, index: torch.dtype
) -> None:
    X, W, H = counts(150, 210, 7, dtype=torch.float32, device=device)
    solve = getattr(ops, solver)
    got = solve(csr(X, index), W, H, n_iter=2, compute_divergence=True)
    want = solve(csr(X), W, H, n_iter=2, compute_divergence=True)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("solver", ["nnmf_mu", "nnmf_hals"])
def test_sparse_X_of_a_batch_is_each_problem_alone(device: str, solver: str) -> None:
    X, W, H = counts(45, 83, 6, batch=4, device=device)
    solve = getattr(ops, solver)
    got = solve(csr(X), W, H, n_iter=3, compute_divergence=True)
    for b in range(4):
        alone = solve(csr(X), W[b], H[b], n_iter=3, compute_divergence=True)
        for together, one in zip(got, alone, strict=True):
            torch.testing.assert_close(together[b], one, rtol=1e-13, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta_loss", [1.0, 2.0, 1.5])
def test_sparse_X_leaves_problems_that_are_not_active(device: str, beta_loss: float) -> None:
    X, W, H = counts(45, 83, 6, batch=4, device=device)
    active = torch.tensor([True, False, False, True], device=device)
    options = {"beta_loss": beta_loss, "n_iter": 3, "compute_divergence": True}
    got = ops.nnmf_mu(csr(X), W, H, active=active, **options)
    assert_right("nnmf_mu", X, W, H, got, active=active, **options)
    assert torch.equal(got[0][1:3], W[1:3])
    assert torch.equal(got[1][1:3], H[1:3])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("solver", ["nnmf_mu", "nnmf_hals"])
def test_sparse_X_with_H_held(device: str, solver: str) -> None:
    X, W, H = counts(45, 83, 6, device=device)
    sparse = csr(X)
    kept = [t.clone() for t in (X, W, H)]
    options: dict[str, Any] = {"n_iter": 4, "update_H": False, "compute_divergence": True}
    got = getattr(ops, solver)(sparse, W, H, **options)
    options |= {"beta_loss": 1.0} if solver == "nnmf_mu" else {}
    assert_right(solver, X, W, H, got, **options)
    assert torch.equal(got[1], H)
    assert all(torch.equal(a, b) for a, b in zip((sparse.to_dense(), W, H), kept, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta_loss", [1.0, 2.0, 1.5])
def test_sparse_X_with_fixed_rows_of_H(device: str, beta_loss: float) -> None:
    X, W, H = counts(45, 83, 6, device=device)
    options = {"beta_loss": beta_loss, "n_iter": 3, "n_fixed": 2, "compute_divergence": True}
    got = ops.nnmf_mu(csr(X), W, H, **options)
    assert_right("nnmf_mu", X, W, H, got, **options)
    assert torch.equal(got[1][:2], H[:2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [1e-12, 1e12])
@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_sparse_X_of_tiny_and_huge_units(
    device: str, dtype: torch.dtype, unit: float, beta_loss: float
) -> None:
    X, W, H = counts(45, 83, 6, dtype=dtype, device=device)
    X, W, H = X * unit, W * unit**0.5, H * unit**0.5
    options = {"beta_loss": beta_loss, "n_iter": 3, "compute_divergence": True}
    options["floor"] = reference.EPSILON * float(X.mean())
    got = ops.nnmf_mu(csr(X), W, H, **options)
    truth = reference.nnmf_mu(X.double(), W.double()[None], H.double()[None], **options)
    for found, true in zip(got[:2], truth[:2], strict=True):
        rtol = 1e-5 if dtype == torch.float32 else 1e-12
        atol = rtol * float(true.max())
        torch.testing.assert_close(found.double(), true[0], rtol=0, atol=atol)
    rtol = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(got[2], truth[2][0], rtol=rtol, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta_loss", [1.0, 2.0, 0.5])
def test_explicit_zeros_of_sparse_X_change_nothing(device: str, beta_loss: float) -> None:
    X, W, H = counts(31, 47, 5, device=device)
    full = torch.sparse_csr_tensor(
        torch.arange(0, X.numel() + 1, X.shape[1]),
        torch.arange(X.shape[1]).repeat(len(X)),
        X.reshape(-1).cpu(),
        size=X.shape,
        check_invariants=True,
    ).to(device)
    assert len(full.values()) > len(csr(X).values())
    options = {"beta_loss": beta_loss, "n_iter": 2, "compute_divergence": True}
    for got, want in zip(
        ops.nnmf_mu(full, W, H, **options), ops.nnmf_mu(csr(X), W, H, **options), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", [2.0, 1.0, 0.0, -0.5, 0.5, 1.5, 3.0])
def test_divergence_of_sparse_X(device: str, dtype: torch.dtype, beta_loss: float) -> None:
    X, W, H = counts(129, 217, 15, dtype=dtype, batch=3, device=device, density=0.03)
    if beta_loss <= 0:  # with beta_loss = 0, zeros count as in the dense op; below it is infinite
        X = X + 0.5
    got = ops.nnmf_divergence(csr(X), W, H, beta_loss=beta_loss)
    assert_divergence_right(X, W, H, got, beta_loss)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_divergence_of_sparse_X_near_an_exact_fit(device: str, beta_loss: float) -> None:
    _, W, H = counts(40, 60, 4, device=device)
    W[10:], H[:, :30] = 0, 0  # W H is zero on most of X
    X = W @ H * (1 + 1e-5)
    want = reference.nnmf_divergence(X, W[None], H[None], beta_loss=beta_loss)
    got = ops.nnmf_divergence(csr(X), W, H, beta_loss=beta_loss)
    rounding = 2e-15 * float((W @ H).pow(beta_loss).sum())
    assert want.item() > 1000 * rounding
    torch.testing.assert_close(got, want[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "f", "k"), [(0, 4, 2), (4, 0, 2), (4, 3, 0)])
def test_empty_sparse_X(device: str, n: int, f: int, k: int) -> None:
    X, W, H = counts(n, f, k, device=device)
    for solve in (ops.nnmf_mu, ops.nnmf_hals):
        got = solve(csr(X), W, H, n_iter=2, compute_divergence=True)
        assert got[0].shape == (n, k)
        assert got[1].shape == (k, f)
    X, W, H = counts(5, 4, 2, device=device, batch=0)
    assert ops.nnmf_mu(csr(X), W, H, n_iter=1)[0].shape == W.shape
    assert ops.nnmf_divergence(csr(X), W, H).shape == (0,)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_sparse_X_without_non_zeros(device: str, beta_loss: float) -> None:
    _, W, H = counts(6, 9, 3, device=device)
    X = torch.zeros(6, 9, dtype=W.dtype, device=device)
    options = {"beta_loss": beta_loss, "n_iter": 2, "compute_divergence": True}
    got = ops.nnmf_mu(csr(X), W, H, **options)
    assert_right("nnmf_mu", X, W, H, got, **options)
    assert got[2].item() == 0
    assert ops.nnmf_hals(csr(X), W, H, n_iter=2)[0].max() < 1e-30


@pytest.mark.parametrize(("beta_loss", "name"), [(2.0, "frobenius"), (1.0, "kullback-leibler")])
def test_mu_of_sparse_X_equals_scikit_learn_entry_by_entry(beta_loss: float, name: str) -> None:
    X, W, H = counts(40, 60, 4, seed=5)
    W1, H1, _ = ops.nnmf_mu(csr(X), W, H, beta_loss=name, n_iter=7)
    want_W, want_H, _ = non_negative_factorization(
        scipy.sparse.csr_matrix(X.numpy()),
        W.numpy().copy(),
        H.numpy().copy(),
        n_components=4,
        init="custom",
        solver="mu",
        beta_loss=beta_loss,
        tol=0,
        max_iter=7,
    )
    np.testing.assert_allclose(W1.numpy(), want_W, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(H1.numpy(), want_H, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [None, 3])
def test_project_of_sparse_X(device: str, dtype: torch.dtype, batch: int | None) -> None:
    X, _, H = counts(57, 83, 6, dtype=dtype, batch=batch, device=device)
    h, info = ops.project(csr(X), H, return_info=True)
    want = ops.project(X.double().expand(*H.shape[:-2], *X.shape), H.double())
    scale = float(want.max())
    atol = (1e-6 if dtype == torch.float32 else 1e-12) * scale
    torch.testing.assert_close(h.double(), want, rtol=0, atol=atol)
    assert h.dtype == dtype
    assert info.residual.max() < (1e-5 if dtype == torch.float32 else 1e-12)
    again, warm = ops.project(csr(X), H, passive=info.passive, return_info=True)
    torch.testing.assert_close(again, h, rtol=1e-6, atol=atol)
    assert (warm.pivots == 0).all()


def test_project_of_sparse_X_in_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnmf_cuda.ops.nnmf_sparse._BLOCK_NONZEROS", 50)
    X, _, H = counts(57, 83, 6)
    torch.testing.assert_close(ops.project(csr(X), H), ops.project(X, H), rtol=1e-11, atol=1e-13)


def test_gradient_of_project_of_sparse_X() -> None:
    X, _, H = counts(9, 14, 3)
    H.requires_grad_()
    assert torch.autograd.gradcheck(lambda H: ops.project(csr(X), H), (H,))
    with pytest.raises(ValueError, match="no gradient to sparse X"):
        ops.project(csr(X).requires_grad_(), H)


def test_updates_of_sparse_X_refuse_a_gradient() -> None:
    X, W, H = counts(9, 14, 3)
    W.requires_grad_()
    W1, _, divergence = ops.nnmf_mu(csr(X), W, H, n_iter=1, compute_divergence=True)
    with pytest.raises(RuntimeError, match="nnmf_sparse_mu is not differentiable"):
        W1.sum().backward()


@pytest.mark.parametrize("solver", ["nnmf_mu", "nnmf_hals"])
def test_ops_of_sparse_X_are_well_behaved(solver: str) -> None:
    X, W, H = counts(9, 14, 3, batch=2)
    sparse = csr(X)
    stored = (sparse.crow_indices(), sparse.col_indices(), sparse.values())
    parts = (*(t.clone() for t in stored), W, H)
    op = getattr(torch.ops.nnmf_cuda, solver.replace("nnmf_", "nnmf_sparse_"))
    options: dict[str, Any] = {"n_iter": 2, "compute_divergence": True}
    options |= {"beta_loss": 1.0} if solver == "nnmf_mu" else {}
    torch.library.opcheck(op, parts, options)
    torch.library.opcheck(torch.ops.nnmf_cuda.nnmf_sparse_divergence, parts, {"beta_loss": 1.0})


def test_the_reference_path_has_sparse_X() -> None:
    X, W, H = counts(20, 30, 4)
    with ops.reference_path():
        got = ops.nnmf_mu(csr(X), W, H, n_iter=2, compute_divergence=True)
    assert_right("nnmf_mu", X, W, H, got, beta_loss=1.0, n_iter=2, compute_divergence=True)


@pytest.mark.parametrize("beta_loss", [1.0, 2.0, 0.5])
def test_the_reference_in_small_blocks(monkeypatch: pytest.MonkeyPatch, beta_loss: float) -> None:
    monkeypatch.setattr("nnmf_cuda.reference.nnmf_sparse._BLOCK_ENTRIES", 64)
    X, W, H = counts(20, 30, 4)
    options = {"beta_loss": beta_loss, "n_iter": 2, "compute_divergence": True}
    with ops.reference_path():
        got = ops.nnmf_mu(csr(X), W, H, **options)
    assert_right("nnmf_mu", X, W, H, got, **options)


def test_wrong_sparse_X_is_refused() -> None:
    X, W, H = counts(9, 14, 3)
    with pytest.raises(TypeError, match=r"X must be dense or torch.sparse_csr, got layout"):
        ops.nnmf_mu(X.to_sparse_csc(), W, H, n_iter=1)
    with pytest.raises(TypeError, match=r"use .to_sparse_csr\(\)"):
        ops.project(X.to_sparse(), H)
    with pytest.raises(TypeError, match="X must be float64"):
        ops.nnmf_mu(csr(X.float()), W, H, n_iter=1)
    batched = torch.stack([X + 1, X + 2]).to_sparse_csr()
    with pytest.raises(ValueError, match="sparse X must have 2 dimensions"):
        ops.nnmf_divergence(batched, torch.stack([W, W]), torch.stack([H, H]))
    with pytest.raises(ValueError, match="W must have shape"):
        ops.nnmf_hals(csr(X), W[:-1], H, n_iter=1)
    blocks = torch.stack([X, X], dim=-1).to_sparse_csr(dense_dim=1)
    with pytest.raises(ValueError, match="sparse X must have 2 dimensions"):
        ops.nnmf_hals(blocks, W, H, n_iter=1)
