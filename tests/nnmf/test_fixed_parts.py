"""Parts of a factorisation that are given: fixed components, all of H, a warm start."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import torch
from sklearn.base import clone
from sklearn.decomposition import non_negative_factorization
from sklearn.exceptions import ConvergenceWarning

from nnmf_cuda import NNMF
from tests.helpers import DEVICES

SOLVES = [
    *(("mu", beta_loss) for beta_loss in (2, 1.5, 1, 0.5, 0, 3)),
    *(("accelerated-mu", beta_loss) for beta_loss in (2, 1.5, 1)),
    ("hals", 2),
]
PENALTIES = [{}, {"alpha_W": 0.01, "alpha_H": 0.02, "l1_ratio": 0.5}]


@pytest.fixture
def planted(rng):
    """X (30, 20) of mean 1 without zeros, and the five components that made it."""
    H = rng.gamma(0.5, size=(5, 20)) + 0.01
    X = rng.gamma(1, size=(30, 5)) @ H
    X += 0.05 * rng.random(X.shape) * X.mean()
    return X / X.mean(), H


def quiet(**parameters):
    return NNMF(**{"random_state": 0, "tol": 0, "max_iter": 50} | parameters)


# --- fixed components -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("solver", "beta_loss"), SOLVES)
def test_fixed_components_are_held_and_the_others_learned(
    planted, solver, beta_loss, penalty, dtype
):
    X, H = planted
    H[0, 3] = 1e-20  # below what updates make zeros of
    fixed = H[:2]
    options = {"solver": solver, "beta_loss": beta_loss, **penalty}
    model = quiet(n_components=5, fixed_components=fixed, max_iter=400, **options)
    model.fit(X.astype(dtype))
    np.testing.assert_array_equal(model.components_[:2], fixed.astype(dtype))
    start = quiet(n_components=5, fixed_components=fixed, max_iter=1, **options)
    start.fit(X.astype(dtype))
    assert not np.allclose(model.components_[2:], start.components_[2:], rtol=1e-2)
    assert model.objective_history_[-1] < 0.5 * model.objective_history_[0]
    if not penalty:  # what is learned is as good as what has made X
        made = quiet(max_iter=400, **options).fit(X.astype(dtype), H=H, update_H=False)
        assert model.objective_history_[-1] < 1.1 * made.objective_history_[-1]


def test_what_is_learned_beside_fixed_components_is_a_minimum(planted):
    # Coordinate-wise optimality, written out for the free rows and all of W.
    X, H = planted
    model = quiet(
        n_components=4, fixed_components=H[:2], solver="hals", beta_loss=2, max_iter=5000
    ).fit(X)  # fmt: skip
    W, H = model.W_, model.components_
    for factor, gradient in ((W, (W @ H - X) @ H.T), (H[2:], (W.T @ (W @ H - X))[2:])):
        assert gradient.min() > -1e-6
        assert np.abs(factor * gradient).max() < 1e-6
    assert np.abs((W.T @ (W @ H - X))[:2]).max() > 1e-3  # those that are held are not at theirs


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_units_of_fixed_components_do_not_matter(planted, scale):
    X, H = planted
    model = quiet(n_components=4, fixed_components=scale * H[:2], beta_loss=2, max_iter=300).fit(X)
    usual = quiet(n_components=4, fixed_components=H[:2], beta_loss=2, max_iter=300).fit(X)
    np.testing.assert_allclose(model.objective_history_, usual.objective_history_, rtol=1e-6)
    np.testing.assert_allclose(scale * model.W_[:, :2], usual.W_[:, :2], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals"])
def test_fixed_components_with_restarts_keep_the_best_of_the_single_fits(planted, solver, device):
    X, H = planted
    options = {"n_components": 4, "fixed_components": H[:1], "solver": solver, "beta_loss": 2}
    generator = np.random.RandomState(3)  # noqa: NPY002
    singles = [quiet(**options | {"random_state": generator}).fit(X) for _ in range(3)]
    lowest = min(singles, key=lambda model: model.objective_history_[-1])
    batch = quiet(**options, n_init=3, device=device).set_params(random_state=3).fit(X)
    np.testing.assert_allclose(batch.objective_history_, lowest.objective_history_, rtol=1e-6)
    np.testing.assert_array_equal(batch.components_[0], H[0])


def test_fixed_components_take_the_place_of_the_first_rows_of_a_start(planted, rng):
    X, H = planted
    W0, H0 = rng.random((30, 4)) + 0.1, rng.random((4, 20)) + 0.1
    before = H0.copy()
    model = quiet(init="custom", fixed_components=H[:2], max_iter=20).fit(X, W=W0, H=H0)
    np.testing.assert_array_equal(H0, before)
    same = quiet(init="custom", fixed_components=H[:2], max_iter=20)
    same.fit(X, W=W0, H=np.vstack([H[:2], H0[2:]]))
    np.testing.assert_array_equal(model.components_, same.components_)
    np.testing.assert_array_equal(model.components_[:2], H[:2])


@pytest.mark.parametrize("solver", ["mu", "hals"])
def test_all_components_may_be_fixed(planted, solver):
    X, H = planted
    model = quiet(
        n_components=5, fixed_components=H, solver=solver, beta_loss=2, max_iter=5000
    ).fit(X)  # fmt: skip
    np.testing.assert_array_equal(model.components_, H)
    want = np.array([scipy.optimize.nnls(H.T, row)[0] for row in X])
    np.testing.assert_allclose(model.W_, want, atol=1e-3 * want.max())
    assert quiet(fixed_components=H, max_iter=1).fit(X[:2]).n_components_ == 5  # "auto"


@pytest.mark.parametrize("kind", ["uint8", "float32", "tensor"])
def test_fixed_components_are_cast_to_the_type_of_the_factors(planted, kind):
    X, H = planted
    X = np.rint(50 * X).clip(0, 255)
    given = torch.from_numpy(X) if kind == "tensor" else X.astype(kind)
    fixed = torch.from_numpy(H[:2]) if kind == "tensor" else H[:2].tolist()
    model = quiet(n_components=4, fixed_components=fixed).fit(given)
    assert model.components_.dtype == (np.float64 if kind == "tensor" else np.float32)
    np.testing.assert_array_equal(model.components_[:2], H[:2].astype(model.components_.dtype))


@pytest.mark.parametrize("beta_loss", [2, 1, 1.5, 0.5, 3])
def test_a_stream_holds_fixed_components(planted, beta_loss):
    X, H = planted
    model = quiet(n_components=5, fixed_components=H[:2], beta_loss=beta_loss)
    before = None
    for _ in range(3):
        for first in range(0, 30, 10):
            model.partial_fit(X[first : first + 10])
            np.testing.assert_array_equal(model.components_[:2], H[:2])
            assert before is None or not np.allclose(model.components_[2:], before[2:], rtol=1e-6)
            before = model.components_
    # It goes on from a fit that held the same, and from no other.
    model.fit(X).partial_fit(X[:5])
    np.testing.assert_array_equal(model.components_[:2], H[:2])
    with pytest.raises(ValueError, match="fixed_components are not the first of the components"):
        model.set_params(fixed_components=H[1:3]).partial_fit(X[:5])


def test_rank_selection_scores_what_is_learned_beside_fixed_components(planted):
    X, H = planted
    model = quiet(fixed_components=H[:2], beta_loss=2, solver="hals")
    found = model.select_rank(X, [3, 4], n_init=3)
    assert found.ranks.tolist() == [3, 4]
    runs = [
        clone(model).set_params(n_components=4, random_state=generator).fit(X).components_[2:]
        for generator in [np.random.RandomState(0)] * 3  # noqa: NPY002
    ]
    cosines = []
    for one, other in ((0, 1), (0, 2), (1, 2)):
        unit = [runs[i] / np.linalg.norm(runs[i], axis=1, keepdims=True) for i in (one, other)]
        table = unit[0] @ unit[1].T
        cosines.append(max(np.trace(table), np.trace(table[::-1])) / 2)
    assert found.components[1] == pytest.approx(np.mean(cosines), abs=1e-6)
    with pytest.raises(ValueError, match="contains 2, but the 2 rows of fixed_comp.*start at 3"):
        model.select_rank(X, [2, 3], n_init=3)


@pytest.mark.parametrize("types", [("float64", "float32"), ("float32", "float64")])
def test_a_stream_that_holds_components_meets_other_types(planted, types):
    X, H = planted
    for begin in ("fit", "partial_fit"):
        model = quiet(n_components=4, fixed_components=H[:2])
        getattr(model, begin)(X.astype(types[0])).partial_fit(X.astype(types[1]))
        np.testing.assert_array_equal(model.components_[:2], H[:2].astype(types[0]))
        with pytest.raises(ValueError, match="fixed_components are not the first"):
            model.set_params(fixed_components=1.00001 * H[:2]).partial_fit(X.astype(types[1]))


def test_no_fixed_components_are_a_fit_without(planted):
    X, H = planted
    free, none = (quiet(n_components=4, fixed_components=f) for f in (None, H[:0]))
    np.testing.assert_array_equal(none.fit(X).components_, free.fit(X).components_)


@pytest.mark.parametrize("kind", [pd.DataFrame, np.ndarray.tolist, lambda H: H[::-1][::-1]])
def test_factors_are_given_as_anything_numpy_reads(planted, kind):
    X, H = planted
    W = np.ones((30, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        want = quiet(init="custom", fixed_components=H[:2]).fit(X, W=W, H=H)
        model = quiet(init="custom", fixed_components=kind(H[:2]))
        model.fit(X, W=kind(W), H=kind(H))
    np.testing.assert_array_equal(model.components_, want.components_)
    turned = quiet().fit(X, H=H[::-1], update_H=False)
    np.testing.assert_array_equal(turned.components_, H[::-1])


@pytest.mark.parametrize("H", ["abc", [[1, 2], [3]], 1j * np.ones((5, 20)), 1j * torch.ones(5, 20)])
def test_factors_that_are_no_numbers_are_refused(planted, H):
    X, _ = planted
    with pytest.raises((TypeError, ValueError), match="real numbers|inhomogeneous"):
        quiet().fit(X, H=H, update_H=False)
    with pytest.raises((TypeError, ValueError), match="real numbers|inhomogeneous"):
        quiet(fixed_components=H).fit(X)


def test_a_start_with_fewer_rows_than_fixed_components_is_refused(planted):
    X, H = planted
    model = quiet(init="custom", fixed_components=H[:3])
    message = "H has 2 rows, fewer than the 3 rows of fixed_components"
    with pytest.raises(ValueError, match=message):
        model.fit(X, W=np.ones((30, 2)), H=H[:2])
    with pytest.raises(ValueError, match=message):
        model.partial_fit(X, H=H[:2])
    warm = quiet(n_components=2, warm_start=True).fit(X)
    with pytest.raises(ValueError, match=message):
        warm.set_params(n_components="auto", fixed_components=H[:3]).fit(X)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fixed_components": np.ones(20)}, r"must have shape \(n_fixed, 20\).*got \(20,\)"),
        ({"fixed_components": np.ones((2, 19))}, r"must have shape \(2, 20\), got \(2, 19\)"),
        ({"fixed_components": -np.ones((2, 20))}, "fixed_components must be finite and >= 0"),
        ({"fixed_components": np.full((2, 20), np.nan)}, "fixed_components must be finite"),
        ({"fixed_components": np.eye(2, 20)[[0, 0]] * [[1], [0]]}, "has a row of zeros"),
        (
            {"fixed_components": np.ones((4, 20)), "n_components": 3},
            "n_components=3 is below the 4 rows of fixed_components",
        ),
        (
            {"fixed_components": np.ones((2, 20)), "init": "nndsvda"},
            "init='nndsvda' knows nothing of fixed_components; use init='random'",
        ),
    ],
)
def test_fixed_components_that_cannot_be_held_are_refused(planted, parameters, message):
    X, _ = planted
    model = quiet(**{"n_components": 5} | parameters)
    for run in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=message):
            run(X)


# --- all of H given -------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("solver", "beta_loss"), SOLVES)
def test_a_fit_with_H_given_finds_the_best_W(planted, solver, beta_loss, penalty):
    X, H = planted
    options = {"solver": solver, "beta_loss": beta_loss, **penalty}
    model = quiet(max_iter=3000, transform_solver="mu", transform_max_iter=3000, **options)
    model.fit(X, H=H, update_H=False)
    np.testing.assert_array_equal(model.components_, H)
    assert model.n_components_ == 5
    W = model.W_
    power = (W @ H) ** (beta_loss - 2)
    gradient = (power * (W @ H - X)) @ H.T
    if penalty:
        gradient += 20 * 0.01 * 0.5 * (1 + W)
    size = (power * X @ H.T).max() if beta_loss == 2 else ((power * X) @ H.T).max()
    slow = 1e-3 if beta_loss in (0, 3) else 1e-4
    assert gradient.min() > -slow * size
    assert np.abs(W * gradient).max() < slow * size * W.max()
    if solver == "mu":
        np.testing.assert_allclose(model.transform(X), W, rtol=1e-10)


def test_a_fit_with_H_given_is_that_of_scikit_learn(planted, rng):
    X, H = planted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        W, _, _ = non_negative_factorization(
            X, H=H, n_components=5, update_H=False, solver="mu", beta_loss=1, tol=0, max_iter=2000
        )
    model = quiet(max_iter=2000).fit(X, H=H, update_H=False)
    np.testing.assert_allclose(model.W_, W, rtol=1e-6, atol=1e-9)
    # From a W of one's own, and by what fit_transform returns.
    W0 = rng.random((30, 5)) + 0.1
    given = quiet(max_iter=2000, n_components=5, transform_solver="mu", transform_max_iter=2000)
    features = given.fit_transform(X, W=W0, H=H, update_H=False)
    np.testing.assert_allclose(given.W_, W, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(features, W, rtol=1e-4, atol=1e-6)
    first = quiet(max_iter=1).fit(X, W=W0, H=H, update_H=False)
    want = W0 * ((X / (W0 @ H)) @ H.T) / H.sum(1)
    np.testing.assert_allclose(first.W_, want, rtol=1e-10)


def test_a_fit_with_H_given_converges_and_knows_zero_rows(planted):
    X, H = planted
    X[3] = 0
    for solver, beta_loss in (("mu", 1), ("accelerated-mu", 1), ("hals", 2)):
        model = NNMF(solver=solver, beta_loss=beta_loss, tol=1e-6, max_iter=5000)
        model.fit(X, H=H, update_H=False)
        assert model.converged_
        np.testing.assert_array_equal(model.W_[3], np.zeros(5))
    model.fit(np.zeros((4, 20)), H=H, update_H=False)
    assert not model.W_.any()


@pytest.mark.parametrize(
    ("parameters", "given", "message"),
    [
        ({}, {}, r"update_H=False needs the components to hold: fit\(X, H=, update_H=False\)"),
        ({"n_components": 3}, {"H": np.ones((5, 20))}, r"H must have shape \(3, 20\), got \(5,"),
        ({}, {"H": np.ones((5, 20)), "W": np.ones((30, 4))}, r"W must have shape \(30, 5\)"),
        ({"fixed_components": np.ones((1, 20))}, {"H": np.ones((5, 20))}, "fixed_components=None"),
    ],
)
def test_what_a_fit_with_H_given_refuses(planted, parameters, given, message):
    X, _ = planted
    with pytest.raises(ValueError, match=message):
        quiet(**parameters).fit(X, update_H=False, **given)
    with pytest.raises(TypeError, match="update_H must be True or False, got 'no'"):
        quiet().fit(X, update_H="no")


# --- warm start -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "beta_loss"), [("mu", 1), ("mu", 0.5), ("hals", 2)])
def test_a_warm_start_goes_on_where_the_fit_has_ended(planted, solver, beta_loss):
    X, _ = planted
    options = {"n_components": 4, "solver": solver, "beta_loss": beta_loss}
    whole = quiet(**options, max_iter=60).fit(X)
    model = quiet(**options, warm_start=True, max_iter=20).fit(X)
    cold = quiet(**options, max_iter=20).fit(X)
    np.testing.assert_array_equal(model.components_, cold.components_)  # nothing to go on from
    for _ in range(2):
        model.fit(X)
    assert model.n_iter_ == 20
    np.testing.assert_allclose(model.components_, whole.components_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(model.W_, whole.W_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_warm_start_needs_fewer_iterations_on_other_rows(planted, rng, dtype):
    X, H = planted
    more = (rng.gamma(1, size=(40, 5)) @ H / 5 + 0.1 * rng.random((40, 20))).astype(dtype)
    options = {"n_components": 5, "beta_loss": 2, "tol": 1e-3, "max_iter": 5000}
    model = quiet(**options, warm_start=True).fit(X)
    cold = quiet(**options).fit(more)
    model.fit(more)
    assert model.converged_
    assert model.n_iter_ < cold.n_iter_
    assert model.W_.shape == (40, 5)
    assert model.components_.dtype == dtype
    # A stream, which has no W, is gone on from as well, and fixed components stay held.
    stream = quiet(n_components=5, warm_start=True, fixed_components=H[:1])
    stream.partial_fit(X).fit(X)
    np.testing.assert_array_equal(stream.components_[0], H[0])


def test_a_given_start_wins_over_a_warm_one(planted, rng):
    X, _ = planted
    W0, H0 = rng.random((30, 3)) + 0.1, rng.random((3, 20)) + 0.1
    cold = quiet(init="custom").fit(X, W=W0, H=H0)
    model = quiet(init="custom", warm_start=True).fit(X, W=W0, H=H0)
    again = clone(model).fit(X, W=W0, H=H0).fit(X, W=W0, H=H0)
    np.testing.assert_array_equal(again.components_, cold.components_)
    model.fit(X)
    assert model.objective_history_[0] == pytest.approx(cold.objective_history_[-1], rel=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_components": 3}, "4 components of 20 features, but n_components is 3; set it to 4"),
        ({"n_init": 2}, "n_init is 2; set it to 1, or warm_start=False"),
    ],
)
def test_a_warm_start_refuses_what_it_cannot_go_on_from(planted, change, message):
    X, _ = planted
    model = quiet(n_components=4, warm_start=True).fit(X)
    with pytest.raises(ValueError, match=message):
        model.set_params(**change).fit(X)
    with pytest.raises(TypeError, match="warm_start must be True or False, got 'yes'"):
        clone(model).set_params(warm_start="yes").fit(X)
    with pytest.raises(ValueError, match="n_features of X is 19; set it to 20"):
        model.set_params(n_components=4, n_init=1).fit(X[:, :19])
