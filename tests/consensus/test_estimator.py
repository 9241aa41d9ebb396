"""`ConsensusNNMF` against the plain steps of cNMF on scikit-learn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from scipy.optimize import nnls
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from bench.plain_consensus import (
    matched_correlation,
    plain_consensus,
    planted_counts,
    runs_of_scikit_learn,
)
from nnmf_cuda import NNMF, ConsensusNNMF
from nnmf_cuda.consensus import KSelection
from nnmf_cuda.consensus.estimator import replicate_seeds
from tests.helpers import DEVICES

KL = {"beta_loss": "kullback-leibler", "solver": "accelerated-mu"}


def torch_csr(X):
    return torch.from_numpy(X).to_sparse_csr()


@pytest.fixture(scope="module")
def counts():
    return planted_counts(np.random.default_rng(3))


@pytest.fixture(scope="module")
def fitted(counts):
    return ConsensusNNMF(5, n_init=20, random_state=0).fit(counts)


@parametrize_with_checks(
    [
        ConsensusNNMF(2, n_init=3, density_threshold=2, random_state=0),
        ConsensusNNMF(1, n_init=2, density_threshold=2, random_state=0, max_iter=300, **KL),
    ]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_consensus_follows_the_scikit_learn_protocol(estimator, check):
    check(estimator)


# --- against the plain steps ----------------------------------------------------------------------


@pytest.mark.parametrize("beta_loss", ["frobenius", "kullback-leibler"])
def test_spectra_and_usages_are_those_of_the_plain_steps_on_scikit_learn(beta_loss):
    X = planted_counts(np.random.default_rng(7), n_cells=150, n_genes=100, n_programs=4)
    # At scikit-learn's own tolerance its runs of KL stop early; what is compared are the minima.
    tight = {"tol": 1e-6, "max_iter": 2000}
    merged = runs_of_scikit_learn(X, 4, n_init=6, beta_loss=beta_loss, **tight)
    plain = plain_consensus(X, merged, 4)
    solver = "hals" if beta_loss == "frobenius" else "accelerated-mu"
    model = ConsensusNNMF(
        4, n_init=6, beta_loss=beta_loss, solver=solver, random_state=1, **tight
    ).fit(X)
    assert matched_correlation(plain.spectra, model.components_).min() > 0.99
    if beta_loss == "frobenius":  # the plain steps refit by least squares whatever the loss
        assert matched_correlation(plain.usages.T, model.usages_.T).min() > 0.99
        assert model.prediction_error_ == pytest.approx(plain.prediction_error, rel=1e-3)


def test_all_that_is_told_is_what_the_plain_steps_make_of_the_same_spectra(counts, fitted):
    plain = plain_consensus(counts, fitted.merged_spectra_, 5)
    np.testing.assert_allclose(fitted.components_, plain.spectra, rtol=1e-9)
    np.testing.assert_allclose(fitted.usages_, plain.usages, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fitted.local_density_, plain.local_density, rtol=1e-6, atol=1e-7)
    assert fitted.silhouette_ == pytest.approx(plain.silhouette, rel=1e-9)
    assert fitted.prediction_error_ == pytest.approx(plain.prediction_error, rel=1e-6)
    for t in range(5):
        members = fitted.merged_spectra_[fitted.labels_ == t]
        members = members / np.linalg.norm(members, axis=1, keepdims=True)
        median = np.median(members, axis=0)
        np.testing.assert_allclose(fitted.components_[t], median / median.sum(), rtol=1e-9)


def test_the_spectra_of_a_run_are_those_of_the_estimator_from_its_seed(counts, fitted):
    for place in (0, 13):
        alone = NNMF(
            5,
            beta_loss="frobenius",
            solver="hals",
            max_iter=1000,
            random_state=int(fitted.seeds_[place]),
        ).fit(counts)
        merged = fitted.merged_spectra_[5 * place : 5 * place + 5]
        np.testing.assert_allclose(merged, alone.components_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_float32_and_devices_agree(counts, fitted, device):
    X = torch.from_numpy(counts).float().to(device)
    model = ConsensusNNMF(5, n_init=20, random_state=0)
    usages = model.fit_transform(X)
    assert usages.dtype == torch.float32
    assert usages.device.type == torch.device(device).type
    assert model.components_.dtype == model.usages_.dtype == np.float32
    assert matched_correlation(model.components_, fitted.components_).min() > 0.999
    again = model.transform(X).cpu().numpy()
    np.testing.assert_allclose(again, model.usages_, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csc_matrix, torch_csr])
@pytest.mark.parametrize(
    "loss", [{"tol": 1e-7, "max_iter": 5000}, KL], ids=["frobenius", "kullback-leibler"]
)
def test_sparse_counts_come_to_the_same_consensus(loss, kind):
    # HALS to the minimum, as it sweeps over the factors less often where it reads fewer entries.
    X = planted_counts(np.random.default_rng(3), n_cells=80, n_genes=60, n_programs=3, depth=0.5)
    given = kind(X)
    options = {"n_init": 3, "density_threshold": 2, "random_state": 0} | loss
    dense = ConsensusNNMF(3, **options).fit(X)
    sparse = ConsensusNNMF(3, **options).fit(given)
    np.testing.assert_allclose(sparse.components_, dense.components_, rtol=1e-2, atol=1e-4)
    assert matched_correlation(sparse.usages_.T, dense.usages_.T).min() > 0.9999
    assert sparse.prediction_error_ == pytest.approx(dense.prediction_error_, rel=1e-6)
    usages = sparse.transform(given)
    np.testing.assert_allclose(np.asarray(usages), sparse.usages_, rtol=1e-6, atol=1e-6)
    found = ConsensusNNMF(3, **options).select_k(given, [3])
    assert found.prediction_error[0] == pytest.approx(dense.prediction_error_, rel=1e-6)


def test_a_consensus_repeats_itself(counts, fitted):
    again = clone(fitted).fit(counts)
    for name in ("components_", "usages_", "merged_spectra_", "labels_", "local_density_"):
        np.testing.assert_array_equal(getattr(again, name), getattr(fitted, name))


# --- usages ---------------------------------------------------------------------------------------


def test_usages_of_new_cells_are_least_squares(fitted, rng):
    new = 5 * rng.random((7, fitted.n_features_in_))
    expected = np.stack([nnls(fitted.components_.T, row)[0] for row in new])
    np.testing.assert_allclose(fitted.transform(new), expected, rtol=1e-6, atol=1e-6)


def test_fit_transform_returns_the_usages(counts, fitted):
    model = clone(fitted)
    np.testing.assert_array_equal(model.fit_transform(counts), fitted.usages_)
    # Up to the order of sums: the spectra were put in order when the usages were known.
    np.testing.assert_allclose(model.transform(counts), fitted.usages_, rtol=1e-6, atol=1e-9)


def test_usages_of_kullback_leibler_minimise_it(rng):
    X = rng.poisson(4 * rng.gamma(0.5, size=(50, 3)) @ rng.random((3, 30))).astype(float)
    X = X[X.any(1)]
    model = ConsensusNNMF(3, n_init=4, density_threshold=2, random_state=0, **KL).fit(X)
    W, H = model.usages_, model.components_
    with np.errstate(divide="ignore", invalid="ignore"):
        gradient = (1 - X / (W @ H)) @ H.T
    # Karush-Kuhn-Tucker: no usage gains by growing, and those above zero by nothing.
    assert gradient.min() > -1e-3
    assert np.abs(gradient * W).max() < 1e-2


@pytest.mark.parametrize(
    "kind",
    [
        np.asarray,
        np.ndarray.tolist,
        pd.DataFrame,
        scipy.sparse.csr_matrix,
        torch.from_numpy,
        torch_csr,
    ],
)
def test_spectra_of_other_features_are_least_squares_on_the_usages(counts, fitted, rng, kind):
    X = rng.poisson(1.0, (len(counts), 9)).astype(float)
    shares = fitted.usages_ / fitted.usages_.sum(1, keepdims=True)
    expected = np.stack([nnls(shares, column)[0] for column in X.T], axis=1)
    spectra = fitted.refit_spectra(kind(X))
    assert isinstance(spectra, torch.Tensor) == (kind in (torch.from_numpy, torch_csr))
    np.testing.assert_allclose(np.asarray(spectra), expected, rtol=1e-6, atol=1e-9)
    assert fitted.n_features_in_ == counts.shape[1]
    with pytest.raises(ValueError, match="X has 7 samples, but usages of 300 were fitted"):
        fitted.refit_spectra(kind(X[:7]))


@pytest.mark.parametrize(("alpha_W", "alpha_H"), [(0.0, 0.5), (0.01, 0.0), (0.01, "same")])
def test_refitted_spectra_have_the_penalty_of_spectra(counts, alpha_W, alpha_H):
    model = ConsensusNNMF(3, n_init=4, random_state=0, density_threshold=2)
    model.set_params(alpha_W=alpha_W, alpha_H=alpha_H, l1_ratio=0.5)
    model.fit(counts)
    totals = model.usages_.sum(1, keepdims=True)
    shares = model.usages_ / np.where(totals == 0, 1, totals)
    penalty = len(counts) * (alpha_W if alpha_H == "same" else alpha_H) / 2  # of either kind
    gram = shares.T @ shares + penalty * np.eye(3)
    root = np.linalg.cholesky(gram).T
    cross = np.linalg.solve(root.T, shares.T @ counts - penalty)
    expected = np.stack([nnls(root, column)[0] for column in cross.T], axis=1)
    np.testing.assert_allclose(model.refit_spectra(counts), expected, rtol=1e-6, atol=1e-9)
    assert (model.alpha_W, model.alpha_H) == (alpha_W, alpha_H)


def test_spectra_come_in_the_order_of_their_use(fitted):
    shares = (fitted.usages_ / fitted.usages_.sum(1, keepdims=True)).sum(0)
    assert (np.diff(shares) <= 0).all()


def test_a_row_without_counts_uses_nothing(counts):
    X = np.concatenate([counts, np.zeros((1, counts.shape[1]))])
    model = ConsensusNNMF(5, n_init=6, random_state=0).fit(X)
    np.testing.assert_array_equal(model.usages_[-1], 0)
    assert np.isfinite(model.components_).all()


# --- how many -------------------------------------------------------------------------------------


def test_select_k_tells_the_planted_number_and_its_error(counts):
    model = ConsensusNNMF(2, n_init=8, random_state=0)
    found = model.select_k(counts, [7, 4, 5, 6])
    np.testing.assert_array_equal(found.k, [4, 5, 6, 7])
    assert found.silhouette[1] > 0.95
    assert found.k[found.silhouette >= found.silhouette.max() - 0.05].max() == 5
    assert (np.diff(found.prediction_error) < 0).all()
    with pytest.raises(NotFittedError):
        model.transform(counts)
    # The seeds are dealt out number by number, as cNMF deals them.
    seeds = replicate_seeds(0, 32)[:8]
    merged = []
    for seed in seeds:
        one = NNMF(4, beta_loss="frobenius", solver="hals", max_iter=1000, random_state=int(seed))
        merged.append(one.fit(counts).components_)
    plain = plain_consensus(counts, np.concatenate(merged), 4, density_threshold=2)
    assert found.silhouette[0] == pytest.approx(plain.silhouette, rel=1e-4)
    assert found.prediction_error[0] == pytest.approx(plain.prediction_error, rel=1e-4)


def test_the_plot_shows_both_curves():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    found = KSelection(np.array([2, 3]), np.array([0.9, 0.5]), np.array([7.0, 6.0]))
    ax = found.plot()
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), found.silhouette)
    np.testing.assert_array_equal(ax.figure.axes[1].lines[0].get_ydata(), found.prediction_error)
    pyplot.close("all")


# --- protocol and errors --------------------------------------------------------------------------


def test_names_of_features_are_kept(counts):
    genes = [f"gene{i}" for i in range(counts.shape[1])]
    frame = pd.DataFrame(counts, columns=genes)
    model = ConsensusNNMF(5, n_init=4, random_state=0, density_threshold=2).fit(frame)
    np.testing.assert_array_equal(model.feature_names_in_, genes)
    assert list(model.get_feature_names_out())[:2] == ["consensusnnmf0", "consensusnnmf1"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fits_of_one_component(counts, dtype):
    model = ConsensusNNMF(1, n_init=3, random_state=0).fit(counts.astype(dtype))
    assert np.isnan(model.silhouette_)
    assert model.components_.dtype == dtype
    np.testing.assert_allclose(model.components_.sum(), 1, rtol=1e-5)


def test_save_and_load(fitted, counts, tmp_path):
    fitted.save(tmp_path / "consensus.safetensors")
    loaded = ConsensusNNMF.load(tmp_path / "consensus.safetensors")
    np.testing.assert_array_equal(loaded.transform(counts), fitted.transform(counts))
    np.testing.assert_array_equal(loaded.labels_, fitted.labels_)
    assert loaded.get_params() == fitted.get_params()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_components": 0}, "n_components must be an integer >= 1, got 0"),
        ({"n_init": 1}, "n_init must be an integer >= 2, got 1"),
        ({"init": "nndsvd"}, "init='nndsvd' gives one start"),
        ({"density_threshold": -0.1}, "density_threshold must be a finite number >= 0"),
        ({"local_neighborhood_size": 1.5}, r"local_neighborhood_size must be .* in \[0, 1\]"),
        ({"beta_loss": "kullback-leibler"}, "use beta_loss='frobenius' or solver='accelerated-mu'"),
        ({"solver": "semi"}, "solver='semi' gives spectra of any sign"),
        ({"density_threshold": 0.0}, "density_threshold=0 keeps 0 of 40 spectra"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(counts, parameters, message):
    model = ConsensusNNMF(**{"n_components": 4, "n_init": 10, "random_state": 0} | parameters)
    with pytest.raises(ValueError, match=message):
        model.fit(counts)


def test_runs_that_have_not_converged_are_told(counts):
    model = ConsensusNNMF(5, n_init=4, density_threshold=2, max_iter=10, random_state=0)
    with pytest.warns(ConvergenceWarning, match="100% of the runs with n_components=5 stopped"):
        model.fit(counts)
    assert model.converged_ == 0


def test_a_consensus_has_a_number(counts):
    with pytest.raises(TypeError, match="n_components must be an integer >= 1, got 'auto'"):
        ConsensusNNMF("auto").fit(counts)


def test_seeds_are_those_that_cnmf_draws():
    np.random.seed(14)  # noqa: NPY002  (as cNMF does)
    drawn = np.random.randint(low=1, high=(2**31) - 1, size=30)  # noqa: NPY002
    np.testing.assert_array_equal(replicate_seeds(14, 30), drawn)
