"""A fit that says "converged" at a tight tolerance is where it would end without any rule."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import non_negative_factorization

from nnmf_cuda import NNMF

# The least number of settings, of the seven below, in which the rule must have been met: else the
# comparison says little. Plain updates seldom get that far.
SOLVERS_AND_LOSSES = [
    *(("mu", beta_loss, 4000, 1) for beta_loss in (2, 1, 0, 0.5, 1.5)),
    *(("accelerated-mu", beta_loss, 600, 3) for beta_loss in (1, 1.5, 2)),
    ("hals", 2, 3000, 5),
]
PENALTIES = [
    # alpha_W, alpha_H, l1_ratio
    (0.0, 0.0, 0.0),
    (1e-3, 1e-2, 0.5),
    (1e-2, 5e-4, 1.0),
    (1e-2, "same", 0.5),
    (0.1, 1e-2, 1.0),
    (0.1, "same", 0.0),
    (0.1, "same", 1.0),
]

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    X = rng.gamma(1, size=(30, 5)) @ rng.gamma(1, size=(5, 24))
    X *= rng.gamma(5, 0.2, size=X.shape)
    return X / X.mean()


@pytest.mark.parametrize(("solver", "beta_loss", "max_iter", "least"), SOLVERS_AND_LOSSES)
def test_converged_is_within_a_hundredth_of_the_end(X, solver, beta_loss, max_iter, least):
    met = 0
    for alpha_W, alpha_H, l1_ratio in PENALTIES:
        options = {
            "solver": solver,
            "beta_loss": beta_loss,
            "alpha_W": alpha_W,
            "alpha_H": alpha_H,
            "l1_ratio": l1_ratio,
            "random_state": 0,
            "max_iter": max_iter,
        }
        model = NNMF(5, tol=1e-8, **options).fit(X)
        if model.converged_:
            met += 1
            end = NNMF(5, tol=0, **options).fit(X).objective_history_[-1]
            assert model.objective_history_[-1] <= 1.01 * end, (alpha_W, alpha_H, l1_ratio)
            assert model.objective_history_[-1] <= model.objective_history_[-2]
    assert met >= least


def test_hals_with_a_strong_penalty_ends_where_coordinate_descent_does():
    # The divergence rises from the 50th iteration on, while the objective falls by a quarter.
    rng = np.random.default_rng(0)
    X = rng.gamma(1, size=(200, 6)) @ rng.gamma(1, size=(6, 150))
    X /= X.mean()
    penalty = {"alpha_W": 0.01, "alpha_H": 0.0005, "l1_ratio": 1.0}
    options = {"beta_loss": "frobenius", "random_state": 0, "max_iter": 5000}
    model = NNMF(6, solver="hals", tol=1e-10, **options, **penalty).fit(X)
    to_the_end = NNMF(6, solver="hals", tol=0, **options, **penalty).fit(X)
    start = {name: value.copy() for name, value in zip("WH", start_of(X, 6), strict=True)}
    W, H, _ = non_negative_factorization(
        X, **start, n_components=6, init="custom", solver="cd", tol=1e-10, max_iter=5000, **penalty
    )
    theirs = ((X - W @ H) ** 2).sum() / 2 + 150 * 0.01 * W.sum() + 200 * 0.0005 * H.sum()
    objective = model.objective_history_[-1]
    assert objective == pytest.approx(to_the_end.objective_history_[-1], rel=0.01)
    assert objective == pytest.approx(theirs, rel=0.01)


def start_of(X, k):
    rng = np.random.default_rng(1)
    scale = np.sqrt(X.mean() / k)
    return rng.random((len(X), k)) * scale, rng.random((k, X.shape[1])) * scale
