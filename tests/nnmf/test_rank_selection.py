from __future__ import annotations

import builtins
import dataclasses
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from nnmf_cuda import NNMF, RankSelection
from nnmf_cuda.nnmf import rank_selection
from nnmf_cuda.nnmf import restarts as _rank_grid
from tests.helpers import DEVICES, plain_consensus, plain_cophenetic

pytestmark = pytest.mark.filterwarnings("ignore:.*of the runs stopped:UserWarning")
CURVES = ["components", "dispersion", "cophenetic", "objective", "reconstruction_err", "converged"]


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
        rank_selection,
        "grid_runs",
        lambda *a, **k: _rank_grid.grid_runs(*a, width=8, batch_entries=5000, **k),
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
