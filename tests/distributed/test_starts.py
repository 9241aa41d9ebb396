"""Starts of a fit whose rows are dealt among processes, and what a stream and a second fit do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch.distributed.device_mesh import init_device_mesh

from nnmf_cuda import NNMF
from nnmf_cuda.distributed import RanksError, Shard
from tests.distributed.fits import SHARES, Fit, Found, check_equal, fit_shard, fits_of, slices
from tests.distributed.team import Team, team_group


def planted(rng: np.random.Generator, n: int, f: int) -> np.ndarray:
    """Data with zeros, in parts that no start finds by luck."""
    W = rng.gamma(1.0, size=(n, 5)) * (rng.random((n, 5)) < 0.6)
    return W @ (rng.gamma(1.0, size=(5, f)) * (rng.random((5, f)) < 0.6)) + 0.01 * rng.random(
        (n, f)
    )


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("n_features", [12, 37, 60])
@pytest.mark.parametrize("init", ["nndsvd", "nndsvda", "nndsvdar"])
def test_singular_vectors(team: Team, rng, init: str, n_features: int, size: int) -> None:
    """With more rows than features, as many, and fewer."""
    X = planted(rng, 37, n_features)
    parameters = {"n_components": 4, "init": init, "solver": "hals", "beta_loss": "frobenius"}
    parameters |= {"max_iter": 3, "tol": 0, "random_state": 5}
    check_equal(team.run(fit_shard, *fits_of(X, SHARES[size], parameters)), X, parameters, 1e-6)


def test_several_starts_from_singular_vectors(team: Team, rng) -> None:
    X = planted(rng, 37, 20)
    parameters = {"n_components": 4, "init": "nndsvdar", "n_init": 3, "max_iter": 20, "tol": 0}
    parameters["random_state"] = 5
    check_equal(team.run(fit_shard, *fits_of(X, SHARES[4], parameters)), X, parameters, 1e-5)


def fit_drawn(fit: Fit) -> Found:
    """Fit with generators that are not alike on the ranks."""
    rank = team_group().rank()
    model = NNMF(**fit.parameters, random_state=np.random.RandomState(rank))
    model.fit(Shard(fit.rows, team_group()))
    return Found.of(model, model.W_)


@pytest.mark.parametrize("init", ["random", "nndsvdar"])
def test_generators_are_those_of_rank_0(team: Team, rng, init: str) -> None:
    X = planted(rng, 37, 20)
    parameters = {"n_components": 4, "init": init, "max_iter": 5, "tol": 0}
    found = team.run(fit_drawn, *fits_of(X, SHARES[3], parameters))
    model = NNMF(**parameters, random_state=np.random.RandomState(0)).fit(X)
    W = np.concatenate([one.W for one in found])
    np.testing.assert_allclose(W, model.W_, rtol=1e-6, atol=1e-9)
    for one in found:
        np.testing.assert_allclose(one.H, model.components_, rtol=1e-6, atol=1e-9)


def stream(fit: Fit) -> np.ndarray:
    """Fit to the first rows, then go on with mini-batches."""
    model = NNMF(**fit.parameters)
    if fit.call["fit"]:
        model.fit(Shard(fit.rows[0], team_group()))
    for rows in fit.rows[1:]:
        model.partial_fit(Shard(rows, team_group()))
    return model.components_


@pytest.mark.parametrize("beta_loss", ["kullback-leibler", "frobenius", 0.5])
@pytest.mark.parametrize("fit", [False, True])
def test_streams(team: Team, rng, beta_loss: Any, fit: bool) -> None:
    """Each rank has a stream of its own; one mini-batch of all is what they have at a time."""
    X = [planted(rng, 37, 20) + 0.01 for _ in range(4)]
    parameters = {"n_components": 4, "beta_loss": beta_loss, "max_iter": 5, "tol": 0}
    parameters |= {"random_state": 5, "alpha_H": 0.01, "alpha_W": 0.01}
    fits = [Fit([one[rows] for one in X], parameters, {"fit": fit}) for rows in slices(SHARES[4])]
    model = NNMF(**parameters)
    if fit:
        model.fit(X[0])
    for rows in X[1:]:
        model.partial_fit(rows)
    for components in team.run(stream, *fits):
        np.testing.assert_allclose(components, model.components_, rtol=1e-7, atol=1e-10)


def fit_twice(fit: Fit) -> Found:
    model = NNMF(**fit.parameters).fit(Shard(fit.rows, team_group()))
    model.set_params(warm_start=True).fit(Shard(fit.rows, team_group()))
    return Found.of(model, model.transform(Shard(fit.rows, team_group())))


def test_a_warm_start(team: Team, rng) -> None:
    X = planted(rng, 37, 20)
    parameters: dict[str, Any] = {"n_components": 4, "max_iter": 7, "tol": 0, "random_state": 5}
    model = NNMF(**parameters).fit(X)
    model.set_params(warm_start=True).fit(X)
    for one in team.run(fit_twice, *fits_of(X, SHARES[4], parameters)):
        np.testing.assert_allclose(one.H, model.components_, rtol=1e-7, atol=1e-10)


def fit_on_grid(fit: Fit) -> Found:
    """Fit on two groups of two processes, each of which has all rows and some starts."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("starts", "rows"))
    groups = {"group": mesh.get_group("rows"), "starts": mesh.get_group("starts")}
    model = NNMF(**fit.parameters)
    shard = Shard.of_rows(fit.rows, **groups) if fit.call["whole"] else Shard(fit.rows, **groups)
    model.fit(shard)
    return Found.of(model, model.W_)


@pytest.mark.parametrize("init", ["random", "nndsvdar"])
@pytest.mark.parametrize("n_init", [2, 5])
def test_a_grid_of_rows_and_starts(team: Team, rng, n_init: int, init: str) -> None:
    X = planted(rng, 37, 20)
    parameters: dict[str, Any] = {"n_components": 4, "n_init": n_init, "init": init, "tol": 1e-3}
    parameters |= {"max_iter": 40, "random_state": 5}
    found = team.run(fit_on_grid, *(Fit(X, parameters, {"whole": True}) for _ in range(4)))
    model = NNMF(**parameters).fit(X)
    for one, rows in zip(found, [slice(0, 18), slice(18, 37)] * 2, strict=True):
        np.testing.assert_allclose(one.W, model.W_[rows], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(one.H, model.components_, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(one.objective, model.objective_history_, rtol=1e-7)
        np.testing.assert_array_equal(one.iterations, model.objective_iterations_)


def test_a_grid_must_fit(team: Team, rng) -> None:
    X = planted(rng, 37, 20)
    fits = [Fit(X, {"n_components": 2, "max_iter": 3, "tol": 0}, {"whole": True})] * 4
    for one in team.run(fit_on_grid, *fits):
        assert isinstance(one, ValueError)
        assert "n_init=1 starts are fewer than the 2 groups" in str(one)
    parameters: dict[str, Any] = {"n_components": 2, "n_init": 2, "max_iter": 3, "tol": 0}
    X = [X[:10], X[10:20], X[:10], X[10:21]]
    found = team.run(fit_on_grid, *(Fit(rows, parameters, {"whole": False}) for rows in X))
    assert any("ranks differ in the rows of X: 10 on rank 0, 11 on rank 1" in str(e) for e in found)
    assert all(isinstance(error, ValueError | RanksError) for error in found)
