"""`NNMF` of data with missing entries and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, nnls
from sklearn.base import clone
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline

from nnmf_cuda import NNMF
from nnmf_cuda.nnmf.inputs import as_matrix
from nnmf_cuda.nnmf.solvers import Hals
from nnmf_cuda.nnmf.weighted_matrix import Told

FITS = [
    {"solver": "mu"},
    {"solver": "accelerated-mu"},
    {"solver": "mu", "beta_loss": 0.5},
    {"solver": "mu", "beta_loss": 0},
    {"solver": "mu", "beta_loss": 2},
    {"solver": "accelerated-mu", "beta_loss": 1.5},
    {"solver": "hals", "beta_loss": 2},
    {"solver": "mu", "init": "nndsvda"},
    {"solver": "hals", "beta_loss": 2, "n_init": 3, "alpha_W": 1e-3, "l1_ratio": 0.5},
]


def planted(
    n: int = 60, f: int = 40, k: int = 3, *, noise: float = 0.0, seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return X (n, f) of k parts, with Gamma noise, and those parts (k, f)."""
    rng = np.random.default_rng(seed)
    H = rng.gamma(0.5, size=(k, f)) * (rng.random((k, f)) < 0.6) + 1e-3
    X = rng.gamma(0.7, size=(n, k)) @ H
    return (X if noise == 0 else X * rng.gamma(1 / noise, noise, size=X.shape)), H


def with_holes(X: NDArray[Any], share: float = 0.3, seed: int = 1) -> NDArray[Any]:
    """Return a mask of X, False for `share` of the entries, that leaves no row or column empty."""
    mask = np.random.default_rng(seed).random(X.shape) >= share
    mask[np.arange(max(X.shape)) % len(X), np.arange(max(X.shape)) % X.shape[1]] = True
    return mask


def matched(found: NDArray[Any], true: NDArray[Any]) -> float:
    """Return the lowest cosine of components matched one to one."""
    found, true = (H / np.linalg.norm(H, axis=1, keepdims=True) for H in (found, true))
    table = found @ true.T
    return float(table[linear_sum_assignment(table, maximize=True)].min())


def model(**options: Any) -> NNMF:
    return NNMF(3, **{"random_state": 0, "tol": 0, "max_iter": 30, **options})


# Nothing leaks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITS, ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_what_is_missing_does_not_matter(fit: dict[str, Any], dtype: type) -> None:
    X = planted()[0].astype(dtype) + dtype(1e-3)
    mask = with_holes(X)
    told = model(missing_values=np.nan, **fit).fit(np.where(mask, X, dtype(np.nan)))
    assert np.isfinite(told.objective_history_).all()
    for filler in (0, 7, -1, np.inf):
        other = model(**fit).fit(np.where(mask, X, dtype(filler)), mask=mask)
        for name in ("components_", "W_", "objective_history_"):
            np.testing.assert_array_equal(getattr(other, name), getattr(told, name))
    hidden = np.where(mask, X, dtype(np.nan))
    for solver in ("nnls", "mu", "same"):
        told.transform_solver = solver
        wanted = told.transform(hidden)
        assert np.isfinite(wanted).all()
        got = clone(told).set_params(missing_values=None)
        got.__dict__.update({k: v for k, v in vars(told).items() if k.endswith("_")})
        got._units = told._units
        np.testing.assert_array_equal(got.transform(X, mask=mask), wanted)


def test_what_is_missing_in_pixels_does_not_matter() -> None:
    X = (255 * planted()[0] / planted()[0].max()).astype(np.uint8)
    mask = with_holes(X)
    one, other = (
        model().fit(np.where(mask, X, np.uint8(filler)), mask=mask) for filler in (0, 255)
    )
    np.testing.assert_array_equal(one.components_, other.components_)
    np.testing.assert_array_equal(one.transform(X, mask=mask), other.transform(X, mask=mask))


@pytest.mark.parametrize(("number", "missing"), [(-1, []), (300, []), (0.5, []), (255, [0])])
def test_a_number_that_is_no_pixel_stands_for_none(number: float, missing: list[int]) -> None:
    X = np.full((6, 8), 100, dtype=np.uint8)
    X[0], X[1] = 255, 44  # what bytes would make of -1 and 300
    nnmf = model(missing_values=number).fit(X)
    np.testing.assert_array_equal(np.flatnonzero((nnmf.W_ == 0).all(1)), missing)


def test_a_number_may_stand_for_what_is_missing() -> None:
    X = planted()[0]
    mask = with_holes(X)
    wanted = model().fit(X, mask=mask)
    for data in (np.where(mask, X, -1.0), torch.from_numpy(np.where(mask, X, -1.0))):
        got = model(missing_values=-1).fit(data)
        np.testing.assert_array_equal(got.components_, wanted.components_)
    frame = pd.DataFrame(np.where(mask, X, np.nan)).add_prefix("x")
    got = model(missing_values=np.nan).fit(frame)
    np.testing.assert_array_equal(got.components_, wanted.components_)
    assert list(got.feature_names_in_[:2]) == ["x0", "x1"]


@pytest.mark.parametrize("fit", [FITS[0], FITS[6]], ids=str)
def test_where_nothing_is_missing_nothing_changes(fit: dict[str, Any]) -> None:
    X = planted()[0]
    wanted = model(**fit).fit(X)
    for got in (
        model(missing_values=np.nan, **fit).fit(X),
        model(**fit).fit(X, mask=np.ones(X.shape, bool)),
        model(**fit).fit(X, weights=np.ones(len(X))),
    ):
        np.testing.assert_array_equal(got.components_, wanted.components_)
        np.testing.assert_array_equal(got.transform(X), wanted.transform(X))


# What it finds ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fit", [{"solver": "accelerated-mu"}, {"solver": "hals", "beta_loss": 2}], ids=str
)
def test_planted_parts_are_found_with_30_percent_missing(fit: dict[str, Any]) -> None:
    X, H = planted(200, 60, 4, noise=0.01, seed=3)
    options = {"max_iter": 3000, "tol": 1e-6, "n_init": 5, "random_state": 0, **fit}
    # Most of what is missing is so in a corner, as where half of the samples were measured less.
    mask = with_holes(X, 0.2, seed=4)
    mask[:100, :20] &= with_holes(X, 0.75, seed=5)[:100, :20]
    assert 0.25 < 1 - mask.mean() < 0.35
    whole, masked = NNMF(4, **options).fit(X), NNMF(4, **options).fit(X, mask=mask)
    assert matched(whole.components_, H) > 0.98
    assert matched(masked.components_, H) > matched(whole.components_, H) - 0.01
    # Zeros in the place of what is missing lead elsewhere.
    assert matched(NNMF(4, **options).fit(X * mask).components_, H) < 0.97


def test_inverse_transform_fills_in_what_is_missing() -> None:
    X, _ = planted(120, 40, 3, seed=5)
    mask = with_holes(X)
    hidden = np.where(mask, X, np.nan)
    nnmf = NNMF(3, missing_values=np.nan, beta_loss=2, solver="hals", max_iter=3000, tol=1e-9)
    nnmf.set_params(n_init=5, random_state=0)
    filled = nnmf.inverse_transform(nnmf.fit_transform(hidden))
    error = np.abs(filled - X)[~mask].mean()
    by_mean = np.abs(SimpleImputer().fit_transform(hidden) - X)[~mask].mean()
    assert error < 0.02 * by_mean


def test_transform_is_least_squares_of_what_is_there() -> None:
    X, _ = planted()
    nnmf = model(missing_values=np.nan).fit(X)
    rows = np.where(with_holes(X[:9], 0.5, seed=7), X[:9], np.nan)
    rows[4] = np.nan
    got = nnmf.transform(rows)
    for row, found in zip(rows, got, strict=True):
        seen = ~np.isnan(row)
        wanted = nnls(nnmf.components_.T[seen], row[seen])[0] if seen.any() else np.zeros(3)
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(nnmf.transform(rows[3:4]), got[3:4])
    weights = np.random.default_rng(0).random(rows.shape) * ~np.isnan(rows)
    found = nnmf.transform(rows, weights=weights)[0]
    root, seen = np.sqrt(weights[0]), weights[0] > 0
    wanted = nnls((nnmf.components_ * root).T[seen], (rows[0] * root)[seen])[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-10)


def test_a_penalty_is_in_least_squares_of_what_is_there() -> None:
    X, _ = planted()
    options = {"beta_loss": 2, "alpha_W": 1e-3, "l1_ratio": 0.5, "transform_solver": "same"}
    nnmf = model(missing_values=np.nan, solver="hals", **options).fit(X)
    hidden = np.where(with_holes(X), X, np.nan)
    got = nnmf.transform(hidden)
    many = nnmf.set_params(max_iter=3000).fit(
        hidden, H=nnmf.components_, update_H=False
    )  # coordinate descent on the same objective
    np.testing.assert_allclose(got, many.W_, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fit", [FITS[0], FITS[2], FITS[6]], ids=str)
def test_a_weight_of_a_sample_is_its_repetition(fit: dict[str, Any]) -> None:
    X, _ = planted(12, 20)
    counts = np.arange(12) % 3 + 1
    rng = np.random.default_rng(2)
    W, H = rng.random((12, 3)) + 0.1, rng.random((3, 20)) + 0.1
    got = model(init="custom", **fit).fit(X, W=W, H=H, weights=counts)
    many = model(init="custom", **fit).fit(X.repeat(counts, 0), W=W.repeat(counts, 0), H=H)
    # HALS sweeps as often as the shape of X says.
    rtol = 1e-6 if fit["solver"] != "hals" else 2e-2
    np.testing.assert_allclose(got.components_, many.components_, rtol=rtol, atol=1e-9)
    np.testing.assert_allclose(got.objective_history_[0], many.objective_history_[0], rtol=1e-10)


@pytest.mark.parametrize(("number", "nearest"), [(9999, "10000"), (0.1, "0.0999756"), (1e6, "inf")])
def test_a_number_that_half_precision_does_not_have_is_no_missing_value(number, nearest):
    X = planted(12, 20)[0].astype(np.float16)
    for data in (X, torch.from_numpy(X)):
        with pytest.raises(ValueError, match=f"float16, whose nearest is {nearest}: give X in fl"):
            model(missing_values=number).fit(data)
    X[3, 4] = -1
    holes = X.astype(np.float32)
    got, want = (model(missing_values=-1).fit(data) for data in (X, holes))
    np.testing.assert_array_equal(got.components_, want.components_)


@pytest.mark.parametrize("told", ["mask", "weights"])
def test_hals_sweeps_twice_where_each_sweep_reads_all_of_X(told: str) -> None:
    X, _ = planted(60, 20)
    weights = np.random.default_rng(0).random(X.shape)
    what = weights if told == "weights" else weights < 0.5
    matrix, *_ = as_matrix(X, torch.device("cpu"), "NNMF", Told(**{told: what}))
    assert Hals.sweeps(matrix, 3) == 2


@pytest.mark.parametrize("beta_loss", [1, 2, 0.5])
def test_a_stream_takes_weights(beta_loss: float) -> None:
    X, _ = planted(12, 20)
    counts = np.arange(12) % 3 + 1
    H = np.random.default_rng(3).random((3, 20)) + 0.1
    got, many = (model(init="custom", beta_loss=beta_loss) for _ in range(2))
    for _ in range(3):
        got.partial_fit(X, H=H if not hasattr(got, "n_steps_") else None, weights=counts)
        many.partial_fit(X.repeat(counts, 0), H=H if not hasattr(many, "n_steps_") else None)
    np.testing.assert_allclose(got.components_, many.components_, rtol=1e-8)


def test_nothing_leaks_into_a_stream() -> None:
    X, _ = planted()
    mask = with_holes(X)
    one, other = model(missing_values=np.nan), model()
    for rows in (slice(0, 30), slice(30, 60)):
        one.partial_fit(np.where(mask, X, np.nan)[rows])
        other.partial_fit(np.where(mask, X, 1e9)[rows], mask=mask[rows])
    np.testing.assert_array_equal(one.components_, other.components_)
    assert np.isfinite(one.components_).all()


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("forget_factor", [0.0, 0.7])
@pytest.mark.parametrize("beta_loss", [0.5, 1, 1.5, 2])
def test_a_column_that_a_mini_batch_does_not_tell_of_stays(
    beta_loss: float, forget_factor: float, unit: float
) -> None:
    X = unit * planted()[0]
    stream = model(beta_loss=beta_loss, forget_factor=forget_factor).partial_fit(X[:30])
    before = stream.components_.copy()
    mask = np.ones((30, 40), bool)
    mask[:, 7] = False
    for _ in range(50):
        stream.partial_fit(X[30:], mask=mask)
    np.testing.assert_allclose(stream.components_[:, 7], before[:, 7], rtol=1e-10)
    assert not np.allclose(stream.components_[:, 8], before[:, 8], rtol=1e-3)


def test_a_sample_of_which_nothing_counts_has_no_W() -> None:
    X, _ = planted()
    mask = np.ones(X.shape, bool)
    mask[5] = False
    for fit in (FITS[0], FITS[6]):
        nnmf = model(**fit).fit(X, mask=mask)
        assert (nnmf.W_[5] == 0).all()
        assert (nnmf.W_[6] > 0).any()


# Life -------------------------------------------------------------------------------------------


def test_missing_values_outlive_save_clone_and_checkpoint(tmp_path: Path) -> None:
    X, _ = planted()
    hidden = np.where(with_holes(X), X, np.nan)
    nnmf = clone(model(missing_values=np.nan)).fit(hidden)
    nnmf.save(tmp_path / "model.safetensors")
    again = NNMF.load(tmp_path / "model.safetensors")
    assert np.isnan(again.missing_values)
    np.testing.assert_array_equal(again.transform(hidden), nnmf.transform(hidden))
    file = tmp_path / "fit.safetensors"
    half = model(missing_values=np.nan, max_iter=10).fit(hidden, checkpoint=file)
    assert half.n_iter_ == 10
    whole = model(missing_values=np.nan).fit(hidden, checkpoint=file)
    np.testing.assert_array_equal(whole.components_, nnmf.components_)
    other = hidden.copy()
    other[np.nonzero(~np.isnan(hidden))[0][0], np.nonzero(~np.isnan(hidden))[1][0]] = np.nan
    with pytest.raises(ValueError, match="is of another fit: X was .float64 masked"):
        model(missing_values=np.nan).fit(other, checkpoint=file)


def test_it_is_a_step_of_a_pipeline_and_keeps_its_parameter() -> None:
    X, _ = planted()
    hidden = np.where(with_holes(X), X, np.nan)
    pipeline = make_pipeline(model(missing_values=np.nan))
    assert pipeline.fit_transform(hidden).shape == (60, 3)
    assert model(missing_values=np.nan).__sklearn_tags__().input_tags.allow_nan
    assert not model(missing_values=-1).__sklearn_tags__().input_tags.allow_nan


# Errors -----------------------------------------------------------------------------------------


def test_errors_name_what_is_wrong_and_the_remedy() -> None:
    X, _ = planted()
    hidden = np.where(with_holes(X), X, np.nan)
    with pytest.raises(ValueError, match=r"contains NaN.*set missing_values=np.nan to leave them"):
        model().fit(hidden)
    with pytest.raises(TypeError, match="missing_values must be None, np.nan or a number, got 'x'"):
        model(missing_values="x").fit(X)
    with pytest.raises(ValueError, match="missing_values must be finite or NaN, got inf"):
        model(missing_values=np.inf).fit(X)
    with pytest.raises(TypeError, match="mask must be bool, True where an entry of X counts"):
        model().fit(X, mask=np.ones_like(X))
    with pytest.raises(ValueError, match=r"mask must have X's shape \(60, 40\), got \(40, 60\)"):
        model().fit(X, mask=np.ones(X.T.shape, bool))
    with pytest.raises(TypeError, match="weights must be an array of real numbers"):
        model().fit(X, weights="heavy")
    with pytest.raises(TypeError, match=r"weights must be a tensor of real numbers, got .*complex"):
        model().fit(X, weights=torch.ones(X.shape, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"weights must have X's shape \(60, 40\), or \(60,\)"):
        model().fit(X, weights=np.ones(40))
    with pytest.raises(ValueError, match=r"weights must be finite and >= 0.*first -1 at 0$"):
        model().fit(X, weights=-np.ones(60))
    with pytest.raises(ValueError, match="weights must be finite .* in the type .* float32"):
        model().fit(X.astype(np.float32), weights=np.full(60, 1e39))
    with pytest.raises(ValueError, match="no entry of X counts"):
        model().fit(X, weights=np.zeros(60))
    with pytest.raises(TypeError, match="mask and missing_values needs dense X"):
        model(missing_values=np.nan).fit(scipy.sparse.csr_array(X), mask=with_holes(X))
    empty = with_holes(X)
    empty[:, [7, 9]] = False
    with pytest.raises(ValueError, match=r"2 column\(s\) of which no entry counts, the first is 7"):
        model().fit(X, mask=empty)
    H = np.ones((3, 40))  # where it is held nothing is asked of the columns
    assert model().fit(X, H=H, update_H=False, mask=empty).W_.shape == (60, 3)
    seen = hidden.copy()
    seen[np.nonzero(~np.isnan(hidden))[0][0], np.nonzero(~np.isnan(hidden))[1][0]] = np.inf
    with pytest.raises(ValueError, match="contains inf: 1 of 2400"):
        model(missing_values=np.nan).fit(seen)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"solver": "semi", "beta_loss": 2}, "solver='semi'"),
        ({"solver": "mu", "beta_loss": 2, "graph": "neighbors"}, "graph"),
    ],
)
def test_what_counts_all_entries_alike_refuses_to_leave_some_out(
    options: dict[str, Any], named: str
) -> None:
    X, _ = planted()
    mask = with_holes(X)
    with pytest.raises(ValueError, match=f"{named} counts all entries of X alike"):
        NNMF(3, random_state=0, **options).fit(X, mask=mask)
