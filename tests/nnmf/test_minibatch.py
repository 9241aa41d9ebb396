"""`NNMF.partial_fit`: one mini-batch at a time."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.decomposition import MiniBatchNMF
from sklearn.decomposition._nmf import _beta_divergence

from nnmf_cuda import NNMF, ops
from nnmf_cuda.nnmf import matrix
from tests.helpers import DEVICES

LOSSES = ["frobenius", "kullback-leibler", 1.5, 0.5, 3]
ROWS = 25  # of a mini-batch


@pytest.fixture
def X(rng):
    """Planted components with noise and some zeros, 100 rows, the first 25 of mean 1.

    There the weight of a start, which has the units of X, is that of scikit-learn.
    """
    X = rng.random((100, 3)) @ rng.random((3, 33)) + 0.05 * rng.random((100, 33))
    X[X < 0.2] = 0
    return X / X[:ROWS].mean()


@pytest.fixture
def H(rng):
    return rng.random((4, 33)) + 0.1


def batches(X):
    return [X[first : first + ROWS] for first in range(0, len(X), ROWS)]


def streamed(X, H, **parameters):
    model = NNMF(**{"n_components": 4, "init": "custom"} | parameters)
    for batch in batches(X):
        model.partial_fit(batch, H=H)
    return model


def of_scikit_learn(X, H, **parameters):
    """Stream the same through scikit-learn; without tol it runs every update of W."""
    model = MiniBatchNMF(4, init="custom", tol=0, batch_size=ROWS, **parameters)
    for batch in batches(X):
        model.partial_fit(batch, W=np.ones((ROWS, 4)), H=H.copy())
    return model


@pytest.mark.parametrize("forget_factor", [0.7, 1.0, 0.0])
@pytest.mark.parametrize("beta_loss", LOSSES)
def test_partial_fit_equals_scikit_learns_step_for_step(X, H, beta_loss, forget_factor):
    options = {"beta_loss": beta_loss, "forget_factor": forget_factor}
    ours, theirs = streamed(X, H, **options), of_scikit_learn(X, H, **options)
    # beta_loss = 3 approaches its W slowly, from a start of its own in either library.
    tolerance = 1e-7 if beta_loss == 3 else 1e-11
    np.testing.assert_allclose(ours.components_, theirs.components_, rtol=tolerance, atol=1e-12)
    assert ours.n_steps_ == theirs.n_steps_ == 4


@pytest.mark.parametrize("beta_loss", LOSSES)
def test_partial_fit_penalises_components_as_scikit_learn(X, H, beta_loss):
    options = {"beta_loss": beta_loss, "alpha_W": 0.0, "alpha_H": 0.02, "l1_ratio": 0.3}
    ours, theirs = streamed(X, H, **options), of_scikit_learn(X, H, **options)
    np.testing.assert_allclose(ours.components_, theirs.components_, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler"])
def test_partial_fit_penalises_W_as_scikit_learn(X, H, beta_loss):
    # A penalty on W makes its updates depend on where W starts, which differs: run them out.
    options = {"alpha_W": 0.01, "l1_ratio": 0.5, "fresh_restarts_max_iter": 3000}
    ours, theirs = (f(X, H, beta_loss=beta_loss, **options) for f in (streamed, of_scikit_learn))
    np.testing.assert_allclose(ours.components_, theirs.components_, rtol=1e-5, atol=1e-8)


def test_partial_fit_remembers_in_blocks_what_it_would_at_once(X, H, monkeypatch):
    whole = streamed(X, H, beta_loss=1.5)
    monkeypatch.setattr(matrix, "BLOCK_ENTRIES", 100)
    np.testing.assert_allclose(streamed(X, H, beta_loss=1.5).components_, whole.components_)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler"])
def test_partial_fit_learns_what_a_fit_learns(X, beta_loss, device):
    stream = NNMF(4, beta_loss=beta_loss, random_state=0, device=device)
    start = stream.partial_fit(X[:1]).components_
    for _ in range(40):
        for batch in batches(X):
            stream.partial_fit(batch)
    fit = NNMF(4, beta_loss=beta_loss, random_state=0, tol=0, max_iter=500).fit(X)
    options = {"transform_solver": "mu"}
    lost, ended, best = (
        _beta_divergence(X, fit.set_params(**options).transform(X), H, beta_loss)
        if H is fit.components_
        else _beta_divergence(
            X, NNMF(4, beta_loss=beta_loss, init="custom", **options).partial_fit(X, H=H)
            .transform(X), H, beta_loss,
        )
        for H in (start, stream.components_, fit.components_)
    )  # fmt: skip
    assert best < 0.5 * lost
    assert ended < best + 0.1 * (lost - best)


def test_partial_fit_learns_more_components_than_features(X):
    model = NNMF(40, random_state=0)
    for batch in batches(X):
        model.partial_fit(batch)
    assert model.components_.shape == (40, 33)
    assert np.isfinite(model.components_).all()
    back = model.inverse_transform(model.transform(X))
    assert np.linalg.norm(back - X) < 0.2 * np.linalg.norm(X)


def test_partial_fit_starts_from_fewer_rows_than_components(X):
    model = NNMF(10, random_state=0).partial_fit(X[:2])
    assert model.components_.shape == (10, 33)
    assert model.transform(X).shape == (100, 10)
    assert NNMF(random_state=0).partial_fit(X[:2]).n_components_ == 15


def test_partial_fit_goes_on_from_a_fit(X):
    options = {"n_components": 3, "tol": 0, "max_iter": 300, "random_state": 0}
    model = NNMF(**options).fit(X)
    components = model.components_.copy()
    # At the end of a fit, its own rows tell it nothing new: H stays nearly where it is.
    model.partial_fit(X)
    np.testing.assert_allclose(model.components_, components, atol=0.02 * components.max())
    assert not np.array_equal(model.components_, components)
    assert model.n_steps_ == 1
    for name in ("W_", "n_iter_", "objective_history_", "reconstruction_err_", "converged_"):
        assert not hasattr(model, name)
    again = model.fit(X)
    np.testing.assert_array_equal(again.components_, components)
    assert not hasattr(again, "n_steps_")
    assert again.partial_fit(X[:5]).n_steps_ == 1


@pytest.mark.parametrize("forget_factor", [0.0, 0.7])
@pytest.mark.parametrize(("beta_loss", "gamma"), [(1, 1), (2, 1), (1.5, 1), (0.5, 2 / 3), (3, 0.5)])
def test_partial_fit_weighs_a_fit_as_the_mini_batch_before(X, beta_loss, gamma, forget_factor):
    X = X + 0.01
    options = {"beta_loss": beta_loss, "transform_solver": "mu", "transform_max_iter": 30}
    model = NNMF(3, tol=0, max_iter=30, random_state=0, **options).fit(X[:60])
    old_W, H, W = model.W_, model.components_, model.transform(X[60:])
    remembered = forget_factor * old_W.T @ (old_W @ H) ** (beta_loss - 1)
    denominator = W.T @ (W @ H) ** (beta_loss - 1)
    numerator = H ** (1 / gamma) * (W.T @ (X[60:] * (W @ H) ** (beta_loss - 2)))
    total = remembered * H ** (1 / gamma) + numerator
    expected = (total / (remembered + denominator)) ** gamma
    model.set_params(forget_factor=forget_factor).partial_fit(X[60:])
    np.testing.assert_allclose(model.components_, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["float32", "uint8", "counts", "torch"])
def test_partial_fit_reads_what_fit_reads(X, H, kind):
    X = np.rint(X * 70)
    given = {
        "uint8": lambda: X.astype(np.uint8),
        "counts": lambda: X.astype(np.int64),
        "torch": lambda: torch.from_numpy(X),
    }.get(kind, lambda: X.astype(kind))()
    model = streamed(given, H)
    expected = streamed(X / 255 if kind == "uint8" else X, H)
    single = kind in ("float32", "uint8")
    assert model.components_.dtype == (np.float32 if single else np.float64)
    # float32 runs 4 times 30 updates; the scale of H is that of its entries around 1.
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if single else {"rtol": 1e-12}
    np.testing.assert_allclose(model.components_, expected.components_, **tolerance)
    assert type(model.transform(given)) is type(given)


def test_partial_fit_keeps_the_type_of_the_first_call(X, H):
    X = X / X.max()
    model = NNMF(4, init="custom").partial_fit(X.astype(np.float32), H=H)
    assert model.partial_fit(X).components_.dtype == np.float32
    assert NNMF(4, init="custom").partial_fit(X, H=H).partial_fit(
        (X * 100).astype(np.uint8)
    ).components_.dtype == np.float64  # fmt: skip


def test_partial_fit_survives_a_pickle(X, H):
    whole = streamed(X, H)
    model = NNMF(4, init="custom")
    for batch in batches(X):
        model = pickle.loads(pickle.dumps(model.partial_fit(batch, H=H)))
    np.testing.assert_array_equal(model.components_, whole.components_)


def test_partial_fit_leaves_its_arguments_alone(X, H):
    before = X.copy(), H.copy()
    streamed(X, H)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(H, before[1])


def test_partial_fit_of_zero_rows_forgets_but_finds_no_nan(X, H):
    for beta_loss in ("frobenius", "kullback-leibler", 1.5):
        model = streamed(X, H, beta_loss=beta_loss)
        components = model.components_.copy()
        model.partial_fit(np.zeros((3, 33)))
        assert np.isfinite(model.components_).all()
        np.testing.assert_allclose(model.components_, components, rtol=0.2, atol=1e-6)


@pytest.mark.parametrize(
    ("parameters", "rows", "start", "message"),
    [
        ({"init": "custom"}, 25, None, r"init='custom' needs H: partial_fit\(X, H=\)"),
        ({"init": "custom"}, 25, np.ones((3, 33)), r"H must have shape \(4, 33\), got \(3, 33\)"),
        ({"init": "custom"}, 25, -np.ones((4, 33)), "H must be finite and >= 0"),
        ({}, 25, np.ones((4, 33)), "H is the start of init='custom', but init='random'"),
        ({"init": "nndsvda"}, 3, None, "n_components=4 is above .* = 3, .* or init='random'"),
        ({"beta_loss": 0}, 25, None, "X contains zeros, .* beta_loss=0 the divergence"),
        ({"solver": "hals"}, 25, None, "solver='hals' minimises"),
    ],
)
def test_partial_fit_errors(X, parameters, rows, start, message):
    with pytest.raises(ValueError, match=message):
        NNMF(**{"n_components": 4} | parameters).partial_fit(X[:rows], H=start)


def test_partial_fit_rejects_other_features_and_bad_rows_and_keeps_the_model(X, H):
    model = streamed(X, H, beta_loss="frobenius")
    components = model.components_.copy()
    with pytest.raises(ValueError, match="X has 30 features, but NNMF is expecting 33"):
        model.partial_fit(X[:, :30])
    with pytest.raises(ValueError, match="Negative values"):
        model.partial_fit(-X)
    huge = np.full((4, 33), 1e300)
    with pytest.raises(ValueError, match="the mini-batch overflowed; scale X"):
        model.set_params(alpha_H=1e300).partial_fit(huge)
    np.testing.assert_array_equal(model.components_, components)
    assert model.n_steps_ == 4


def test_a_loss_may_be_named_by_its_number_amid_a_stream(X, H):
    model = streamed(X, H)
    name = model.beta_loss
    expected = streamed(X, H).partial_fit(X).components_
    model.set_params(beta_loss=ops.beta_loss_to_float(name)).partial_fit(X)
    np.testing.assert_array_equal(model.components_, expected)


@pytest.mark.parametrize(("name", "value"), [("n_components", 5), ("beta_loss", "frobenius")])
def test_partial_fit_refuses_a_parameter_that_its_memory_does_not_fit(X, H, name, value):
    model = streamed(X, H)
    with pytest.raises(ValueError, match=f"{name}=.* has changed .* since the stream began"):
        model.set_params(**{name: value}).partial_fit(X)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("forget_factor", [0.0, 0.7])
@pytest.mark.parametrize("beta_loss", [0.5, 1, 1.5, 2])
def test_a_component_without_a_share_in_a_mini_batch_stays(rng, beta_loss, forget_factor, unit):
    H = np.kron(np.eye(2), np.ones(6))
    X = unit * rng.gamma(1, size=(40, 2)) @ H
    only_first = X * (np.arange(12) < 6)
    options = {"init": "custom", "beta_loss": beta_loss, "forget_factor": forget_factor}
    model = NNMF(2, **options).partial_fit(X[:20], H=np.sqrt(unit) * H)
    before = model.components_[1].copy()
    for _ in range(3):
        model.partial_fit(only_first[20:])
    np.testing.assert_allclose(model.components_[1], before, rtol=1e-12)


def test_a_memory_that_has_faded_tells_a_component_nothing(rng):
    H = np.kron(np.eye(2), np.ones(6))
    X = (rng.gamma(1, size=(40, 2)) @ H).astype(np.float32)
    only_first = X * (np.arange(12) < 6)
    model = NNMF(2, init="custom", forget_factor=1e-5).partial_fit(X, H=H)
    before = model.components_[1].copy()
    for _ in range(12):  # float32 ends at 1e-45
        model.partial_fit(only_first)
    np.testing.assert_allclose(model.components_[1], before, rtol=1e-5)
    model.partial_fit(2 * X)
    assert np.isfinite(model.components_).all()
