from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import non_negative_factorization
from torch import Tensor

from nnmf_cuda import ops, reference
from tests.helpers import BETA_LOSSES, DEVICES, assert_as_accurate_as_torch, factorisation

SLACK = {torch.float32: 2e-6, torch.float64: 1e-14}
"""A few units in the last place, relative to the largest entry."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
def test_nnmf_mu_matches_float64_reference(
    device: str, dtype: torch.dtype, beta_loss: float
) -> None:
    X, W, H = factorisation(n=33, f=130, k=5, dtype=dtype, device=device)
    penalties = {"l1_reg_W": 0.3, "l1_reg_H": 0.1, "l2_reg_W": 0.2, "l2_reg_H": 0.7}
    got = ops.nnmf_mu(X, W, H, beta_loss=beta_loss, n_iter=3, **penalties)
    plain, truth = (
        reference.nnmf_mu(
            X.to(d), W.to(d)[None], H.to(d)[None], beta_loss=beta_loss, n_iter=3, **penalties
        )
        for d in (dtype, torch.float64)
    )
    for i in (0, 1):
        assert got[i].dtype == dtype
        assert_as_accurate_as_torch(got[i], plain[i][0], truth[i][0], slack=SLACK[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("n", "f", "k"), [(1, 1, 1), (3, 1, 2), (1, 129, 3), (31, 33, 17), (129, 7, 40)]
)
def test_nnmf_mu_awkward_shapes(device: str, n: int, f: int, k: int) -> None:
    X, W, H = factorisation(n=n, f=f, k=k, device=device)
    got = ops.nnmf_mu(X, W, H, n_iter=2, compute_divergence=True)
    want = reference.nnmf_mu(X, W[None], H[None], beta_loss=1.0, n_iter=2, compute_divergence=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "f", "k"), [(0, 4, 2), (4, 0, 2), (4, 3, 0)])
def test_nnmf_mu_empty(device: str, n: int, f: int, k: int) -> None:
    X, W, H = factorisation(n=n, f=f, k=k, device=device)
    W1, H1, _ = ops.nnmf_mu(X, W, H, n_iter=2)
    assert W1.shape == (n, k)
    assert H1.shape == (k, f)
    X, W, H = factorisation(batch=0, device=device)
    assert ops.nnmf_mu(X, W, H, n_iter=1)[0].shape == W.shape


@pytest.mark.parametrize(("beta_loss", "name"), [(2.0, "frobenius"), (1.0, "kullback-leibler")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nnmf_mu_reaches_the_objective_of_scikit_learn(
    beta_loss: float, name: str, dtype: torch.dtype
) -> None:
    X, W, H = factorisation(n=60, f=90, k=6, dtype=dtype, seed=3)
    X[:, ::7] = 0
    W1, H1, _ = ops.nnmf_mu(X, W, H, beta_loss=name, n_iter=200)
    want_W, want_H, _ = non_negative_factorization(
        X.numpy(),
        W.numpy().copy(),
        H.numpy().copy(),
        n_components=6,
        init="custom",
        solver="mu",
        beta_loss=name,
        tol=0,
        max_iter=200,
    )
    want = ops.nnmf_divergence(X, torch.tensor(want_W), torch.tensor(want_H), beta_loss=name)
    got = ops.nnmf_divergence(X, W1, H1, beta_loss=name)
    assert got.item() == pytest.approx(want.item(), rel=1e-4)


@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
def test_nnmf_mu_equals_scikit_learn_entry_by_entry(beta_loss: float) -> None:
    X, W, H = factorisation(n=20, f=30, k=4, seed=5)
    options = {"alpha_W": 0.01, "alpha_H": 0.02, "l1_ratio": 0.5}
    W1, H1, _ = ops.nnmf_mu(
        X,
        W,
        H,
        beta_loss=beta_loss,
        n_iter=7,
        l1_reg_W=30 * 0.01 * 0.5,
        l2_reg_W=30 * 0.01 * 0.5,
        l1_reg_H=20 * 0.02 * 0.5,
        l2_reg_H=20 * 0.02 * 0.5,
    )
    want_W, want_H, _ = non_negative_factorization(
        X.numpy(),
        W.numpy().copy(),
        H.numpy().copy(),
        n_components=4,
        init="custom",
        solver="mu",
        beta_loss=beta_loss,
        tol=0,
        max_iter=7,
        **options,
    )
    np.testing.assert_allclose(W1.numpy(), want_W, rtol=1e-9)
    np.testing.assert_allclose(H1.numpy(), want_H, rtol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta_loss", [-1.2, 0.0, 0.2, 1.0, 2.0, 2.5])
def test_nnmf_mu_objective_never_rises(device: str, beta_loss: float) -> None:
    X, W, H = factorisation(device=device)
    previous = torch.inf
    for _ in range(20):
        W, H, divergence = ops.nnmf_mu(
            X, W, H, beta_loss=beta_loss, n_iter=1, compute_divergence=True
        )
        assert divergence.item() <= previous * (1 + 1e-12)
        previous = divergence.item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shared", [True, False])
def test_nnmf_mu_batch_equals_loop(device: str, shared: bool) -> None:
    X, W, H = factorisation(batch=3, device=device)
    if not shared:
        X = torch.stack([X, 2 * X, X + 1])
    batched = ops.nnmf_mu(X, W, H, n_iter=4, compute_divergence=True)
    for b in range(3):
        single = ops.nnmf_mu(X if shared else X[b], W[b], H[b], n_iter=4, compute_divergence=True)
        for got, want in zip(batched, single, strict=True):
            torch.testing.assert_close(got[b], want, rtol=1e-13, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta_loss", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("shared", [True, False])
def test_nnmf_mu_leaves_problems_that_are_not_active(
    device: str, beta_loss: float, shared: bool
) -> None:
    X, W, H = factorisation(batch=4, device=device)
    if not shared:
        X = torch.stack([X, 2 * X, X + 1, X.sqrt()])
    options = {"beta_loss": beta_loss, "n_iter": 3, "compute_divergence": True}
    active = torch.tensor([True, False, False, True], device=device)
    got = ops.nnmf_mu(X, W, H, active=active, **options)
    run = ops.nnmf_mu(X, W, H, **options)
    for updated, all_updated, given in zip(got, run, (W, H), strict=False):
        assert torch.equal(updated[1:3], given[1:3])
        torch.testing.assert_close(updated[::3], all_updated[::3], rtol=1e-13, atol=0)
    want = ops.nnmf_divergence(X, got[0], got[1], beta_loss=beta_loss)
    torch.testing.assert_close(got[2], want, rtol=1e-13, atol=0)
    nothing = ops.nnmf_mu(X, W, H, active=torch.zeros_like(active), **options)
    assert torch.equal(nothing[0], W)
    assert torch.equal(nothing[1], H)


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_mu_reads_uint8_as_pixels(device: str) -> None:
    X, W, H = factorisation(dtype=torch.float32, device=device)
    pixels = (X * 200).to(torch.uint8)
    got = ops.nnmf_mu(pixels, W, H, n_iter=3, compute_divergence=True)
    want = ops.nnmf_mu(pixels.float() / 255, W, H, n_iter=3, compute_divergence=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_mu_takes_transposed_and_sliced_input(device: str) -> None:
    X, W, H = factorisation(n=20, f=40, device=device)
    want = ops.nnmf_mu(X, W, H, n_iter=3)
    wide = torch.stack([X, X], -1).flatten(-2)
    got = ops.nnmf_mu(wide[:, ::2], W.T.contiguous().T, H.T.contiguous().T, n_iter=3)
    for a, b in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_mu_keeps_its_arguments_and_zeros(device: str) -> None:
    X, W, H = factorisation(device=device)
    W[2, 1] = H[0, 5] = 0
    before = [t.clone() for t in (X, W, H)]
    W1, H1, divergence = ops.nnmf_mu(X, W, H, n_iter=5)
    for tensor, kept in zip((X, W, H), before, strict=True):
        assert torch.equal(tensor, kept)
    assert W1[2, 1] == 0
    assert H1[0, 5] == 0
    assert (W1 >= 0).all()
    assert (H1 >= 0).all()
    assert divergence.isnan()


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_mu_with_fixed_H(device: str) -> None:
    X, W, H = factorisation(device=device)
    W1, H1, _ = ops.nnmf_mu(X, W, H, n_iter=5, update_H=False)
    assert torch.equal(H1, H)
    assert not torch.equal(W1, W)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
@pytest.mark.parametrize(("n", "f", "k"), [(7, 50, 3), (33, 130, 9), (2, 20, 40)])
def test_nnmf_mu_floor_makes_it_independent_of_units(
    device: str, dtype: torch.dtype, beta_loss: float, n: int, f: int, k: int
) -> None:
    X, W, H = factorisation(n=n, f=f, k=k, dtype=dtype, device=device)
    W[0], H[:, 3] = 0, 0  # W H is zero there, whatever the units are
    if beta_loss <= 0:
        W[0], H[:, 3] = 1e-6, 1e-6
    root = 2.0**-12  # of the units of X: a power of two rounds as 1 does
    options = {"beta_loss": beta_loss, "n_iter": 3, "compute_divergence": True}
    want = ops.nnmf_mu(X, W, H, **options)
    floor = root**2 * ops.EPSILON
    got = ops.nnmf_mu(root**2 * X, root * W, root * H, floor=floor, **options)
    rtol = 1e-4 if dtype == torch.float32 else 1e-12
    for ours, theirs in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(ours / root, theirs, rtol=rtol, atol=0)
    scale = root ** (2 * beta_loss)
    torch.testing.assert_close(got[2] / scale, want[2], rtol=rtol, atol=0)
    if beta_loss == 1:  # and without it the floor is in the way
        drowned = ops.nnmf_mu(root**2 * X, root * W, root * H, **options)
        assert not torch.allclose(drowned[0] / root, want[0], rtol=0.1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
@pytest.mark.parametrize("floor", [0.7, 1e-3])
def test_nnmf_mu_with_a_floor_matches_float64_reference(
    device: str, dtype: torch.dtype, beta_loss: float, floor: float
) -> None:
    X, W, H = factorisation(n=33, f=130, k=5, dtype=dtype, device=device)
    assert (W @ H < 0.7).any()
    got = ops.nnmf_mu(X, W, H, beta_loss=beta_loss, n_iter=3, floor=floor)
    plain, truth = (
        reference.nnmf_mu(
            X.to(d), W.to(d)[None], H.to(d)[None], beta_loss=beta_loss, n_iter=3, floor=floor
        )
        for d in (dtype, torch.float64)
    )
    for i in (0, 1):
        assert_as_accurate_as_torch(got[i], plain[i][0], truth[i][0], slack=SLACK[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("beta_loss", BETA_LOSSES)
@pytest.mark.parametrize(("k", "n_fixed"), [(1, 1), (5, 2), (9, 8), (19, 19), (40, 33)])
def test_nnmf_mu_holds_the_first_rows_of_H(
    device: str, dtype: torch.dtype, beta_loss: float, k: int, n_fixed: int
) -> None:
    floating = torch.float32 if dtype == torch.uint8 else dtype
    X, W, H = factorisation(n=33, f=131, k=k, batch=2, dtype=floating, device=device)
    H[:, 0, 3] = 1e-17  # held as it is, where an update would make it zero
    if dtype == torch.uint8:
        X = (X * 200).to(torch.uint8) + 1
    options = {"beta_loss": beta_loss, "l1_reg_H": 0.1, "l2_reg_H": 0.2, "l1_reg_W": 0.3}
    got = ops.nnmf_mu(X, W, H, n_iter=3, n_fixed=n_fixed, **options)
    assert torch.equal(got[1][:, :n_fixed], H[:, :n_fixed])
    # One iteration at a time, after each of which the held rows are put back.
    want_W, want_H = W, H
    for _ in range(3):
        want_W, want_H, _ = ops.nnmf_mu(X, want_W, want_H, n_iter=1, **options)
        want_H[:, :n_fixed] = H[:, :n_fixed]
    rtol = 1e-12 if floating == torch.float64 else 1e-5
    torch.testing.assert_close(got[0], want_W, rtol=rtol, atol=0)
    torch.testing.assert_close(got[1], want_H, rtol=rtol, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_mu_holds_rows_of_active_problems_and_in_long_tiles(device: str) -> None:
    X, W, H = factorisation(n=600, f=1100, k=6, batch=3, dtype=torch.float32, device=device)
    active = torch.tensor([True, False, True], device=device)
    options = {"n_iter": 2, "n_fixed": 4, "active": active}
    got = ops.nnmf_mu(X, W, H, **options)
    want = reference.nnmf_mu(X.double(), W.double(), H.double(), beta_loss=1.0, **options)
    for ours, theirs in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=0)
    assert torch.equal(got[1][:, :4], H[:, :4])
    assert torch.equal(got[0][1], W[1])


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_mu_recovers_planted_factors(device: str) -> None:
    _, W, H = factorisation(n=30, f=40, k=3, seed=1, device=device)
    _, W0, H0 = factorisation(n=30, f=40, k=3, seed=2, device=device)
    X = W @ H
    start = ops.nnmf_divergence(X, W0, H0)
    _, _, divergence = ops.nnmf_mu(X, W0, H0, n_iter=3000, compute_divergence=True)
    assert divergence < 1e-3 * start


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta_loss", [1.0, 2.0])
def test_nnmf_mu_survives_underflow(device: str, beta_loss: float) -> None:
    X = torch.full((4, 3), 1e-323, dtype=torch.float64, device=device)
    _, W, H = factorisation(n=4, f=3, k=2, device=device)
    for factor in ops.nnmf_mu(X, W, H, beta_loss=beta_loss, n_iter=3)[:2]:
        assert factor.isfinite().all()


def test_nnmf_mu_is_continuous_in_beta_loss() -> None:
    X, W, H = factorisation()
    for beta_loss in (0.0, 1.0, 2.0):
        at = ops.nnmf_mu(X, W, H, beta_loss=beta_loss, n_iter=3)[0]
        for nearby in (beta_loss - 1e-7, beta_loss + 1e-7):
            close = ops.nnmf_mu(X, W, H, beta_loss=nearby, n_iter=3)[0]
            torch.testing.assert_close(at, close, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 2])
def test_nnmf_mu_opcheck(device: str, dtype: torch.dtype, batch: int) -> None:
    X, W, H = factorisation(n=5, f=7, batch=batch, dtype=dtype, device=device)
    op, options = torch.ops.nnmf_cuda.nnmf_mu.default, {"beta_loss": 1.0, "n_iter": 2}
    torch.library.opcheck(op, (X, W, H), options | {"compute_divergence": True})
    active = torch.arange(batch, device=device) == 0
    more = {"compute_divergence": True, "floor": 0.5, "n_fixed": 1}
    more["precision"] = "tf32x3" if dtype == torch.float32 else "float32"
    torch.library.opcheck(op, (X, W, H, active), options | more)
    # Without the divergence the third result is NaN, which opcheck's comparison takes for a fault.
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(op, (X, W, H), options, test_utils=checks)


def test_nnmf_mu_opcheck_takes_any_strides() -> None:
    X, W, H = factorisation(n=5, f=7, batch=2)
    W, H = W.mT.contiguous().mT, H.mT.contiguous().mT
    options = {"beta_loss": 1.0, "n_iter": 1, "compute_divergence": True}
    torch.library.opcheck(torch.ops.nnmf_cuda.nnmf_mu.default, (X.T.contiguous().T, W, H), options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("beta_loss", "clamps_W", "clamps_H"),
    [(0.5, True, True), (1.0, False, True), (2.0, False, False)],
)
def test_nnmf_mu_clamps_tiny_factors_as_scikit_learn_does(
    device: str, beta_loss: float, clamps_W: bool, clamps_H: bool
) -> None:
    X, W, H = factorisation(n=6, f=9, k=3)
    W[1], H[:, 3] = 1e-17, 1e-17
    X[1], X[:, 3] = 1e-17, 1e-17  # so that the update keeps them small
    options = {"solver": "mu", "init": "custom", "tol": 0, "max_iter": 1, "n_components": 3}
    want = non_negative_factorization(
        X.numpy(), W.numpy().copy(), H.numpy().copy(), beta_loss=beta_loss, **options
    )
    got = ops.nnmf_mu(X.to(device), W.to(device), H.to(device), beta_loss=beta_loss, n_iter=1)
    for ours, theirs in zip(got[:2], want[:2], strict=True):
        np.testing.assert_allclose(ours.cpu().numpy(), theirs, rtol=1e-8, atol=0)
    assert bool((got[0][1] == 0).all()) == clamps_W
    assert bool((got[1][:, 3] == 0).all()) == clamps_H


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize(("n", "f", "k"), [(1, 1, 1), (33, 130, 5), (300, 700, 15), (40, 50, 20)])
def test_nnmf_mu_on_tensor_cores_is_as_exact_as_without(
    device: str, dtype: torch.dtype, n: int, f: int, k: int
) -> None:
    X, W, H = factorisation(n=n, f=f, k=k, dtype=torch.float32, device=device)
    if dtype == torch.uint8:
        X = (255 * X / X.max()).to(torch.uint8)
    got = ops.nnmf_mu(X, W, H, n_iter=3, precision="tf32x3")
    plain = ops.nnmf_mu(X, W, H, n_iter=3)
    exact = X.double() / 255 if dtype == torch.uint8 else X.double()
    truth = reference.nnmf_mu(exact, W.double()[None], H.double()[None], beta_loss=1.0, n_iter=3)
    for i in (0, 1):
        assert_as_accurate_as_torch(got[i], plain[i], truth[i][0], slack=SLACK[torch.float32])
        if device == "cpu":
            assert torch.equal(got[i], plain[i])


@pytest.mark.parametrize("way", ["sparse", "weights"])
def test_nnmf_mu_on_tensor_cores_is_for_dense_data(way: str) -> None:
    X, W, H = factorisation(dtype=torch.float32)
    options = {"weights": torch.ones_like(X)} if way == "weights" else {}
    X = X.to_sparse_csr() if way == "sparse" else X
    with pytest.raises(ValueError, match="'tf32x3' is for dense X without mask or weights; use"):
        ops.nnmf_mu(X, W, H, n_iter=1, precision="tf32x3", **options)


@pytest.mark.parametrize("serves", ["kernel", "reference"])
def test_the_op_itself_knows_precisions(serves: str) -> None:
    op, options = torch.ops.nnmf_cuda.nnmf_mu.default, {"beta_loss": 1.0, "n_iter": 1}
    X, W, H = factorisation(batch=1, dtype=torch.float32)
    call = reference.nnmf_mu if serves == "reference" else op
    with pytest.raises((RuntimeError, ValueError), match="precision must be .*got 'half'"):
        call(X, W, H, precision="half", **options)


def test_nnmf_mu_backward_raises() -> None:
    X, W, H = factorisation()
    out, _, _ = ops.nnmf_mu(X.requires_grad_(), W, H, n_iter=1)
    with pytest.raises(RuntimeError, match="nnmf_mu is not differentiable"):
        out.sum().backward()


def test_nnmf_mu_compiles_without_graph_breaks() -> None:
    X, W, H = factorisation()
    compiled = torch.compile(ops.nnmf_mu, fullgraph=True, backend="aot_eager")
    want = ops.nnmf_mu(X, W, H, n_iter=2)
    torch.testing.assert_close(compiled(X, W, H, n_iter=2)[0], want[0])


def _bad(**changes: object) -> dict[str, object]:
    X, W, H = factorisation()
    return {"X": X, "W": W, "H": H, "n_iter": 1} | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"X": np.ones((31, 129))}, TypeError, "X must be a torch.Tensor, got ndarray"),
        ({"X": torch.ones(31, 129).to_sparse()}, TypeError, "X must be dense"),
        ({"X": torch.ones(31, 129, dtype=torch.int32)}, TypeError, "X must be float64 or uint8"),
        ({"W": torch.ones(31, 3, dtype=torch.float16)}, TypeError, "W must be float32 or float64"),
        ({"H": torch.ones(3, 129)}, TypeError, "H must be float64, got torch.float32"),
        ({"W": torch.ones(31, dtype=torch.float64)}, ValueError, "W must have 2 or 3 dimensions"),
        (
            {"W": torch.ones(30, 3, dtype=torch.float64)},
            ValueError,
            r"W must have shape .*\(31, 3\)",
        ),
        (
            {"H": torch.ones(2, 129, dtype=torch.float64)},
            ValueError,
            r"H must have shape .*\(3, 129\)",
        ),
        ({"H": torch.ones(1, 3, 129, dtype=torch.float64)}, ValueError, "H must have 2 dimensions"),
        ({"n_iter": -1}, ValueError, "n_iter must be >= 0, got -1"),
        ({"n_iter": 1.5}, TypeError, "n_iter must be an integer >= 0, got 1.5"),
        ({"beta_loss": None}, TypeError, "beta_loss must be a number or a name, got None"),
        ({"l1_reg_W": -0.5}, ValueError, "l1_reg_W must be a finite number >= 0, got -0.5"),
        ({"beta_loss": "euclid"}, ValueError, "beta_loss must be a number or one of 'frobenius'"),
        ({"beta_loss": float("nan")}, ValueError, "beta_loss must be finite"),
        ({"floor": 0.0}, ValueError, r"floor must be .* float64, 2.23e-308 or more, got 0.0"),
        ({"floor": float("nan")}, ValueError, "floor must be a positive normal number"),
        ({"floor": float("inf")}, ValueError, "floor must be a positive normal number"),
        ({"n_fixed": -1}, ValueError, "n_fixed must be >= 0, got -1"),
        ({"n_fixed": 4}, ValueError, "n_fixed must be at most n_components = 3, got 4"),
        ({"n_fixed": True}, TypeError, "n_fixed must be an integer >= 0, got True"),
        ({"precision": "tf32"}, ValueError, "precision must be one of 'float32', 'tf32x3', got"),
        ({"precision": "tf32x3"}, ValueError, "float32 factors, got float64; use float32"),
        (
            {
                "precision": "tf32x3",
                "X": torch.ones(31, 129),
                "W": torch.ones(31, 3),
                "H": torch.ones(3, 129),
                "beta_loss": 2,
            },
            ValueError,
            r"'tf32x3' is for beta_loss='kullback-leibler' \(1\), got 2; use precision='float32'",
        ),
    ],
)
def test_nnmf_mu_errors(changes: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, Tensor] = _bad(**changes)  # type: ignore[assignment]
    with pytest.raises(error, match=message):
        ops.nnmf_mu(**arguments)


def test_nnmf_mu_floor_is_a_number_of_the_factors_type() -> None:
    X, W, H = factorisation()
    ops.nnmf_mu(X, W, H, n_iter=1, floor=1e-40)
    with pytest.raises(ValueError, match=r"number of float32, 1.18e-38 or more, got 1e-40: scale"):
        ops.nnmf_mu(X.float(), W.float(), H.float(), n_iter=1, floor=1e-40)


@pytest.mark.parametrize(
    ("active", "error", "message"),
    [
        ([True, False], TypeError, "active must be a torch.Tensor, got list"),
        (torch.ones(3), TypeError, "active must be bool, got torch.float32"),
        (
            torch.ones(2, dtype=torch.bool),
            ValueError,
            r"active must have shape .*\(3,\), got",
        ),
    ],
)
def test_nnmf_mu_active_errors(active: Tensor, error: type[Exception], message: str) -> None:
    X, W, H = factorisation(batch=3)
    with pytest.raises(error, match=message):
        ops.nnmf_mu(X, W, H, n_iter=1, active=active)
    with pytest.raises(ValueError, match=r"active is for a batch.*got \(31, 3\)"):
        ops.nnmf_mu(X, W[0], H[0], n_iter=1, active=torch.ones(1, dtype=torch.bool))


def test_nnmf_mu_batched_X_must_match_the_batch_of_W() -> None:
    X, W, H = factorisation(batch=3)
    with pytest.raises(ValueError, match=r"X must have shape .*\(3, 31, 129\), got \(2, 31, 129\)"):
        ops.nnmf_mu(torch.stack([X, X]), W, H, n_iter=1)
