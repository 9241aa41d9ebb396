"""The solvers of NNMF beside plain multiplicative updates, and the runs of a batch of starts."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.decomposition import non_negative_factorization
from torch.utils._python_dispatch import TorchDispatchMode

from nnmf_cuda import NNMF, ops
from nnmf_cuda.nnmf import solvers
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.minimisation import Run, all_runs
from nnmf_cuda.nnmf.problem import Objective, Penalty, Problem
from nnmf_cuda.nnmf.solvers import AcceleratedUpdates, Hals, MultiplicativeUpdates
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
    problem = Problem(Dense(X), Objective(1.0, PENALTY))
    start, _ = MultiplicativeUpdates(problem).advance(problem.at(W, H), 200)
    # Far too large a step for everybody: the block must be undone as a whole.
    monkeypatch.setattr(AcceleratedUpdates, "momentum_max", 1e3)
    monkeypatch.setattr(solvers, "RISE_MAX", 1e6)
    monkeypatch.setattr(solvers, "FALL_MAX", 1e-6)
    go_ahead = AcceleratedUpdates.go_ahead

    def too_far(self, W, H, W_ahead, H_ahead):
        go_ahead(self, W, H, W_ahead, H_ahead)
        if not self._plain.any():
            W_ahead.copy_(W + 1)
            H_ahead.copy_(H + 1)

    monkeypatch.setattr(AcceleratedUpdates, "go_ahead", too_far)
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
    problem = Problem(Dense(X), Objective(1.0, Penalty()))
    converged, _ = MultiplicativeUpdates(problem).advance(problem.at(W, H), 2000)
    early, _ = MultiplicativeUpdates(problem).advance(problem.at(W, H), 20)
    pairs = zip((converged.W, converged.H), (early.W, early.H), strict=True)
    start = problem.at(*(torch.stack((one[0], other[1])) for one, other in pairs))
    go_ahead = AcceleratedUpdates.go_ahead

    def shaken(self, W, H, W_ahead, H_ahead):
        go_ahead(self, W, H, W_ahead, H_ahead)
        W_ahead.mul_(1.01).add_(1e-3)
        H_ahead.copy_(H)

    monkeypatch.setattr(AcceleratedUpdates, "go_ahead", shaken)
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
    # A fit that ends after one iteration has the objective of its start for a first record.
    theirs = NNMF(6, beta_loss=2, init="custom", tol=0, max_iter=1, **options)
    theirs.fit(counts, W=W, H=H)
    assert model.objective_history_[-1] <= 1.001 * theirs.objective_history_[0]
    assert (np.diff(model.objective_history_) <= 0).all()


def test_hals_is_the_op_with_the_sweeps_that_X_pays_for(counts):
    _, W, H = factorisation(n=60, f=90, k=6)
    model = NNMF(6, beta_loss=2, init="custom", solver="hals", tol=0, max_iter=15, alpha_W=0.01)
    model.fit(counts, W=W, H=H)
    penalties = {"l2_reg_W": 90 * 0.01, "l2_reg_H": 60 * 0.01}
    options = {"n_inner": Hals.sweeps(Dense(torch.from_numpy(counts)), 6), **penalties}
    assert options["n_inner"] == 4  # 1 + half of 5400 / 900
    want = ops.nnmf_hals(torch.from_numpy(counts), W, H, n_iter=15, **options)
    np.testing.assert_allclose(model.components_, want[1], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(model.W_, want[0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("shape", "k", "sweeps"), [((1500, 16384), 15, 10), ((5, 4), 4, 1)])
def test_sweeps_of_hals_grow_with_what_a_pass_over_X_costs(shape, k, sweeps):
    assert Hals.sweeps(Dense(torch.empty(shape)), k) == sweeps


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
    falls = -np.diff(errors) / errors[1:]
    assert falls[-1] <= 1e-4 < falls[:-1].min()


@pytest.mark.filterwarnings("ignore:X has the mean:UserWarning")
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
        (
            {"solver": "cd", "beta_loss": 2},
            "only, got 2; what scikit-learn calls 'cd'.*'hals' here",
        ),
        ({"solver": "cd", "beta_loss": 1.5}, "'cd' minimises .*got 1.5; use"),
        ({"solver": "accelerated-mu", "beta_loss": 0.5}, r"beta_loss in \[1, 2\].*got 0.5"),
        ({"solver": "accelerated-mu", "beta_loss": "itakura-saito"}, r"\[1, 2\].*got 0; use"),
        ({"solver": "accelerated-mu", "beta_loss": 3}, r"\[1, 2\].*got 3; use solver='mu'"),
    ],
)
def test_solvers_refuse_other_divergences(counts, parameters, message):
    with pytest.raises(ValueError, match=message):
        fitted(counts, **parameters)


# --- the runs of a batch --------------------------------------------------------------------------


def best_run(problem, W, H, **options):
    return min(all_runs(problem, W, H, **options), key=Run.order)


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu"])
def test_best_run_stops_each_start_by_its_own_rule(rng, solver):
    X = torch.from_numpy(rng.random((21, 3)) @ rng.random((3, 33)) + 0.01)
    W, H = torch.from_numpy(rng.random((2, 21, 3)) + 0.1), torch.from_numpy(rng.random((2, 3, 33)))
    # Equal components stay equal: the first start is rank one, far away, and done early.
    W[0], H[0] = 100.0, H[0, :1]
    problem = Problem(Dense(X), Objective(1.0, Penalty()))
    options = {"solver": solver, "max_iter": 2000, "tol": 1e-3}
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
    problem = Problem(Dense(X), Objective(2.0, Penalty()))
    with Waits() as waits:
        runs = list(all_runs(problem, W, H, solver=solver, max_iter=100, tol=tol))
    assert waits.seen["stack"] > 0  # the mode does look
    waiting = ("_local_scalar_dense", "nonzero", "index by mask", "masked_select", "is_nonzero")
    assert not [name for name in waiting if waits.seen[name]]
    blocks = max(run.iterations[-1] for run in runs) // 10
    assert len(tables) == 2 + blocks  # and at the start and the end
    assert tables[0] == (6,)
    if tol:
        assert tables[-1] < (6,)  # starts have left


@pytest.mark.needs_cuda
@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals"])
def test_the_host_waits_for_the_gpu_once_in_ten_iterations(rng, solver):
    X, W, H = (
        torch.from_numpy(rng.random(shape)).to("cuda", torch.float32)
        for shape in ((210, 330), (6, 210, 3), (6, 3, 330))
    )
    problem = Problem(Dense(X), Objective(2.0, Penalty()))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            list(all_runs(problem, W, H, solver=solver, max_iter=50, tol=0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(one.message) for one in seen if "synchronizing" in str(one.message)]
    assert len(waits) <= 2 + 5  # and at the start and the end
