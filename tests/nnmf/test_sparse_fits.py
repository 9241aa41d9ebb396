"""NNMF on sparse X: the same fits as on the dense X of its entries, in a fraction of its memory."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import svds
from sklearn.base import clone
from sklearn.decomposition import NMF

from nnmf_cuda import NNMF
from nnmf_cuda.nnmf.inputs import as_matrix
from nnmf_cuda.nnmf.solvers import Hals
from nnmf_cuda.nnmf.starts import randomized_svd
from tests.nnmf.test_memory import added_by

SOLVED = [
    ("mu", 1),
    ("mu", 2),
    ("mu", 0.5),
    ("mu", 3),
    ("accelerated-mu", 1),
    ("accelerated-mu", 1.5),
    ("hals", 2),
]
LAYOUTS = {
    "csr": scipy.sparse.csr_array,
    "csc": scipy.sparse.csc_matrix,
    "coo": scipy.sparse.coo_array,
    "torch": lambda X: torch.from_numpy(X).to_sparse_csr(),
}
CLOSE = {"rtol": 1e-7, "atol": 1e-10}


@pytest.fixture
def X(rng) -> np.ndarray:
    """Draw counts around three components, two thirds of them zeros."""
    weights = rng.gamma(0.5, size=(40, 3))
    profiles = np.kron(np.eye(3), np.ones(9)) + 0.1
    return rng.poisson(0.7 * weights @ profiles).astype(np.float64)


def model(**parameters) -> NNMF:
    return NNMF(**{"n_components": 3, "tol": 0, "max_iter": 20, "random_state": 0} | parameters)


@pytest.fixture
def two_sweeps(monkeypatch) -> None:
    """Let HALS sweep as often for sparse X, of which it reads less, as for the dense one."""
    monkeypatch.setattr(Hals, "sweeps", staticmethod(lambda X, n_components: 2))


def same_fit(ours: NNMF, want: NNMF) -> None:
    np.testing.assert_allclose(ours.components_, want.components_, **CLOSE)
    np.testing.assert_allclose(ours.W_, want.W_, **CLOSE)
    np.testing.assert_allclose(ours.objective_history_, want.objective_history_, rtol=1e-10)
    assert ours.n_iter_ == want.n_iter_


@pytest.mark.parametrize("penalty", [{}, {"alpha_W": 0.01, "alpha_H": 0.02, "l1_ratio": 0.5}])
@pytest.mark.parametrize(("solver", "beta_loss"), SOLVED)
@pytest.mark.usefixtures("two_sweeps")
def test_sparse_fits_are_those_of_dense_X(X, solver, beta_loss, penalty):
    options = {"solver": solver, "beta_loss": beta_loss, **penalty}
    want = model(**options).fit(X)
    for layout in ("csr", "torch"):
        same_fit(model(**options).fit(LAYOUTS[layout](X)), want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("init", ["nndsvd", "nndsvda", "nndsvdar"])
@pytest.mark.filterwarnings("ignore:multiplicative updates cannot leave:UserWarning")
def test_sparse_starts_are_those_of_dense_X(X, init, layout):
    if layout == "coo":
        with pytest.raises(TypeError, match="to_sparse_csr"):
            model(init=init).fit(torch.from_numpy(X).to_sparse_coo())
    same_fit(model(init=init).fit(LAYOUTS[layout](X)), model(init=init).fit(X))


def test_hals_sweeps_as_often_as_reading_the_entries_of_X_pays_for(rng):
    X = scipy.sparse.random_array((1000, 1000), density=0.1, rng=rng, format="csr")
    matrix, *_ = as_matrix(X, torch.device("cpu"), "NNMF")
    # A non-zero takes as long as three entries: 1 + half of 300,000 / (25 * 2000).
    assert Hals.sweeps(matrix, 25) == 4


def test_sparse_starts_of_wide_and_tall_X_have_the_singular_values(rng):
    for shape in ((60, 200), (200, 60)):
        X = scipy.sparse.random_array(shape, density=0.05, rng=rng, format="csc")
        matrix, *_ = as_matrix(X, torch.device("cpu"), "NNMF")
        U, S, Vt = randomized_svd(matrix, 3, 0)
        np.testing.assert_allclose(S, svds(X, 3, random_state=0)[1][::-1], rtol=1e-3)
        np.testing.assert_allclose(U.T @ (X @ Vt.T), np.diag(S), atol=1e-6)


@pytest.mark.parametrize("beta_loss", ["kullback-leibler", "frobenius"])
def test_sparse_iterates_are_those_of_scikit_learn(rng, X, beta_loss):
    W, H = rng.random((40, 3)) + 0.1, rng.random((3, 27)) + 0.1
    options = {"init": "custom", "beta_loss": beta_loss, "max_iter": 15, "tol": 0}
    sparse = scipy.sparse.csr_array(X)
    theirs = NMF(3, solver="mu", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = theirs.fit_transform(sparse, W=W.copy(), H=H.copy())
    ours = NNMF(3, **options).fit(sparse, W=W, H=H)
    np.testing.assert_allclose(ours.W_, want, **CLOSE)
    np.testing.assert_allclose(ours.components_, theirs.components_, **CLOSE)
    assert ours.reconstruction_err_ == pytest.approx(theirs.reconstruction_err_, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int32])
def test_sparse_types_have_the_meaning_of_dense_ones(X, dtype):
    X = X.astype(dtype)
    ours, want = model().fit(scipy.sparse.csr_array(X)), model().fit(X)
    assert ours.components_.dtype == want.components_.dtype
    np.testing.assert_allclose(ours.components_, want.components_, rtol=1e-4, atol=1e-6)
    for one, other in ((ours, want), (want, ours)):
        features = one.transform(scipy.sparse.csr_array(X))
        np.testing.assert_allclose(features, other.transform(X), rtol=1e-3, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pixels and counts are known apart
        model().fit(X).transform(scipy.sparse.csr_array(X))


def test_sparse_pixels_meet_components_of_either_type(X):
    pixels = X.astype(np.uint8)
    for kind in (np.float32, np.float64):
        fitted = model().fit((X / 255).astype(kind))
        features = fitted.transform(scipy.sparse.csr_array(pixels))
        assert features.dtype == kind
        np.testing.assert_allclose(features, fitted.transform(pixels), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha_W", [0, 0.01])
@pytest.mark.parametrize("transform_solver", ["nnls", "mu", "same"])
@pytest.mark.parametrize("beta_loss", [1, 2])
@pytest.mark.filterwarnings("ignore:transform_solver='nnls' leaves:UserWarning")
def test_rows_are_transformed_as_dense_ones_and_alone(X, beta_loss, transform_solver, alpha_W):
    fitted = model(beta_loss=beta_loss, transform_solver=transform_solver, alpha_W=alpha_W).fit(X)
    sparse = scipy.sparse.csr_array(X)
    features = fitted.transform(sparse)
    np.testing.assert_allclose(features, fitted.transform(X), rtol=1e-7, atol=1e-9)
    rows = [31, 5, 5]
    np.testing.assert_allclose(fitted.transform(sparse[rows]), features[rows], rtol=1e-12, atol=0)
    as_tensor = fitted.transform(torch.from_numpy(X).to_sparse_csr())
    assert isinstance(as_tensor, torch.Tensor)
    np.testing.assert_array_equal(as_tensor, features)
    np.testing.assert_allclose(
        fitted.inverse_transform(features), features @ fitted.components_, rtol=1e-12
    )


@pytest.mark.parametrize("beta_loss", [0.5, 1, 1.5, 2])
def test_a_stream_of_sparse_rows_is_that_of_dense_ones(rng, X, beta_loss):
    H = rng.random((3, 27)) + 0.1
    ours, want = (model(init="custom", beta_loss=beta_loss) for _ in range(2))
    for first in range(0, 40, 10):
        rows = X[first : first + 10]
        ours.partial_fit(scipy.sparse.csc_array(rows), H=H)
        want.partial_fit(rows, H=H)
    np.testing.assert_allclose(ours.components_, want.components_, **CLOSE)


def test_a_stream_keeps_the_type_of_its_components(X):
    stream = model().partial_fit(scipy.sparse.csr_array(X, dtype=np.float32))
    stream.partial_fit(scipy.sparse.csr_array(X))
    assert stream.components_.dtype == np.float32


@pytest.mark.usefixtures("two_sweeps")
def test_restarts_held_components_and_warm_starts_take_sparse_X(rng, X):
    sparse = scipy.sparse.csr_array(X)
    same_fit(model(n_init=3).fit(sparse), model(n_init=3).fit(X))
    fixed = rng.random((1, 27))
    ours = model(fixed_components=fixed).fit(sparse)
    same_fit(ours, model(fixed_components=fixed).fit(X))
    np.testing.assert_array_equal(ours.components_[:1], fixed)
    H = rng.random((3, 27))
    for options in ({}, {"solver": "hals", "beta_loss": 2}):
        ours, want = (model(**options).fit(one, H=H, update_H=False) for one in (sparse, X))
        same_fit(ours, want)
    ours, want = (model(warm_start=True).fit(one[:30]) for one in (sparse, X))
    same_fit(ours.fit(sparse), want.fit(X))
    assert clone(ours).get_params() == ours.get_params()


def test_ranks_of_sparse_X_have_the_scores_of_dense_X(X):
    options = {"solver": "accelerated-mu", "max_iter": 300, "tol": 1e-4}
    found, want = (
        model(**options).select_rank(one, [2, 3, 4], n_init=4)
        for one in (scipy.sparse.csr_array(X), X)
    )
    assert found.chosen == want.chosen
    for name in ("components", "dispersion", "cophenetic", "objective"):
        np.testing.assert_allclose(getattr(found, name), getattr(want, name), rtol=1e-5)


def test_exact_fits_of_sparse_X_converge(rng):
    # The divergence is a difference of sums here: what rounding leaves of it must not go on.
    W, H = rng.random((30, 2)) * (rng.random((30, 2)) < 0.5), np.kron(np.eye(2), np.ones(8))
    X = scipy.sparse.csr_array(W @ H)
    for options in ({"beta_loss": 1}, {"beta_loss": 2, "solver": "hals"}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitted = model(n_components=2, max_iter=5000, tol=1e-4, **options).fit(X)
        assert fitted.converged_
        assert fitted.reconstruction_err_ < 1e-5 * np.sqrt(X.sum())


def test_a_checkpoint_of_a_sparse_fit_goes_on_to_the_same_bits(tmp_path, X):
    sparse, path = scipy.sparse.csr_array(X), tmp_path / "fit"
    options = {"solver": "accelerated-mu"}
    model(**options).fit(sparse, checkpoint=path)
    long = model(**options, max_iter=40)
    resumed = clone(long).fit(scipy.sparse.csc_array(X), checkpoint=path)
    np.testing.assert_array_equal(resumed.components_, long.fit(sparse).components_)
    for other in (2 * sparse, sparse[:, ::-1], X, sparse.astype(np.float32)):
        with pytest.raises(ValueError, match="of another fit: X was 'sparse float64"):
            clone(long).fit(other, checkpoint=path)


def test_the_life_of_an_estimator_fitted_to_sparse_X(tmp_path, X):
    fitted = model().fit(scipy.sparse.csr_array(X))
    fitted.save(tmp_path / "model")
    again = NNMF.load(tmp_path / "model")
    np.testing.assert_array_equal(again.transform(X), fitted.transform(X))
    with pytest.raises(ValueError, match="X has 20 features, but NNMF is expecting 27"):
        fitted.transform(scipy.sparse.csr_array(X[:, :20]))
    assert model().__sklearn_tags__().input_tags.sparse


def test_zeros_of_sparse_X_have_no_itakura_saito_divergence(X):
    sparse = scipy.sparse.csr_array(X)
    with pytest.raises(ValueError, match="X contains zeros"):
        model(beta_loss=0).fit(sparse)
    stored = scipy.sparse.csr_array(np.ones((5, 4)))
    stored.data[3] = 0
    with pytest.raises(ValueError, match="X contains zeros"):
        model(beta_loss=-1).fit(stored)
    full = scipy.sparse.csr_array(X + 1)
    same_fit(model(beta_loss=0).fit(full), model(beta_loss=0).fit(X + 1))


@pytest.mark.parametrize(("solver", "beta_loss"), SOLVED)
@pytest.mark.usefixtures("two_sweeps")
def test_zeros_that_are_stored_change_nothing(rng, X, solver, beta_loss):
    sparse = scipy.sparse.csr_array(X + 1)
    sparse.data -= 1
    assert sparse.nnz == X.size
    options = {"solver": solver, "beta_loss": beta_loss}
    same_fit(model(**options).fit(sparse), model(**options).fit(X))


@pytest.mark.parametrize("beta_loss", [1, 2])
def test_rows_columns_and_matrices_of_zeros_are_fitted(rng, X, beta_loss):
    X[3] = X[:, 5] = 0
    same_fit(
        model(beta_loss=beta_loss).fit(scipy.sparse.csr_array(X)),
        model(beta_loss=beta_loss).fit(X),
    )
    nothing = np.zeros((6, 5))
    same_fit(
        model(beta_loss=beta_loss).fit(scipy.sparse.csr_array(nothing)),
        model(beta_loss=beta_loss).fit(nothing),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "accelerated-mu"},
        {"solver": "cd"},
        {"beta_loss": 2},
        {"beta_loss": 2, "solver": "hals"},
    ],
)
def test_nothing_of_the_size_of_dense_X_is_made(rng, options):
    # 0.4 GB as dense float32, and 60,000 entries.
    shape = (10_000, 10_000)
    X = scipy.sparse.random_array(shape, density=6e-4, rng=rng, format="csr", dtype=np.float32)
    options = {"n_components": 2, "max_iter": 10, "init": "nndsvda", **options}

    def work() -> None:
        fitted = model(**options).fit(X)
        fitted.transform(X[:100])
        clone(fitted).partial_fit(X)

    model(**options).fit(X[:300, :300])  # libraries allocate their buffers once
    assert added_by(work) < 0.1 * 4 * shape[0] * shape[1]


@pytest.mark.parametrize(
    "options",
    [{"transform_solver": "nnls"}, {"transform_solver": "same", "alpha_W": 0.1}],
)
def test_a_transform_has_no_copy_of_sparse_X(rng, options):
    X = scipy.sparse.random_array(
        (20_000, 1000), density=0.1, rng=rng, format="csr", dtype=np.float32
    )
    fitted = model(n_components=2, beta_loss=2, max_iter=1, **options).fit(X[:1000])
    fitted.transform(X[:1000])  # libraries allocate their buffers once
    assert added_by(lambda: fitted.transform(X)) < 0.5 * X.data.nbytes
