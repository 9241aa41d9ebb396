"""When a fit has converged: the rule of `tol` looks at what is minimised, whatever the solver."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.decomposition import non_negative_factorization
from sklearn.exceptions import ConvergenceWarning

from nnmf_cuda import NNMF
from nnmf_cuda.nnmf import solvers
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.minimisation import all_runs
from nnmf_cuda.nnmf.problem import Iterate, Objective, Penalty, Problem
from nnmf_cuda.nnmf.solvers import AcceleratedUpdates

SOLVES = [
    *(("mu", beta_loss) for beta_loss in (2, 1.5, 1, 0.5, 0, -1, 3)),
    *(("accelerated-mu", beta_loss) for beta_loss in (2, 1.5, 1)),
    ("hals", 2),
]
PENALTIES = [
    {"alpha_W": 0.01, "alpha_H": 0.0005, "l1_ratio": 1.0},
    {"alpha_W": 0.05, "l1_ratio": 0.5},
    {"alpha_W": 0.0, "alpha_H": 0.02, "l1_ratio": 0.7},
]


def quiet_fit(X, **parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return NNMF(**{"random_state": 0} | parameters).fit(X)


def planted(rng, shape=(9, 8), rank=4):
    """Data of mean 1 and full rank; no zeros, so that every divergence is finite."""
    X = rng.gamma(1, size=(shape[0], rank)) @ rng.gamma(0.5, size=(rank, shape[1]))
    X += 0.05 * rng.random(shape) * X.mean()
    return X / X.mean()


@pytest.mark.parametrize(("solver", "beta_loss"), SOLVES)
def test_a_converged_fit_in_float32_is_as_low_as_one_that_goes_on(rng, solver, beta_loss):
    converged = 0
    for penalty in PENALTIES:  # float64: test_sweep_of_penalties.py
        X = planted(rng).astype(np.float32)
        max_iter = 3000 if solver == "mu" else 800
        options = {
            "n_components": 2, "solver": solver, "beta_loss": beta_loss, "max_iter": max_iter
        }  # fmt: skip
        stopped = quiet_fit(X, tol=1e-8, **options, **penalty)
        endless = quiet_fit(X, tol=0, **options, **penalty)
        converged += stopped.converged_
        errors = np.sqrt([2 * fit.objective_history_[-1] for fit in (stopped, endless)])
        assert errors[0] <= 1.01 * errors[1], penalty
    assert converged >= 1  # it is the rule that is tested, not max_iter


def test_a_penalised_fit_goes_on_while_its_objective_falls(rng):
    # The divergence rises from the first record on, as the penalty shrinks W: a rule that looks
    # at the divergence alone stops there, far above the minimum.
    X = rng.gamma(1, size=(300, 6)) @ rng.gamma(1, size=(6, 100))
    X /= X.mean()
    options = {"alpha_W": 0.01, "alpha_H": 0.0005, "l1_ratio": 1.0}
    shared = {"n_components": 6, "beta_loss": 2, "solver": "hals", "random_state": 0, **options}
    model = NNMF(tol=1e-10, max_iter=5000, **shared).fit(X)
    endless = quiet_fit(X, tol=0, max_iter=5000, **shared)
    assert model.converged_
    assert model.objective_history_[-1] <= 1.0001 * endless.objective_history_[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        W, H, _ = non_negative_factorization(
            X, n_components=6, init="random", random_state=0, max_iter=2000, tol=1e-10, **options
        )
    theirs = NNMF(6, beta_loss=2, init="custom", tol=0, max_iter=1, **options).fit(X, W=W, H=H)
    assert model.objective_history_[-1] <= 1.005 * theirs.objective_history_[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("solver", "beta_loss"), SOLVES)
def test_a_fit_of_exact_data_ends(rng, solver, beta_loss, dtype):
    X = (0.5 + rng.random((14, 1))) @ (0.5 + rng.random((1, 11)))
    model = NNMF(1, solver=solver, beta_loss=beta_loss, tol=1e-8, max_iter=2000, random_state=0)
    model.fit(X.astype(dtype))
    assert model.converged_
    assert model.reconstruction_err_ < 1e-5 * np.linalg.norm(X)
    if dtype == np.float64 and beta_loss in (0, 1, 2):  # others are differences of float64 sums
        assert model.reconstruction_err_ < 1e-13 * np.linalg.norm(X)


def test_the_rule_does_not_depend_on_the_error_of_the_start(rng):
    # The same start but for the scale of W, which the first update sets right.
    X = planted(rng)
    W, H = rng.random((9, 3)) + 0.1, rng.random((3, 8)) + 0.1
    fits = [
        NNMF(3, init="custom", beta_loss=2, tol=1e-5, max_iter=5000).fit(X, W=W * scale, H=H)
        for scale in (1, 1e4)
    ]
    assert fits[0].n_iter_ == fits[1].n_iter_ > 50
    np.testing.assert_allclose(fits[0].components_, fits[1].components_, rtol=1e-8)


class Scripted(solvers.MultiplicativeUpdates):
    """Give out objectives that are known beforehand, one a block."""

    objectives = ()

    def advance(self, start, n_iter):
        step, self.objectives = self.objectives[0], self.objectives[1:]
        objective = torch.tensor([step], dtype=torch.float64)
        return Iterate(start.W, start.H, objective, objective), torch.tensor([True])


@pytest.mark.parametrize(
    ("objectives", "blocks"),
    [
        (
            [50.0, 50.1, 49.0, 50.0, 40.0, 40.0, 1.0],
            6,
        ),  # a rise is no convergence; standing still is
        ([50.0, 49.9, 49.0, 48.9], 2),
        ([50.0, 50.1, 50.2, 50.3], None),
        ([0.0, 0.0, 1.0], 2),
    ],
)
def test_a_block_that_went_up_is_never_convergence(monkeypatch, objectives, blocks):
    # tol allows a fall of 0.5 % of the error, 1 % of the objective.
    monkeypatch.setitem(solvers.SOLVERS, "mu", Scripted)
    monkeypatch.setattr(Scripted, "objectives", objectives)
    problem = Problem(Dense(torch.ones(2, 2)), Objective(1.0, Penalty()))
    W = H = torch.full((1, 2, 2), 5.0)
    (run,) = all_runs(problem, W, H, solver="mu", max_iter=10 * len(objectives), tol=0.005)
    assert run.converged == (blocks is not None)
    assert run.iterations[-1] == 10 * (blocks or len(objectives))


def test_accelerated_updates_tell_a_rise_from_rounding(monkeypatch):
    # After a block that was undone come plain updates; what they do to the objective is scripted.
    X = torch.ones(4, 5, dtype=torch.float64)
    problem = Problem(Dense(X), Objective(1.0, Penalty()))
    start = problem.at(2 * torch.ones(1, 4, 1).double(), torch.ones(1, 1, 5).double())
    error = start.error.item()

    def end_at(error):
        objective = torch.tensor([error**2 / 2], dtype=torch.float64)
        return Iterate(start.W + 1, start.H, objective, objective)

    for rise, moves in (
        (1e-3, True),
        (0.2 * problem.rounding(start.error).item(), False),
        (np.inf, True),
    ):
        solver = AcceleratedUpdates(problem)
        with monkeypatch.context() as patched:
            patched.setattr(Problem, "at", lambda *_: end_at(error + 1e-6))
            undone, counts = solver.advance(start, 10)
            assert torch.equal(undone.W, start.W)
            assert counts.tolist() == [False]
            patched.setattr(Problem, "at", lambda *_, rise=rise: end_at(error + rise))
            plain, counts = solver.advance(undone, 10)
        assert counts.tolist() == [True]
        assert torch.equal(plain.W, start.W + moves)
        assert (plain.objective > start.objective).tolist() == [moves]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_loss", [-1, 0, 0.5, 1, 1.5, 2, 3])
def test_rounding_bounds_what_rounded_factors_do_to_the_error(rng, beta_loss, dtype):
    # Factors that are rounded at random move the error by less, but not by orders less.
    W, H = (torch.from_numpy(rng.random(shape) + 0.1) for shape in ((1, 40, 5), (1, 5, 50)))
    X = W[0] @ H[0] * torch.from_numpy(np.exp(0.3 * rng.standard_normal((40, 50))))
    problem = Problem(Dense(X.to(dtype)), Objective(beta_loss, Penalty()))

    def rounded(factor):
        noise = torch.from_numpy(rng.uniform(-0.5, 0.5, factor.shape))
        return (factor * (1 + torch.finfo(dtype).eps * noise)).to(dtype)

    errors = [problem.at(rounded(W), rounded(H)).error.item() for _ in range(20)]
    rounding = problem.rounding(torch.tensor(errors[:1], dtype=torch.float64)).item()
    spread = max(errors) - min(errors)
    assert spread <= 4 * rounding  # float64 is rounded in the sum of the divergence, too
    if beta_loss in (0, 1, 2) and dtype == torch.float32:
        assert spread >= rounding / 100
