"""`NNMF(graph=...)`: the estimator's protocol under the penalty of a graph."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score

from nnmf_cuda import NNMF
from nnmf_cuda.nnmf import neighbor_graph
from tests.helpers import DEVICES
from tests.nnmf.test_graph import by_the_formulas, objective, weights_of

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N, F, K = 40, 23, 4
SOLVED = [("mu", 1), ("mu", 2), ("accelerated-mu", 1), ("accelerated-mu", 2), ("semi", 2)]


@pytest.fixture
def X(rng):
    return rng.gamma(1, size=(N, K)) @ rng.gamma(1, size=(K, F)) + 0.1 * rng.random((N, F))


def regularised(**parameters):
    options = {"n_components": K, "tol": 0, "max_iter": 30, "random_state": 0}
    return NNMF(**options | {"graph": "neighbors", "beta_loss": "frobenius"} | parameters)


@pytest.mark.parametrize("penalty", [{}, {"alpha_W": 0.002, "alpha_H": 0.003, "l1_ratio": 0.4}])
@pytest.mark.parametrize("beta_loss", [1, 2])
def test_a_fit_is_that_of_the_formulas_from_the_same_start(rng, X, beta_loss, penalty):
    W, H, A = rng.random((N, K)) + 0.1, rng.random((K, F)) + 0.1, weights_of(rng, N)
    options = {"init": "custom", "graph": A, "alpha_graph": 0.7, **penalty}
    model = regularised(beta_loss=beta_loss, **options).fit(X, W=W, H=H)
    alpha_W, alpha_H = penalty.get("alpha_W", 0), penalty.get("alpha_H", 0)
    l1 = penalty.get("l1_ratio", 0)
    penalties = (F * alpha_W * l1, N * alpha_H * l1)
    penalties += (F * alpha_W * (1 - l1), N * alpha_H * (1 - l1))
    want = by_the_formulas(X, W, H, A, 0.7, beta_loss, 30, *penalties)
    np.testing.assert_allclose(model.W_, want[0], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(model.components_, want[1], rtol=1e-8, atol=1e-12)
    records = [objective(X, *at, A, 0.7, beta_loss, *penalties) for at in ((W, H), want)]
    np.testing.assert_allclose(model.objective_history_[[0, -1]], records, rtol=1e-8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("graph", ["neighbors", "labels", "matrix"])
@pytest.mark.parametrize(("solver", "beta_loss"), SOLVED)
def test_the_recorded_objective_falls(rng, X, device, dtype, graph, solver, beta_loss):
    data = X / X.max() * 255 if dtype == np.uint8 else X
    data = torch.from_numpy(data.astype(dtype)).to(device)
    y = rng.integers(-1, 3, N)
    given = weights_of(rng, N) if graph == "matrix" else graph
    model = regularised(graph=given, solver=solver, beta_loss=beta_loss, n_init=2, max_iter=100)
    history = model.fit(data, y).objective_history_
    assert (np.diff(history) <= 1e-6 * history[0]).all()
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize("beta_loss", [1, 2])
@pytest.mark.parametrize("graph", ["neighbors", "labels"])
def test_neighbors_become_alike(X, beta_loss, graph):
    y = np.arange(N) % 3
    data = X + 3 * y[:, None] * X.mean() * np.linspace(0, 1, F)

    def spread(alpha_graph):
        options = {"alpha_graph": alpha_graph, "alpha_H": 0.01, "max_iter": 300}
        model = regularised(graph=graph, beta_loss=beta_loss, **options).fit(data, y)
        shares = model.W_ / model.W_.sum(1, keepdims=True)
        A = neighbor_graph(data).toarray() if graph == "neighbors" else y[:, None] == y
        return (A * ((shares[:, None] - shares[None]) ** 2).sum(2)).sum()

    loose, firm = spread(0.0), spread(100.0)
    assert firm < 0.5 * loose


def test_a_graph_of_neighbors_makes_better_clusters_of_digits():
    # The experiment of Cai et al. on handwritten digits, on scikit-learn's small ones.
    X, y = load_digits(return_X_y=True)
    X = X[:600].astype(np.float32) / np.linalg.norm(X[:600], axis=1, keepdims=True).astype("f4")
    y = y[:600]

    def agreement(graph):
        model = regularised(n_components=10, graph=graph, alpha_graph=10.0, max_iter=200)
        W = model.fit(X).W_
        W = W / np.linalg.norm(W, axis=1, keepdims=True)
        found = KMeans(10, n_init=5, random_state=0).fit_predict(W)
        return normalized_mutual_info_score(y, found)

    assert agreement("neighbors") > agreement(None) + 0.05


def test_every_way_to_give_the_same_graph_gives_the_same_fit(X):
    want = regularised().fit(X).components_
    A = neighbor_graph(X)
    for same in (A, scipy.sparse.csc_matrix(A), A.toarray(), torch.from_numpy(A.toarray())):
        np.testing.assert_array_equal(regularised(graph=same).fit(X).components_, want)


def test_no_strength_is_no_graph(X):
    with_graph = regularised(alpha_graph=0).fit(X)
    without = regularised(graph=None).fit(X)
    np.testing.assert_allclose(with_graph.components_, without.components_, rtol=1e-8)


def test_new_rows_have_no_part_in_the_graph(rng, X):
    model = regularised().fit(X)
    plain = NNMF(K, beta_loss="frobenius", init="custom", max_iter=1, tol=0)
    plain.fit(X, W=model.W_, H=model.components_, update_H=False)
    for solver in ("nnls", "mu", "same"):
        new = rng.random((5, F))
        got, want = (m.set_params(transform_solver=solver).transform(new) for m in (model, plain))
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("beta_loss", [1, 2])
def test_a_fit_that_holds_H_keeps_the_graph(X, beta_loss):
    first = regularised(beta_loss=beta_loss).fit(X)
    model = regularised(beta_loss=beta_loss, alpha_graph=50.0, max_iter=100)
    model.fit(X, H=first.components_, update_H=False)
    np.testing.assert_array_equal(model.components_, first.components_)
    assert (np.diff(model.objective_history_) <= 0).all()
    free = regularised(beta_loss=beta_loss, graph=None, max_iter=100)
    free.fit(X, H=first.components_, update_H=False)
    assert model.reconstruction_err_ > 1.01 * free.reconstruction_err_


@pytest.mark.parametrize("beta_loss", [1, 2])
@pytest.mark.parametrize("graph", ["neighbors", "matrix"])
def test_a_stopped_fit_goes_on_from_its_checkpoint(rng, X, tmp_path, graph, beta_loss):
    path, A = tmp_path / "fit.safetensors", weights_of(rng, N)
    given = {"graph": scipy.sparse.csr_array(A) if graph == "matrix" else graph}
    options = {"beta_loss": beta_loss, "solver": "accelerated-mu", "n_init": 2, "max_iter": 60}
    whole = regularised(**options, **given).fit(X)
    model = regularised(**options, **given)
    model.fit(X, checkpoint=path, callback=lambda record: record.iteration >= 20)
    assert model.n_iter_ == 20
    model.fit(X, checkpoint=path)
    np.testing.assert_array_equal(model.components_, whole.components_)
    with pytest.raises(ValueError, match="of another fit: alpha_graph was 1.0 and is 2.0"):
        regularised(**options, **given, alpha_graph=2.0).fit(X, checkpoint=path)
    A[0, 1] = A[1, 0] = 9
    with pytest.raises(ValueError, match="of another fit: graph was "):
        regularised(**options, graph=A).fit(X, checkpoint=path)


def test_without_a_graph_its_strength_is_no_part_of_a_checkpoint(X, tmp_path):
    path = tmp_path / "fit.safetensors"
    regularised(graph=None).fit(X, checkpoint=path)
    regularised(graph=None, alpha_graph=3.0).fit(X, checkpoint=path)


@pytest.mark.parametrize("kind", ["csr_array", "coo_matrix", "array", "neighbors", "torch"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_a_saved_fit_comes_back_with_its_graph(rng, X, tmp_path, kind):
    A = weights_of(rng, N)
    graph = {
        "csr_array": scipy.sparse.csr_array(A),
        "coo_matrix": scipy.sparse.coo_matrix(A),
        "array": A,
        "neighbors": "neighbors",
        "torch": torch.from_numpy(A).to_sparse_csr(),
    }[kind]
    model = regularised(graph=graph)
    if kind != "torch":  # torch cannot copy its CSR, which clone does
        model = clone(model)
    model.fit(X)
    model.save(tmp_path / "model.safetensors")
    loaded = NNMF.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.transform(X), model.transform(X))
    np.testing.assert_array_equal(loaded.fit(X).components_, model.components_)
    assert type(loaded.graph) is type(model.graph) or kind == "coo_matrix"
    if kind == "torch":
        assert loaded.graph.layout == torch.sparse_csr
        np.testing.assert_array_equal(loaded.graph.to_dense(), A)


def test_a_graph_in_another_layout_is_named_where_it_cannot_be_saved(rng, X, tmp_path):
    model = regularised(graph=torch.from_numpy(weights_of(rng, N)).to_sparse_coo()).fit(X)
    with pytest.raises(TypeError, match=r"graph is a tensor of layout torch.sparse_coo.*_csr\(\)"):
        model.save(tmp_path / "model.safetensors")


def test_ranks_are_compared_under_a_graph(X):
    plain, tied = (
        regularised(graph=graph, max_iter=50, alpha_graph=50.0).select_rank(X, [2, 3], n_init=3)
        for graph in (None, "neighbors")
    )
    assert (plain.components != tied.components).any()


@pytest.mark.parametrize(("solver", "beta_loss"), SOLVED)
def test_a_fit_stops_by_the_rule_of_tol(X, solver, beta_loss):
    options = {"solver": solver, "beta_loss": beta_loss, "tol": 1e-4, "max_iter": 5000}
    model = regularised(**options, alpha_H=1e-3).fit(X)
    assert model.converged_
    assert 10 < model.n_iter_ < 5000
    errors = np.sqrt(2 * model.objective_history_)
    assert -np.diff(errors)[-1] <= 1e-4 * errors[-1]


def test_one_sample_has_no_neighbors(X):
    with pytest.raises(ValueError, match="needs neighbours, but X has n_samples=1; use graph=None"):
        regularised(n_components=1).fit(X[:1])
    regularised(n_components=1).fit(X[:3])  # fewer than five others


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"solver": "hals"},
            "solver='hals' does not lower the penalty of a graph; use solver='mu'",
        ),
        ({"beta_loss": 1.5}, r"graph goes with .*'frobenius' .2. .*, got 1.5; use one of them"),
        ({"graph": "knn"}, "graph='knn' does not exist; choose one of neighbors, labels"),
        ({"graph": "labels"}, r"graph='labels' needs the labels of the samples: fit\(X, y\)"),
        ({"graph": np.eye(3)}, r"graph has shape \(3, 3\), but X has 40 samples"),
        ({"alpha_graph": -1.0}, "alpha_graph must be a finite number >= 0, got -1"),
    ],
)
def test_what_knows_no_graph_is_said(X, parameters, message):
    with pytest.raises(ValueError, match=message):
        regularised(**parameters).fit(X)


def test_streams_know_no_graph(X):
    with pytest.raises(AttributeError, match="has no attribute 'partial_fit'") as caught:
        regularised().partial_fit(X)
    assert "partial_fit has no graph='neighbors': fit to all rows" in str(caught.value.__cause__)
    assert hasattr(regularised(graph=None), "partial_fit")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("graph", ["neighbors", "labels"])
@pytest.mark.parametrize(("solver", "beta_loss"), SOLVED[:4])
@pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "tensor"])
def test_sparse_data_are_fitted_as_dense_ones(rng, X, dtype, graph, solver, beta_loss, kind):
    X = np.where(rng.random(X.shape) < 0.4, X / X.max() * 255, 0).astype(dtype)
    y = rng.integers(-1, 3, N)
    X[5], X[:, 7] = 0, 0
    data = {
        "csr_matrix": scipy.sparse.csr_matrix(X),
        "csc_array": scipy.sparse.csc_array(X),
        "tensor": torch.from_numpy(X).to_sparse_csr(),
    }[kind]
    options = {"solver": solver, "beta_loss": beta_loss, "n_init": 2, "alpha_graph": 10.0}
    got, want = (regularised(graph=graph, **options).fit(form, y) for form in (data, X))
    tolerance = 1e-8 if dtype == np.float64 else 1e-3
    np.testing.assert_allclose(got.objective_history_, want.objective_history_, rtol=tolerance)
    size = want.components_.max()
    np.testing.assert_allclose(got.components_, want.components_, atol=tolerance * size)


def test_ranks_cannot_be_compared_under_labels(X):
    with pytest.raises(ValueError, match="select_rank is given no labels, of which graph='labels'"):
        regularised(graph="labels").select_rank(X, [2, 3], n_init=2)
