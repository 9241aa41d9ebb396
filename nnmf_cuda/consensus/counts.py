"""Cells by genes, dense or sparse: their moments and units, and the genes that vary most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from nnmf_cuda.consensus.files import read_frame, read_text_frame
from nnmf_cuda.consensus.h5ad import Annotated, read_h5ad

FloatArray = NDArray[np.float64]

MILLION = 1e6

_LEAST_VARIANCE = 1e-12  # cNMF's, for genes that are the same in all cells
_HIGHEST = 20  # genes of the highest mean, from which the noise that grows with the mean is told
_BULK = (0.1, 0.9)  # quantiles of mean and Fano factor between which the other noise is told


def read_counts(path: Path, *, dense: bool) -> Annotated:
    """Return counts (cells by genes) of an .h5ad file, a table of cNMF's (.npz) or tab-delimited.

    They are sparse unless `dense`.
    """
    if path.suffix == ".h5ad":
        counts = read_h5ad(path)
    else:
        frame = read_frame(path) if path.suffix == ".npz" else read_text_frame(path)
        values = frame.values.astype(np.float64)
        counts = Annotated(values, frame.index.astype(str), frame.columns.astype(str))
    X = counts.X
    if scipy.sparse.issparse(X):
        X = X.toarray() if dense else X
    elif not dense:
        X = scipy.sparse.csr_matrix(X)
    return Annotated(X, counts.cells, counts.genes)


def per_million(X: Any) -> Any:
    """Return X with rows scaled to the sum 1e6; rows of zeros stay."""
    totals = np.asarray(X.sum(1), dtype=np.float64).ravel()
    factors = MILLION / np.where(totals == 0, 1, totals)
    if scipy.sparse.issparse(X):
        return scipy.sparse.csr_matrix(scipy.sparse.diags(factors) @ X)
    return X * factors[:, None]


def overdispersed(mean: FloatArray, variance: FloatArray, n_genes: int) -> NDArray[np.int64]:
    """Return the columns, ascending, of the genes that vary most beyond noise.

    The Fano factor (variance over mean) of noise is taken to be ``A ** 2 * mean + B ** 2``: A, the
    least coefficient of variation of the genes of the highest means, is what all counts of a cell
    have in common, and B ** 2 the median Fano factor of the bulk. Genes are ranked by their own
    Fano factor over that.
    """
    expressed = np.flatnonzero(mean > 0)
    mean, variance = mean[expressed], variance[expressed]
    fano = variance / mean
    highest = np.argsort(-mean, kind="stable")[:_HIGHEST]
    common = (np.sqrt(variance[highest]) / mean[highest]).min()
    bulk = np.ones(len(mean), dtype=bool)
    for values in (mean, fano):
        low, high = np.quantile(values, _BULK)
        bulk &= (values > low) & (values < high)
    other = np.median(fano[bulk] if bulk.any() else fano)
    ratio = fano / (common**2 * mean + other)
    return np.sort(expressed[np.argsort(-ratio, kind="stable")[:n_genes]])


def mean_and_variance(X: Any) -> tuple[FloatArray, FloatArray]:
    """Return the mean and the variance (ddof 0) of each column of an array or sparse matrix."""
    n = X.shape[0]
    if not scipy.sparse.issparse(X):
        return X.mean(0, dtype=np.float64), np.maximum(X.var(0, dtype=np.float64), _LEAST_VARIANCE)
    X = scipy.sparse.csc_matrix(X, dtype=np.float64)
    mean = np.asarray(X.sum(0)).ravel() / n
    # About the mean, or the variance of genes that vary little would be rounding.
    apart = X.copy()
    apart.data -= np.repeat(mean, np.diff(X.indptr))
    stored = np.asarray(apart.power(2).sum(0)).ravel()
    variance = (stored + (n - np.diff(X.indptr)) * mean**2) / n
    return mean, np.maximum(variance, _LEAST_VARIANCE)


def scaled_to_unit_variance(X: Any) -> Any:
    """Return X with columns over their standard deviation (ddof 1), not centred."""
    n = X.shape[0]
    deviation = np.sqrt(mean_and_variance(X)[1] * (n / (n - 1)))
    if scipy.sparse.issparse(X):
        return scipy.sparse.csr_matrix(X @ scipy.sparse.diags(1 / deviation))
    return X / deviation


def z_score_effects(
    usages: FloatArray, X: Any, mean: FloatArray, variance: FloatArray
) -> FloatArray:
    """Return the least-squares coefficients (k, n_genes) of the z-scores of X on the usages."""
    cross = np.asarray(X.T @ usages).T - usages.sum(0)[:, None] * mean
    solution: FloatArray = np.linalg.lstsq(usages.T @ usages, cross / np.sqrt(variance))[0]
    return solution
