"""`select_rank` of rows, and of starts, that are dealt among processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch.distributed.device_mesh import init_device_mesh

from nnmf_cuda import NNMF, RankSelection
from nnmf_cuda.distributed import Shard
from tests.distributed.fits import SHARES, Fit, slices
from tests.distributed.team import Team, team_group


def select(fit: Fit) -> RankSelection:
    """Compare ranks for rows that are all dealt, or on a grid of rows and starts."""
    groups = {"group": team_group(), "starts": None}
    if fit.call["grid"]:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("starts", "rows"))
        groups = {"group": mesh.get_group("rows"), "starts": mesh.get_group("starts")}
    shard = Shard(fit.rows, groups["group"], starts=groups["starts"])
    return NNMF(**fit.parameters).select_rank(shard, **fit.call["asked"])


def masked(mask: np.ndarray | None, rows: slice) -> dict[str, Any]:
    return {} if mask is None else {"mask": mask[rows]}


@pytest.mark.parametrize("how", ["rows", "rows with a mask", "grid"])
def test_curves_are_those_of_one_process(team: Team, rng, how: str) -> None:
    grid = how == "grid"
    X = rng.gamma(1.0, size=(37, 3)) @ rng.gamma(1.0, size=(3, 20)) + 0.05 * rng.random((37, 20))
    X[5] = 0  # a row that is in no cluster
    parameters: dict[str, Any] = {"max_iter": 30, "tol": 1e-3, "random_state": 5}
    counts = slices((20, 17)) * 2 if grid else slices(SHARES[4])
    asked: dict[str, Any] = {"n_components": [3, 2, 4], "n_init": 3, "max_samples": 20}
    asked |= {"held_out": 0.1, "n_repeats": 3 if grid else 2}
    mask = rng.random(X.shape) < 0.9 if how == "rows with a mask" else None
    fits = [
        Fit(X[rows], parameters, {"grid": grid, "asked": asked | masked(mask, rows)})
        for rows in counts
    ]
    expected = NNMF(**parameters).select_rank(X, **asked, mask=mask)
    for one in team.run(select, *fits):
        assert one.chosen == expected.chosen
        assert one.n_init == 3
        for name in ("ranks", "components", "dispersion", "cophenetic", "objective", "converged"):
            np.testing.assert_allclose(getattr(one, name), getattr(expected, name), rtol=1e-6)
        np.testing.assert_allclose(one.held_out, expected.held_out, rtol=1e-5)
