"""Semi-NMF against its formulas in NumPy, in the orientation of Ding, Li & Jordan."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnmf_cuda.nnmf.graph import Graph
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.semi import least_squares_H, semi_updates
from tests.helpers import AWKWARD_SHAPES, DEVICES


def signed(rng, n=31, f=23, k=4, batch=2):
    """Draw X of any sign around planted factors, and starts of W and H."""
    X = rng.random((n, k)) @ rng.normal(size=(k, f)) + 0.3 * rng.normal(size=(n, f))
    return X, rng.random((batch, n, k)) + 0.1, rng.normal(size=(batch, k, f))


def ring(n):
    """Return the weights of a ring of n samples, of 1 and 2 in turn."""
    weights = np.zeros((n, n))
    for i in range(n):
        j = (i + 1) % n
        if i != j:
            weights[i, j] = weights[j, i] = 1 + i % 2
    return weights


def by_the_paper(X, W, H, n_iter, *, l1=0.0, l2=0.0, l2_H=0.0, strength=0.0, A=None):
    """Semi-NMF of columns: data X^T = F G^T, F (f, k) of any sign, G (n, k) >= 0, G first."""
    data, F, G = X.T, H.T.copy(), W.copy()
    A = np.zeros((len(X), len(X))) if A is None else A
    degree = A.sum(1)

    def plus(M):
        return (np.abs(M) + M) / 2

    def minus(M):
        return (np.abs(M) - M) / 2

    for _ in range(n_iter):
        XtF, FtF = data.T @ F, F.T @ F
        up = plus(XtF) + G @ minus(FtF) + strength * A @ G
        down = minus(XtF) + G @ plus(FtF) + strength * degree[:, None] * G + l1 + l2 * G
        G = G * np.sqrt(up / down)
        F = np.linalg.solve(G.T @ G + l2_H * np.eye(G.shape[1]), (data @ G).T).T
    return G, F.T


def objective(X, W, H, *, l1=0.0, l2=0.0, l2_H=0.0, strength=0.0, A=None):
    """Half the squared error and the penalties, the graph's as a sum over pairs."""
    total = ((X - W @ H) ** 2).sum() / 2 + l1 * W.sum() + l2 * (W**2).sum() / 2
    total += l2_H * (H**2).sum() / 2
    if A is not None:
        pairs = ((W[:, None] - W[None]) ** 2).sum(2)
        total += strength / 4 * (A * pairs).sum()
    return total


PENALTIES = [
    {},
    {"l1": 0.3, "l2": 0.2, "l2_H": 0.7},
    {"strength": 0.8},
    {"l1": 0.2, "l2_H": 0.5, "strength": 3.0},
]


def options_of(penalties, n, device="cpu"):
    """Return the options of `semi_updates`, and those of the oracle, for penalties of a graph."""
    names = {"l1": "l1_reg_W", "l2": "l2_reg_W", "l2_H": "l2_reg_H"}
    ours = {names[name]: value for name, value in penalties.items() if name in names}
    if "strength" not in penalties:
        return ours, penalties
    graph = Graph.of_matrix(ring(n), Dense(torch.zeros(n, 1, device=device)), penalties["strength"])
    return ours | {"graph": graph}, penalties | {"A": ring(n)}


def run(X, W, H, n_iter, **options):
    W, H = semi_updates(Dense(X), W, H, n_iter=n_iter, **options)
    return W.cpu().numpy(), H.cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize(("n", "f", "k"), [(31, 23, 4), (61, 127, 15), (13, 101, 8), (40, 5, 5)])
def test_updates_are_those_of_the_paper(rng, device, penalties, n, f, k):
    X, W, H = signed(rng, n, f, k)
    ours, theirs = options_of(penalties, n, device)
    got = run(*(torch.from_numpy(part).to(device) for part in (X, W, H)), 7, **ours)
    for start in range(len(W)):
        want_W, want_H = by_the_paper(X, W[start], H[start], 7, **theirs)
        np.testing.assert_allclose(got[0][start], want_W, rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(got[1][start], want_H, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize("seed", range(3))
def test_no_iteration_raises_the_objective(penalties, seed):
    rng = np.random.default_rng(seed)
    X, W, H = signed(rng, 25, 14, 5, batch=1)
    ours, theirs = options_of(penalties, 25)
    W, H = torch.from_numpy(W), torch.from_numpy(H)
    values = [objective(X, W[0].numpy(), H[0].numpy(), **theirs)]
    for _ in range(60):
        W, H = semi_updates(Dense(torch.from_numpy(X)), W, H, n_iter=1, **ours)
        values.append(objective(X, W[0].numpy(), H[0].numpy(), **theirs))
    values = np.array(values)
    assert (np.diff(values) <= 1e-12 * values[0]).all()
    assert values[-1] < 0.9 * values[1]


@pytest.mark.parametrize(("n", "f", "k"), AWKWARD_SHAPES)
def test_float32_follows_float64(rng, n, f, k):
    X, W, H = signed(rng, n, f, k)
    wide = [torch.from_numpy(part) for part in (X, W, H)]
    want = run(*wide, 3)
    got = run(*(part.float() for part in wide), 3)
    for found in (got, want):
        assert (found[0] >= 0).all()
    # Factors may differ along what they do not tell apart; their product may not.
    size = np.abs(want[0] @ want[1]).max()
    assert np.abs(got[0] @ got[1] - want[0] @ want[1]).max() < 2e-3 * size


def test_H_is_the_minimum_that_lstsq_finds(rng):
    X, W, H = signed(rng)
    got = least_squares_H(*parts(X, W, H)).numpy()
    for start in range(len(W)):
        want = np.linalg.lstsq(W[start], X, rcond=None)[0]
        np.testing.assert_allclose(got[start], want, rtol=1e-8, atol=1e-10)


def parts(X, W, H):
    return Dense(torch.from_numpy(X)), torch.from_numpy(W), torch.from_numpy(H)


def test_the_first_rows_of_H_are_held_and_the_others_fit_what_they_leave(rng):
    X, W, H = signed(rng)
    got = least_squares_H(*parts(X, W, H), n_fixed=2).numpy()
    np.testing.assert_array_equal(got[:, :2], H[:, :2])
    for start in range(len(W)):
        rest = X - W[start][:, :2] @ H[start, :2]
        want = np.linalg.lstsq(W[start][:, 2:], rest, rcond=None)[0]
        np.testing.assert_allclose(got[start, 2:], want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_columns_of_W_leave_their_difference_of_H(rng, dtype):
    X, W, H = signed(rng)
    W[:, :, 1] = W[:, :, 0]
    W[:, :, 3] = 0
    X, W, H = (torch.from_numpy(part).to(dtype) for part in (X, W, H))
    got = least_squares_H(Dense(X), W, H)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}[dtype]
    torch.testing.assert_close(
        got[:, 1] - got[:, 0], H[:, 1] - H[:, 0], rtol=tolerance, atol=tolerance
    )
    torch.testing.assert_close(got[:, 3], H[:, 3])
    for start in range(len(W)):
        best = np.linalg.lstsq(W[start].double().numpy(), X.double().numpy(), rcond=None)[0]
        errors = [
            ((X - W[start] @ found.to(dtype)) ** 2).sum()
            for found in (got[start], torch.from_numpy(best))
        ]
        assert errors[0] <= (1 + tolerance) * errors[1]


def test_what_overflows_is_not_finite_and_does_not_raise(rng):
    X, W, H = (torch.from_numpy(part).float() for part in signed(rng))
    _, got = semi_updates(Dense(X * 1e38), W * 1e25, H, n_iter=2)
    assert not got.isfinite().all()


def test_starts_of_a_batch_go_their_own_ways(rng):
    X, W, H = (torch.from_numpy(part) for part in signed(rng, batch=3))
    together = run(X, W, H, 5)
    for start in range(3):
        alone = run(X, W[[start]], H[[start]], 5)
        for got, want in zip(together, alone, strict=True):
            np.testing.assert_allclose(got[start], want[0], rtol=1e-7, atol=1e-10)
