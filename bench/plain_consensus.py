"""The steps of cNMF written plainly on scikit-learn and SciPy, and counts to try them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, nnls

FloatArray = NDArray[np.float64]


def planted_counts(
    rng: np.random.Generator,
    *,
    n_cells: int = 300,
    n_genes: int = 200,
    n_programs: int = 5,
    depth: float = 4.0,
) -> FloatArray:
    """Draw counts like those of single cells, genes scaled to unit variance.

    Each cell uses one identity program and, some of them, an activity program beside it; counts
    are Poisson around that, `depth` a gene in the mean, with depths of cells and means of genes
    from heavy-tailed laws.
    """
    gene_means = rng.lognormal(0, 1, n_genes)
    programs = gene_means * rng.lognormal(0, 1, (n_programs, n_genes))
    programs /= programs.sum(1, keepdims=True)
    usages = np.zeros((n_cells, n_programs))
    usages[np.arange(n_cells), rng.integers(n_programs - 1, size=n_cells)] = 1
    active = rng.random(n_cells) < 0.3
    usages[active, -1] = rng.uniform(0.5, 2, active.sum())
    depths = depth * n_genes * rng.lognormal(0, 0.3, (n_cells, 1))
    counts = rng.poisson(depths * usages @ programs).astype(float)
    counts = counts[:, counts.any(0)]
    scaled: FloatArray = counts / counts.std(0, ddof=1)
    return scaled


@dataclass(frozen=True)
class Plain:
    """What the plain steps find."""

    spectra: FloatArray
    usages: FloatArray
    local_density: FloatArray
    silhouette: float
    prediction_error: float


def runs_of_scikit_learn(
    X: Any, k: int, *, n_init: int, seed: int = 0, beta_loss: str = "frobenius", **options: Any
) -> FloatArray:
    """Return the spectra (n_init * k, f) of scikit-learn from random starts, as cNMF calls it."""
    from sklearn.decomposition import non_negative_factorization

    solver = "cd" if beta_loss == "frobenius" else "mu"
    settings = {"init": "random", "solver": solver, "beta_loss": beta_loss}
    settings |= {"max_iter": 1000, "tol": 1e-4} | options
    runs = (
        non_negative_factorization(X, n_components=k, random_state=seed + i, **settings)
        for i in range(n_init)
    )
    return np.concatenate([H for _, H, _ in runs])


def plain_consensus(
    X: FloatArray,
    merged: FloatArray,
    k: int,
    *,
    density_threshold: float = 0.5,
    local_neighborhood_size: float = 0.3,
) -> Plain:
    """Cluster the spectra of all runs and refit the usages, in the order of cNMF's steps."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import pairwise_distances, silhouette_score

    unit = merged / np.linalg.norm(merged, axis=1, keepdims=True)
    n_neighbors = int(local_neighborhood_size * len(merged) / k)
    distances = np.sort(pairwise_distances(unit), axis=1)
    density = distances[:, 1 : n_neighbors + 1].mean(1)
    unit = unit[density < density_threshold]
    labels = KMeans(k, n_init=10, random_state=1).fit_predict(unit)
    spectra = np.stack([np.median(unit[labels == t], axis=0) for t in range(k)])
    spectra /= spectra.sum(1, keepdims=True)
    usages = np.stack([nnls(spectra.T, row)[0] for row in X])
    order = np.argsort(-(usages / usages.sum(1, keepdims=True)).sum(0))
    spectra, usages = spectra[order], usages[:, order]
    silhouette = float(silhouette_score(unit, labels))
    error = float(((X - usages @ spectra) ** 2).sum())
    return Plain(spectra, usages, density, silhouette, error)


def matched_correlation(A: FloatArray, B: FloatArray) -> FloatArray:
    """Return the correlation of each row of A with its partner in B, matched one to one."""
    table = np.corrcoef(A, B)[: len(A), len(A) :]
    matched: FloatArray = table[linear_sum_assignment(table, maximize=True)]
    return matched
