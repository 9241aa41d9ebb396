"""What NNMF reads, and how it refuses what it cannot use."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import NotFittedError

from nnmf_cuda import NNMF, ops
from nnmf_cuda.nnmf.inputs import as_matrix


@pytest.fixture
def X(rng):
    return rng.random((21, 3)) @ rng.random((3, 33)) + 0.01


def fitted(X, **parameters):
    """Fit without a stopping rule, so that nothing warns."""
    return NNMF(
        **{"n_components": 3, "tol": 0, "max_iter": 30, "random_state": 0} | parameters
    ).fit(X)


@pytest.mark.parametrize("transform_solver", ["nnls", "mu"])
@pytest.mark.parametrize("init", ["random", "nndsvda"])
def test_nnmf_reads_uint8_as_pixels(X, init, transform_solver):
    pixels = (X * 100).astype(np.uint8)
    options = {"init": init, "transform_solver": transform_solver, "transform_max_iter": 20}
    ours = fitted(pixels, **options)
    floats = fitted(pixels.astype(np.float32) / 255, **options)
    assert ours.components_.dtype == np.float32
    np.testing.assert_allclose(ours.components_, floats.components_, rtol=1e-4)
    ours_features, floats_features = (
        ours.transform(pixels),
        ours.transform(pixels / np.float32(255)),
    )
    np.testing.assert_allclose(ours_features, floats_features, rtol=1e-4, atol=1e-6)


def test_nnmf_keeps_float64_components_for_pixels(X):
    model = fitted(X / X.max())
    pixels = (X * 100).astype(np.uint8)
    features = model.transform(pixels)
    assert features.dtype == np.float64
    np.testing.assert_allclose(features, model.transform(pixels / 255), rtol=1e-6, atol=1e-8)


def test_nnmf_reads_other_integers_as_counts(X):
    counts = (X * 100).astype(np.int32)
    expected = fitted(counts.astype(np.float64))
    for same in (counts, torch.from_numpy(counts), counts.tolist()):
        model = fitted(same)
        assert model.components_.dtype == np.float64
        np.testing.assert_array_equal(model.components_, expected.components_)


@pytest.mark.parametrize("dtype", [np.float16, ">f4", "<f4"])
def test_nnmf_short_floats_are_single_precision(X, dtype):
    assert fitted(X.astype(dtype)).components_.dtype == np.float32


def test_nnmf_layout_of_the_input_does_not_matter(X):
    expected = fitted(X).components_
    for same in (np.asfortranarray(X), X[::-1].copy()[::-1], torch.from_numpy(X.T.copy()).T):
        np.testing.assert_allclose(fitted(same).components_, expected, rtol=1e-9)


@pytest.mark.parametrize("as_input", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda X: X.__setitem__((2, 4), -0.5), "Negative values .* smallest entry of X is -0.5"),
        (lambda X: X.__setitem__((2, 4), np.nan), "contains NaN: 1 of 693 .* row 2, column 4"),
        (lambda X: X.__setitem__((2, 4), np.inf), "contains inf: 1 of 693 .* row 2, column 4"),
    ],
)
def test_nnmf_rejects_bad_values_in_fit_and_transform(X, as_input, spoil, message):
    model = fitted(X)
    spoil(X)
    with pytest.raises(ValueError, match=message):
        NNMF(3).fit(as_input(X))
    with pytest.raises(ValueError, match=message):
        model.transform(as_input(X))


@pytest.mark.parametrize("as_input", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0, 5), r"0 sample\(s\)"),
        ((5, 0), r"0 feature\(s\)"),
        ((5,), r"Reshape your data"),
        ((5, 4, 3), r"X has shape \(5, 4, 3\).*X\.reshape\(len\(X\), -1\)"),
    ],
)
def test_nnmf_rejects_wrong_shapes(as_input, shape, message):
    for dtype in (np.float32, np.uint8):
        with pytest.raises(ValueError, match=message):
            NNMF(1).fit(as_input(np.ones(shape, dtype=dtype)))


@pytest.mark.parametrize("as_input", [np.asarray, torch.as_tensor])
def test_nnmf_rejects_another_number_of_features(X, as_input):
    with pytest.raises(ValueError, match="X has 30 features, but NNMF is expecting 33"):
        fitted(X).transform(as_input(X[:, :30]))


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csc"])
def test_nnmf_rejects_other_sparse_layouts_with_the_remedy(X, layout):
    with pytest.raises(TypeError, match=r"torch.sparse_c.*use X\.to_sparse_csr\(\)"):
        NNMF(3).fit(getattr(torch.from_numpy(X), layout)())


def test_nnmf_does_not_lose_the_mask_of_a_masked_array(X):
    hidden = np.ma.array(X, mask=np.arange(X.size).reshape(X.shape) % 7 == 0)
    for call in (NNMF().fit, NNMF().partial_fit, NNMF(3).fit(X).transform):
        with pytest.raises(TypeError, match=r"NNMF would not see .* mask=~np\.ma\.getmaskarray"):
            call(hidden)
    NNMF(3).fit(hidden.data, mask=~np.ma.getmaskarray(hidden))
    NNMF(3).fit(np.ma.array(X))  # of which nothing is masked


def test_nnmf_rejects_complex_tensors(X):
    with pytest.raises(ValueError, match="Complex data not supported"):
        NNMF(3).fit(torch.from_numpy(X).to(torch.complex64))


@pytest.mark.parametrize("as_input", [np.asarray, torch.as_tensor])
def test_nnmf_rejects_zeros_where_the_divergence_is_infinite(X, as_input):
    model = fitted(X, beta_loss=-1, transform_solver="mu")
    X[3, 3] = 0
    with pytest.raises(ValueError, match="X contains zeros, .* beta_loss='itakura-saito'"):
        NNMF(3, beta_loss="itakura-saito").fit(as_input(X))
    with pytest.raises(ValueError, match="X contains zeros, .* beta_loss=-1 the divergence"):
        model.transform(as_input(X))
    assert model.set_params(transform_solver="nnls").transform(as_input(X)).shape == (21, 3)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"n_components": 0}, ValueError, "n_components must be an integer >= 1, got 0"),
        ({"n_components": 2.5}, TypeError, "n_components must be an integer >= 1, got 2.5"),
        ({"n_components": True}, TypeError, "n_components must be an integer"),
        ({"beta_loss": "euclid"}, ValueError, "beta_loss must be .*got 'euclid'"),
        ({"beta_loss": None}, TypeError, "beta_loss must be a number or a name, got None"),
        ({"beta_loss": np.nan}, ValueError, "beta_loss must be finite"),
        ({"solver": "als"}, ValueError, "solver='als' does not exist; choose one of mu, acc"),
        ({"init": "zeros"}, ValueError, "init='zeros' does not exist; choose one of random, nnd"),
        ({"max_iter": 0}, ValueError, "max_iter must be an integer >= 1, got 0"),
        ({"tol": -1.0}, ValueError, "tol must be a finite number >= 0, got -1"),
        ({"tol": np.inf}, ValueError, "tol must be a finite number >= 0, got inf"),
        ({"tol": "small"}, TypeError, "tol must be a finite number >= 0, got 'small'"),
        ({"alpha_W": -1}, ValueError, "alpha_W must be a finite number >= 0"),
        ({"alpha_H": "W"}, TypeError, "alpha_H must be a finite number >= 0, got 'W'"),
        ({"l1_ratio": 1.5}, ValueError, r"l1_ratio must be a finite number in \[0, 1\], got 1.5"),
        ({"n_init": 0}, ValueError, "n_init must be an integer >= 1, got 0"),
        ({"n_init": 2, "init": "nndsvda"}, ValueError, "n_init=2 with init='nndsvda' would repeat"),
        ({"n_init": 2, "init": "custom"}, ValueError, "n_init=2 with init='custom'"),
        ({"transform_solver": "qp"}, ValueError, "transform_solver='qp' does not .* nnls, mu"),
        ({"transform_max_iter": 0}, ValueError, "transform_max_iter must be an integer >= 1"),
        (
            {"forget_factor": 1.1},
            ValueError,
            r"forget_factor must be a finite number in \[0, 1\], got 1.1",
        ),
        ({"fresh_restarts_max_iter": 0}, ValueError, "fresh_restarts_max_iter must be an integer"),
        ({"device": "gpu"}, ValueError, "device='gpu' is not a torch device; use None, 'auto'"),
        ({"random_state": "x"}, ValueError, "'x' cannot be used to seed"),
        ({"precision": "half"}, ValueError, "precision='half' does not exist; choose one of float"),
        ({"precision": "tf32x3"}, ValueError, "'tf32x3' is for float32 factors, got float64; use"),
        (
            {"precision": "tf32x3", "solver": "hals", "beta_loss": 2},
            ValueError,
            "'tf32x3' is for solver='mu' and 'accelerated-mu' without a graph, got solver='hals'",
        ),
        (
            {"precision": "tf32x3", "graph": "neighbors"},
            ValueError,
            "without a graph, got a graph; use precision='float32'",
        ),
    ],
)
def test_nnmf_rejects_bad_parameters(X, parameters, error, message):
    with pytest.raises(error, match=message):
        NNMF(**{"n_components": 3} | parameters).fit(X)


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu"])
def test_a_fit_hands_its_precision_to_the_op(X, monkeypatch, solver):
    X = X.astype(np.float32)
    asked, mu = [], ops.nnmf_mu

    def told(*tensors, precision="float32", **options):
        asked.append(precision)
        return mu(*tensors, precision=precision, **options)

    monkeypatch.setattr(ops, "nnmf_mu", told)
    options = {"n_components": 3, "solver": solver, "tol": 0, "max_iter": 20, "random_state": 0}
    plain = NNMF(**options).fit(X)
    assert set(asked) == {"float32"}
    asked.clear()
    fit = NNMF(precision="tf32x3", **options).fit(X)
    assert set(asked) == {"tf32x3"}
    assert np.array_equal(fit.components_, plain.components_)  # on the CPU
    with pytest.raises(ValueError, match="'tf32x3' is for dense X without mask or weights"):
        fit.fit(X, mask=X > X.min())
    asked.clear()
    fit.select_rank(X, [2, 3], n_init=2)
    assert set(asked) == {"tf32x3"}
    fit.select_rank(X, [2, 3], n_init=2, held_out=0.1, n_repeats=2)  # whose own fits have a mask
    with pytest.raises(ValueError, match="'tf32x3' is for dense X without mask or weights"):
        fit.select_rank(X, [2, 3], n_init=2, mask=X > X.min())


@pytest.mark.parametrize("solver", ["mu", "accelerated-mu", "hals", "cd", "semi", "semi-hals"])
@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_counts_may_be_numpys(X, solver, kind):
    beta_loss = "kullback-leibler" if solver == "cd" else "frobenius"
    names = ("n_components", "n_init", "max_iter", "transform_max_iter", "fresh_restarts_max_iter")
    counts = dict(zip(names, (3, 2, 15, 7, 4), strict=True))  # no max_iter that tens make up
    X = scipy.sparse.csr_array(X) if solver == "cd" else X

    def fitted(parameters):
        model = NNMF(solver=solver, beta_loss=beta_loss, tol=0, random_state=0, **parameters)
        model.fit(X)
        assert model.n_iter_ == 15
        W = model.transform(X)
        return W if "semi" in solver else model.partial_fit(X).components_

    given = fitted({name: kind(count) for name, count in counts.items()})
    np.testing.assert_array_equal(given, fitted(counts))


def test_nnmf_says_that_there_is_no_cuda(X, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda', but torch finds no CUDA device"):
        NNMF(3, device="cuda").fit(X)
    assert fitted(X, device="auto").n_components_ == 3


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ({}, "needs both W and H; W and H is missing"),
        ({"W": np.ones((21, 3))}, "needs both W and H; H is missing"),
        ({"W": np.ones((20, 3)), "H": np.ones((3, 33))}, r"W must have shape \(21, 3\), got"),
        ({"W": np.ones((21, 3)), "H": np.ones((4, 33))}, r"H must have shape \(3, 33\), got"),
        (
            {"W": -np.ones((21, 3)), "H": np.ones((3, 33))},
            "W must be finite and >= 0.* 63 of 63 .* first -1 at \\(0, 0\\)",
        ),
        ({"W": np.ones((21, 3)), "H": np.full((3, 33), np.nan)}, "H must be finite and >= 0"),
        ({"W": np.zeros((21, 3)), "H": np.ones((3, 33))}, "W is full of zeros"),
    ],
)
def test_nnmf_rejects_bad_custom_starts(X, starts, message):
    with pytest.raises(ValueError, match=message):
        NNMF(3, init="custom").fit(X, **starts)


def test_nnmf_rejects_a_start_that_would_be_ignored(X):
    with pytest.raises(ValueError, match="starts of init='custom', but init='random'"):
        NNMF(3).fit(X, H=np.ones((3, 33)))


@pytest.mark.filterwarnings("ignore:X has the mean:UserWarning")
def test_nnmf_overflow_is_an_error_not_nan(X):
    with pytest.raises(ValueError, match="the factorisation overflowed .* scale X"):
        fitted((X / X.max() * 3e38).astype(np.float32), beta_loss="frobenius")


def test_nnmf_transform_before_fit():
    with pytest.raises(NotFittedError):
        NNMF().transform(np.ones((3, 3)))


@pytest.mark.parametrize("order", ["C", "F"])
def test_columns_that_lie_apart_are_copied_once(order):
    X = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    X = np.ascontiguousarray(X) if order == "C" else X
    matrix, *_ = as_matrix(X, torch.device("cpu"), "NNMF")
    assert matrix.tensor.stride(1) == 1
    assert (matrix.tensor.data_ptr() == X.ctypes.data) == (order == "C")
    assert (matrix.tensor.numpy() == X).all()
