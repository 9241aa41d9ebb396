"""The clustergram: the order of its rows, and what is drawn."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist, squareform

from nnmf_cuda.consensus.clustergram import cluster_order, draw_clustergram
from nnmf_cuda.consensus.spectra import local_density, unit_spectra


def spectra(rng):
    """Two clusters, one of them of two halves, in no order; and one spectrum of neither."""
    centres = np.array([[1, 0, 0, 0.0], [0, 1, 0, 0], [0, 1, 0.3, 0], [0, 0, 0, 1]])
    kinds = rng.permutation(np.repeat([0, 1, 2, 3], [3, 4, 4, 1]))
    merged = centres[kinds] + 0.01 * rng.random((len(kinds), 4))
    return merged, kinds, np.array([0, 1, 1, -1])[kinds]


def test_rows_stand_cluster_by_cluster_and_halves_together(rng):
    merged, kinds, labels = spectra(rng)
    order = cluster_order(unit_spectra(merged)[0], labels)
    assert sorted(order) == np.flatnonzero(labels >= 0).tolist()
    assert (np.diff(labels[order]) >= 0).all()
    assert np.count_nonzero(np.diff(kinds[order])) == 2


def test_distances_and_densities_are_those_of_the_spectra(rng):
    merged, _, labels = spectra(rng)
    unit, _ = unit_spectra(merged)
    density = local_density(unit, 2)
    figure = Figure()
    draw_clustergram(figure, merged, labels, density, 0.5)
    left, right = figure.axes[:2]
    order = cluster_order(unit, labels)
    shown = np.asarray(left.images[0].get_array())
    np.testing.assert_allclose(shown, squareform(pdist(unit))[np.ix_(order, order)])
    assert sum(bar.get_height() for bar in right.patches) == len(merged)
    assert right.lines[0].get_xdata()[0] == 0.5
    assert right.get_title() == "1 of 12 left out"
    assert left.lines[0].get_ydata()[0] == 2.5  # between the clusters
