"""Blocks of iterations that are recorded end where they end step by step, bit for bit.

On the CPU an `OpRecorder` stands for the CUDA graph.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from nnmf_cuda import NNMF
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.minimisation import Minimisation, State, all_runs
from nnmf_cuda.nnmf.problem import Iterate, Objective, Penalty, Problem
from nnmf_cuda.nnmf.solvers import SOLVERS
from tests.helpers import DEVICES
from tests.op_recorder import NoHost, recorded_on_the_cpu


def problem_of(device="cpu", *, seed=0, batch=4):
    rng = np.random.default_rng(seed)
    X = rng.random((31, 4)) @ rng.random((4, 45)) + 0.05 * rng.random((31, 45))
    W, H = rng.random((batch, 31, 3)) + 0.1, rng.random((batch, 3, 45)) + 0.1
    # One start that is done early: the others go on in a smaller batch.
    W[0], H[0] = 30.0, H[0, :1]
    X, W, H = (torch.from_numpy(a).to(device) for a in (X, W, H))
    penalty = Penalty(l1_reg_W=0.02, l1_reg_H=0.03, l2_reg_W=0.05, l2_reg_H=0.04)
    return Problem(Dense(X), Objective(2.0, penalty)), W, H


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals"])
def test_iterations_need_nothing_of_the_host(solver):
    """Seen on a device that is not there, torch's "meta": whoever reads from it would raise."""
    problem, W, H = problem_of("meta")
    stepper = SOLVERS[solver](problem)
    at = Iterate(W, H, *(torch.empty(len(W), dtype=torch.float64, device="meta") for _ in "do"))
    at, _ = stepper.advance(at, 10)  # what is made once
    with NoHost():
        at, counted = stepper.advance(at, 10)
    assert {tensor.device.type for tensor in (*vars(at).values(), counted)} == {"meta"}


def assert_same_runs(found, expected):
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert (mine.restart, mine.iterations, mine.objective, mine.divergence, mine.converged) == (
            (other.restart, other.iterations, other.objective, other.divergence, other.converged)
        )
        assert torch.equal(mine.W, other.W)
        assert torch.equal(mine.H, other.H)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals"])
def test_a_batch_whose_starts_leave_ends_where_it_does(solver, device, monkeypatch):
    problem, W, H = problem_of(device)
    options = {"solver": solver, "max_iter": 247, "tol": 1e-3}
    with recorded_on_the_cpu() as recorder:
        found = list(all_runs(problem, W, H, **options))
    assert device == "cuda" or recorder.n_recorded > 1
    assert device == "cuda" or recorder.n_replayed > 4
    monkeypatch.setenv("NNMF_CUDA_GRAPHS", "0")
    assert_same_runs(found, list(all_runs(problem, W, H, **options)))
    assert len({len(run.iterations) for run in found}) > 1


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu"])
def test_a_state_is_not_changed_by_later_blocks(solver):
    """A checkpoint holds it while the fit goes on."""
    problem, W, H = problem_of(batch=2)
    with recorded_on_the_cpu() as recorder:
        start = State.of_starts(problem, W, H)
        minimisation = Minimisation(problem, start, solver=solver, tol=0)
        kept = []
        for _ in range(7):
            list(minimisation.advance(10))
            state = minimisation.state()
            tensors = [*vars(state.at).values(), *state.memory.values()]
            kept.append((state, [tensor.clone() for tensor in tensors]))
    assert recorder.n_replayed > 3
    for state, values in kept:
        tensors = [*vars(state.at).values(), *state.memory.values()]
        assert all(torch.equal(*pair) for pair in zip(tensors, values, strict=True))
    # From any of them the way is the same.
    again = Minimisation(problem, kept[2][0], solver=solver, tol=0)
    for _ in range(4):
        list(again.advance(10))
    assert torch.equal(again.state().at.W, kept[6][1][0])


def counts(seed=0):
    rng = np.random.default_rng(seed)
    W = rng.exponential(size=(40, 4)) * (rng.random((40, 4)) < 0.5)
    H = rng.exponential(size=(4, 60)) * (rng.random((4, 60)) < 0.4)
    return rng.poisson(3 * W @ H + 0.05).astype(np.float32)


def neighbours(n):
    ones = np.ones(n - 1, dtype=np.float32)
    return scipy.sparse.diags_array([ones, ones], offsets=[-1, 1]).tocsr()


@pytest.mark.parametrize(
    ("solver", "kind", "options"),
    [
        ("mu", "dense", {"n_init": 3, "tol": 1e-3}),
        ("mu", "bytes", {"beta_loss": 2}),
        ("mu", "masked", {"beta_loss": 0.5}),
        ("mu", "sparse", {"alpha_W": 1e-3}),
        ("mu", "graph", {}),
        ("accelerated-mu", "dense", {"n_init": 2}),
        ("accelerated-mu", "sparse", {}),
        ("accelerated-mu", "masked", {"beta_loss": 1.5}),
        ("hals", "masked", {"beta_loss": 2}),
        ("hals", "sparse", {"beta_loss": 2}),
        ("cd", "sparse", {"n_init": 2}),
    ],
)
def test_fits_are_the_same(solver, kind, options, caplog):
    X = counts() + (0.5 if options.get("beta_loss", 1) < 1 else 0)
    more = {}
    if kind == "bytes":
        X = X.clip(0, 255).astype(np.uint8)
    elif kind == "sparse":
        X = scipy.sparse.csr_array(X)
    elif kind == "masked":
        more["mask"] = np.random.default_rng(1).random(X.shape) < 0.8
    elif kind == "graph":
        options = {**options, "graph": neighbours(len(X))}
    settings = {"n_components": 4, "max_iter": 90, "random_state": 0, "tol": 0, "init": "random"}
    settings |= {"beta_loss": "kullback-leibler", "solver": solver, **options}
    plain = NNMF(**settings).fit(X, **more)
    with recorded_on_the_cpu() as recorder:
        found = NNMF(**settings).fit(X, **more)
    assert recorder.n_recorded > 0, caplog.text
    assert "no CUDA graph" not in caplog.text
    np.testing.assert_array_equal(found.components_, plain.components_)
    np.testing.assert_array_equal(found.W_, plain.W_)
    np.testing.assert_array_equal(found.objective_history_, plain.objective_history_)


@pytest.mark.parametrize("solver", ["semi", "semi-hals"])
def test_what_waits_for_decompositions_is_not_recorded(solver, caplog):
    X = np.random.default_rng(0).standard_normal((20, 15)).astype(np.float32)
    with recorded_on_the_cpu() as recorder:
        NNMF(n_components=3, solver=solver, beta_loss=2, max_iter=50, tol=0, random_state=0).fit(X)
    assert recorder.n_recorded == 0
    assert "CUDA graph" not in caplog.text
