"""NNMF with solver="cd": coordinate descent for Kullback-Leibler, on sparse X alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone

from nnmf_cuda import NNMF, ConsensusNNMF, ops
from nnmf_cuda.nnmf.solvers import CoordinateDescent
from nnmf_cuda.ops.nnmf_sparse import csr_tensor

PENALTIES = {"alpha_W": 0.01, "alpha_H": 0.02, "l1_ratio": 0.5}


@pytest.fixture
def X(rng) -> scipy.sparse.csr_array:
    """Draw counts around three components, two thirds of them zeros."""
    weights = rng.gamma(0.5, size=(60, 3))
    profiles = np.kron(np.eye(3), np.ones(12)) + 0.1
    return scipy.sparse.csr_array(rng.poisson(0.7 * weights @ profiles).astype(np.float64))


def model(**parameters: Any) -> NNMF:
    given = {"n_components": 3, "solver": "cd", "tol": 0, "max_iter": 20, "random_state": 0}
    return NNMF(**given | parameters)


@pytest.mark.parametrize("penalty", [{}, PENALTIES])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_record_rises_and_the_end_is_below_that_of_mu(X, dtype, penalty):
    X = X.astype(dtype)
    fitted = model(max_iter=60, **penalty).fit(X)
    history = fitted.objective_history_
    assert len(history) == 7
    assert (np.diff(history) <= 8 * np.finfo(dtype).eps * X.sum()).all()
    plain = model(solver="mu", max_iter=60, **penalty).fit(X)
    assert plain.objective_history_[0] == history[0]
    assert history[1] < plain.objective_history_[1]
    assert history[-1] < plain.objective_history_[-1] * (1 + 1e-3)
    assert (fitted.W_ == 0).any()
    assert fitted.components_.dtype == dtype


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
@pytest.mark.parametrize(("alpha_W", "alpha_H"), [(1e-4, 1e4), (1e4, 1e-4)])
def test_penalties_that_shrink_one_factor_lose_no_component(X, alpha_W, alpha_H, l1_ratio):
    penalty = {"alpha_W": alpha_W, "alpha_H": alpha_H, "l1_ratio": l1_ratio}
    fitted = model(max_iter=200, **penalty).fit(X)
    want = model(solver="accelerated-mu", max_iter=200, **penalty).fit(X)
    assert fitted.objective_history_[-1] <= want.objective_history_[-1] * (1 + 1e-3)


def test_its_end_is_a_stationary_point(X):
    fitted = model(max_iter=3000, **PENALTIES).fit(X)
    W, H, x = fitted.W_, fitted.components_, X.toarray()
    n, f = x.shape
    ratio = x / np.maximum(W @ H, 1e-12)
    l1, l2 = f * 0.01 * 0.5, f * 0.01 * 0.5
    slope = H.sum(1) - ratio @ H.T + l1 + l2 * W
    assert (np.abs(slope[W > 1e-6]) < 1e-4 * f).all()
    assert (slope[W == 0] > -1e-4 * f).all()
    slope = W.sum(0)[:, None] - W.T @ ratio + (n * 0.02) * 0.5 * (1 + H)
    assert (np.abs(slope[H > 1e-6]) < 1e-4 * n).all()
    assert (slope[H == 0] > -1e-4 * n).all()


def test_a_fit_without_momentum_is_iterations_of_the_op(rng, X, monkeypatch):
    monkeypatch.setattr(CoordinateDescent, "momentum_max", 0.0)
    W, H = rng.random((60, 3)) + 0.1, rng.random((3, 36)) + 0.1
    fitted = model(init="custom", max_iter=13, fixed_components=H[:1]).fit(X, W=W, H=H)
    matrix = csr_tensor(*(torch.from_numpy(t) for t in (X.indptr, X.indices, X.data)), X.shape)
    want_W, want_H = torch.from_numpy(W), torch.from_numpy(H)
    want_W, want_H, _ = ops.nnmf_cd(matrix, want_W, want_H, n_iter=13, n_fixed=1)
    np.testing.assert_array_equal(fitted.components_[:1], H[:1])
    np.testing.assert_allclose(fitted.components_, want_H, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fitted.W_, want_W, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-20, 1e10, 1e14, 1e25])
def test_a_fit_in_float32_does_not_depend_on_the_units_of_X(X, scale):
    # Where W H is at its floor, squares of H / floor beside a large X are beyond float32.
    want = model(max_iter=60).fit(X).objective_history_
    got = model(max_iter=60).fit((scale * X).astype(np.float32)).objective_history_
    np.testing.assert_allclose(np.array(got) / scale, want, rtol=1e-4)


def test_restarts_are_fits_of_their_own(X):
    many = model(n_init=4).fit(X)
    alone = model().fit(X)
    assert many.objective_history_[-1] <= alone.objective_history_[-1]
    first = model(tol=1e-4, max_iter=500, n_init=4).fit(X)
    assert first.converged_
    assert first.n_iter_ < 500


def test_held_components_warm_starts_and_types_of_sparse_X(X):
    fitted = model(max_iter=200).fit(X)
    held = model(max_iter=200).fit(X, H=fitted.components_, update_H=False)
    np.testing.assert_array_equal(held.components_, fitted.components_)
    np.testing.assert_allclose(
        held.objective_history_[-1], fitted.objective_history_[-1], rtol=1e-3
    )
    again = clone(fitted).set_params(warm_start=True, max_iter=10)
    again.__dict__.update(W_=fitted.W_, components_=fitted.components_)
    again.__dict__["_units"] = fitted.__dict__["_units"]
    again.fit(X)
    assert again.objective_history_[0] == pytest.approx(fitted.objective_history_[-1])
    assert again.objective_history_[-1] <= fitted.objective_history_[-1] * (1 + 1e-12)
    for other in (scipy.sparse.csc_matrix(X), torch.from_numpy(X.toarray()).to_sparse_csr()):
        np.testing.assert_allclose(
            model().fit(other).components_, model().fit(X).components_, rtol=1e-7, atol=1e-10
        )


def test_transform_streams_files_and_copies(tmp_path, X):
    fitted = model(transform_solver="same").fit(X)
    features = fitted.transform(X[:7])
    np.testing.assert_allclose(features, fitted.transform(X.toarray()[:7]), rtol=1e-7, atol=1e-9)
    fitted.save(tmp_path / "model")
    np.testing.assert_array_equal(NNMF.load(tmp_path / "model").transform(X[:7]), features)
    streams = [model(solver=solver).partial_fit(X.toarray()) for solver in ("cd", "mu")]
    np.testing.assert_array_equal(*(stream.components_ for stream in streams))
    assert clone(fitted).solver == "cd"


def test_a_checkpoint_goes_on_to_the_same_bits(tmp_path, X):
    model().fit(X, checkpoint=tmp_path / "fit")
    long = model(max_iter=40)
    resumed = clone(long).fit(X, checkpoint=tmp_path / "fit")
    np.testing.assert_array_equal(resumed.components_, long.fit(X).components_)
    np.testing.assert_array_equal(resumed.objective_history_, long.objective_history_)


@pytest.mark.filterwarnings("ignore:.*of the runs stopped:UserWarning")
def test_ranks_and_consensus(X):
    found = model(max_iter=300, tol=1e-4).select_rank(X, [2, 3, 4], n_init=4)
    assert found.chosen == 3
    options = {"beta_loss": "kullback-leibler", "n_init": 8, "random_state": 0}
    spectra = (
        ConsensusNNMF(3, solver=solver, density_threshold=2.0, **options).fit(X).components_
        for solver in ("cd", "accelerated-mu")
    )
    correlations = np.corrcoef(*spectra)[:3, 3:]
    assert (correlations.max(1) > 0.99).all()


@pytest.mark.parametrize(
    ("parameters", "given", "message"),
    [
        ({}, {}, r"sparse X only.*scipy.sparse.csr_array\(X\), else use solver='accelerated-mu'"),
        ({"missing_values": -1.0}, {}, "knows no missing values, mask or weights; use solver="),
        ({}, {"mask": True}, "knows no missing values, mask or weights"),
        ({}, {"weights": True}, "knows no missing values, mask or weights"),
        ({"graph": "neighbors"}, {}, "does not lower the penalty of a graph; use solver='mu'"),
        ({"beta_loss": "frobenius"}, {}, "scikit-learn calls 'cd'.*is solver='hals' here"),
        ({"beta_loss": 0.5}, {}, "got 0.5; use beta_loss='kullback-leibler' or solver='mu'"),
    ],
)
def test_what_it_does_not_know_is_refused(rng, X, parameters, given, message):
    dense = X.toarray()
    if "missing_values" in parameters:
        dense[3, 4] = -1
    given = {name: rng.random(X.shape) < 0.9 for name in given}
    given = {name: v if name == "mask" else v + 0.5 for name, v in given.items()}
    with pytest.raises(ValueError, match=message):
        model(**parameters).fit(dense, **given)


def test_ranks_of_dense_X_are_refused(X):
    with pytest.raises(ValueError, match="sparse X only"):
        model().select_rank(X.toarray(), [2, 3], n_init=2)
