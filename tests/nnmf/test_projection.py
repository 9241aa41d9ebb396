"""The W of new rows: what each `transform_solver` minimises."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.optimize
import torch

from nnmf_cuda import NNMF, ops
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.projection import constant_W

PENALTIES = [
    {},
    {"alpha_W": 0.05, "l1_ratio": 1.0},
    {"alpha_W": 0.05, "l1_ratio": 0.0},
    {"alpha_W": 0.02, "l1_ratio": 0.5},
    {"alpha_W": 0.0, "alpha_H": 0.1},
]


@pytest.fixture
def X(rng):
    return rng.gamma(1, size=(30, 4)) @ rng.gamma(0.5, size=(4, 20)) + 0.05 * rng.random((30, 20))


def fitted(X, **parameters):
    options = {"n_components": 4, "tol": 0, "max_iter": 100, "random_state": 0}
    return NNMF(**options | {"transform_solver": "same"} | parameters).fit(X)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("solver", ["mu", "hals"])
def test_same_is_exact_penalised_least_squares(X, rng, penalty, solver):
    model = fitted(X, beta_loss=2, solver=solver, **penalty)
    new = rng.random((7, 20)) * X.max(0)
    W, H = model.transform(new), model.components_
    # The penalty as rows of a plain problem: l2 on the diagonal, l1 by completing the square.
    strength = 20 * penalty.get("alpha_W", 0)
    l1, l2 = strength * penalty.get("l1_ratio", 0), strength * (1 - penalty.get("l1_ratio", 0))
    gram, cross = H @ H.T + l2 * np.eye(4), new @ H.T - l1
    root = np.linalg.cholesky(gram).T
    want = [scipy.optimize.nnls(root, np.linalg.solve(root.T, row))[0] for row in cross]
    np.testing.assert_allclose(W, want, rtol=1e-7, atol=1e-9)
    assert not penalty.get("l1_ratio") or (W == 0).any()


@pytest.mark.parametrize("beta_loss", [1, 1.5, 0.5])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_same_minimises_other_losses_as_updates_do(X, beta_loss, penalty):
    model = fitted(X, beta_loss=beta_loss, transform_max_iter=100, **penalty)
    W = model.transform(X)
    np.testing.assert_array_equal(W, model.set_params(transform_solver="mu").transform(X))


@pytest.mark.parametrize(("solver", "beta_loss"), [("mu", 1), ("hals", 2), ("accelerated-mu", 1.5)])
def test_same_leaves_the_rows_of_a_fit_at_the_objective_of_the_fit(X, solver, beta_loss):
    model = fitted(
        X, solver=solver, beta_loss=beta_loss, alpha_W=0.02, l1_ratio=0.5, max_iter=3000,
        transform_max_iter=3000,
    )  # fmt: skip
    W, H = model.transform(X), model.components_
    divergence = ops.nnmf_divergence(*map(torch.from_numpy, (X, W, H)), beta_loss=beta_loss).item()

    def penalty(factor, size):
        return size * 0.02 * 0.5 * (factor.sum() + (factor**2).sum() / 2)

    objective = divergence + penalty(W, 20) + penalty(H, 30)
    assert objective == pytest.approx(model.objective_history_[-1], rel=1e-4)


@pytest.mark.parametrize("kind", ["float32", "uint8", "tensor"])
def test_same_reads_what_fit_reads_and_rows_are_their_own(X, kind):
    X = np.rint(X / X.max() * 255)
    given = torch.from_numpy(X) if kind == "tensor" else X.astype(kind)
    model = fitted(given, beta_loss=2, alpha_W=0.01, l1_ratio=0.5)
    W = model.transform(given)
    assert type(W) is type(given)
    alone = np.vstack([np.asarray(model.transform(given[i : i + 1])) for i in range(30)])
    np.testing.assert_allclose(np.asarray(W), alone, rtol=1e-4, atol=1e-6)
    dense = fitted(X / 255 if kind == "uint8" else X, beta_loss=2, alpha_W=0.01, l1_ratio=0.5)
    want = dense.transform(X / 255 if kind == "uint8" else X)
    np.testing.assert_allclose(np.asarray(W), want, rtol=2e-3, atol=2e-3 * want.max())


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_same_tells_components_that_are_nearly_alike_apart(rng, dtype):
    # Components that differ by parts in a hundred: a condition number of some 500.
    H = rng.gamma(1, size=(1, 2000)) + 0.01 * rng.gamma(1, size=(8, 2000))
    X = rng.gamma(1, size=(20, 8)) @ H
    X = np.rint(X / X.max() * 255).astype(np.uint8) if dtype == "uint8" else X.astype(dtype)
    parameters = {"beta_loss": 2, "alpha_W": 1e-6, "l1_ratio": 0.5, "transform_solver": "same"}
    model = fitted(X, n_components=8, max_iter=1, **parameters)
    model.components_ = H.astype(np.float32)
    W = model.transform(X)
    exact = X.astype(np.float64) / (255 if dtype == "uint8" else 1)
    want = model.transform(exact)  # the same problem in float64
    np.testing.assert_allclose(W, want, rtol=1e-5, atol=1e-6 * want.max())
    alone = np.vstack([model.transform(X[i : i + 1]) for i in range(len(X))])
    np.testing.assert_allclose(W, alone, rtol=1e-6, atol=1e-7 * want.max())


def test_nnls_warns_once_that_it_leaves_the_penalty_out(X):
    model = fitted(X, alpha_W=0.01, transform_solver="nnls")
    for run in (model.transform, model.fit_transform):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run(X)
        (one,) = seen
        assert "leaves alpha_W=0.01 out" in str(one.message)
        assert "transform_solver='same'" in str(one.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(X, alpha_W=0.01, transform_solver="same").transform(X)
        fitted(X, alpha_W=0.01, transform_solver="mu").transform(X)
        fitted(X, alpha_W=0.0, alpha_H=0.1, transform_solver="nnls").transform(X)


def test_constant_W_has_the_mean_of_each_row(rng):
    X, H = torch.from_numpy(rng.random((6, 9))), torch.from_numpy(5 * rng.random((3, 9)))
    X[2] = 0
    W = constant_W(Dense(X), H)
    torch.testing.assert_close((W @ H).mean(1), X.mean(1))
    assert W.shape == (6, 3)
    assert constant_W(Dense(X), torch.zeros_like(H)).isfinite().all()
