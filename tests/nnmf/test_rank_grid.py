"""A grid of ranks in shared batches: each run is what its start gives alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnmf_cuda import ops
from nnmf_cuda.nnmf import restarts as _rank_grid
from nnmf_cuda.nnmf.restarts import all_runs, grid_runs
from nnmf_cuda.nnmf.solvers import Objective, Penalty, Problem, sweeps_of
from nnmf_cuda.nnmf.starts import iter_starts
from tests.helpers import BETA_LOSSES, DEVICES, factorisation

PENALTIES = {
    "none": Penalty(),
    "l1": Penalty(l1_reg_W=0.3, l1_reg_H=0.2),
    "l2": Penalty(l2_reg_W=0.3, l2_reg_H=0.2),
    "both": Penalty(l1_reg_W=0.02, l1_reg_H=0.03, l2_reg_W=0.05, l2_reg_H=0.04),
}
SOLVERS = [("mu", beta_loss) for beta_loss in BETA_LOSSES]
SOLVERS += [("accelerated-mu", beta_loss) for beta_loss in (1.0, 1.5, 2.0)] + [("hals", 2.0)]


@pytest.fixture(params=DEVICES)
def X(request, rng):
    matrix = rng.random((23, 4)) @ rng.random((4, 37)) + 0.2 * rng.random((23, 37)) + 0.01
    return torch.from_numpy(matrix).to(request.param)


def starts_of(X, n_init):
    return lambda rank: iter_starts(X, rank, init="random", n_init=n_init, random_state=rank)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("solver", "beta_loss"), SOLVERS)
def test_each_run_of_a_mixed_batch_is_its_own(X, solver, beta_loss, penalty):
    problem = Problem(X, Objective(beta_loss, PENALTIES[penalty]))
    options = {"solver": solver, "max_iter": 400, "tol": 1e-3}
    ranks = [rank for rank in (2, 3, 4, 6, 9) if solver != "hals" or sweeps_of(
        solver, problem, rank) == sweeps_of(solver, problem, 4)]  # fmt: skip
    starts = starts_of(X, 2)
    together = {
        (run.n_components, run.restart): run
        for run in grid_runs(problem, ranks, 2, starts, width=16, **options)
    }
    assert sorted(together) == [(rank, restart) for rank in ranks for restart in range(2)]
    lengths = set()
    for (rank, restart), run in together.items():
        W, H = list(starts(rank))[restart]
        (alone,) = all_runs(problem, W[None].to(X.device), H[None].to(X.device), **options)
        assert run.W.shape == (23, rank)
        assert run.H.shape == (rank, 37)
        assert run.iterations == alone.iterations
        assert run.converged == alone.converged
        np.testing.assert_allclose(run.objective, alone.objective, rtol=1e-9)
        torch.testing.assert_close(run.W @ run.H, alone.W @ alone.H, rtol=1e-6, atol=1e-9)
        assert run.divergence == pytest.approx(alone.divergence, rel=1e-9)
        lengths.add(run.iterations[-1])
    assert len(lengths) > 1  # starts did leave the batch while others went on


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("op", ["hals", *BETA_LOSSES])
def test_zero_columns_stay_zero_and_change_nothing(op, penalty, dtype, device):
    X, W, H = factorisation(31, 65, 3, dtype=dtype, device=device)
    wide_W, wide_H = W.new_zeros(31, 8), H.new_zeros(8, 65)
    wide_W[:, :3], wide_H[:3] = W, H
    options = dict(vars(PENALTIES[penalty]), n_iter=20, compute_divergence=True)

    def run(W, H):
        if op == "hals":
            return ops.nnmf_hals(X, W, H, n_inner=3, **options)
        return ops.nnmf_mu(X, W, H, beta_loss=op, **options)

    narrow, wide = run(W, H), run(wide_W, wide_H)
    assert not wide[0][:, 3:].any()
    assert not wide[1][3:].any()
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(wide[0][:, :3], narrow[0], **tolerance)
    torch.testing.assert_close(wide[1][:3], narrow[1], **tolerance)
    torch.testing.assert_close(wide[2], narrow[2], rtol=1e-4, atol=0)


@pytest.fixture
def batches(monkeypatch):
    """Record the shape (B, k) of each batch."""
    shapes = []

    def recorded(problem, W, H, **options):
        shapes.append((len(W), W.shape[2]))
        return all_runs(problem, W, H, **options)

    monkeypatch.setattr(_rank_grid, "all_runs", recorded)
    return shapes


@pytest.mark.parametrize(
    ("ranks", "n_init", "options", "want"),
    [
        (range(2, 9), 3, {"width": 8}, [(21, 8)]),
        ([2, 3, 8, 9, 12, 17], 2, {"width": 8}, [(6, 8), (4, 12), (2, 17)]),
        ([2, 3, 8], 2, {}, [(2, 2), (2, 3), (2, 8)]),  # nothing is gained on the CPU
        # 60 * 8 entries a start: two starts fit 1000 entries, one fits 500, and one must.
        ([2, 8], 3, {"width": 8, "batch_entries": 1000}, [(2, 2), (2, 8), (2, 8)]),
        ([8], 2, {"batch_entries": 1}, [(1, 8), (1, 8)]),
        ([3], 5, {"batch_entries": 4 * 60 * 3}, [(2, 3), (3, 3)]),
    ],
)
def test_ranks_share_batches_of_bounded_size(rng, batches, ranks, n_init, options, want):
    X = torch.from_numpy(rng.random((23, 37)))
    problem = Problem(X, Objective(1.0, Penalty()))
    runs = grid_runs(
        problem, ranks, n_init, starts_of(X, n_init), solver="mu", max_iter=1, tol=0, **options
    )
    ended = sorted((run.n_components, run.restart) for run in runs)
    assert ended == [(rank, restart) for rank in ranks for restart in range(n_init)]
    assert batches == want


def test_only_ranks_with_the_same_sweeps_share_a_batch_of_hals(rng, batches):
    X = torch.from_numpy(rng.random((60, 90)))
    problem = Problem(X, Objective(2.0, Penalty()))
    ranks = [2, 3, 4, 5, 6, 7, 8]
    list(grid_runs(
        problem, ranks, 1, starts_of(X, 1), solver="hals", max_iter=1, tol=0, width=8
    ))  # fmt: skip
    # 1 + half of 5400 / (150 k), at most 10.
    assert [sweeps_of("hals", problem, rank) for rank in ranks] == [10, 7, 5, 4, 4, 3, 3]
    assert batches == [(1, 2), (1, 3), (1, 4), (2, 6), (2, 8)]
    W, H = torch.ones(2, 60, 8), torch.ones(2, 8, 90)
    with pytest.raises(ValueError, match="too many values to unpack"):
        next(all_runs(problem, W, H, solver="hals", max_iter=1, tol=0, ranks=[2, 8]))
