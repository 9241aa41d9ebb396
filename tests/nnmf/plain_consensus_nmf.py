"""The steps of cNMF written plainly on scikit-learn and NumPy, and counts to try them on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment, nnls
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF
from sklearn.metrics import pairwise_distances, silhouette_score


def planted_counts(rng, *, n_cells=300, n_genes=200, n_programs=5, depth=4.0):
    """Counts like those of single cells, genes scaled to unit variance, and the planted programs.

    Each cell uses one identity program and, some of them, an activity program beside it; counts
    are Poisson around that, with depths of cells and means of genes from heavy-tailed laws.
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
    return counts / counts.std(0, ddof=1)


@dataclass
class Plain:
    spectra: np.ndarray
    usages: np.ndarray
    local_density: np.ndarray
    silhouette: float
    prediction_error: float


def runs_of_scikit_learn(X, k, *, n_init, seed=0, beta_loss="frobenius", **options):
    """Return the spectra (n_init * k, f) of scikit-learn from random starts."""
    solver = "cd" if beta_loss == "frobenius" else "mu"
    options = {"max_iter": 1000, "tol": 1e-4} | options
    return np.concatenate(
        [
            NMF(
                k,
                init="random",
                solver=solver,
                beta_loss=beta_loss,
                random_state=seed + i,
                **options,
            )
            .fit(X)
            .components_
            for i in range(n_init)
        ]
    )


def plain_consensus_nmf(X, merged, k, *, density_threshold=0.5, local_neighborhood_size=0.3):
    """Cluster the spectra of all runs and refit the usages, in the order of cNMF's steps."""
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
    return Plain(
        spectra,
        usages,
        density,
        silhouette_score(unit, labels),
        ((X - usages @ spectra) ** 2).sum(),
    )


def matched_correlation(A, B):
    """Return the correlation of each row of A with its partner in B, matched one to one."""
    table = np.corrcoef(A, B)[: len(A), len(A) :]
    rows, columns = linear_sum_assignment(table, maximize=True)
    return table[rows, columns]
