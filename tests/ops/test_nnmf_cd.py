"""Coordinate descent on sparse X against loops in NumPy, SciPy's minima, and its own promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from nnmf_cuda import ops, reference
from tests.helpers import DEVICES
from tests.ops.test_nnmf_sparse import PENALTIES, SHAPES, SLACK, counts, csr, with_batch

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")

Array = NDArray[np.float64]
FLOOR = ops.EPSILON  # of W H in the loops
NO_PENALTIES = dict.fromkeys(PENALTIES, 0.0)


def slope(t: float, x: Array, h: Array, others: Array, a: float, l2: float) -> float:
    """Return the derivative of one entry's objective, `others` being W H without it."""
    return float(a + l2 * t - np.sum(x * h / np.maximum(others + t * h, FLOOR)))


def pole(t: float, x: Array, h: Array, others: Array, a: float, l2: float) -> float:
    """Return where the pole through the sum at t meets the line, from the quadratic's roots."""
    product = np.maximum(others + t * h, FLOOR)
    S, D = np.sum(x * h / product), np.sum(x * (h / product) ** 2)
    p, q = S**2 / D, S / D - t
    if l2 == 0:
        return max(0.0, p / a - q)
    roots = np.roots([l2, a + l2 * q, a * q - p])
    return max(0.0, float(np.max(np.real(roots))))


def moved(
    w: float, x: Array, h: Array, others: Array, a: float, l2: float, *, guarded: bool = True
) -> float:
    """Return where an entry goes; without the guard, down as far as the pole says."""
    if not np.any(x * h > 0):
        return 0.0 if a + l2 > 0 else w
    of = (x, h, others, a, l2)
    t = pole(w, *of)
    if t >= w or not guarded:
        return t
    multiplicative = max(np.real(np.roots([l2, a, -w * (a + l2 * w - slope(w, *of))])))
    for _ in range(4):
        if slope(t, *of) + slope(w, *of) >= 0:
            return t
        t = min(multiplicative, pole(t, *of))
    return float(multiplicative)


def swept(X: Array, W: Array, H: Array, l1: float, l2: float, first: int, **how: Any) -> Array:
    """Sweep once over the entries of each row of W."""
    W = W.copy()
    for n, x in enumerate(X):
        for i in range(first, W.shape[1]):
            others = np.delete(W[n], i) @ np.delete(H, i, 0)
            there = x > 0
            W[n, i] = moved(
                W[n, i], x[there], H[i, there], others[there], H[i].sum() + l1, l2, **how
            )
    return W


def descended(X: Tensor, W: Tensor, H: Tensor, n_iter: int, **options: Any) -> tuple[Array, Array]:
    """Return W and H after so many iterations, by loops over all their entries."""
    x, w, h = (t.numpy() for t in (X, W, H))
    given_options = {**NO_PENALTIES, "n_inner": 1, "n_fixed": 0, **options}
    n_inner, n_fixed = given_options["n_inner"], given_options["n_fixed"]
    for _ in range(n_iter):
        for _ in range(n_inner):
            w = swept(x, w, h, given_options["l1_reg_W"], given_options["l2_reg_W"], 0)
        for _ in range(n_inner):
            regs = given_options["l1_reg_H"], given_options["l2_reg_H"]
            h = swept(x.T, h.T, w.T, *regs, n_fixed).T
    return w, h


def objective(
    X: Tensor, W: Tensor, H: Tensor, penalties: dict[str, float], floor: float = ops.EPSILON
) -> Tensor:
    """Return divergence and penalty of each problem in float64."""
    W, H = (t.double() for t in with_batch(W, H))
    total = reference.nnmf_divergence(X.double(), W, H, beta_loss=1.0, floor=floor)
    for name, factor in (("W", W), ("H", H)):
        total = total + penalties[f"l1_reg_{name}"] * factor.sum((1, 2))
        total = total + penalties[f"l2_reg_{name}"] / 2 * factor.square().sum((1, 2))
    return total


def truth(X: Tensor, W: Tensor, H: Tensor, dtype: torch.dtype, **options: Any) -> Any:
    """Return what the reference makes of X in this type."""
    by_rows, by_columns = csr(X.to(dtype)), csr(X.mT.contiguous().to(dtype))
    parts = [(t.crow_indices(), t.col_indices(), t.values()) for t in (by_rows, by_columns)]
    factors = [t.to(dtype) for t in with_batch(W, H)]
    return reference.nnmf_sparse_cd(*parts[0], *parts[1], *factors, **options)


def assert_right(X: Tensor, W: Tensor, H: Tensor, got: tuple[Tensor, ...], **options: Any) -> None:
    """Compare factors and divergence with the reference in float64.

    Whether a step down stands is decided by sums: in float32 their rounding turns one decision in
    many thousands, and that entry and what follows from it are then others, as good.
    """
    true = truth(X, W, H, torch.float64, **options)
    penalties = {name: options.get(name, 0.0) for name in PENALTIES}
    assert got[0].dtype == got[1].dtype == W.dtype
    if W.dtype == torch.float64:
        for found, want in zip(got[:2], true[:2], strict=True):
            atol = 100 * SLACK[W.dtype] * float(want.abs().max())
            torch.testing.assert_close(found.reshape(want.shape), want, rtol=0, atol=atol)
    else:
        once = options | {"n_iter": 1, "n_inner": 1, "update_H": False}
        found = ops.nnmf_cd(csr(X), W, H, **once)[0].double().reshape(true[0].shape)
        want = truth(X, W, H, torch.float64, **once)[0]
        close = ((found - want).abs() <= 1e-4 * want.max()).all(-1)
        assert (~close).sum() <= 0.02 * close.numel() + 1
    ends = (objective(X, *both[:2], penalties) for both in (got, true))
    torch.testing.assert_close(*ends, rtol=1e-2 if W.dtype == torch.float32 else 1e-9, atol=1e-8)
    if options.get("compute_divergence"):
        factors = [t.double() for t in with_batch(*got[:2])]
        want = reference.nnmf_divergence(X.double(), *factors, beta_loss=1.0)
        torch.testing.assert_close(got[2].reshape(-1), want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("n", "f", "k"), [(1, 17, 1), (17, 1, 2), (1, 1, 3), (9, 14, 3), (12, 10, 5)]
)
@pytest.mark.parametrize("penalties", [NO_PENALTIES, PENALTIES], ids=["free", "penalised"])
@pytest.mark.parametrize("n_inner", [1, 2])
def test_it_takes_the_steps_of_plain_loops(
    device: str, n: int, f: int, k: int, penalties: dict[str, float], n_inner: int
) -> None:
    X, W, H = counts(n, f, k, density=0.4, seed=n + f)
    options = {"n_iter": 3, "n_inner": n_inner, "n_fixed": min(k - 1, 1), **penalties}
    tensors = csr(X).to(device), W.to(device), H.to(device)
    got = ops.nnmf_cd(*tensors, floor=FLOOR, **options)
    for found, want in zip(got[:2], descended(X, W, H, **options), strict=True):
        np.testing.assert_allclose(found.cpu().numpy(), want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "f", "k"), SHAPES)
def test_it_is_the_reference(device: str, dtype: torch.dtype, n: int, f: int, k: int) -> None:
    X, W, H = counts(n, f, k, dtype=dtype, device=device, seed=n + f + k)
    options = {"n_iter": 2, "compute_divergence": True}
    got = ops.nnmf_cd(csr(X), W, H, **options)
    assert_right(X, W, H, got, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 9, 33])
@pytest.mark.parametrize("n_inner", [1, 3])
def test_penalties_batches_fixed_rows_and_inner_sweeps(
    device: str, dtype: torch.dtype, k: int, n_inner: int
) -> None:
    X, W, H = counts(37, 131, k, dtype=dtype, device=device, batch=3, seed=n_inner)
    options = {"n_iter": 2, "n_inner": n_inner, "n_fixed": min(k - 1, 2), **PENALTIES}
    options["compute_divergence"] = True
    got = ops.nnmf_cd(csr(X), W, H, **options)
    assert_right(X, W, H, got, **options)
    assert torch.equal(got[1][:, : options["n_fixed"]], H[:, : options["n_fixed"]])
    for b in range(3):
        alone = ops.nnmf_cd(csr(X), W[b], H[b], **options)
        assert all(torch.equal(t[b], one) for t, one in zip(got[:2], alone[:2], strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("given_transposed", [False, True])
def test_indices_of_both_widths_give_the_same_bits(
    device: str, index: torch.dtype, given_transposed: bool
) -> None:
    X, W, H = counts(150, 210, 7, dtype=torch.float32, device=device)
    transposed = csr(X.mT.contiguous(), index) if given_transposed else None
    got = ops.nnmf_cd(csr(X, index), W, H, n_iter=2, transposed=transposed)
    want = ops.nnmf_cd(csr(X), W, H, n_iter=2)
    assert all(torch.equal(a, b) for a, b in zip(got[:2], want[:2], strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("penalties", [NO_PENALTIES, PENALTIES], ids=["free", "penalised"])
def test_with_H_held_it_ends_at_the_minimum_of_each_row(
    device: str, penalties: dict[str, float]
) -> None:
    X, W, H = counts(8, 40, 4, density=0.5, device=device, seed=3)
    got = ops.nnmf_cd(csr(X), W, H, n_iter=60, n_inner=5, update_H=False, **penalties)
    assert torch.equal(got[1], H)
    h = H.cpu().numpy()
    l1, l2 = penalties["l1_reg_W"], penalties["l2_reg_W"]
    for x, w in zip(X.cpu().numpy(), got[0].cpu().numpy(), strict=True):

        def value(w: Array, x: Array = x) -> tuple[float, Array]:
            product = w @ h + 1e-12
            total = product.sum() - x @ np.log(product) + l1 * w.sum() + l2 / 2 * w @ w
            return total, h @ (1 - x / product) + l1 + l2 * w

        best = minimize(
            value,
            np.ones(4),
            jac=True,
            bounds=[(0, None)] * 4,
            method="L-BFGS-B",
            options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 2000},
        )
        assert value(w)[0] <= best.fun + 1e-7 * abs(best.fun)


@pytest.mark.parametrize("device", DEVICES)
def test_the_guard_of_steps_down_is_needed(device: str) -> None:
    # The slope at 1 is that of the 500, which others explain as well; but the 5 depends on this
    # entry alone: the pole leads to zero, where the objective is infinite but for the floor.
    X = torch.tensor([[5.0, 500, 0]], dtype=torch.float64)
    H = torch.tensor([[1.0, 1, 98], [0, 10, 0]], dtype=torch.float64)
    W = torch.ones(1, 2, dtype=torch.float64)
    x, h, others = np.array([5.0, 500]), np.array([1.0, 1]), np.array([0.0, 10])
    assert moved(1, x, h, others, 100, 0, guarded=False) == 0
    before = objective(X, W, H, NO_PENALTIES)
    unguarded = objective(X, torch.tensor([[0.0, 1]]).double(), H, NO_PENALTIES)
    assert unguarded > before + 1
    tensors = csr(X).to(device), W.to(device), H.to(device)
    got = ops.nnmf_cd(*tensors, n_iter=1, update_H=False)[0].cpu()
    assert got[0, 0] > 0.005
    after = objective(X, torch.stack((got[0, :1], torch.ones_like(got[0, :1])), 1), H, NO_PENALTIES)
    assert after < before


def test_the_guard_of_steps_down_is_needed_on_random_rows() -> None:
    rng = np.random.default_rng(0)
    x = np.exp(2 * rng.standard_normal((300, 6)))
    x[:, :3] *= 0.2  # of little weight, and all that depends on the first entry alone
    H = np.exp(rng.standard_normal((2, 6)))
    H[1, :3] = 0
    W = np.stack([np.exp(2 * rng.standard_normal(300)), np.ones(300)], axis=1)
    bold, careful = (
        [
            moved(w, row, H[0], H[1], H[0].sum(), 0.0, guarded=guarded)
            for row, (w, _) in zip(x, W, strict=True)
        ]
        for guarded in (False, True)
    )

    def rows(first: Any) -> Array:
        product = np.outer(first, H[0]) + H[1]
        return np.asarray((product - x * np.log(np.maximum(product, 1e-7))).sum(1))

    before = rows(W[:, 0])
    assert (rows(bold) > before + 0.1).sum() > 3
    assert (rows(careful) <= before + 1e-9).all()
    X, *factors = (torch.from_numpy(t) for t in (x, W, H))
    got = ops.nnmf_cd(csr(X), *factors, n_iter=1, floor=FLOOR, update_H=False)[0]
    np.testing.assert_allclose(got[:, 0].numpy(), careful, rtol=1e-6, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    n=st.integers(1, 40),
    f=st.integers(1, 40),
    k=st.integers(1, 12),
    density=st.sampled_from([0.02, 0.1, 0.5, 1.0]),
    unit=st.sampled_from([1e-6, 1.0, 1e6]),
    penalised=st.booleans(),
    zeros=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_objective_never_rises(
    seed: int,
    n: int,
    f: int,
    k: int,
    density: float,
    unit: float,
    penalised: bool,
    zeros: bool,
    dtype: torch.dtype,
) -> None:
    X, W, H = counts(n, f, k, density=density, dtype=dtype, seed=seed)
    X, W, H = X * unit, W * unit**0.5, H * unit**0.5
    if zeros:
        W[W < 0.5 * unit**0.5], H[H < 0.7 * unit**0.5] = 0, 0
    penalties = {name: 3 * p for name, p in PENALTIES.items()} if penalised else NO_PENALTIES
    floor = ops.EPSILON * max(float(X.double().mean()), 1e-3 * unit)
    sparse, before = csr(X), objective(X, W, H, penalties, floor)
    # Sums of X log(X / W H), of which little is left near a fit.
    rounding = (
        8 * torch.finfo(dtype).eps * float(X.double().sum() + (W.double() @ H.double()).sum())
    )
    for _ in range(12):
        W, H, _ = ops.nnmf_cd(sparse, W, H, n_iter=1, floor=floor, **penalties)
        assert W.isfinite().all()
        assert H.isfinite().all()
        assert min(W.min(), H.min()) >= 0
        after = objective(X, W, H, penalties, floor)
        assert after <= before + rounding
        before = after


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_tiny_and_huge_units(device: str, dtype: torch.dtype, unit: float) -> None:
    X, W, H = counts(45, 83, 6, dtype=dtype, device=device)
    X, W, H = X * unit, W * unit**0.5, H * unit**0.5
    options = {"n_iter": 2, "floor": reference.EPSILON * float(X.double().mean())}
    got = ops.nnmf_cd(csr(X), W, H, **options)
    true = truth(X, W, H, torch.float64, **options)
    for found, want in zip(got[:2], true[:2], strict=True):
        rtol = 1e-3 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(found.double(), want[0], rtol=0, atol=rtol * float(want.max()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_of_opposite_scales_stay_finite_and_fall(device: str, dtype: torch.dtype) -> None:
    X, W, H = counts(15, 23, 4, dtype=dtype, device=device)
    W, H = W * 1e25, H * 1e-25  # the square of h / wh is below what float32 holds
    before = objective(X, W, H, NO_PENALTIES)
    W, H, _ = ops.nnmf_cd(csr(X), W, H, n_iter=1)
    assert W.isfinite().all()
    assert H.isfinite().all()
    assert objective(X, W, H, NO_PENALTIES) < before


@pytest.mark.parametrize("device", DEVICES)
def test_zeros_of_factors_and_of_X(device: str) -> None:
    X, W, H = counts(14, 19, 4, device=device)
    X[:, 2] = 0
    W[2], H[1], H[:, 5] = 0, 0, 0
    W[:, 3] = 0
    got = ops.nnmf_cd(csr(X), W, H, n_iter=1)
    assert (got[0][1, [0, 2, 3]] == 0).all()  # an empty row of X
    assert (got[1][:, 2] == 0).all()  # and an empty column
    assert (got[0][2] > 0).any()
    assert (got[0][:, 3] > 0).any()
    assert (got[1][:, 5] > 0).any()
    assert torch.equal(got[0][:, 1], W[:, 1])  # nothing depends on it before H has a row there
    assert (got[1][1] > 0).any()
    assert_right(X, W, H, got, n_iter=1)
    nothing = ops.nnmf_cd(csr(X), torch.zeros_like(W), torch.zeros_like(H), n_iter=2)
    assert all((t == 0).all() for t in nothing[:2])
    empty = ops.nnmf_cd(csr(torch.zeros_like(X)), W, H, n_iter=1, compute_divergence=True)
    # A component that one factor does not have costs nothing in the other.
    assert float(empty[2]) == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("penalties", [NO_PENALTIES, PENALTIES], ids=["free", "penalised"])
def test_components_that_neither_factor_has_stay_so(
    device: str, penalties: dict[str, float]
) -> None:
    X, W, H = counts(14, 19, 5, device=device)
    alone = ops.nnmf_cd(csr(X), W[:, :3], H[:3], n_iter=3, **penalties)
    W[:, 3:], H[3:] = 0, 0
    got = ops.nnmf_cd(csr(X), W, H, n_iter=3, **penalties)
    assert not got[0][:, 3:].any()
    assert not got[1][3:].any()
    torch.testing.assert_close(got[0][:, :3], alone[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got[1][:3], alone[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_explicit_zeros_of_X_change_nothing(device: str) -> None:
    X, W, H = counts(31, 47, 5, device=device)
    full = torch.sparse_csr_tensor(
        torch.arange(0, X.numel() + 1, X.shape[1]),
        torch.arange(X.shape[1]).repeat(len(X)),
        X.reshape(-1).cpu(),
        size=X.shape,
        check_invariants=True,
    ).to(device)
    got, want = (ops.nnmf_cd(one, W, H, n_iter=2) for one in (full, csr(X)))
    for a, b in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "f", "k"), [(0, 4, 2), (4, 0, 2), (4, 3, 0)])
def test_empty_X(device: str, n: int, f: int, k: int) -> None:
    X, W, H = counts(n, f, k, device=device)
    got = ops.nnmf_cd(csr(X), W, H, n_iter=2, compute_divergence=True)
    assert got[0].shape == (n, k)
    assert got[1].shape == (k, f)
    X, W, H = counts(5, 4, 2, device=device, batch=0)
    assert ops.nnmf_cd(csr(X), W, H, n_iter=1)[0].shape == W.shape


@pytest.mark.parametrize("device", DEVICES)
def test_no_argument_is_changed(device: str) -> None:
    X, W, H = counts(20, 30, 4, device=device)
    sparse = csr(X)
    kept = [t.clone() for t in (X, W, H)]
    same = ops.nnmf_cd(sparse, W, H, n_iter=0)
    ops.nnmf_cd(sparse, W, H, n_iter=2)
    assert all(torch.equal(a, b) for a, b in zip((sparse.to_dense(), W, H), kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(same[:2], (W, H), strict=True))
    assert same[2].isnan()


def test_wrong_arguments_are_refused() -> None:
    X, W, H = counts(9, 14, 3)
    sparse, other = csr(X), csr(X.mT.contiguous())
    with pytest.raises(TypeError, match=r"sparse_csr only, got a dense tensor: use X.to_sp"):
        ops.nnmf_cd(X, W, H, n_iter=1)
    with pytest.raises(TypeError, match="transposed must be torch.sparse_csr, as X, got"):
        ops.nnmf_cd(sparse, W, H, n_iter=1, transposed=X.mT)
    with pytest.raises(ValueError, match="transposed must have shape"):
        ops.nnmf_cd(sparse, W, H, n_iter=1, transposed=sparse)
    with pytest.raises(TypeError, match="transposed must be float64, got torch.float32"):
        ops.nnmf_cd(sparse, W, H, n_iter=1, transposed=csr(X.mT.contiguous().float()))
    with pytest.raises(TypeError, match="indices of X's type, torch.int64, got torch.int32"):
        ops.nnmf_cd(sparse, W, H, n_iter=1, transposed=csr(X.mT.contiguous(), torch.int32))
    fewer = X.mT.contiguous().clone()
    fewer[0, 3] = 0
    with pytest.raises(ValueError, match="as many values as X"):
        ops.nnmf_cd(sparse, W, H, n_iter=1, transposed=csr(fewer))
    with pytest.raises(ValueError, match="n_inner must be >= 1, got 0"):
        ops.nnmf_cd(sparse, W, H, n_iter=1, n_inner=0)
    with pytest.raises(ValueError, match="n_fixed must be at most n_components = 3, got 4"):
        ops.nnmf_cd(sparse, W, H, n_iter=1, n_fixed=4)
    with pytest.raises(ValueError, match="l1_reg_W must be a finite number >= 0"):
        ops.nnmf_cd(sparse, W, H, n_iter=1, l1_reg_W=-1.0)
    with pytest.raises(ValueError, match="floor must be a positive normal number"):
        ops.nnmf_cd(sparse, W, H, n_iter=1, floor=0.0)
    W.requires_grad_()
    with pytest.raises(RuntimeError, match="nnmf_sparse_cd is not differentiable"):
        ops.nnmf_cd(sparse, W, H, n_iter=1, transposed=other)[0].sum().backward()


@pytest.mark.parametrize("update_H", [True, False])
def test_the_op_is_well_behaved(update_H: bool) -> None:
    X, W, H = counts(9, 14, 3, batch=2)
    sparse, other = csr(X), csr(X.mT.contiguous())
    parts = [
        t.clone()
        for one in (sparse, other)
        for t in (one.crow_indices(), one.col_indices(), one.values())
    ]
    options = {"n_iter": 2, "compute_divergence": True, "update_H": update_H}
    torch.library.opcheck(torch.ops.nnmf_cuda.nnmf_sparse_cd, (*parts, W, H), options)


def test_the_reference_path_has_it() -> None:
    X, W, H = counts(20, 30, 4)
    with ops.reference_path():
        got = ops.nnmf_cd(csr(X), W, H, n_iter=2, compute_divergence=True)
    assert_right(X, W, H, got, n_iter=2, compute_divergence=True)
