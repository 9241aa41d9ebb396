"""`NNMF(solver="semi")`: the estimator's protocol for data of any sign."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.optimize import nnls
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnmf_cuda import NNMF
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.problem import Objective, Penalty, Problem
from nnmf_cuda.nnmf.solvers import SemiHals
from tests.helpers import DEVICES
from tests.nnmf.test_semi import by_the_paper, objective, ring

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N, F, K = 60, 23, 4


@pytest.fixture
def X(rng):
    parts = rng.random((N, K)) * (rng.random((N, K)) < 0.5)
    return parts @ rng.normal(size=(K, F)) + 0.1 * rng.normal(size=(N, F))


def semi(**parameters):
    options = {"n_components": K, "tol": 0, "max_iter": 30, "random_state": 0}
    return NNMF(**options | {"solver": "semi", "beta_loss": "frobenius"} | parameters)


@pytest.mark.parametrize("penalty", [{}, {"alpha_W": 0.01}, {"alpha_W": 0.02, "alpha_H": 0.03}])
@pytest.mark.parametrize("graph", [None, "ring"])
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5])
def test_a_fit_is_that_of_the_formulas_from_the_same_start(rng, X, penalty, graph, l1_ratio):
    W, H = rng.random((N, K)) + 0.1, rng.normal(size=(K, F))
    if l1_ratio and penalty:
        penalty = penalty | {"alpha_H": 0.0}
    options = {"l1_ratio": l1_ratio, **penalty}
    model = semi(
        init="custom", graph=None if graph is None else ring(N), alpha_graph=0.7, **options
    )
    model.fit(X, W=W, H=H)
    alpha_W = options.get("alpha_W", 0.0)
    theirs = {
        "l1": F * alpha_W * l1_ratio,
        "l2": F * alpha_W * (1 - l1_ratio),
        "l2_H": N * options.get("alpha_H", alpha_W) * (1 - l1_ratio),
    }
    if graph:
        theirs |= {"strength": 0.7, "A": ring(N)}
    want_W, want_H = by_the_paper(X, W, H, 30, **theirs)
    np.testing.assert_allclose(model.W_, want_W, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.components_, want_H, rtol=1e-6, atol=1e-9)
    at_the_start, at_the_end = (objective(X, *at, **theirs) for at in ((W, H), (want_W, want_H)))
    np.testing.assert_allclose(model.objective_history_[[0, -1]], [at_the_start, at_the_end])
    assert model.reconstruction_err_ == pytest.approx(np.linalg.norm(X - want_W @ want_H))


def swept(X, W, H, n_iter, n_inner, l1, l2, l2_H):
    """Semi-NMF by coordinate descent on W, a column at a time, and least squares for H."""
    W = W.copy()
    for _ in range(n_iter):
        for _ in range(n_inner):
            for t in range(W.shape[1]):
                rest = X - W @ H + np.outer(W[:, t], H[t])
                W[:, t] = np.maximum((rest @ H[t] - l1) / (H[t] @ H[t] + l2), 0)
        H = np.linalg.solve(W.T @ W + l2_H * np.eye(W.shape[1]), W.T @ X)
    return W, H


@pytest.mark.parametrize("penalty", [{}, {"alpha_W": 0.01}, {"alpha_W": 0.02, "alpha_H": 0.03}])
@pytest.mark.parametrize("batch", [1, 3])
def test_sweeps_are_those_of_coordinate_descent(rng, X, penalty, batch):
    W, H = rng.random((batch, N, K)) + 0.1, rng.normal(size=(batch, K, F))
    alpha_W = penalty.get("alpha_W", 0)
    theirs = {"l1": 0.1, "l2": F * alpha_W, "l2_H": N * penalty.get("alpha_H", alpha_W)}
    options = Penalty(l1_reg_W=0.1, l2_reg_W=theirs["l2"], l2_reg_H=theirs["l2_H"])
    data = Dense(torch.from_numpy(X))
    solver = SemiHals(Problem(data, Objective(2.0, options, signed=True)), n_inner=3)
    got_W, got_H, divergence = solver.update(torch.from_numpy(W), torch.from_numpy(H), 6)
    for start in range(batch):
        want_W, want_H = swept(X, W[start], H[start], 6, 3, **theirs)
        np.testing.assert_allclose(got_W[start], want_W, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(got_H[start], want_H, rtol=1e-7, atol=1e-9)
        error = ((X - want_W @ want_H) ** 2).sum() / 2
        assert divergence[start].item() == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_sweeps_get_in_ten_iterations_where_updates_get_in_thirty(X, seed):
    quick = semi(solver="semi-hals", max_iter=10, n_init=4, random_state=seed).fit(X)
    slow = semi(max_iter=30, n_init=4, random_state=seed).fit(X)
    assert quick.objective_history_[-1] < slow.objective_history_[-1]


SOLVED = [
    *(("semi", options) for options in ({}, {"n_init": 3}, {"alpha_W": 1e-3})),
    *(("semi-hals", options) for options in ({}, {"n_init": 3}, {"alpha_W": 1e-3})),
    ("semi", {"graph": "neighbors"}),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("solver", "options"), SOLVED)
def test_the_recorded_objective_falls_for_every_type(X, device, dtype, solver, options):
    data = torch.from_numpy(X.astype(dtype)).to(device)
    model = semi(solver=solver, max_iter=200, **options).fit(data)
    history = model.objective_history_
    assert (np.diff(history) <= 1e-6 * history[0]).all()
    assert history[-1] < 0.5 * history[0]
    assert model.components_.dtype == model.W_.dtype == dtype
    assert (model.W_ >= 0).all()
    assert (model.components_ < 0).any()


def test_a_planted_rank_is_fitted_to_its_noise(rng):
    # Components are not to be found: with H free, W Q for any Q >= 0 fits as well.
    truth = rng.random((300, 3)) * (rng.random((300, 3)) < 0.4) @ rng.normal(size=(3, 40))
    noise = 0.01 * rng.normal(size=truth.shape)
    model = semi(n_components=3, n_init=5, max_iter=1000).fit(truth + noise)
    assert model.reconstruction_err_ < 1.5 * np.linalg.norm(noise) < 0.05 * np.linalg.norm(truth)


def test_the_start_is_a_random_W_and_the_H_that_fits_it(X):
    model = semi(max_iter=1)
    records = []
    model.fit(X, callback=lambda record: records.append(record.objective))
    W = np.random.RandomState(0).uniform(0.1, 1.1, size=(N, K))  # noqa: NPY002
    H = np.linalg.lstsq(W, X, rcond=None)[0]
    assert records[0] == pytest.approx(((X - W @ H) ** 2).sum() / 2)


def test_more_starts_end_no_higher_and_the_first_is_the_single_one(X):
    one, many = semi().fit(X), semi(n_init=4)
    seen = []
    many.fit(X, callback=lambda record: seen.append(record.objectives))
    assert len(set(seen[-1])) == 4
    assert seen[-1][0] == pytest.approx(one.objective_history_[-1], rel=1e-9)
    assert many.objective_history_[-1] == min(seen[-1])


@pytest.mark.parametrize("solver", ["semi", "semi-hals"])
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e5, 1e15])
def test_fits_do_not_depend_on_units(X, scale, solver):
    one, other = (semi(solver=solver).fit(data) for data in (X, scale * X))
    np.testing.assert_allclose(other.W_, one.W_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(other.components_ / scale, one.components_, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:X has the mean:UserWarning")
@pytest.mark.parametrize("solver", ["semi", "semi-hals"])
def test_a_fit_says_that_it_overflowed(X, solver):
    with pytest.raises(ValueError, match="the factorisation overflowed .* scale X"):
        semi(solver=solver).fit((X / np.abs(X).max() * 3e38).astype(np.float32))


def test_a_fit_stops_by_the_rule_of_tol(X):
    model = semi(tol=1e-4, max_iter=5000).fit(X)
    assert model.converged_
    assert 10 < model.n_iter_ < 5000
    errors = np.sqrt(2 * model.objective_history_)
    falls = -np.diff(errors) / errors[1:]
    assert falls[-1] <= 1e-4 < falls[:-1].min()


def test_transform_is_least_squares_of_each_row(rng, X):
    model = semi().fit(X)
    new = rng.normal(size=(7, F))
    want = np.array([nnls(model.components_.T, row)[0] for row in new])
    np.testing.assert_allclose(model.transform(new), want, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(model.inverse_transform(want), want @ model.components_)
    np.testing.assert_array_equal(model.fit_transform(X), model.transform(X))
    same = clone(model).set_params(transform_solver="same").fit(X).transform(new)
    np.testing.assert_allclose(same, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("alpha_W", [0.0, 0.02])
def test_transform_by_updates_ends_at_the_minimum(rng, X, alpha_W):
    options = {"alpha_W": alpha_W, "alpha_H": 0.0, "l1_ratio": 0.5, "transform_max_iter": 2000}
    model = semi(transform_solver="mu", **options).fit(X)
    new = 1e6 * rng.normal(size=(7, F))
    new[3] = 0
    exact = clone(model).set_params(transform_solver="same").fit(X)
    got, want = model.transform(new), exact.transform(new)
    np.testing.assert_allclose(got, want, atol=0.01 * want.max())
    np.testing.assert_allclose(model.transform(new[2:3]), got[2:3], rtol=1e-9)


def test_a_fit_that_holds_H_finds_the_W_of_least_squares(X):
    components = semi().fit(X).components_
    model = semi(max_iter=2000).fit(X, H=components, update_H=False)
    np.testing.assert_array_equal(model.components_, components)
    want = np.array([nnls(components.T, row)[0] for row in X])
    np.testing.assert_allclose(model.W_, want, atol=0.01 * want.max())


@pytest.mark.parametrize("solver", ["semi", "semi-hals"])
def test_fixed_components_of_any_sign_are_held(rng, X, solver):
    known = rng.normal(size=(2, F))
    model = semi(solver=solver, fixed_components=known, max_iter=100).fit(X)
    np.testing.assert_array_equal(model.components_[:2], known)
    rest = X - model.W_[:, :2] @ known
    want = np.linalg.lstsq(model.W_[:, 2:], rest, rcond=None)[0]
    np.testing.assert_allclose(model.components_[2:], want, rtol=1e-6, atol=1e-8)


def test_a_warm_start_goes_on(X):
    whole = semi(max_iter=40).fit(X)
    model = semi(max_iter=20, warm_start=True).fit(X)
    model.fit(X)
    np.testing.assert_allclose(model.components_, whole.components_, rtol=1e-8)
    model.fit(X[:-1])  # with the W of a few updates
    assert model.objective_history_[-1] <= model.objective_history_[0]


@pytest.mark.parametrize(
    ("solver", "graph"), [("semi", None), ("semi", "neighbors"), ("semi-hals", None)]
)
def test_a_stopped_fit_goes_on_from_its_checkpoint(X, tmp_path, solver, graph):
    path = tmp_path / "fit.safetensors"
    whole, model = (semi(solver=solver, n_init=2, max_iter=60, graph=graph) for _ in range(2))
    whole.fit(X)
    model.fit(X, checkpoint=path, callback=lambda record: record.iteration >= 20)
    assert model.n_iter_ == 20
    model.fit(X, checkpoint=path)
    np.testing.assert_array_equal(model.components_, whole.components_)
    np.testing.assert_array_equal(model.objective_history_, whole.objective_history_)
    with pytest.raises(ValueError, match="of another fit: .*solver was .* and is 'mu'"):
        semi(n_init=2, solver="mu", graph=graph).fit(np.abs(X), checkpoint=path)


def test_a_saved_fit_comes_back(X, tmp_path):
    model = semi().fit(X)
    model.save(tmp_path / "semi.safetensors")
    for other in (NNMF.load(tmp_path / "semi.safetensors"), pickle.loads(pickle.dumps(model))):
        assert other.get_params() == model.get_params()
        np.testing.assert_array_equal(other.transform(X), model.transform(X))


def test_it_stands_behind_a_scaler_that_centres(X):
    pipeline = make_pipeline(StandardScaler(), semi())
    assert (pipeline.fit_transform(X) >= 0).all()
    assert not semi().__sklearn_tags__().input_tags.positive_only
    assert NNMF().__sklearn_tags__().input_tags.positive_only


def test_pixels_are_fractions(rng):
    pixels = rng.integers(0, 256, (N, F), dtype=np.uint8)
    one, other = semi().fit(pixels), semi().fit(pixels.astype(np.float32) / 255)
    np.testing.assert_allclose(one.components_, other.components_, rtol=1e-2, atol=1e-3)


def test_other_solvers_still_refuse_what_is_negative(X):
    with pytest.raises(ValueError, match="Negative values in data passed to NNMF"):
        NNMF(K).fit(X)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        semi().fit(np.where(np.arange(F) == 3, np.nan, X))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"beta_loss": 1}, "'semi' and 'semi-hals' minimise .*'frobenius' .2. only.* got 1"),
        ({"beta_loss": 1.5, "solver": "semi-hals"}, "'semi' and 'semi-hals' minimise .* got 1.5"),
        ({"graph": "neighbors", "solver": "semi-hals"}, "'semi-hals' does not lower .*or 'semi'"),
        (
            {"init": "nndsvda"},
            "init='nndsvda' needs X >= 0, which solver='semi' does not; use init",
        ),
        ({"alpha_W": 0.1, "l1_ratio": 0.5}, "alpha_H='same' with l1_ratio=0.5 is one; use alpha_H"),
        ({"init": "custom"}, "init='custom' needs both W and H"),
    ],
)
def test_what_semi_nmf_lacks_is_said(X, parameters, message):
    with pytest.raises(ValueError, match=message):
        semi(**parameters).fit(X)


def test_starts_of_the_user_keep_W_non_negative(rng, X):
    W, H = rng.random((N, K)), rng.normal(size=(K, F))
    with pytest.raises(ValueError, match="W must be finite and >= 0"):
        semi(init="custom").fit(X, W=-W, H=H)
    H[0, 0] = np.inf
    with pytest.raises(
        ValueError, match=r"H must be finite; got 1 of .* the first inf at \(0, 0\)$"
    ):
        semi(init="custom").fit(X, W=W, H=H)


def test_streams_and_ranks_are_refused(X):
    with pytest.raises(AttributeError, match="has no attribute 'partial_fit'") as caught:
        semi().partial_fit(X)
    assert "partial_fit has no solver='semi': fit to all rows at once" in str(
        caught.value.__cause__
    )
    with pytest.raises(ValueError, match="select_rank compares the shares .* solver='semi'"):
        semi().select_rank(X, [2, 3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("solver", "graph"), [("semi", None), ("semi", "neighbors"), ("semi-hals", None)]
)
@pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "tensor"])
def test_sparse_data_are_fitted_as_dense_ones(rng, X, monkeypatch, dtype, solver, graph, kind):
    # Else fewer of them, for less work on X.
    monkeypatch.setattr(SemiHals, "sweeps", staticmethod(lambda X, n_components: 2))
    X = np.where(rng.random(X.shape) < 0.3, X, 0).astype(dtype)
    X[5], X[:, 7] = 0, 0
    data = {
        "csr_matrix": scipy.sparse.csr_matrix(X),
        "csc_array": scipy.sparse.csc_array(X),
        "tensor": torch.from_numpy(X).to_sparse_csr(),
    }[kind]
    options = {
        "solver": solver,
        "graph": graph,
        "alpha_W": 0.001,
        "n_init": 2,
        "transform_solver": "same",
    }
    got, want = semi(**options).fit(data), semi(**options).fit(X)
    tolerance = {np.float32: 1e-3, np.float64: 1e-8}[dtype]
    np.testing.assert_allclose(got.objective_history_, want.objective_history_, rtol=tolerance)
    size = np.abs(want.components_).max()
    np.testing.assert_allclose(got.components_, want.components_, atol=tolerance * size)
    assert got.components_.dtype == dtype
    rows = (model.transform(new) for model, new in ((got, data), (want, X)))
    np.testing.assert_allclose(*map(np.asarray, rows), atol=tolerance * want.W_.max())


@pytest.mark.parametrize("solver", ["semi", "semi-hals"])
def test_all_components_may_be_known(X, solver):
    model = semi(n_components=2, solver=solver, fixed_components=X[:2], max_iter=300).fit(X)
    np.testing.assert_array_equal(model.components_, X[:2])
    expected = np.stack([nnls(X[:2].T, row)[0] for row in X])
    np.testing.assert_allclose(model.W_, expected, atol=0.05 * expected.max())


def test_components_of_any_sign_are_no_start_of_updates_for_positive_data(X):
    model = semi().fit(X).set_params(solver="mu", transform_solver="mu")
    with pytest.raises(ValueError, match="components_ has entries below 0, as of a fit with solv"):
        model.partial_fit(abs(X))
    with pytest.raises(ValueError, match="components_ has entries below 0, as of a fit with solv"):
        model.transform(abs(X))
    assert model.set_params(transform_solver="nnls").transform(abs(X)).shape == (N, K)
