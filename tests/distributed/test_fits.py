"""A fit whose rows are dealt among processes is the fit of one process."""

from __future__ import annotations

import numpy as np
import pytest

from tests.distributed.fits import SHARES, check_equal, fit_shard, fits_of
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
