"""The factorisations with weights and masks: against scikit-learn, SciPy and NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.decomposition import non_negative_factorization
from sklearn.decomposition._nmf import _beta_divergence
from torch import Tensor

from nnmf_cuda import ops, reference
from tests.helpers import (
    AWKWARD_SHAPES,
    BETA_LOSSES,
    DEVICES,
    LAYOUTS,
    assert_as_accurate_as_torch,
    factorisation,
    laid_out,
    random_problem,
    wide,
)

SLACK = {torch.float32: 5e-6, torch.float64: 5e-14}
KINDS = ["bits", "numbers"]
PENALTIES = {"l1_reg_W": 0.3, "l1_reg_H": 0.1, "l2_reg_W": 0.2, "l2_reg_H": 0.7}

pytestmark = pytest.mark.parametrize("device", DEVICES)


def weights_of(
    kind: str, *shape: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return weights as the ops take them and as numbers; about 30 % are 0."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(*shape, generator=generator, dtype=torch.float64)
    if kind == "bits":
        return ops.pack_mask(drawn > 0.3), (drawn > 0.3).double()
    numbers = torch.where(drawn > 0.3, 3 * drawn, 0).to(dtype)
    return numbers, numbers.double()


def solver_of(name: str) -> tuple[Callable[..., tuple[Tensor, ...]], dict[str, float]]:
    if name == "hals":
        return ops.nnmf_hals, {}
    return ops.nnmf_mu, {"beta_loss": float(name)}


SOLVERS = ["hals", "2.0", "1.0", "0.0", "0.5", "3.0"]


# Masks as bits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (3, 8), (5, 9), (2, 3, 17), (4, 0), (0, 5)])
def test_pack_mask_is_that_of_numpy(device: str, shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(len(shape)).random(shape) > 0.5
    want = np.packbits(mask, axis=-1, bitorder="little")
    got = ops.pack_mask(torch.from_numpy(mask).to(device))
    assert got.dtype == torch.uint8
    np.testing.assert_array_equal(got.cpu().numpy(), want)


def test_pack_mask_says_what_is_wrong(device: str) -> None:
    with pytest.raises(TypeError, match="mask must be bool, got torch.float32"):
        ops.pack_mask(torch.ones(2, 3, device=device))
    with pytest.raises(ValueError, match="mask must have at least one dimension"):
        ops.pack_mask(torch.tensor(True, device=device))


# Oracles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
def test_weights_of_samples_and_features_are_repetitions(device: str, beta_loss: float) -> None:
    """A row of weight 3 is three rows to scikit-learn, a column of weight 2 two columns."""
    X, W, H = factorisation(n=7, f=10, k=3, seed=2)
    rows, columns = np.array([1, 3, 2, 1, 1, 4, 2]), np.array([2, 1, 1, 3, 1, 1, 2, 1, 1, 1])
    weights = torch.from_numpy(np.outer(rows, columns).astype(np.float64))
    got = ops.nnmf_mu(
        *(t.to(device) for t in (X, W, H)),
        beta_loss=beta_loss,
        n_iter=6,
        weights=weights.to(device),
    )
    want_W, want_H, _ = non_negative_factorization(
        X.numpy().repeat(rows, 0).repeat(columns, 1),
        W.numpy().repeat(rows, 0),
        H.numpy().repeat(columns, 1),
        n_components=3,
        init="custom",
        solver="mu",
        beta_loss=beta_loss,
        tol=0,
        max_iter=6,
    )
    first_rows, first_columns = np.cumsum(rows) - rows, np.cumsum(columns) - columns
    np.testing.assert_allclose(got[0].cpu().numpy(), want_W[first_rows], rtol=1e-9)
    np.testing.assert_allclose(got[1].cpu().numpy(), want_H[:, first_columns], rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
def test_divergence_is_scikit_learns_of_the_entries_seen(
    device: str, kind: str, beta_loss: float
) -> None:
    X, W, H = factorisation(n=13, f=37, k=3, seed=4)
    weights, V = weights_of(kind, 13, 37)
    WH = (W @ H).numpy()
    want = sum(
        v * _beta_divergence(np.array([[x]]), np.array([[wh]]), np.ones((1, 1)), beta_loss)
        for v, x, wh in zip(V.numpy().ravel(), X.numpy().ravel(), WH.ravel(), strict=True)
        if v > 0
    )
    got = ops.nnmf_divergence(
        *(t.to(device) for t in (X, W, H)), beta_loss=beta_loss, weights=weights.to(device)
    )
    assert got.item() == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_hals_goes_to_least_squares_of_the_entries_seen(device: str, kind: str) -> None:
    X, W, H = factorisation(n=9, f=40, k=4, seed=6)
    weights, V = weights_of(kind, 9, 40, seed=3)
    got, _, _ = ops.nnmf_hals(
        *(t.to(device) for t in (X, W, H)),
        n_iter=1,
        n_inner=3000,
        update_H=False,
        weights=weights.to(device),
    )
    root = V.sqrt().numpy()
    for row in range(9):
        want, _ = nnls((root[row] * H.numpy()).T, root[row] * X[row].numpy())
        np.testing.assert_allclose(got[row].cpu().numpy(), want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta_loss", [-1.2, 0.0, 0.2, 1.0, 2.0, 2.5, "hals"])
def test_objective_never_rises(device: str, kind: str, beta_loss: float | str) -> None:
    X, W, H = (t.to(device) for t in factorisation(seed=8))
    weights = weights_of(kind, *X.shape, seed=8)[0].to(device)
    solver, options = solver_of(str(beta_loss))
    previous = torch.inf
    for _ in range(20):
        W, H, divergence = solver(
            X, W, H, n_iter=1, compute_divergence=True, weights=weights, **options
        )
        assert divergence.item() <= previous * (1 + 1e-12)
        previous = divergence.item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_weights_of_one_change_nothing(device: str, kind: str, solver: str) -> None:
    X, W, H = (t.to(device) for t in factorisation(n=45, f=131, k=7, seed=10))
    ones = torch.ones(45, 131, dtype=torch.float64, device=device)
    weights = ops.pack_mask(ones > 0) if kind == "bits" else ones
    run, options = solver_of(solver)
    options = {**options, **PENALTIES, "n_iter": 3, "compute_divergence": True}
    got = run(X, W, H, weights=weights, **options)
    want = run(X, W, H, **options)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


# Nothing leaks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_what_is_masked_does_not_matter(
    device: str, kind: str, solver: str, dtype: torch.dtype
) -> None:
    X, W, H = random_problem(45, 131, 7, dtype=dtype, seed=12)
    X = X.clamp_min(1 if dtype == torch.uint8 else 1e-3)
    weights, V = weights_of(kind, 45, 131, dtype=W.dtype, seed=5)
    run, options = solver_of(solver)
    results = []
    fillers = [0, 1, 255] if dtype == torch.uint8 else [0, 1e30, torch.inf, -1, torch.nan]
    for filler in fillers:
        hidden = torch.where(V != 0, X, torch.tensor(filler, dtype=X.dtype))
        results.append(
            run(
                *(t.to(device) for t in (hidden, W, H)),
                n_iter=3,
                compute_divergence=True,
                weights=weights.to(device),
                **options,
            )
        )
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
    assert all(t.isfinite().all() for t in results[0])


def test_rows_and_columns_of_which_nothing_is_seen(device: str) -> None:
    X, W, H = (t.to(device) for t in factorisation(n=20, f=30, k=3))
    mask = torch.ones(20, 30, dtype=torch.bool, device=device)
    mask[4], mask[:, 7] = False, False
    bits = ops.pack_mask(mask)
    new_W, new_H, _ = ops.nnmf_mu(X, W, H, n_iter=2, weights=bits)
    assert (new_W[4] == 0).all()
    assert (new_H[:, 7] == 0).all()
    assert (new_W[5] > 0).all()
    kept_W, kept_H, _ = ops.nnmf_hals(X, W, H, n_iter=2, weights=bits)
    assert torch.equal(kept_W[4], W[4])
    assert torch.equal(kept_H[:, 7], H[:, 7])


# Against float64 --------------------------------------------------------------------------------


def assert_right(
    device: str,
    solver: str,
    X: Tensor,
    W: Tensor,
    H: Tensor,
    weights: Tensor,
    V: Tensor,
    **options: object,
) -> None:
    """Compare with the reference in float64, and with the reference in the dtype of W."""
    run, loss = solver_of(solver)
    theirs = reference.nnmf_hals if solver == "hals" else reference.nnmf_mu
    options = {"n_iter": 3, **loss, **options}
    placed = (t.to(device) for t in (X, W, H))
    got = run(*placed, weights=weights.to(device), compute_divergence=True, **options)
    lead = W.shape[:-2]
    factors = [t if t.dim() == 3 else t[None] for t in (W, H)]
    plain = theirs(X, *factors, weights=V.to(W.dtype), **options)
    truth = theirs(wide(X), *(t.double() for t in factors), weights=V, **options)
    for found, torchs, true in zip(got[:2], plain[:2], truth[:2], strict=True):
        assert found.dtype == W.dtype
        assert found.shape[:-2] == lead
        found = found.cpu().reshape(true.shape)
        # What the residual of coordinate descent rounds is divided by curvatures that may be small,
        # again and again where a row has hardly more entries than there are components.
        hals = 1e-3 if W.dtype == torch.float32 else 1e-7
        slack = hals if solver == "hals" else SLACK[W.dtype]
        assert_as_accurate_as_torch(found, torchs, true, slack=slack)
    ends = [t.cpu().double().reshape(s.shape) for t, s in zip(got[:2], truth[:2], strict=True)]
    beta_loss = float(loss.get("beta_loss", 2.0))
    value = reference.nnmf_divergence(wide(X), *ends, V, beta_loss=beta_loss)
    rtol, unit = (2e-5, 1.2e-7) if W.dtype == torch.float32 else (1e-9, 2.3e-16)
    atol = unit * W.shape[-2] * H.shape[-1]
    torch.testing.assert_close(got[2].cpu().reshape(-1), value, rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["1.0", "2.0", "hals"])
@pytest.mark.parametrize(("n", "f", "k"), [*AWKWARD_SHAPES, (300, 40, 9), (5, 70, 300)])
def test_of_awkward_shapes(device: str, kind: str, solver: str, n: int, f: int, k: int) -> None:
    X, W, H = random_problem(n, f, k, dtype=torch.float64, seed=n + f + k)
    assert_right(device, solver, X, W, H, *weights_of(kind, n, f, seed=n))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("k", [5, 33])
def test_of_any_divergence_with_penalties(
    device: str, kind: str, solver: str, dtype: torch.dtype, k: int
) -> None:
    X, W, H = random_problem(37, 131, k, dtype=dtype, seed=k)
    X = X.clamp_min(1 if dtype == torch.uint8 else 1e-3)
    weights, V = weights_of(kind, 37, 131, dtype=W.dtype, seed=k)
    assert_right(device, solver, X, W, H, weights, V, n_fixed=2, **PENALTIES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["1.0", "2.0", "0.5", "hals"])
@pytest.mark.parametrize(("n", "f"), [(1031, 257), (263, 2053)])
def test_of_several_blocks_along_each_axis(
    device: str, kind: str, solver: str, n: int, f: int
) -> None:
    X, W, H = random_problem(n, f, 15, dtype=torch.float32, seed=3)
    weights, V = weights_of(kind, n, f, dtype=torch.float32, seed=3)
    assert_right(device, solver, X.clamp_min(1e-3), W, H, weights, V)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["1.0", "1.5", "hals"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("own", ["nothing", "X", "X and weights"])
def test_of_any_layout_in_a_batch(
    device: str, kind: str, solver: str, layout: str, own: str
) -> None:
    X, W, H = random_problem(45, 131, 7, dtype=torch.float64, batch=3, own_X=own != "nothing")
    lead = (3,) if own == "X and weights" else ()
    weights, V = weights_of(kind, *lead, 45, 131, seed=9)
    placed = [laid_out(t.to(device), layout) for t in (X, W, H, weights)]
    assert_right(device, solver, *placed, V)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta_loss", [1.0, 2.0, 0.5])
def test_problems_that_are_not_active_stay(device: str, kind: str, beta_loss: float) -> None:
    X, W, H = (t.to(device) for t in factorisation(batch=4))
    weights = weights_of(kind, *X.shape)[0].to(device)
    active = torch.tensor([True, False, False, True], device=device)
    options = {"beta_loss": beta_loss, "n_iter": 2, "weights": weights}
    got = ops.nnmf_mu(X, W, H, active=active, **options)
    every = ops.nnmf_mu(X, W, H, **options)
    for new, old, moved in zip(got[:2], (W, H), every[:2], strict=True):
        assert torch.equal(new[1:3], old[1:3])
        torch.testing.assert_close(new[[0, 3]], moved[[0, 3]], rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["hals", "1.0", "2.0"])
def test_H_is_kept_where_it_is_asked_for(device: str, kind: str, solver: str) -> None:
    X, W, H = random_problem(45, 131, 7, dtype=torch.float64)
    weights, V = weights_of(kind, 45, 131)
    assert_right(device, solver, X, W, H, weights, V, update_H=False)
    run, options = solver_of(solver)
    placed = [t.to(device) for t in (X, W, H)]
    _, kept, nothing = run(*placed, n_iter=2, update_H=False, weights=weights.to(device), **options)
    assert torch.equal(kept, placed[2])
    assert nothing.isnan()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("n", "f", "k"), [(0, 4, 2), (4, 0, 2), (4, 3, 0)])
def test_of_nothing(device: str, kind: str, solver: str, n: int, f: int, k: int) -> None:
    X, W, H = (t.to(device) for t in factorisation(n=n, f=f, k=k))
    run, options = solver_of(solver)
    weights = weights_of(kind, n, f)[0].to(device)
    new_W, new_H, _ = run(X, W, H, n_iter=2, weights=weights, **options)
    assert new_W.shape == (n, k)
    assert new_H.shape == (k, f)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["hals", "1.0", "0.5"])
def test_the_same_bits_again(device: str, kind: str, solver: str) -> None:
    X, W, H = (t.to(device) for t in random_problem(259, 515, 15, seed=1))
    weights = weights_of(kind, 259, 515, dtype=torch.float32)[0].to(device)
    run, options = solver_of(solver)
    first, again = (
        run(X, W, H, n_iter=3, compute_divergence=True, weights=weights, **options)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# What torch asks of an op, and errors -----------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(device: str, kind: str) -> None:
    X, W, H = (t.to(device) for t in factorisation(n=5, f=9, k=2, batch=2))
    args = (X, W, H, weights_of(kind, 5, 9)[0].to(device))
    checks = {
        "nnmf_weighted_mu": {"beta_loss": 1.0, "n_iter": 2, "compute_divergence": True},
        "nnmf_weighted_hals": {"n_iter": 2, "compute_divergence": True},
        "nnmf_weighted_divergence": {"beta_loss": 0.5},
    }
    for name, options in checks.items():
        torch.library.opcheck(getattr(torch.ops.nnmf_cuda, name).default, args, options)


def test_backward_raises(device: str) -> None:
    X, W, H = (t.to(device) for t in factorisation())
    weights = torch.ones_like(X)
    value = ops.nnmf_divergence(X, W.requires_grad_(), H, weights=weights)
    with pytest.raises(RuntimeError, match="nnmf_weighted_divergence is not differentiable"):
        value.backward()


@pytest.mark.parametrize("call", [ops.nnmf_mu, ops.nnmf_hals, ops.nnmf_divergence])
def test_wrong_weights_are_named(
    device: str, call: Callable[..., Tensor | tuple[Tensor, ...]]
) -> None:
    X, W, H = (t.to(device) for t in factorisation(n=4, f=9, k=2))
    options = {} if call is ops.nnmf_divergence else {"n_iter": 1}
    ones = torch.ones_like(X)
    with pytest.raises(TypeError, match=r"weights must be bits or numbers.*ops.pack_mask\(mask\)"):
        call(X, W, H, weights=ones > 0, **options)
    with pytest.raises(TypeError, match="weights must be float64 or uint8, got torch.float32"):
        call(X, W, H, weights=ones.float(), **options)
    with pytest.raises(ValueError, match=r"weights must have shape .* = \(4, 9\), got \(4, 8\)"):
        call(X, W, H, weights=ones[:, 1:], **options)
    with pytest.raises(ValueError, match=r"ceil\(n_features / 8\)\) = \(4, 2\), got \(4, 9\)"):
        call(X, W, H, weights=ones.to(torch.uint8), **options)
    with pytest.raises(ValueError, match="weights must have 2 dimensions"):
        call(X, W, H, weights=ones[None], **options)
    sparse = X.to_sparse_csr()
    with pytest.raises(TypeError, match=r"weights need dense X.*use X.to_dense\(\)"):
        call(sparse, W, H, weights=ones, **options)
