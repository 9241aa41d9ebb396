"""The picture from which a density threshold is read: distances of spectra, and their densities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist, squareform

from nnmf_cuda.consensus.spectra import unit_spectra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]

_BINS = 50


def cluster_order(unit: FloatArray, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows that are in a cluster, cluster by cluster, and in each by average linkage."""
    order = []
    for cluster in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == cluster)
        if len(members) > 2:
            members = members[leaves_list(linkage(pdist(unit[members]), "average"))]
        order.append(members)
    return np.concatenate(order)


def draw_clustergram(
    figure: Figure,
    merged: FloatArray,
    labels: NDArray[np.int64],
    local_density: FloatArray,
    density_threshold: float,
) -> None:
    """Draw the distances between the clustered spectra, and all local densities."""
    unit, _ = unit_spectra(merged)
    order = cluster_order(unit, labels)
    figure.set_size_inches(11, 6)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    image = left.imshow(squareform(pdist(unit[order])), interpolation="none", cmap="viridis")
    edges = np.flatnonzero(np.diff(labels[order])) + 0.5
    for edge in edges:
        left.axhline(edge, color="white", linewidth=0.5)
        left.axvline(edge, color="white", linewidth=0.5)
    left.set(xticks=[], yticks=[], title="distance between spectra, cluster by cluster")
    figure.colorbar(image, ax=left)
    right.hist(local_density, bins=_BINS)
    right.axvline(density_threshold, color="black", linestyle="--")
    right.set_xlim(0, max(1.0, float(local_density.max())))
    out = len(labels) - len(order)
    right.set(
        xlabel="mean distance to nearest neighbours",
        ylabel="spectra",
        title=f"{out} of {len(labels)} left out",
    )
