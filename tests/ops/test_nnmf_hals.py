from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest
import torch
from sklearn.decomposition import non_negative_factorization
from torch import Tensor

from nnmf_cuda import ops, reference
from tests.helpers import DEVICES, assert_as_accurate_as_torch, factorisation

PENALTIES = {"l1_reg_W": 0.3, "l1_reg_H": 0.1, "l2_reg_W": 0.2, "l2_reg_H": 0.7}
SLACK = {torch.float32: 5e-6, torch.float64: 3e-14}
"""A few units in the last place, relative to the largest entry."""


def of_scikit_learn(
    X: Tensor, W: Tensor, H: Tensor, n_iter: int, **options: float
) -> tuple[np.ndarray, np.ndarray]:
    """Run the same number of iterations of scikit-learn's coordinate descent, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new_W, new_H, _ = non_negative_factorization(
            X.cpu().double().numpy(),
            W.cpu().double().numpy().copy(),
            H.cpu().double().numpy().copy(),
            n_components=W.shape[1],
            init="custom",
            solver="cd",
            shuffle=False,
            tol=0,
            max_iter=n_iter,
            **options,
        )
    return new_W, new_H


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("n", "f", "k", "n_iter"),
    [
        (1, 1, 1, 1),  # once X is met exactly, what follows are roundings divided by roundings
        (3, 1, 2, 1),
        (1, 129, 3, 1),
        (129, 7, 40, 1),
        (31, 33, 17, 6),
        (33, 130, 5, 6),
        (130, 33, 1, 6),
    ],
)
def test_nnmf_hals_equals_scikit_learns_coordinate_descent(
    device: str, n: int, f: int, k: int, n_iter: int
) -> None:
    X, W, H = factorisation(n=n, f=f, k=k, device=device, seed=3)
    got = ops.nnmf_hals(X, W, H, n_iter=n_iter)
    for ours, theirs in zip(got, of_scikit_learn(X, W, H, n_iter), strict=False):
        np.testing.assert_allclose(ours.cpu(), theirs, rtol=1e-8, atol=1e-10)


def test_nnmf_hals_penalises_as_scikit_learn_does() -> None:
    X, W, H = factorisation(n=20, f=30, k=4, seed=5)
    want = of_scikit_learn(X, W, H, 7, alpha_W=0.01, alpha_H=0.02, l1_ratio=0.3)
    got = ops.nnmf_hals(
        X,
        W,
        H,
        n_iter=7,
        l1_reg_W=30 * 0.01 * 0.3,
        l2_reg_W=30 * 0.01 * 0.7,
        l1_reg_H=20 * 0.02 * 0.3,
        l2_reg_H=20 * 0.02 * 0.7,
    )
    for ours, theirs in zip(got, want, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_inner", [1, 3])
@pytest.mark.parametrize(("n", "f", "k"), [(33, 130, 5), (129, 31, 17)])
def test_nnmf_hals_matches_float64_reference(
    device: str, dtype: torch.dtype, n_inner: int, n: int, f: int, k: int
) -> None:
    X, W, H = factorisation(n=n, f=f, k=k, dtype=dtype, device=device)
    options = {"n_iter": 2, "n_inner": n_inner, **PENALTIES}
    got = ops.nnmf_hals(X, W, H, **options)
    plain, truth = (
        reference.nnmf_hals(X.to(d), W.to(d)[None], H.to(d)[None], **options)
        for d in (dtype, torch.float64)
    )
    for i in (0, 1):
        assert got[i].dtype == dtype
        assert_as_accurate_as_torch(got[i], plain[i][0], truth[i][0], slack=SLACK[dtype])


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_hals_inner_sweeps_end_at_the_least_squares_of_each_factor(device: str) -> None:
    # With X H^T and H H^T fixed, sweeps converge to the non-negative least squares of W.
    X, W, H = factorisation(n=12, f=40, k=4, device=device)
    W1, H1, _ = ops.nnmf_hals(X, W, H, n_iter=1, n_inner=3000, update_H=False)
    torch.testing.assert_close(W1, ops.project(X, H), rtol=1e-7, atol=1e-9)
    assert torch.equal(H1, H)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("n_inner", [1, 3])
@pytest.mark.parametrize(
    ("n", "f", "k", "n_fixed"),
    [(1, 1, 1, 1), (33, 130, 5, 2), (9, 20, 17, 16), (40, 7, 40, 33), (12, 65, 9, 0)],
)
def test_nnmf_hals_holds_the_first_rows_of_H(
    device: str, dtype: torch.dtype, n_inner: int, n: int, f: int, k: int, n_fixed: int
) -> None:
    floating = torch.float32 if dtype == torch.uint8 else dtype
    X, W, H = factorisation(n=n, f=f, k=k, dtype=floating, device=device)
    if dtype == torch.uint8:
        X = (X * 200).to(torch.uint8)
    options = {"n_iter": 1, "n_inner": n_inner}
    got_W, got_H, _ = ops.nnmf_hals(X, W, H, n_fixed=n_fixed, **options, **PENALTIES)
    assert torch.equal(got_H[:n_fixed], H[:n_fixed])
    # What the held rows leave of X is for the others alone.
    truth = (X / 255 if dtype == torch.uint8 else X).double()
    W1, H1 = got_W.double(), H.double()
    left = truth - W1[:, :n_fixed] @ H1[:n_fixed]
    others, _, _ = ops.nnmf_hals(
        left.mT,
        H1[n_fixed:].mT,
        W1[:, n_fixed:].mT,
        update_H=False,
        l1_reg_W=PENALTIES["l1_reg_H"],
        l2_reg_W=PENALTIES["l2_reg_H"],
        **options,
    )
    tolerance = 1e-11 if floating == torch.float64 else 1e-4  # differences: absolute
    torch.testing.assert_close(got_H[n_fixed:].double(), others.mT, rtol=0, atol=tolerance)
    want_W, _, _ = ops.nnmf_hals(X, W, H, update_H=False, **options, **PENALTIES)
    assert torch.equal(got_W, want_W)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_inner", [1, 4])
@pytest.mark.parametrize("penalties", [{}, PENALTIES])
def test_nnmf_hals_objective_never_rises(
    device: str, n_inner: int, penalties: dict[str, float]
) -> None:
    X, W, H = factorisation(device=device)
    previous = torch.inf
    for _ in range(20):
        W, H, divergence = ops.nnmf_hals(
            X, W, H, n_iter=1, n_inner=n_inner, compute_divergence=True, **penalties
        )
        objective = divergence.item() + sum(
            penalties.get(f"l1_reg_{name}", 0) * factor.sum().item()
            + penalties.get(f"l2_reg_{name}", 0) / 2 * factor.square().sum().item()
            for name, factor in (("W", W), ("H", H))
        )
        assert objective <= previous * (1 + 1e-12)
        previous = objective


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nnmf_hals_divergence_is_that_of_the_factors_it_returns(
    device: str, dtype: torch.dtype
) -> None:
    X, W, H = factorisation(dtype=dtype, device=device)
    W, H, divergence = ops.nnmf_hals(X, W, H, n_iter=3, compute_divergence=True)
    assert divergence.dtype == torch.float64
    want = (X.double() - W.double() @ H.double()).square().sum() / 2
    # W H is formed in the precision of the factors, the sum is taken in float64.
    rtol = 1e-10 if dtype == torch.float64 else 1e-7
    torch.testing.assert_close(divergence, want, rtol=rtol, atol=0)
    assert ops.nnmf_hals(X, W, H, n_iter=1)[2].isnan()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shared", [True, False])
def test_nnmf_hals_batch_equals_loop(device: str, shared: bool) -> None:
    X, W, H = factorisation(batch=3, device=device)
    if not shared:
        X = torch.stack([X, 2 * X, X + 1])
    options = {"n_iter": 4, "n_inner": 2, "compute_divergence": True}
    batched = ops.nnmf_hals(X, W, H, **options)
    for b in range(3):
        single = ops.nnmf_hals(X if shared else X[b], W[b], H[b], **options)
        for got, want in zip(batched, single, strict=True):
            torch.testing.assert_close(got[b], want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_hals_reads_uint8_as_pixels(device: str) -> None:
    X, W, H = factorisation(dtype=torch.float32, device=device)
    pixels = (X * 200).to(torch.uint8)
    got = ops.nnmf_hals(pixels, W, H, n_iter=3, compute_divergence=True)
    want = ops.nnmf_hals(pixels.float() / 255, W, H, n_iter=3, compute_divergence=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_hals_takes_transposed_and_sliced_input(device: str) -> None:
    X, W, H = factorisation(n=20, f=40, device=device)
    want = ops.nnmf_hals(X, W, H, n_iter=3)
    wide = torch.stack([X, X], -1).flatten(-2)
    got = ops.nnmf_hals(wide[:, ::2], W.T.contiguous().T, H.T.contiguous().T, n_iter=3)
    for a, b in zip(got[:2], want[:2], strict=True):
        assert a.is_contiguous()
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_hals_keeps_its_arguments_and_leaves_zeros(device: str) -> None:
    X, W, H = factorisation(device=device)
    W[2, 1] = 0
    before = [t.clone() for t in (X, W, H)]
    W1, H1, _ = ops.nnmf_hals(X, W, H, n_iter=5)
    for tensor, kept in zip((X, W, H), before, strict=True):
        assert torch.equal(tensor, kept)
    assert (W1 >= 0).all()
    assert (H1 >= 0).all()
    assert (ops.nnmf_hals(X, torch.zeros_like(W), H, n_iter=1)[0] > 0).any()


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_hals_leaves_what_a_component_of_zeros_multiplies(device: str) -> None:
    X, W, H = factorisation(device=device)
    H[1] = 0  # its column of W has no curvature
    W1, H1, _ = ops.nnmf_hals(X, W, H, n_iter=1, update_H=False)
    assert torch.equal(W1[:, 1], W[:, 1])
    assert not torch.equal(W1[:, 0], W[:, 0])
    assert torch.equal(H1, H)
    for ours, theirs in zip(
        ops.nnmf_hals(X, W, H, n_iter=4), of_scikit_learn(X, W, H, 4), strict=False
    ):
        np.testing.assert_allclose(ours.cpu(), theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_hals_recovers_planted_factors(device: str) -> None:
    _, W, H = factorisation(n=30, f=40, k=3, seed=1, device=device)
    _, W0, H0 = factorisation(n=30, f=40, k=3, seed=2, device=device)
    X = W @ H
    start = ops.nnmf_divergence(X, W0, H0, beta_loss=2)
    _, _, divergence = ops.nnmf_hals(X, W0, H0, n_iter=500, n_inner=5, compute_divergence=True)
    assert divergence < 1e-4 * start


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "f", "k"), [(0, 4, 2), (4, 0, 2), (4, 3, 0)])
def test_nnmf_hals_empty(device: str, n: int, f: int, k: int) -> None:
    X, W, H = factorisation(n=n, f=f, k=k, device=device)
    W1, H1, _ = ops.nnmf_hals(X, W, H, n_iter=2)
    assert W1.shape == (n, k)
    assert H1.shape == (k, f)
    X, W, H = factorisation(batch=0, device=device)
    assert ops.nnmf_hals(X, W, H, n_iter=1)[0].shape == W.shape


def test_nnmf_hals_without_iterations_returns_the_start() -> None:
    X, W, H = factorisation()
    W1, H1, divergence = ops.nnmf_hals(X, W, H, n_iter=0, compute_divergence=True)
    assert torch.equal(W1, W)
    assert torch.equal(H1, H)
    torch.testing.assert_close(divergence, ops.nnmf_divergence(X, W, H, beta_loss=2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 2])
def test_nnmf_hals_opcheck(device: str, dtype: torch.dtype, batch: int) -> None:
    X, W, H = factorisation(n=5, f=7, batch=batch, dtype=dtype, device=device)
    op, options = torch.ops.nnmf_cuda.nnmf_hals.default, {"n_iter": 2, "n_inner": 2}
    torch.library.opcheck(op, (X, W, H), options | {"compute_divergence": True})
    # Without the divergence the third result is NaN, which opcheck's comparison takes for a fault.
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(op, (X, W, H), options, test_utils=checks)


def test_nnmf_hals_opcheck_takes_any_strides() -> None:
    X, W, H = factorisation(n=5, f=7, batch=2)
    W, H = W.mT.contiguous().mT, H.mT.contiguous().mT
    options = {"n_iter": 1, "compute_divergence": True}
    op = torch.ops.nnmf_cuda.nnmf_hals.default
    torch.library.opcheck(op, (X.T.contiguous().T, W, H), options)


def test_nnmf_hals_backward_raises() -> None:
    X, W, H = factorisation()
    out, _, _ = ops.nnmf_hals(X.requires_grad_(), W, H, n_iter=1)
    with pytest.raises(RuntimeError, match="nnmf_hals is not differentiable"):
        out.sum().backward()


def test_nnmf_hals_compiles_without_graph_breaks() -> None:
    X, W, H = factorisation()
    compiled = torch.compile(ops.nnmf_hals, fullgraph=True, backend="aot_eager")
    want = ops.nnmf_hals(X, W, H, n_iter=2)
    torch.testing.assert_close(compiled(X, W, H, n_iter=2)[0], want[0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"X": np.ones((31, 129))}, TypeError, "X must be a torch.Tensor, got ndarray"),
        ({"X": torch.ones(31, 129, dtype=torch.int32)}, TypeError, "X must be float64 or uint8"),
        ({"H": torch.ones(3, 129)}, TypeError, "H must be float64, got torch.float32"),
        ({"W": torch.ones(31, dtype=torch.float64)}, ValueError, "W must have 2 or 3 dimensions"),
        ({"H": torch.ones(2, 129).double()}, ValueError, r"H must have shape .*\(3, 129\)"),
        ({"n_iter": -1}, ValueError, "n_iter must be >= 0, got -1"),
        ({"n_inner": 0}, ValueError, "n_inner must be >= 1, got 0"),
        ({"n_fixed": 4}, ValueError, "n_fixed must be at most n_components = 3, got 4: only rows"),
        ({"n_fixed": 1.0}, TypeError, "n_fixed must be an integer >= 0, got 1.0"),
        ({"l1_reg_W": -0.5}, ValueError, "l1_reg_W must be a finite number >= 0, got -0.5"),
        ({"l2_reg_H": np.inf}, ValueError, "l2_reg_H must be a finite number >= 0, got inf"),
    ],
)
def test_nnmf_hals_errors(changes: dict[str, object], error: type[Exception], message: str) -> None:
    X, W, H = factorisation()
    with pytest.raises(error, match=message):
        ops.nnmf_hals(**{"X": X, "W": W, "H": H, "n_iter": 1} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("by_reference", [False, True])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_minima_at_zero_are_reached_exactly(
    device: str, dtype: torch.dtype, sparse: bool, by_reference: bool
) -> None:
    X, W, H = factorisation(n=64, f=48, k=5, dtype=dtype, device=device, seed=0)
    X[:32] = X[:, :24] = 0
    data = X.to_sparse_csr() if sparse else X
    with ops.reference_path() if by_reference else contextlib.nullcontext():
        new_W, new_H, _ = ops.nnmf_hals(data, W, H, n_iter=1)
    assert not new_W[:32].any()
    learnt = new_W.any(0)  # the others have nothing to move by, and stay
    assert learnt.any()
    assert not new_H[learnt][:, :24].any()
