"""A fit whose rows are dealt among processes is the fit of one process."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from tests.distributed.fits import SHARES, Fit, check_equal, fit_shard, fits_of, slices
from tests.distributed.team import Team

N, F = 37, 23


def positive(rng: np.random.Generator) -> np.ndarray:
    return rng.gamma(1.0, size=(N, 4)) @ rng.gamma(1.0, size=(4, F)) + 0.01 * rng.random((N, F))


CASES = {
    "kullback-leibler": {},
    "frobenius": {"beta_loss": "frobenius"},
    "itakura-saito": {"beta_loss": "itakura-saito"},
    "beta 0.5": {"beta_loss": 0.5},
    "beta 1.5": {"beta_loss": 1.5},
    "beta 3": {"beta_loss": 3},
    "accelerated": {"solver": "accelerated-mu", "beta_loss": 1.5},
    "hals": {"solver": "hals", "beta_loss": "frobenius"},
    "penalties": {"alpha_W": 0.01, "alpha_H": 0.02, "l1_ratio": 0.5},
    "penalties of hals": {
        "solver": "hals",
        "beta_loss": "frobenius",
        "alpha_W": 0.002,
        "alpha_H": 0.004,
        "l1_ratio": 0.5,
    },
    "restarts": {"n_init": 3, "tol": 1e-3, "max_iter": 200},
    "converged": {"tol": 1e-3, "max_iter": 400},
}


@pytest.mark.parametrize("size", SHARES)
@pytest.mark.parametrize("name", CASES)
def test_a_sharded_fit_is_that_of_one_process(team: Team, rng, name: str, size: int) -> None:
    X = positive(rng)
    parameters = {"n_components": 3, "max_iter": 12, "tol": 0, "random_state": 5} | CASES[name]
    fits = fits_of(X, SHARES[size], parameters)
    found = team.run(fit_shard, *fits)
    check_equal(found, X, parameters, 1e-7)
    if size == 3:
        for one, again in zip(found, team.run(fit_shard, *fits), strict=True):
            for name, value in vars(one).items():
                np.testing.assert_array_equal(value, getattr(again, name))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("solver", ["semi", "semi-hals"])
def test_semi_nmf(team: Team, rng, solver: str, size: int) -> None:
    X = rng.normal(size=(N, F))
    parameters = {"n_components": 3, "solver": solver, "beta_loss": "frobenius"}
    parameters |= {"max_iter": 12, "tol": 0, "random_state": 5, "alpha_W": 0.01, "l1_ratio": 0}
    check_equal(team.run(fit_shard, *fits_of(X, SHARES[size], parameters)), X, parameters, 1e-6)


KINDS = {
    "mu": {},
    "mu of squares": {"beta_loss": "frobenius"},
    "mu of ratios": {"beta_loss": 0.5},
    "accelerated": {"solver": "accelerated-mu"},
    "hals": {"solver": "hals", "beta_loss": "frobenius"},
}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("told", ["mask", "weights"])
def test_masks_and_weights(team: Team, rng, told: str, name: str, size: int) -> None:
    X = positive(rng)
    if told == "mask":
        mask = rng.random(X.shape) < 0.7
        mask[20:] = True  # the last ranks have nothing to leave out
        call = {"mask": mask}
    else:  # of entries, or of samples
        call = {"weights": rng.random(X.shape if size == 2 else N) + 0.1}
    parameters = {"n_components": 3, "max_iter": 12, "tol": 0, "random_state": 5} | KINDS[name]
    found = team.run(fit_shard, *fits_of(X, SHARES[size], parameters, **call))
    check_equal(found, X, parameters, 1e-7, **call)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", [*KINDS, "cd", "cd with penalties"])
def test_sparse_rows(team: Team, rng, name: str, size: int) -> None:
    X = scipy.sparse.csr_array(rng.poisson(0.4, size=(N, F)).astype(np.float64))
    parameters = {"n_components": 3, "max_iter": 12, "tol": 0, "random_state": 5}
    parameters |= KINDS.get(name, {"solver": "cd"})
    if name == "cd with penalties":
        parameters |= {"alpha_W": 0.001, "alpha_H": 0.002, "l1_ratio": 0.5, "n_init": 2}
    check_equal(team.run(fit_shard, *fits_of(X, SHARES[size], parameters)), X, parameters, 1e-7)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_single_precision(team: Team, rng, kind: type, name: str) -> None:
    X = (255 * positive(rng) / positive(rng).max()).clip(1, 255).astype(kind)
    parameters = {"n_components": 3, "max_iter": 12, "tol": 0, "random_state": 5} | KINDS[name]
    # Each rounding of float32 is one part in 2^24, and an iteration passes it on.
    check_equal(team.run(fit_shard, *fits_of(X, SHARES[4], parameters)), X, parameters, 2e-4)


def test_a_start_of_the_user(team: Team, rng) -> None:
    X, W, H = positive(rng), rng.random((N, 3)), rng.random((3, F))
    parameters = {"n_components": 3, "init": "custom", "max_iter": 12, "tol": 0}
    found = team.run(fit_shard, *fits_of(X, SHARES[3], parameters, W=W, H=H))
    check_equal(found, X, parameters, 1e-7, W=W, H=H)


def test_held_components(team: Team, rng) -> None:
    X, H = positive(rng), rng.random((3, F))
    parameters = {"fixed_components": H[:1], "n_components": 3, "max_iter": 12, "tol": 0}
    parameters["random_state"] = 5
    check_equal(team.run(fit_shard, *fits_of(X, SHARES[4], parameters)), X, parameters, 1e-7)
    parameters = {"n_components": 3, "max_iter": 12, "tol": 0}
    fits = [
        Fit(fit.rows, parameters, {**fit.call, "H": H, "update_H": False})
        for fit in fits_of(X, SHARES[4], parameters)
    ]
    check_equal(team.run(fit_shard, *fits), X, parameters, 1e-7, H=H, update_H=False)


def neighbors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw weights of a fifth of the pairs of rows, and classes, -1 of some."""
    A = np.triu(rng.random((N, N)) * (rng.random((N, N)) < 0.2), 1)
    return A + A.T, rng.integers(-1, 3, size=N)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["mu", "mu of squares", "accelerated", "semi"])
@pytest.mark.parametrize("kind", ["whole", "rows", "labels"])
def test_graphs(team: Team, rng, kind: str, name: str, size: int) -> None:
    X, (A, y) = positive(rng), neighbors(rng)
    parameters = {"n_components": 3, "max_iter": 12, "tol": 0, "random_state": 5, "alpha_H": 0.01}
    parameters |= KINDS.get(name, {"solver": name, "beta_loss": 2})
    parameters |= {"graph": "labels" if kind == "labels" else A, "alpha_graph": 0.3}
    call = {"y": y} if kind == "labels" else {}
    fits = fits_of(X, SHARES[size], parameters, **call)
    if kind == "rows":
        csr = scipy.sparse.csr_array(A)
        fits = [
            Fit(fit.rows, {**parameters, "graph": csr[rows]}, fit.call)
            for fit, rows in zip(fits, slices(SHARES[size]), strict=True)
        ]
    check_equal(team.run(fit_shard, *fits), X, parameters, 1e-6, **call)


def test_one_rank_has_all_rows_of_a_graph(team: Team, rng) -> None:
    X, (A, _) = positive(rng), neighbors(rng)
    parameters = {"n_components": 3, "max_iter": 12, "tol": 0, "random_state": 5, "graph": A}
    parameters |= {"alpha_graph": 0.3, "alpha_H": 0.01}
    for counts in ((N, 0), (0, N, 0)):
        fits = [
            Fit(X[rows], {**parameters, "graph": scipy.sparse.csr_array(A)[rows]})
            for rows in slices(counts)
        ]
        check_equal(team.run(fit_shard, *fits), X, parameters, 1e-6)


def test_some_ranks_give_all_of_a_graph(team: Team, rng) -> None:
    X, (A, _) = positive(rng), neighbors(rng)
    parameters = {"n_components": 3, "max_iter": 12, "tol": 0, "random_state": 5, "graph": A}
    first, second = slices(SHARES[2])
    fits = [Fit(X[first], parameters), Fit(X[second], {**parameters, "graph": A[second]})]
    check_equal(team.run(fit_shard, *fits), X, parameters, 1e-6)


def test_rows_of_a_graph_must_be_symmetric(team: Team, rng) -> None:
    A = neighbors(rng)[0]
    A[3, 20] += 0.5
    fits = [
        Fit(np.ones((N, F))[rows], {"n_components": 2, "graph": A[rows]})
        for rows in slices(SHARES[2])
    ]
    for one in team.run(fit_shard, *fits):
        assert isinstance(one, ValueError)
        assert "graph must be symmetric" in str(one)


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu"])
def test_precision_is_that_of_each_rank(team: Team, rng, solver: str) -> None:
    X = positive(rng).astype(np.float32)
    parameters = {"n_components": 3, "max_iter": 12, "tol": 0, "random_state": 5, "solver": solver}
    exact = team.run(fit_shard, *fits_of(X, SHARES[3], parameters))
    parameters["precision"] = "tf32x3"
    for one, expected in zip(
        team.run(fit_shard, *fits_of(X, SHARES[3], parameters)), exact, strict=True
    ):
        np.testing.assert_array_equal(one.W, expected.W)  # on the CPU it makes no difference
        np.testing.assert_array_equal(one.H, expected.H)
    mask = np.ones(X.shape, bool)
    mask[0, 0] = False  # of the first rank's alone
    for one in team.run(fit_shard, *fits_of(X, SHARES[3], parameters, mask=mask)):
        assert isinstance(one, ValueError)
        assert "is for dense X without mask or weights" in str(one)
