from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import torch
from sklearn.decomposition import non_negative_factorization
from sklearn.decomposition._nmf import _beta_divergence, _initialize_nmf
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from nnmf_cuda import NNMF

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)]
LOSSES = ["frobenius", "kullback-leibler", "itakura-saito", 1.5, 0.5, 3]


@pytest.fixture
def X(rng):
    """Three planted components with noise, all entries above zero."""
    return rng.random((21, 3)) @ rng.random((3, 33)) + 0.05 * rng.random((21, 33)) + 0.01


def start(X, n_components, seed=1):
    rng = np.random.default_rng(seed)
    return (
        (rng.random((X.shape[0], n_components)) + 0.1).astype(X.dtype),
        (rng.random((n_components, X.shape[1])) + 0.1).astype(X.dtype),
    )


def fitted(X, **parameters):
    """Fit without a stopping rule, so that nothing warns, unless the parameters say otherwise."""
    return NNMF(
        **{"n_components": 3, "tol": 0, "max_iter": 30, "random_state": 0} | parameters
    ).fit(X)


@parametrize_with_checks(
    [
        NNMF(max_iter=500, random_state=0),
        NNMF(max_iter=20, tol=0, transform_solver="mu", n_init=2, random_state=0),
        NNMF(max_iter=500, solver="accelerated-mu", random_state=0),
        NNMF(max_iter=500, solver="hals", beta_loss="frobenius", random_state=0),
        NNMF(max_iter=20, tol=0, solver="semi", beta_loss="frobenius", random_state=0),
        NNMF(max_iter=20, tol=0, solver="semi-hals", beta_loss="frobenius", random_state=0),
        NNMF(max_iter=20, tol=0, graph="neighbors", random_state=0),
    ]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_nnmf_follows_the_scikit_learn_protocol(estimator, check):
    check(estimator)


# --- the fit against scikit-learn's ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("beta_loss", LOSSES)
def test_nnmf_reaches_scikit_learns_objective_from_the_same_start(X, beta_loss, dtype):
    X = X.astype(dtype)
    W0, H0 = start(X, 3)
    W, H, _ = non_negative_factorization(
        X.astype(float), W0.astype(float), H0.astype(float), n_components=3, init="custom",
        solver="mu", beta_loss=beta_loss, tol=0, max_iter=200,
    )  # fmt: skip
    model = NNMF(3, beta_loss=beta_loss, init="custom", tol=0, max_iter=200).fit(X, W=W0, H=H0)
    expected = _beta_divergence(X.astype(float), W, H, beta_loss)
    np.testing.assert_allclose(model.objective_history_[-1], expected, rtol=1e-4)
    np.testing.assert_allclose(model.reconstruction_err_, np.sqrt(2 * expected), rtol=1e-4)
    if dtype == np.float64:  # same iterates, up to the order of sums over 200 iterations
        np.testing.assert_allclose(model.components_, H, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(model.W_, W, rtol=1e-6, atol=1e-9)
    assert model.components_.dtype == model.W_.dtype == dtype


@pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler", 1.5])
@pytest.mark.parametrize("alphas", [(0.02, "same"), (0.0, 0.03), (0.01, 0.0)])
@pytest.mark.parametrize("l1_ratio", [0.0, 0.3, 1.0])
def test_nnmf_scales_regularisation_as_scikit_learn(X, beta_loss, alphas, l1_ratio):
    W0, H0 = start(X, 3)
    options = {
        "n_components": 3, "init": "custom", "solver": "mu", "beta_loss": beta_loss, "tol": 0,
        "max_iter": 40, "alpha_W": alphas[0], "alpha_H": alphas[1], "l1_ratio": l1_ratio,
    }  # fmt: skip
    W, H, _ = non_negative_factorization(X, W0.copy(), H0.copy(), **options)
    model = NNMF(**options).fit(X, W=W0, H=H0)
    np.testing.assert_allclose(model.components_, H, rtol=1e-7, atol=1e-10)
    alpha_W, alpha_H = alphas[0], alphas[0] if alphas[1] == "same" else alphas[1]
    penalty = sum(
        alpha * scale * (l1_ratio * factor.sum() + (1 - l1_ratio) / 2 * (factor**2).sum())
        for alpha, scale, factor in ((alpha_W, X.shape[1], W), (alpha_H, X.shape[0], H))
    )
    expected = _beta_divergence(X, W, H, beta_loss) + penalty
    np.testing.assert_allclose(model.objective_history_[-1], expected, rtol=1e-7)


@pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler", "itakura-saito"])
@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-4])
def test_nnmf_stops_where_a_block_gains_less_than_tol(X, beta_loss, tol):
    W0, H0 = start(X, 3)
    options = {"beta_loss": beta_loss, "init": "custom", "max_iter": 5000}
    errors = np.sqrt(2 * NNMF(3, tol=0, **options).fit(X, W=W0, H=H0).objective_history_)
    expected = 10 * (1 + np.flatnonzero(-np.diff(errors) <= tol * errors[1:])[0])
    model = NNMF(3, tol=tol, **options).fit(X, W=W0, H=H0)
    assert model.n_iter_ == expected < 5000
    assert model.converged_


@pytest.mark.parametrize("init", ["nndsvd", "nndsvda", "nndsvdar"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore:multiplicative updates cannot leave the zeros:UserWarning")
def test_nnmf_starts_from_scikit_learns_nndsvd(X, init, dtype):
    X = X.astype(dtype)
    mean = X.mean(dtype=np.float64)
    W0, H0 = _initialize_nmf((X / mean).astype(dtype), 3, init=init, random_state=5)
    W0, H0 = np.sqrt(mean) * W0, np.sqrt(mean) * H0
    ours = fitted(X, init=init, random_state=5, max_iter=10)
    theirs = NNMF(3, init="custom", tol=0, max_iter=10).fit(X, W=W0, H=H0)
    # The same start up to the rounding of X / mean, which singular vectors feel.
    np.testing.assert_allclose(ours.components_, theirs.components_, rtol=1e3 * np.finfo(dtype).eps)


def test_nnmf_warns_that_nndsvd_keeps_its_zeros(X):
    with pytest.warns(UserWarning, match="cannot leave the zeros of init='nndsvd'"):
        fitted(X, init="nndsvd")


# --- starts and restarts --------------------------------------------------------------------------


def test_nnmf_random_start_is_uniform_plus_a_tenth_scaled_to_the_mean_of_X(X):
    # The objective at iteration 0 is the start's own: draw it again as documented.
    rng = np.random.RandomState(7)  # noqa: NPY002 - scikit-learn's convention for random_state
    unit = np.sqrt(X.mean() / 3) / 0.6
    W0, H0 = (unit * (rng.uniform(size=shape) + 0.1) for shape in ((21, 3), (3, 33)))
    model = fitted(X, random_state=7)
    expected = _beta_divergence(X, W0, H0, "kullback-leibler")
    np.testing.assert_allclose(model.objective_history_[0], expected, rtol=1e-12)


def test_nnmf_same_seed_same_result(X):
    first, second, other = (fitted(X, random_state=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.components_, second.components_)
    assert not np.allclose(first.components_, other.components_)


@pytest.mark.needs_cuda
def test_nnmf_same_seed_same_result_on_cuda(X):
    cpu, cuda = fitted(X), fitted(X, device="cuda")
    # Sums in another order, 30 iterations in float64.
    np.testing.assert_allclose(cuda.components_, cpu.components_, rtol=1e-8)


@pytest.mark.parametrize("tol", [0, 1e-3])
def test_nnmf_restarts_keep_the_best_of_the_single_fits(X, tol):
    # One generator handed on draws what the batch draws: start after start.
    generator = np.random.RandomState(2)  # noqa: NPY002
    options = {"n_components": 4, "tol": tol, "max_iter": 2000 if tol else 500}
    singles = [NNMF(**options, random_state=generator).fit(X) for _ in range(4)]
    lowest = min(singles, key=lambda model: model.objective_history_[-1])
    assert lowest is not singles[0], "choose a seed for which the restarts matter"
    batch = NNMF(**options, random_state=2, n_init=4).fit(X)
    np.testing.assert_allclose(batch.objective_history_, lowest.objective_history_, rtol=1e-6)
    np.testing.assert_array_equal(batch.objective_iterations_, lowest.objective_iterations_)
    np.testing.assert_allclose(batch.components_, lowest.components_, rtol=1e-4, atol=1e-6)
    assert batch.converged_ == lowest.converged_


def test_nnmf_restarts_of_nndsvdar_differ_in_what_fills_the_zeros(X):
    single = fitted(X, init="nndsvdar", n_components=5)
    batch = fitted(X, init="nndsvdar", n_components=5, n_init=5)
    assert batch.objective_history_[-1] < single.objective_history_[-1]


def test_nnmf_first_restart_is_the_single_start(X):
    # A batch whose other starts are worse must return the single fit.
    for seed in range(10):
        single = NNMF(4, tol=1e-3, max_iter=2000, random_state=seed).fit(X)
        batch = NNMF(4, tol=1e-3, max_iter=2000, random_state=seed, n_init=2).fit(X)
        if batch.objective_history_[0] == pytest.approx(single.objective_history_[0], rel=1e-12):
            np.testing.assert_allclose(batch.components_, single.components_, rtol=1e-6)
            assert batch.n_iter_ == single.n_iter_
            return
    pytest.fail("restart 0 never won in 10 seeds: it is not the single start")


def test_nnmf_custom_start_is_cast_and_not_modified(X):
    W0, H0 = start(X, 3)
    W_before, H_before = W0.copy(), H0.copy()
    model = NNMF(init="custom", tol=0, max_iter=5).fit(X.astype(np.float32), W=W0, H=H0)
    np.testing.assert_array_equal(W0, W_before)
    np.testing.assert_array_equal(H0, H_before)
    assert model.components_.dtype == np.float32
    assert model.n_components_ == 3  # "auto" takes it from H


def test_nnmf_auto_components_are_fifteen_or_what_fits(rng):
    assert fitted(rng.random((30, 20)), n_components="auto", max_iter=1).n_components_ == 15
    assert fitted(rng.random((30, 6)), n_components="auto", max_iter=1).n_components_ == 6


@pytest.mark.filterwarnings("ignore:multiplicative updates cannot leave the zeros:UserWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize(
    ("solver", "beta_loss"), [("mu", 1), ("mu", 2), ("accelerated-mu", 1), ("hals", 2)]
)
@pytest.mark.parametrize(("shape", "k"), [((9, 6), 8), ((6, 9), 8), ((5, 4), 20)])
def test_nnmf_may_have_more_components_than_samples_or_features(
    rng, shape, k, solver, beta_loss, dtype
):
    X = (255 * rng.random(shape)).astype(dtype)
    fractions = X / 255 if dtype == np.uint8 else X
    options = {"n_components": k, "solver": solver, "beta_loss": beta_loss, "max_iter": 1000}
    model = fitted(X, **options, n_init=2)
    assert model.components_.shape == (k, shape[1])
    error = np.linalg.norm(fractions - model.W_ @ model.components_)
    assert error < 0.02 * np.linalg.norm(fractions)
    back = model.inverse_transform(model.transform(X))
    assert np.linalg.norm(fractions - back) < 0.02 * np.linalg.norm(fractions)
    stream = NNMF(k, beta_loss=beta_loss, random_state=0).partial_fit(X[:2]).partial_fit(X)
    assert stream.components_.shape == (k, shape[1])
    for init in ("nndsvd", "nndsvda", "nndsvdar"):
        with pytest.raises(ValueError, match=f"n_components={k} is above .* = {min(shape)}, so th"):
            fitted(X, **options, init=init)


# --- what a fit says about itself -----------------------------------------------------------------


def test_nnmf_objective_history_falls_and_names_its_iterations(X):
    model = fitted(X, max_iter=37)
    np.testing.assert_array_equal(model.objective_iterations_, [0, 10, 20, 30, 37])
    assert (np.diff(model.objective_history_) < 0).all()
    final = _beta_divergence(X, model.W_, model.components_, "kullback-leibler")
    np.testing.assert_allclose(model.objective_history_[-1], final, rtol=1e-10)
    np.testing.assert_allclose(model.reconstruction_err_, np.sqrt(2 * final), rtol=1e-10)
    assert model.n_iter_ == 37


def test_nnmf_says_when_it_has_not_converged(X):
    message = "^Maximum number of iterations 20 reached. Increase it .* tol=1e-12, or set tol=0"
    with pytest.warns(ConvergenceWarning, match=message):
        model = fitted(X, max_iter=20, tol=1e-12)
    assert not model.converged_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fitted(X, max_iter=20, tol=0).converged_
        model = fitted(X, max_iter=2000, tol=1e-3)
    assert model.converged_
    assert model.n_iter_ < 2000


def test_nnmf_converges_at_once_from_the_exact_answer():
    W0, H0 = np.ones((4, 1)), np.ones((1, 5))
    model = NNMF(1, init="custom").fit(np.ones((4, 5)), W=W0, H=H0)
    assert model.converged_
    assert model.reconstruction_err_ == 0


def test_nnmf_shows_progress_on_a_terminal_only_if_asked(X, capsys, monkeypatch):
    fitted(X, verbose=1)
    assert capsys.readouterr() == ("", "")  # not a terminal
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fitted(X)
    assert capsys.readouterr() == ("", "")
    fitted(X, verbose=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "NNMF" in err
    assert "30/30" in err


# --- transform ------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform_solver", ["nnls", "mu"])
@pytest.mark.parametrize("kind", ["float64", "float32", "uint8", "counts", "torch"])
def test_nnmf_fit_transform_equals_fit_then_transform(X, kind, transform_solver):
    X = {
        "uint8": lambda: (X * 100).astype(np.uint8),
        "counts": lambda: (X * 100).astype(np.int64),
        "torch": lambda: torch.from_numpy(X),
    }.get(kind, lambda: X.astype(kind))()
    options = {"transform_solver": transform_solver, "tol": 0, "max_iter": 20, "random_state": 0}
    together = NNMF(3, **options).fit_transform(X)
    apart = NNMF(3, **options).fit(X).transform(X)
    np.testing.assert_array_equal(np.asarray(together), np.asarray(apart))
    assert together.shape == (21, 3)


def test_nnmf_transform_solves_non_negative_least_squares(X):
    model = fitted(X, n_components=5)
    features = model.transform(X[:7])
    expected = [scipy.optimize.nnls(model.components_.T, row)[0] for row in X[:7]]
    np.testing.assert_allclose(features, expected, rtol=1e-8, atol=1e-10)
    assert not np.allclose(model.W_[:7], features)  # the fit's own W minimises another objective


@pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler"])
def test_nnmf_transform_by_updates_finds_the_regularised_minimum(X, beta_loss):
    # Optimality conditions of the convex problem, not scikit-learn's transform: for
    # Kullback-Leibler with L1 the latter adds the penalty once more in every iteration.
    model = fitted(
        X, transform_solver="mu", transform_max_iter=3000, beta_loss=beta_loss, alpha_W=0.01,
        l1_ratio=0.5,
    )  # fmt: skip
    W, H = model.transform(X), model.components_
    slope = -X / (W @ H) + 1 if beta_loss == "kullback-leibler" else W @ H - X
    gradient = slope @ H.T + 33 * 0.01 * 0.5 * (1 + W)
    assert gradient.min() > -1e-6
    assert np.abs(W * gradient).max() < 1e-6
    assert W.max() > 0.1


@pytest.mark.parametrize("transform_solver", ["nnls", "mu"])
def test_nnmf_features_of_a_row_do_not_depend_on_its_neighbours(X, transform_solver):
    model = fitted(X, transform_solver=transform_solver)
    alone, together = model.transform(X[4:5]), model.transform(np.vstack([X, 100 * X]))[4:5]
    np.testing.assert_allclose(alone, together, rtol=1e-10)  # up to the order of sums


def test_nnmf_zero_rows_have_zero_features(X):
    model = fitted(X)
    for transform_solver in ("nnls", "mu"):
        model.set_params(transform_solver=transform_solver)
        np.testing.assert_array_equal(model.transform(np.zeros((2, 33))), np.zeros((2, 3)))


@pytest.mark.parametrize("device", DEVICES)
def test_nnmf_tensors_come_back_as_tensors(X, device):
    tensor = torch.tensor(X, dtype=torch.float32, device=device, requires_grad=True)
    model = NNMF(3, tol=0, max_iter=20, random_state=0)
    features = model.fit_transform(tensor)
    back = model.inverse_transform(features)
    for result, shape in ((features, (21, 3)), (back, (21, 33))):
        assert isinstance(result, torch.Tensor)
        assert result.dtype == torch.float32
        assert result.device == tensor.device
        assert not result.requires_grad
        assert result.shape == shape
    assert isinstance(model.components_, np.ndarray)
    assert isinstance(model.W_, np.ndarray)
    arrays = NNMF(3, tol=0, max_iter=20, random_state=0)
    array_features = arrays.fit_transform(X.astype(np.float32))
    assert isinstance(array_features, np.ndarray)
    # float32, 20 iterations; on CUDA the sums run in another order.
    np.testing.assert_allclose(features.cpu(), array_features, rtol=1e-3, atol=1e-5)


@pytest.mark.needs_cuda
def test_nnmf_computes_arrays_on_cuda_if_asked(X):
    features = fitted(X, device="cuda").transform(X)
    assert isinstance(features, np.ndarray)
    np.testing.assert_allclose(features, fitted(X, device="cpu").transform(X), rtol=1e-6)


def test_nnmf_inverse_transform_multiplies(X):
    model = fitted(X)
    features = model.transform(X)
    np.testing.assert_allclose(model.inverse_transform(features), features @ model.components_)
    with pytest.raises(ValueError, match=r"needs coefficients of shape \(n_samples, 3\)"):
        model.inverse_transform(X)


def test_nnmf_inverse_transform_of_a_frame_is_a_frame(X):
    names = [f"pixel{i}" for i in range(33)]
    frame = pd.DataFrame(X, columns=names, index=[f"scan{i}" for i in range(21)])
    model = fitted(frame).set_output(transform="pandas")
    features = model.transform(frame)
    back = model.inverse_transform(features)
    assert isinstance(back, pd.DataFrame)
    assert list(back.index) == list(frame.index)
    assert list(back.columns) == names
    np.testing.assert_array_equal(back.to_numpy(), model.inverse_transform(features.to_numpy()))
    assert isinstance(model.inverse_transform(features.to_numpy()), np.ndarray)
    nameless = fitted(X).inverse_transform(features)
    assert list(nameless.columns) == list(range(33))
    assert list(nameless.index) == list(frame.index)


def test_nnmf_keeps_feature_names_and_names_its_own(X):
    frame = pd.DataFrame(X, columns=[f"pixel{i}" for i in range(33)])
    model = fitted(frame)
    assert model.feature_names_in_[1] == "pixel1"
    np.testing.assert_array_equal(model.get_feature_names_out(), ["nnmf0", "nnmf1", "nnmf2"])
    features = model.set_output(transform="pandas").transform(frame)
    assert list(features.columns) == ["nnmf0", "nnmf1", "nnmf2"]
    with pytest.raises(ValueError, match="feature names"):
        model.transform(frame.rename(columns={"pixel0": "other"}))
