from __future__ import annotations

import numpy as np
import pytest
import torch

from nnmf_cuda._objective import Objective, Penalty
from nnmf_cuda._restarts import best_run
from nnmf_cuda._solvers import Problem


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu"])
def test_best_run_stops_each_start_by_its_own_rule(rng, solver):
    X = torch.from_numpy(rng.random((21, 3)) @ rng.random((3, 33)) + 0.01)
    W, H = torch.from_numpy(rng.random((2, 21, 3)) + 0.1), torch.from_numpy(rng.random((2, 3, 33)))
    # Equal components stay equal: the first start is rank one, far away, and done early.
    W[0], H[0] = 100.0, H[0, :1]
    problem = Problem(X, Objective(1.0, Penalty()))
    options = {
        "solver": solver,
        "max_iter": 2000,
        "tol": 1e-4,
        "progress": lambda _steps: None,
    }
    alone = [best_run(problem, W[[b]], H[[b]], **options) for b in range(2)]
    assert alone[0].iterations[-1] < alone[1].iterations[-1]
    assert alone[0].objective[0] > 100 * alone[1].objective[0]
    together = best_run(problem, W, H, **options)
    assert together.restart == 1
    assert together.converged
    assert together.iterations == alone[1].iterations
    np.testing.assert_allclose(together.objective, alone[1].objective, rtol=1e-8)
    torch.testing.assert_close(together.H, alone[1].H, rtol=1e-6, atol=1e-9)
