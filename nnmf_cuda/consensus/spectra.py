"""Spectra of many runs of one rank, and the consensus that they come to (cNMF's steps)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from nnmf_cuda.nnmf.minimisation import Run, all_runs
from nnmf_cuda.nnmf.problem import Problem
from nnmf_cuda.nnmf.starts import Origin, iter_starts

FloatArray = NDArray[np.float64]

BATCH_ENTRIES = 2**24
"""Entries of W and H together in one batch of runs; a solver holds some copies of them."""

BLOCK_ROWS = 512
"""Rows of the matrix of distances that are there together."""

_KMEANS_STARTS, _KMEANS_SEED = 10, 1  # cNMF's: the clustering is the same in every call


@dataclass(frozen=True)
class MergedSpectra:
    """The spectra of many runs of one rank, and how the runs ended."""

    values: FloatArray  # (n_runs * k, n_features), run by run
    converged: float  # share of the runs
    n_iter: int  # of the longest run


@dataclass(frozen=True)
class Consensus:
    """What the spectra of many runs agree on."""

    spectra: FloatArray  # (k, n_features), each with the sum 1
    local_density: FloatArray  # (n_runs * k,), mean distance to the nearest neighbours
    labels: NDArray[np.int64]  # (n_runs * k,), cluster of each; -1 for those left out
    silhouette: float  # of the clusters, NaN where it has no meaning (one cluster)


def seeded_runs(
    problem: Problem,
    n_components: int,
    origin: Origin,
    seeds: Sequence[int],
    *,
    solver: str,
    max_iter: int,
    tol: float,
    batch_entries: int = BATCH_ENTRIES,
) -> Iterator[Run]:
    """Minimise from one start for each seed and yield each run when it ends.

    `Run.restart` is the place of its seed. Runs that share a batch end as each would alone, up to
    the rounding of sums, so that a seed's run is the same whatever others are asked for.
    """
    entries = sum(problem.X.shape) * n_components
    size = max(1, batch_entries // entries)
    for first in range(0, len(seeds), size):
        starts = [
            next(iter_starts(problem.X, n_components, replace(origin, n_init=1, random_state=seed)))
            for seed in seeds[first : first + size]
        ]
        W, H = (torch.stack(factor).to(problem.X.device) for factor in zip(*starts, strict=True))
        del starts
        for run in all_runs(problem, W, H, solver=solver, max_iter=max_iter, tol=tol):
            if not math.isfinite(run.objective[-1]):
                raise ValueError(
                    f"the factorisation with n_components={n_components} from seed "
                    f"{seeds[first + run.restart]} overflowed; scale X to values around 1, use "
                    "float64 or another beta_loss"
                )
            yield replace(run, restart=first + run.restart)


def consensus_spectra(
    merged: FloatArray,
    n_components: int,
    *,
    density_threshold: float,
    local_neighborhood_size: float,
) -> Consensus:
    """Return the consensus of the spectra (n_runs * k, n_features) of all runs.

    Spectra of length 1 whose local density is below `density_threshold` are clustered by k-means,
    and the median of each cluster, scaled to the sum 1, is a consensus spectrum.
    """
    unit, silent = unit_spectra(merged)
    n_runs = len(merged) // n_components
    n_neighbors = max(1, int(local_neighborhood_size * n_runs))
    density = local_density(unit, n_neighbors)
    kept = (density < density_threshold) & ~silent
    if kept.sum() < n_components:
        quartiles = ", ".join(f"{value:.3g}" for value in np.quantile(density, (0.25, 0.5, 0.75)))
        raise ValueError(
            f"density_threshold={density_threshold:g} keeps {kept.sum()} of {len(merged)} spectra, "
            f"but {n_components} clusters are to be made of them. The quartiles of the local "
            f"density are {quartiles}: raise the threshold (2 keeps all), or run from more starts"
        )
    members = unit[kept]
    # Imported where it is used: it takes longer than the rest of the package.
    from sklearn.cluster import KMeans

    clusters = KMeans(n_components, n_init=_KMEANS_STARTS, random_state=_KMEANS_SEED)
    labels = clusters.fit_predict(members)
    medians = np.stack([np.median(members[labels == t], axis=0) for t in range(n_components)])
    totals = medians.sum(1, keepdims=True)
    if not totals.all():
        empty = int(np.flatnonzero(totals == 0)[0])
        raise ValueError(
            f"the {int((labels == empty).sum())} spectra of one cluster agree on no feature, so "
            "that their median is zero: lower density_threshold to leave out what lies apart, or "
            f"take fewer components than {n_components}"
        )
    all_labels = np.full(len(merged), -1, dtype=np.int64)
    all_labels[kept] = labels
    return Consensus(medians / totals, density, all_labels, _silhouette(members, labels))


def merged_spectra(runs: Iterable[Run], n_runs: int) -> MergedSpectra:
    """Gather the spectra of the runs, whose `restart` tells their place among `n_runs`."""
    spectra: dict[int, FloatArray] = {}
    converged, n_iter = 0, 0
    for run in runs:
        spectra[run.restart] = run.H.double().cpu().numpy()
        converged += run.converged
        n_iter = max(n_iter, run.iterations[-1])
    values = np.concatenate([spectra[place] for place in range(n_runs)])
    return MergedSpectra(values, converged / n_runs, n_iter)


def unit_spectra(merged: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return the spectra scaled to length 1, and which are zero and stay so."""
    # By the largest entry first, or squares of small numbers would be lost.
    largest = merged.max(1, keepdims=True)
    silent = largest == 0
    scaled = merged / np.where(silent, 1, largest)
    length = np.sqrt(np.square(scaled).sum(1, keepdims=True))
    return scaled / np.where(silent, 1, length), silent[:, 0]


def local_density(unit: FloatArray, n_neighbors: int) -> FloatArray:
    """Return the mean distance (n,) of each row (n, f) to its nearest neighbours.

    It is large where few others lie near, as cNMF has the word.
    """
    spectra = torch.from_numpy(unit)
    squares = spectra.square().sum(1)
    n_neighbors = min(n_neighbors, len(unit) - 1)
    means = np.empty(len(unit))
    for first in range(0, len(unit), BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        distances = squares[rows, None] + squares - 2 * spectra[rows] @ spectra.mT
        distances.diagonal(first).fill_(torch.inf)  # of a row to itself
        nearest = distances.topk(n_neighbors, largest=False).values
        # Differences of products: equal spectra are apart by the root of a rounding, 1e-8.
        means[rows] = nearest.clamp_min_(0).sqrt_().mean(1).numpy()
    return means


def _silhouette(members: FloatArray, labels: NDArray[np.int64]) -> float:
    if not 1 < len(np.unique(labels)) < len(labels):
        return math.nan
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(members, labels))
