"""Fits do not depend on the units of X, and say where they must."""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from nnmf_cuda import NNMF
from nnmf_cuda.nnmf.units import Units
from nnmf_cuda.ops import EPSILON

SCALES = (1e-5, 1e-3, 1.0, 64.0, 1e5)
SOLVES = [
    *(("mu", beta_loss) for beta_loss in (2, 1.5, 1, 0.5, 0, -1, 3)),
    *(("accelerated-mu", beta_loss) for beta_loss in (2, 1.5, 1)),
    ("hals", 2),
]
INITS = ("random", "nndsvd", "nndsvda", "nndsvdar")

pytestmark = pytest.mark.filterwarnings("ignore:multiplicative updates cannot leave:UserWarning")


def planted(rng, shape=(30, 20), rank=4):
    """Data of mean 1 with small entries but no zeros, so that every divergence is finite."""
    X = rng.gamma(1, size=(shape[0], rank)) @ rng.gamma(0.3, size=(rank, shape[1]))
    X += 0.05 * rng.random(shape) * X.mean()
    return X / X.mean()


def relative_error(model, X):
    return np.linalg.norm(X - model.W_ @ model.components_) / np.linalg.norm(X)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize(("solver", "beta_loss"), SOLVES)
def test_a_fit_in_float32_does_not_depend_on_the_units_of_X(rng, solver, beta_loss, init):
    X, errors = planted(rng), []  # float64: test_sweep_of_units.py
    for scale in SCALES:
        model = NNMF(
            4, solver=solver, beta_loss=beta_loss, init=init, tol=1e-3, max_iter=400, random_state=0
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "multiplicative updates cannot leave")
            model.fit((scale * X).astype(np.float32))
        errors.append(relative_error(model, scale * X))
    np.testing.assert_allclose(errors, errors[2], rtol=0.01)


@pytest.mark.parametrize("scale", [64.0, 1.0, 0.001, 1e-7])
def test_digits_are_fitted_alike_in_all_units(scale):
    X = load_digits().data
    X = X / X.sum(axis=1, keepdims=True)
    model = NNMF(10, beta_loss="frobenius", random_state=0, max_iter=1000).fit(scale * X)
    theirs = NMF(10, solver="mu", init="random", random_state=0, max_iter=1000).fit(X)
    assert model.converged_
    assert model.reconstruction_err_ / scale <= 1.01 * theirs.reconstruction_err_


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("beta_loss", [2, 1.5, 1, 0.5, 0, -1, 3])
def test_a_stream_does_not_depend_on_the_units_of_X(rng, beta_loss, dtype):
    X = planted(rng, (60, 20))
    errors = []
    for scale in SCALES:
        model = NNMF(4, beta_loss=beta_loss, random_state=0, transform_solver="mu")
        for _ in range(2):
            for first in range(0, 60, 15):
                model.partial_fit((scale * X[first : first + 15]).astype(dtype))
        W = model.transform((scale * X).astype(dtype))
        errors.append(np.linalg.norm(scale * X - W @ model.components_))
    np.testing.assert_allclose(errors / np.multiply(SCALES, errors[2]), 1, rtol=0.01)


@pytest.mark.parametrize("init", INITS)
def test_multiplicative_iterates_scale_with_X_exactly(rng, init):
    # Powers of four: their roots, by which the factors scale, round nothing.
    X = planted(rng)
    fits = [NNMF(3, init=init, tol=0, max_iter=20, random_state=1).fit(4.0**n * X) for n in (0, 5)]
    np.testing.assert_allclose(fits[1].components_, 2.0**5 * fits[0].components_, rtol=1e-12)
    np.testing.assert_allclose(fits[1].W_, 2.0**5 * fits[0].W_, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize(("shape", "k"), [((1, 1), 1), ((40, 30), 1), ((31, 33), 7)])
def test_a_random_start_has_the_mean_of_X(rng, shape, k, dtype):
    X = (200 * rng.random(shape) ** 3 + 2).astype(dtype)
    model = NNMF(k, init="random", tol=0, max_iter=1, random_state=0).fit(X)
    draw = np.random.RandomState(0)  # noqa: NPY002 - scikit-learn's convention for random_state
    mean = X.mean(dtype=np.float64) / (255 if dtype == np.uint8 else 1)
    unit = math.sqrt(mean / k) / 0.6
    W, H = (unit * (draw.uniform(size=s) + 0.1) for s in ((shape[0], k), (k, shape[1])))
    expected = NNMF(init="custom", tol=0, max_iter=1).fit(X, W=W, H=H)
    rtol = 1e-4 if dtype != np.float64 else 1e-12
    np.testing.assert_allclose(model.components_, expected.components_, rtol=rtol)
    if min(shape) > 20:
        assert (W @ H).mean() == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize("beta_loss", [1, 1.5, 2])
def test_multiplicative_updates_forget_the_scale_of_a_start(rng, beta_loss):
    # So that fits by the paper's settings are what they were from the draw as it is.
    X = planted(rng)
    draw = np.random.RandomState(0)  # noqa: NPY002 - scikit-learn's convention for random_state
    W, H = draw.uniform(size=(30, 3)) + 0.1, draw.uniform(size=(3, 20)) + 0.1
    ours = NNMF(3, beta_loss=beta_loss, tol=0, max_iter=20, random_state=0).fit(X)
    plain = NNMF(3, beta_loss=beta_loss, init="custom", tol=0, max_iter=20).fit(X, W=W, H=H)
    np.testing.assert_allclose(ours.W_ @ ours.components_, plain.W_ @ plain.components_, rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-9, 1e-15])
@pytest.mark.parametrize("beta_loss", [1, 0.5, 1.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_data_below_scikit_learns_floor_are_fitted(rng, beta_loss, scale, dtype):
    X = planted(rng)
    options = {"beta_loss": beta_loss, "max_iter": 300, "tol": 0, "random_state": 0}
    small = NNMF(4, **options).fit((scale * X).astype(dtype))
    usual = NNMF(4, **options).fit(X)
    assert relative_error(small, scale * X) == pytest.approx(relative_error(usual, X), rel=0.01)
    assert small.objective_history_[-1] > 0
    # New rows have the floor of the fit.
    small.set_params(transform_solver="mu")
    W = small.transform((scale * X).astype(dtype))
    lost = np.linalg.norm(scale * X - W @ small.components_) / np.linalg.norm(scale * X)
    assert lost == pytest.approx(relative_error(usual, X), rel=0.05)


@pytest.mark.parametrize(
    ("scale", "dtype", "beta_loss", "remedy"),
    [
        (1e-40, np.float32, 1, "scale X to values around 1$"),
        (1e-20, np.float32, 2, "scale X to values around 1, or use float64"),
        (1e30, np.float32, 2, "scale X to values around 1, or use float64"),
        (1e-20, np.float32, 3, "scale X to values around 1, or use float64"),
        (1e-15, np.float32, -1, "scale X to values around 1, or use float64"),
        (1e-40, np.float64, 1, "scale X to values around 1$"),
        (1e-250, np.float64, 2, "scale X to values around 1$"),
    ],
)
def test_units_out_of_range_are_warned_of_once(rng, scale, dtype, beta_loss, remedy):
    X = (scale * planted(rng)).astype(dtype)
    model = NNMF(3, beta_loss=beta_loss, tol=0, max_iter=10, random_state=0)
    for run in (model.fit, model.fit_transform, NNMF(3, beta_loss=beta_loss).partial_fit):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                run(X)
            except ValueError as error:
                assert "overflowed" in str(error)  # noqa: PT017  (a warning comes first)
        (one,) = [one for one in seen if issubclass(one.category, UserWarning)]
        assert f"mean {X.mean(dtype=np.float64):.3g}" in str(one.message)
        assert re.search(remedy, str(one.message))


@pytest.mark.parametrize(("solver", "beta_loss"), [s for s in SOLVES if s[1] > 0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_zeros_alone_are_fitted_by_zeros(solver, beta_loss, dtype):
    for init in INITS:
        model = NNMF(2, solver=solver, beta_loss=beta_loss, init=init, random_state=0)
        model.fit(np.zeros((5, 4), dtype))
        assert np.abs(model.W_ @ model.components_).max() < 1e-6
        assert model.transform(np.zeros((2, 4), dtype)).shape == (2, 2)


@pytest.mark.parametrize("mean", [0.0, math.inf])
def test_units_without_a_mean_are_taken_for_one(mean):
    units = Units(pixels=False, largest=0.0, mean=mean)
    assert units.scale == 1
    assert units.floor(torch.float32, 1.0) == EPSILON


def test_the_floor_is_scikit_learns_from_the_mean_one_on():
    for mean, floor in ((1e-3, 1e-3 * EPSILON), (1, EPSILON), (1e6, EPSILON)):
        assert Units(False, 1.0, mean).floor(torch.float64, 1.0) == floor
    assert Units(False, 1.0, 1e-35).floor(torch.float32, 1.0) == torch.finfo(torch.float32).tiny


# --- the same numbers as other quantities ---------------------------------------------------------


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_pixels_that_come_back_as_numbers_are_warned_of(rng, dtype, as_tensor):
    X = rng.integers(0, 256, (12, 9)).astype(np.uint8)
    model = NNMF(2, tol=0, max_iter=20, random_state=0).fit(X)
    given = torch.from_numpy(X.astype(dtype)) if as_tensor else X.astype(dtype)
    for run in (model.transform, model.partial_fit):
        message = r"uint8 pixels.*entries up to 25\d.*give X.astype\('uint8'\) or X / 255"
        with pytest.warns(UserWarning, match=message):
            run(given)


def test_numbers_that_come_back_as_pixels_are_warned_of(rng):
    X = rng.integers(0, 200, (12, 9))
    model = NNMF(2, tol=0, max_iter=20, random_state=0).fit(X.astype(np.float32))
    for run in (model.transform, model.partial_fit):
        message = r"entries up to 19\d that were not uint8, but X is uint8.*X.astype\('float32'\)"
        with pytest.warns(UserWarning, match=message):
            run(X.astype(np.uint8))


def test_fractions_and_pixels_are_the_same_quantity(rng):
    X = rng.integers(0, 256, (12, 9)).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = NNMF(2, tol=0, max_iter=20, random_state=0)
        of_pixels = model.fit_transform(X)
        fractions = (X / 255).astype(np.float32)
        np.testing.assert_allclose(model.transform(fractions), of_pixels, rtol=1e-3, atol=1e-4)
        model.fit(fractions).transform(X)
        model.partial_fit(X).partial_fit(fractions)
        # Fractions that were interpolated or sharpened overshoot.
        model.fit(X).transform(1.4 * fractions)
        model.fit(1.4 * fractions).transform(X)
        # A uint8 image without a pixel above 1, and counts both times.
        model.fit(X).transform(np.minimum(X, 1).astype(np.float64))
        model.fit(X.astype(np.int64)).transform(X.astype(np.float64))
