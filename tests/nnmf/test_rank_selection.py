"""How many components: the choice, the runs of many ranks in shared batches, their scores."""

from __future__ import annotations

import builtins
import dataclasses
import sys
import warnings
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import squareform
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from nnmf_cuda import NNMF, RankSelection, ops
from nnmf_cuda.nnmf import rank_choice, rank_selection
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.minimisation import all_runs
from nnmf_cuda.nnmf.problem import Objective, Penalty, Problem
from nnmf_cuda.nnmf.rank_selection import (
    assignments,
    component_similarity,
    consensus,
    cophenetic_correlation,
    dispersion,
    grid_runs,
)
from nnmf_cuda.nnmf.solvers import SOLVERS
from nnmf_cuda.nnmf.starts import Origin, iter_starts
from tests.helpers import BETA_LOSSES, DEVICES, factorisation, plain_consensus, plain_cophenetic

pytestmark = pytest.mark.filterwarnings("ignore:.*of the runs stopped:UserWarning")
CURVES = ["components", "dispersion", "cophenetic", "objective", "reconstruction_err", "converged"]
PENALTIES = {
    "none": Penalty(),
    "l1": Penalty(l1_reg_W=0.3, l1_reg_H=0.2),
    "l2": Penalty(l2_reg_W=0.3, l2_reg_H=0.2),
    "both": Penalty(l1_reg_W=0.02, l1_reg_H=0.03, l2_reg_W=0.05, l2_reg_H=0.04),
}
SOLVED = [("mu", beta_loss) for beta_loss in BETA_LOSSES]
SOLVED += [("accelerated-mu", beta_loss) for beta_loss in (1.0, 1.5, 2.0)] + [("hals", 2.0)]


def parts(rng, rank):
    """Mixtures of overlapping parts: no sample belongs to one of them."""
    H = np.stack([np.roll(np.arange(60) < 60 / rank * 1.4, t * 60 // rank) for t in range(rank)])
    return rng.gamma(1, size=(80, rank)) @ H + 0.1 * rng.random((80, 60))


def counts(rng, rank):
    H = rng.dirichlet(np.full(60, 0.1), rank)
    return rng.poisson(1000 * rng.gamma(0.5, size=(80, rank)) @ H).astype(float)


def clusters(rng, rank):
    """Each sample from one component, with a little of the others."""
    W = 0.1 * rng.random((80, rank))
    W[np.arange(80), np.arange(80) % rank] += 0.5 + rng.random(80)
    return W @ rng.random((rank, 60)) + 0.2 * rng.random((80, 60))


def model(**parameters):
    options = {"solver": "accelerated-mu", "max_iter": 600, "tol": 1e-5, "random_state": 0}
    return NNMF(**options | parameters)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("planted", [3, 5])
@pytest.mark.parametrize("make", [parts, counts, clusters])
def test_the_planted_rank_is_chosen(rng, make, planted, device):
    found = model(device=device).select_rank(make(rng, planted), range(2, 9), n_init=10)
    assert found.chosen == planted
    assert found.components[planted - 2] > 0.95
    assert (np.diff(found.objective) < 0).all()


@pytest.mark.parametrize("criterion", ["dispersion", "cophenetic"])
def test_the_consensus_finds_planted_clusters(rng, criterion):
    found = model().select_rank(counts(rng, 4), range(2, 8), n_init=10, criterion=criterion)
    assert (found.criterion, found.chosen) == (criterion, 4)


@pytest.mark.parametrize("solver", ["mu", "hals"])
def test_other_solvers_and_pixels(rng, solver):
    X = parts(rng, 4)
    pixels = (255 * X / X.max()).astype(np.uint8)
    found = model(solver=solver, beta_loss=2).select_rank(pixels, range(2, 7), n_init=8)
    assert found.chosen == 4


def test_the_scores_are_those_of_separate_fits(rng):
    """Fit after fit by the estimator, then the definitions in NumPy."""
    X = counts(rng, 4)[:40]
    X[7] = 0
    found = model(tol=1e-3).select_rank(X, [3, 5], n_init=4)
    for index, rank in enumerate([3, 5]):
        generator = np.random.RandomState(0)  # noqa: NPY002 - start after start, as one batch
        fits = [model(n_components=rank, tol=1e-3, random_state=generator).fit(X) for _ in range(4)]
        given = [fit.W_ * fit.components_.sum(1) for fit in fits]
        labels = np.stack([np.delete(part, 7, 0).argmax(1) for part in given])
        matrix = plain_consensus(labels)
        assert found.dispersion[index] == pytest.approx(np.mean((2 * matrix - 1) ** 2))
        assert found.cophenetic[index] == pytest.approx(plain_cophenetic(matrix), rel=1e-6)
        best = min(fits, key=lambda fit: fit.objective_history_[-1])
        assert found.objective[index] == pytest.approx(best.objective_history_[-1], rel=1e-9)
        assert found.reconstruction_err[index] == pytest.approx(best.reconstruction_err_, rel=1e-9)
        assert found.converged[index] == np.mean([fit.converged_ for fit in fits])
        batch = model(n_components=rank, n_init=4, tol=1e-3).fit(X)
        assert found.objective[index] == pytest.approx(batch.objective_history_[-1], rel=1e-9)


def same(one, other, rtol=0.0):
    for name in CURVES:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=rtol)
    return one.chosen == other.chosen


def test_a_seed_decides_everything_and_batches_nothing(rng, monkeypatch):
    X = parts(rng, 3)
    options = {"n_components": range(2, 6), "n_init": 4, "max_samples": 30}
    first, second = (model().select_rank(X, **options) for _ in range(2))
    assert same(first, second)
    assert not np.array_equal(
        model(random_state=1).select_rank(X, **options).objective, first.objective
    )
    monkeypatch.setattr(
        rank_choice,
        "grid_runs",
        lambda *a, **k: grid_runs(*a, width=8, batch_entries=5000, **k),
    )
    assert same(model().select_rank(X, **options), first, rtol=1e-3)


def test_ranks_come_in_any_order(rng):
    X = parts(rng, 3)
    options = {"n_init": 3}
    first = model().select_rank(X, range(2, 5), **options)
    assert same(model().select_rank(X, iter([4, 2, 3, 2]), **options), first)
    np.testing.assert_array_equal(first.ranks, [2, 3, 4])
    one = model().select_rank(X, [np.int64(4)], **options)
    assert one.chosen == 4
    assert one.components == pytest.approx(first.components[2])


def test_some_samples_stand_for_all(rng):
    X = np.vstack([clusters(rng, 4)] * 3)
    seen = []

    def recorded(labels, _consensus=rank_selection.consensus):
        seen.append(labels.shape)
        return _consensus(labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_selection, "consensus", recorded)
        some = model().select_rank(X, [4], n_init=3, max_samples=50)
        every = model().select_rank(X, [4], n_init=3, max_samples=None)
    assert seen == [(3, 50), (3, 240)]
    assert some.objective == every.objective
    assert some.dispersion == pytest.approx(every.dispersion, abs=0.1)


def test_the_estimator_stays_as_it_is(rng):
    X = pd.DataFrame(parts(rng, 3), columns=[f"pixel{i}" for i in range(60)])
    estimator = model(n_components=7)
    before = dict(vars(estimator))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator.select_rank(X, [2, 3], n_init=2)
        assert vars(estimator) == before
        with pytest.raises(NotFittedError):
            estimator.transform(X)
        estimator.set_params(n_components=2).fit(X.iloc[:, :30])
        estimator.select_rank(X, [2, 3], n_init=2)
    assert estimator.n_features_in_ == 30


def test_rows_that_are_equal_or_zero(rng):
    X = np.repeat(parts(rng, 3)[:4], 5, 0)  # four samples, five times each
    with_zeros = np.vstack([X, np.zeros((9, 60))])
    for matrix in (X, with_zeros):
        found = model().select_rank(matrix, [2, 3], n_init=4)
        assert np.isfinite([getattr(found, name) for name in CURVES]).all()
    constant = model().select_rank(np.ones((6, 5)), [2], n_init=3)
    assert 0 <= constant.dispersion[0] <= 1
    with pytest.raises(ValueError, match="X has 1 rows that are not all zeros.*give at least 2"):
        model().select_rank(np.eye(4) * [1, 0, 0, 0], [2], n_init=3)


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (ValueError, {"n_init": 1}, "n_init must be an integer >= 2, got 1"),
        (TypeError, {"n_init": 2.5}, "n_init must be an integer >= 2, got 2.5"),
        (TypeError, {"n_components": 5}, r"a sequence of ranks, such as range\(2, 9\), got 5"),
        (TypeError, {"n_components": "auto"}, "a sequence of ranks.*got 'auto'"),
        (TypeError, {"n_components": [2, 3.0]}, "each of n_components must be an integer"),
        (ValueError, {"n_components": []}, "n_components is empty; give the ranks"),
        (ValueError, {"n_components": [0, 2]}, "each of n_components must be an integer >= 1"),
        (ValueError, {"n_components": [1, 2]}, "contains 1, on which all runs agree.*start at 2"),
        (ValueError, {"n_components": [2, 9]}, r"contains 9, which is above min\(.* = 8; use"),
        (ValueError, {"criterion": "best"}, "criterion='best' does not exist; choose one of comp"),
        (ValueError, {"max_samples": 1}, "max_samples must be an integer >= 2, got 1"),
    ],
)
def test_bad_arguments(rng, error, options, message):
    with pytest.raises(error, match=message):
        model().select_rank(rng.random((8, 10)), **{"n_components": [2]} | options)


@pytest.mark.parametrize("init", ["nndsvd", "nndsvda", "custom"])
def test_starts_that_do_not_differ_are_refused(rng, init):
    with pytest.raises(ValueError, match=f"n_init=3 with init='{init}' would repeat one start"):
        model(init=init).select_rank(rng.random((8, 10)), [2], n_init=3)


def test_an_overflow_is_named(rng):
    X = (rng.random((8, 10)) * 3e38).astype(np.float32)
    with pytest.raises(ValueError, match="n_components=2 overflowed in restart 0; scale X"):
        model(beta_loss=2).select_rank(X, [2], n_init=2)


def test_unfinished_runs_are_told_of(rng):
    X = parts(rng, 3)
    with pytest.warns(ConvergenceWarning, match="100% of the runs stopped at max_iter=20") as seen:
        model(max_iter=20, tol=1e-12).select_rank(X, [2], n_init=2)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(max_iter=20, tol=0).select_rank(X, [2], n_init=2)


def test_progress_counts_runs(rng, capsys, monkeypatch):
    X = parts(rng, 3)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    model(max_iter=10, tol=0).select_rank(X, [2, 3], n_init=2)
    assert capsys.readouterr() == ("", "")
    model(max_iter=10, tol=0, verbose=1).select_rank(X, [2, 3], n_init=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "4/4" in err


@pytest.fixture
def curve():
    scores = {name: np.array([0.9, 0.8]) for name in CURVES}
    return RankSelection(np.array([2, 3]), **scores, n_init=5, criterion="components", chosen=2)


def test_the_curve_is_drawn(curve):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    figure, ax = pyplot.subplots()
    assert curve.plot(ax) is ax
    _, names = ax.get_legend_handles_labels()
    assert names == ["components", "dispersion", "cophenetic", "chosen: 2"]
    assert len(figure.axes) == 2
    pyplot.close(curve.plot().figure)
    pyplot.close(figure)


def test_the_result_cannot_be_changed(curve):
    with pytest.raises(dataclasses.FrozenInstanceError):
        curve.chosen = 3


def test_selecting_needs_no_matplotlib(rng, monkeypatch):
    def without(name, *arguments, _import=builtins.__import__, **options):
        assert not name.startswith("matplotlib")
        return _import(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    found = model().select_rank(torch.from_numpy(parts(rng, 3)), [2], n_init=2)
    assert found.chosen == 2


# --- ranks in shared batches: each run is what its start gives alone ------------------------------


@pytest.fixture(params=DEVICES)
def X(request, rng):
    matrix = rng.random((23, 4)) @ rng.random((4, 37)) + 0.2 * rng.random((23, 37)) + 0.01
    return torch.from_numpy(matrix).to(request.param)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("solver", "beta_loss"), SOLVED)
def test_each_run_of_a_mixed_batch_is_its_own(X, solver, beta_loss, penalty):
    problem = Problem(Dense(X), Objective(beta_loss, PENALTIES[penalty]))
    options = {"solver": solver, "max_iter": 400, "tol": 1e-3}
    origin = Origin("random", n_init=2, random_state=1, mean=X.mean().item())
    sweeps = SOLVERS[solver].sweeps
    ranks = [rank for rank in (2, 3, 4, 6, 9) if sweeps(Dense(X), rank) == sweeps(Dense(X), 4)]
    together = {
        (run.n_components, run.restart): run
        for run in grid_runs(problem, ranks, origin, width=16, **options)
    }
    assert sorted(together) == [(rank, restart) for rank in ranks for restart in range(2)]
    lengths = set()
    for (rank, restart), run in together.items():
        W, H = list(iter_starts(Dense(X), rank, origin))[restart]
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

    monkeypatch.setattr(rank_selection, "all_runs", recorded)
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
    problem = Problem(Dense(X), Objective(1.0, Penalty()))
    origin = Origin("random", n_init=n_init, random_state=0)
    runs = grid_runs(problem, ranks, origin, solver="mu", max_iter=1, tol=0, **options)
    ended = sorted((run.n_components, run.restart) for run in runs)
    assert ended == [(rank, restart) for rank in ranks for restart in range(n_init)]
    assert batches == want


def test_only_ranks_with_the_same_sweeps_share_a_batch_of_hals(rng, batches):
    X = torch.from_numpy(rng.random((60, 90)))
    problem = Problem(Dense(X), Objective(2.0, Penalty()))
    ranks = [2, 3, 4, 5, 6, 7, 8]
    origin = Origin("random", random_state=0)
    list(grid_runs(problem, ranks, origin, solver="hals", max_iter=1, tol=0, width=8))
    # 1 + half of 5400 / (150 k), at most 10.
    assert [SOLVERS["hals"].sweeps(Dense(X), rank) for rank in ranks] == [10, 7, 5, 4, 4, 3, 3]
    assert batches == [(1, 2), (1, 3), (1, 4), (2, 6), (2, 8)]
    W, H = X.new_ones(2, 60, 8), X.new_ones(2, 8, 90)
    with pytest.raises(ValueError, match="too many values to unpack"):
        next(all_runs(problem, W, H, solver="hals", max_iter=1, tol=0, ranks=[2, 8]))


# --- the scores by their definitions --------------------------------------------------------------


@pytest.mark.parametrize("block_rows", [1, 4, 512])
@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_consensus_scores_are_those_of_the_definitions(rng, monkeypatch, noise, block_rows):
    monkeypatch.setattr(rank_selection, "BLOCK_ROWS", block_rows)
    true = rng.integers(0, 4, 17)
    shaken = np.where(rng.random((9, 17)) < noise, rng.integers(0, 4, (9, 17)), true)
    labels = np.stack([rng.permutation(4)[run] for run in shaken])  # labels mean nothing
    matrix = plain_consensus(labels)
    pairs = consensus(torch.from_numpy(labels))
    np.testing.assert_allclose(squareform(pairs) + np.eye(17), matrix, atol=1e-12)
    # Kim & Park 2007: the sum of 4 (c - 1/2)^2 over all i and j, over n^2.
    assert dispersion(pairs, 17) == pytest.approx(np.sum(4 * (matrix - 0.5) ** 2) / 17**2)
    assert cophenetic_correlation(pairs) == pytest.approx(plain_cophenetic(matrix), rel=1e-9)
    if noise == 0:
        assert dispersion(pairs, 17) == cophenetic_correlation(pairs) == 1


def test_equal_distances_are_kept_exactly():
    assert cophenetic_correlation(np.full(6, 0.5)) == 1
    assert dispersion(np.full(6, 0.5), 4) == 0.25  # the diagonal alone
    assert cophenetic_correlation(np.ones(1)) == 1


def test_assignments_do_not_depend_on_the_scale_of_components(rng):
    W, H = torch.from_numpy(rng.random((30, 5))), torch.from_numpy(rng.random((5, 8)))
    W[3] = 0
    scale = torch.tensor([1e-3, 1.0, 7.0, 1e4, 0.2], dtype=torch.float64)
    labels = assignments(W, H)
    assert torch.equal(assignments(W / scale, H * scale[:, None]), labels)
    want = [np.outer(W[i], np.ones(8)) * H.numpy() for i in range(30)]  # the parts of row i
    np.testing.assert_array_equal(
        labels, [5 if i == 3 else part.sum(1).argmax() for i, part in enumerate(want)]
    )


def test_component_similarity_is_the_mean_over_the_best_matching(rng):
    runs = rng.random((4, 3, 10)) ** 3

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    scores = [
        max(
            np.mean([cosine(runs[i, t], runs[j, p[t]]) for t in range(3)])
            for p in permutations(range(3))
        )
        for i in range(4)
        for j in range(i)
    ]
    found = component_similarity(torch.from_numpy(runs))
    assert found == pytest.approx(np.mean(scores), rel=1e-12)
    shuffled = np.stack([(2.0 + i) * runs[0, rng.permutation(3)] for i in range(4)])
    assert component_similarity(torch.from_numpy(shuffled)) == pytest.approx(1, abs=1e-12)


def test_a_component_of_zeros_is_like_nothing():
    runs = torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    runs[1, 1] = 0
    assert component_similarity(runs) == pytest.approx(0.5)
