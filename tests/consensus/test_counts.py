"""Counts of cells by genes: how they are read, their moments, and the genes that vary most."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from nnmf_cuda.consensus.counts import (
    mean_and_variance,
    overdispersed,
    per_million,
    read_counts,
    scaled_to_unit_variance,
    z_score_effects,
)
from tests.consensus.prepared import planted_cells, save_frame, save_h5ad

KINDS = (np.asarray, scipy.sparse.csr_matrix, scipy.sparse.csc_matrix)


def as_dense(X):
    return X.toarray() if scipy.sparse.issparse(X) else X


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("file", ["text", "table", "h5ad", "sparse h5ad"])
def test_counts_of_every_format_are_read(rng, tmp_path, file, dense):
    counts = planted_cells(rng, n_cells=6, n_genes=5)
    if file == "text":
        path = tmp_path / "counts.txt"
        counts.to_csv(path, sep="\t")
    elif file == "table":
        path = tmp_path / "counts.df.npz"
        save_frame(path, counts)
    else:
        path = tmp_path / "counts.h5ad"
        X = counts.to_numpy()
        kind = scipy.sparse.csr_matrix if file.startswith("sparse") else np.asarray
        save_h5ad(path, kind(X), counts.index, counts.columns)
    found = read_counts(path, dense=dense)
    assert scipy.sparse.issparse(found.X) != dense
    np.testing.assert_array_equal(as_dense(found.X), counts)
    assert found.cells.tolist() == counts.index.tolist()
    assert found.genes.tolist() == counts.columns.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_scaled_to_a_million(rng, kind):
    X = rng.poisson(0.5, (6, 9))
    X[2] = 0
    found = as_dense(per_million(kind(X)))
    np.testing.assert_allclose(found.sum(1), np.where(X.any(1), 1e6, 0))
    np.testing.assert_allclose(found[0], 1e6 * X[0] / X[0].sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_of_columns(rng, dtype, kind):
    X = rng.poisson(0.7, (40, 6)).astype(dtype)
    X[:, 0] = 0
    X[:, 1] = 1e4 + X[:, 2] / 64  # a variance that E x^2 - (E x)^2 would lose in float32
    mean, variance = mean_and_variance(kind(X))
    wide = X.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-12)
    np.testing.assert_allclose(variance, np.maximum(wide.var(0), 1e-12), rtol=1e-10)
    scaled = as_dense(scaled_to_unit_variance(kind(X)))
    np.testing.assert_allclose(
        scaled[:, 1:].std(0, ddof=1), 1, rtol=1e-3 if dtype == np.float32 else 1e-9
    )
    np.testing.assert_array_equal(scaled[:, 0], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_effects_are_least_squares_on_z_scores(rng, kind):
    usages, X = rng.random((30, 3)), rng.poisson(2, (30, 7)).astype(float)
    found = z_score_effects(usages, kind(X), *mean_and_variance(kind(X)))
    z_scores = (X - X.mean(0)) / X.std(0)
    np.testing.assert_allclose(found, np.linalg.lstsq(usages, z_scores)[0], rtol=1e-9, atol=1e-12)


def test_the_genes_that_vary_most_are_those_of_cnmfs_rule(rng):
    X = pd.DataFrame(rng.negative_binomial(2, 0.1, (200, 60)) * rng.lognormal(0, 1, 60))
    X[7] = 0.0
    fano = X.var(ddof=0) / X.mean()
    top = X.mean().sort_values(ascending=False).index[:20]
    A = (X[top].std(ddof=0) / X[top].mean()).min()
    expressed = X.columns != 7
    box = X.mean()[expressed].between(*X.mean()[expressed].quantile([0.1, 0.9]), "neither")
    box &= fano[expressed].between(*fano[expressed].quantile([0.1, 0.9]), "neither")
    B_squared = fano[expressed][box].median()
    ratio = (fano / (A**2 * X.mean() + B_squared)).sort_values(ascending=False)
    found = overdispersed(X.mean().to_numpy(), X.var(ddof=0).to_numpy(), 15)
    assert found.tolist() == sorted(ratio.index[:15])


def test_genes_that_differ_between_programs_are_found_among_noise(rng):
    means = np.tile(rng.lognormal(1, 1, 200), (300, 1))
    means[:150, :20] *= 6
    X = rng.poisson(means).astype(float)
    found = overdispersed(*mean_and_variance(X), 20)
    assert len(set(found) & set(range(20))) >= 17


def test_no_more_genes_are_chosen_than_are_expressed():
    mean, variance = np.array([0.0, 2.0, 3.0]), np.array([0.0, 1.0, 9.0])
    assert overdispersed(mean, variance, 2000).tolist() == [1, 2]
