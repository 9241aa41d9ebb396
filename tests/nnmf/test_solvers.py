"""The solvers of NNMF beside plain multiplicative updates."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.decomposition import non_negative_factorization

from nnmf_cuda import ops
from nnmf_cuda.nnmf import solvers as _solvers
from nnmf_cuda.nnmf.estimator import NNMF, objective_of
from nnmf_cuda.nnmf.solvers import (
    AcceleratedUpdates,
    MultiplicativeUpdates,
    Objective,
    Penalty,
    Problem,
    inner_sweeps,
)
from tests.helpers import DEVICES, factorisation

PENALTY = Penalty(l1_reg_W=0.02, l1_reg_H=0.03, l2_reg_W=0.05, l2_reg_H=0.04)


@pytest.fixture
def counts(rng):
    """Sparse counts with planted components: many entries of the factors end at zero."""
    W = rng.exponential(size=(60, 6)) * (rng.random((60, 6)) < 0.4)
    H = rng.exponential(size=(6, 90)) * (rng.random((6, 90)) < 0.3)
    return rng.poisson(3 * W @ H).astype(np.float64)


def fitted(X, **parameters):
    """Fit without a stopping rule, so that nothing warns, unless the parameters say otherwise."""
    options = {"n_components": 6, "tol": 0, "max_iter": 100, "random_state": 0}
    return NNMF(**options | parameters).fit(X)


# --- accelerated multiplicative updates -----------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta_loss", [1, 1.5, 2])
def test_accelerated_updates_need_a_third_of_the_iterations(rng, beta_loss, device):
    # Dense factors with little noise: one valley, which plain updates walk down slowly.
    X = rng.random((60, 6)) @ rng.random((6, 90)) + 0.1 * rng.random((60, 90))
    X = torch.from_numpy(X).to(device)
    plain = fitted(X, beta_loss=beta_loss, max_iter=300)
    ours = fitted(X, beta_loss=beta_loss, max_iter=100, solver="accelerated-mu")
    assert ours.objective_history_[-1] <= plain.objective_history_[-1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("beta_loss", [1, 1.5, 2])
@pytest.mark.parametrize("options", [{}, {"alpha_W": 1e-4, "l1_ratio": 0.5}, {"n_init": 3}])
def test_accelerated_objective_never_rises(counts, dtype, beta_loss, options):
    X = np.minimum(counts, 255).astype(dtype)
    model = fitted(X, beta_loss=beta_loss, max_iter=200, solver="accelerated-mu", **options)
    assert (np.diff(model.objective_history_) <= 0).all()
    assert model.objective_history_[-1] < model.objective_history_[1]
    torch_of = {"dtype": torch.from_numpy(model.W_).dtype}
    divergence = ops.nnmf_divergence(
        torch.from_numpy(X) if dtype == np.uint8 else torch.tensor(X, **torch_of),
        torch.from_numpy(model.W_),
        torch.from_numpy(model.components_),
        beta_loss=beta_loss,
    )
    # What is kept is what the last record speaks of, even if the last block was undone.
    np.testing.assert_allclose(model.reconstruction_err_, np.sqrt(2 * divergence.item()), rtol=1e-6)


def test_accelerated_updates_begin_as_plain_ones(counts):
    plain, ours = (fitted(counts, max_iter=1, solver=s) for s in ("mu", "accelerated-mu"))
    np.testing.assert_array_equal(ours.components_, plain.components_)
    np.testing.assert_array_equal(ours.W_, plain.W_)
    later, ours = (fitted(counts, max_iter=5, solver=s) for s in ("mu", "accelerated-mu"))
    assert not np.allclose(ours.components_, later.components_)


def test_accelerated_updates_undo_a_rise_and_go_on_without_momentum(monkeypatch):
    X, W, H = factorisation(batch=2)
    problem = Problem(X, Objective(1.0, PENALTY))
    start, _ = MultiplicativeUpdates(problem).advance(problem.at(W, H), 200)
    # Far too large a step for everybody: the block must be undone as a whole.
    monkeypatch.setattr(_solvers, "_MOMENTUM_MAX", 1e3)
    monkeypatch.setattr(_solvers, "_RISE_MAX", 1e6)
    monkeypatch.setattr(_solvers, "_FALL_MAX", 1e-6)
    monkeypatch.setattr(
        AcceleratedUpdates,
        "_ahead",
        lambda self, W, H, _ahead=AcceleratedUpdates._ahead: (
            _ahead(self, W, H) if self._plain.any() else (W + 1, H + 1)
        ),
    )
    solver = AcceleratedUpdates(problem)
    undone, counts = solver.advance(start, 10)
    assert counts.tolist() == [False, False]
    assert torch.equal(undone.W, start.W)
    assert torch.equal(undone.H, start.H)
    assert torch.equal(undone.objective, start.objective)
    careful, counts = solver.advance(undone, 10)
    plain, _ = MultiplicativeUpdates(problem).advance(start, 10)
    assert counts.tolist() == [True, True]
    torch.testing.assert_close(careful.W, plain.W, rtol=1e-12, atol=0)
    torch.testing.assert_close(careful.H, plain.H, rtol=1e-12, atol=0)
    assert (careful.objective < start.objective).all()


def test_accelerated_updates_undo_only_the_start_that_rose(monkeypatch):
    X, W, H = factorisation(batch=2)
    problem = Problem(X, Objective(1.0, Penalty()))
    converged, _ = MultiplicativeUpdates(problem).advance(problem.at(W, H), 2000)
    early, _ = MultiplicativeUpdates(problem).advance(problem.at(W, H), 20)
    first = torch.tensor([True, False])
    start = _solvers._either(first, converged, early)
    shaken = AcceleratedUpdates._ahead
    monkeypatch.setattr(
        AcceleratedUpdates, "_ahead", lambda self, W, H: (1.01 * shaken(self, W, H)[0] + 1e-3, H)
    )
    end, counts = AcceleratedUpdates(problem).advance(start, 10)
    assert counts.tolist() == [False, True]
    assert torch.equal(end.H[0], converged.H[0])
    assert not torch.equal(end.H[1], early.H[1])
    assert end.objective[1] < early.objective[1]


def test_accelerated_restarts_keep_the_best_of_the_single_fits(counts):
    options = {"solver": "accelerated-mu", "tol": 1e-4, "max_iter": 500}
    generator = np.random.RandomState(2)  # noqa: NPY002
    singles = [fitted(counts, **options | {"random_state": generator}) for _ in range(3)]
    lowest = min(singles, key=lambda model: model.objective_history_[-1])
    batch = fitted(counts, **options | {"random_state": 2, "n_init": 3})
    assert lowest.n_iter_ < max(model.n_iter_ for model in singles)
    np.testing.assert_allclose(batch.objective_history_, lowest.objective_history_, rtol=1e-6)
    np.testing.assert_array_equal(batch.objective_iterations_, lowest.objective_iterations_)
    assert batch.converged_


def test_accelerated_updates_keep_zeros_and_find_no_nan():
    X, W, H = factorisation(dtype=torch.float32)
    X[3], X[:, 4] = 0, 0
    W[2, 1], H[0, 5] = 0, 0
    model = NNMF(init="custom", tol=0, max_iter=200, solver="accelerated-mu")
    model.fit(X.numpy(), W=W, H=H)
    assert model.W_[2, 1] == 0
    assert model.components_[0, 5] == 0
    assert (model.W_[3] == 0).all()
    assert (model.components_[:, 4] == 0).all()
    assert (model.W_ >= 0).all()


# --- hierarchical alternating least squares -------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"alpha_W": 0.01, "alpha_H": 0.02, "l1_ratio": 0.3}])
def test_hals_is_as_good_as_scikit_learns_coordinate_descent_and_sooner(counts, options):
    rng = np.random.default_rng(1)
    W0, H0 = rng.random((60, 6)) + 0.1, rng.random((6, 90)) + 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        W, H, _ = non_negative_factorization(
            counts, W0.copy(), H0.copy(), n_components=6, init="custom", solver="cd", tol=0,
            max_iter=50, **options,
        )  # fmt: skip
    model = NNMF(6, beta_loss=2, init="custom", solver="hals", tol=0, max_iter=25, **options)
    model.fit(counts, W=W0, H=H0)
    W, H = torch.from_numpy(W)[None], torch.from_numpy(H)[None]
    theirs = Problem(torch.from_numpy(counts), objective_of(model, *counts.shape)).at(W, H)
    assert model.objective_history_[-1] <= 1.001 * theirs.objective.item()
    assert (np.diff(model.objective_history_) <= 0).all()


def test_hals_is_the_op_with_the_sweeps_that_X_pays_for(counts):
    _, W, H = factorisation(n=60, f=90, k=6)
    model = NNMF(6, beta_loss=2, init="custom", solver="hals", tol=0, max_iter=15, alpha_W=0.01)
    model.fit(counts, W=W, H=H)
    penalties = {"l2_reg_W": 90 * 0.01, "l2_reg_H": 60 * 0.01}
    options = {"n_inner": inner_sweeps(60, 90, n_components=6), **penalties}
    assert options["n_inner"] == 4  # 1 + half of 5400 / 900
    want = ops.nnmf_hals(torch.from_numpy(counts), W, H, n_iter=15, **options)
    np.testing.assert_allclose(model.components_, want[1], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(model.W_, want[0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("shape", "k", "sweeps"), [((1500, 16384), 15, 10), ((5, 4), 4, 1)])
def test_inner_sweeps_grow_with_what_a_pass_over_X_costs(shape, k, sweeps):
    assert inner_sweeps(*shape, n_components=k) == sweeps


def test_hals_leaves_the_zeros_of_nndsvd_without_a_warning(counts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fitted(counts, init="nndsvd", solver="hals", beta_loss=2)
    best = fitted(counts, init="nndsvda", solver="mu", beta_loss=2, max_iter=1000)
    assert model.objective_history_[-1] <= 1.01 * best.objective_history_[-1]


# --- all solvers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals"])
def test_every_solver_converges_at_once_from_the_exact_answer(solver):
    W0, H0 = np.ones((4, 1)), np.ones((1, 5))
    model = NNMF(1, init="custom", beta_loss=2, solver=solver).fit(np.ones((4, 5)), W=W0, H=H0)
    assert model.converged_
    assert model.n_iter_ <= 20
    assert model.reconstruction_err_ == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("solver", ["accelerated-mu", "hals"])
def test_every_solver_stops_by_the_same_rule(counts, solver):
    model = fitted(counts, solver=solver, beta_loss=2, tol=1e-4, max_iter=1000)
    assert model.converged_
    assert model.n_iter_ < 1000
    errors = np.sqrt(2 * model.objective_history_)  # no penalty
    falls = -np.diff(errors) / errors[0]
    assert falls[-1] <= 1e-4 < falls[:-1].min()


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals"])
def test_every_solver_says_that_it_overflowed(counts, solver):
    X = (counts / counts.max() * 3e38).astype(np.float32)
    with pytest.raises(ValueError, match="the factorisation overflowed .* scale X"):
        fitted(X, beta_loss=2, solver=solver)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"solver": "hals"}, "'hals' minimises beta_loss='frobenius' .2. only, got 1"),
        ({"solver": "hals", "beta_loss": 1.5}, "'hals' minimises .*got 1.5"),
        ({"solver": "accelerated-mu", "beta_loss": 0.5}, r"beta_loss in \[1, 2\].*got 0.5"),
        ({"solver": "accelerated-mu", "beta_loss": "itakura-saito"}, r"\[1, 2\].*got 0; use"),
        ({"solver": "accelerated-mu", "beta_loss": 3}, r"\[1, 2\].*got 3; use solver='mu'"),
    ],
)
def test_solvers_refuse_other_divergences(counts, parameters, message):
    with pytest.raises(ValueError, match=message):
        fitted(counts, **parameters)
