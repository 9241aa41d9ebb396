from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nnmf_cuda.nnmf.restarts import all_runs, best_run
from nnmf_cuda.nnmf.solvers import Objective, Penalty, Problem


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


class Waits(TorchDispatchMode):
    """Count what makes the host wait for a GPU: reads of single numbers, and masks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "index":
            masked = any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
            name = "index by mask" if masked else name
        self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("tol", [0, 1e-3])
@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals"])
def test_the_host_reads_one_table_in_ten_iterations(rng, monkeypatch, solver, tol):
    X = torch.from_numpy(rng.random((21, 33)))
    W, H = torch.from_numpy(rng.random((6, 21, 3))), torch.from_numpy(rng.random((6, 3, 33)))
    tables = []

    def tolist(tensor, _tolist=torch.Tensor.tolist):
        tables.append(tuple(tensor.shape))
        return _tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    problem = Problem(X, Objective(2.0, Penalty()))
    with Waits() as waits:
        runs = list(all_runs(problem, W, H, solver=solver, max_iter=100, tol=tol))
    assert waits.seen["stack"] > 0  # the mode does look
    waiting = ("_local_scalar_dense", "nonzero", "index by mask", "masked_select", "is_nonzero")
    assert not [name for name in waiting if waits.seen[name]]
    blocks = max(run.iterations[-1] for run in runs) // 10
    assert len(tables) == 1 + blocks
    assert tables[0] == (6,)
    if tol:
        assert tables[-1][0] < 6  # starts have left


@pytest.mark.needs_cuda
@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals"])
def test_the_host_waits_for_the_gpu_once_in_ten_iterations(rng, solver):
    X, W, H = (
        torch.from_numpy(rng.random(shape)).to("cuda", torch.float32)
        for shape in ((210, 330), (6, 210, 3), (6, 3, 330))
    )
    problem = Problem(X, Objective(2.0, Penalty()))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            list(all_runs(problem, W, H, solver=solver, max_iter=50, tol=0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(one.message) for one in seen if "synchronizing" in str(one.message)]
    assert len(waits) <= 1 + 5
