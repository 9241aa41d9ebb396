"""How much the runs of one rank agree: on which samples belong together, and on the components."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import one_hot

_BLOCK_ROWS = 512
"""Rows of the consensus matrix that are there together; of the rest there is the upper half."""


def assignments(W: Tensor, H: Tensor) -> Tensor:
    """Return the component (n,) that gives each row the most; k where none gives anything.

    What component t gives row i is W_it * sum(H_t): unlike W_it it does not depend on how W H is
    divided between W and H, which no solver decides.
    """
    given = W * H.sum(1)
    most, component = given.max(1)
    return component.masked_fill(most == 0, len(H))


def consensus(labels: Tensor) -> NDArray[np.float64]:
    """Return the share of runs that put two samples together, of labels (n_runs, n).

    In SciPy's condensed form: the pairs (0, 1), (0, 2), ..., (n - 2, n - 1).
    """
    n_runs, n = labels.shape
    # Counts of runs: exact in float32.
    member = one_hot(labels).float().permute(1, 0, 2).flatten(1)
    pairs = np.empty(n * (n - 1) // 2)
    filled = 0
    for first in range(0, n, _BLOCK_ROWS):
        block = (member[first : first + _BLOCK_ROWS] @ member[first:].mT).cpu().numpy()
        above = block[np.triu_indices(len(block), 1, block.shape[1])]
        pairs[filled : filled + len(above)] = above
        filled += len(above)
    return pairs / n_runs


def dispersion(pairs: NDArray[np.float64], n: int) -> float:
    """Return the mean of (2 c - 1)^2 over the n x n consensus: 1 where it is all zeros and ones."""
    return float((n + 2 * np.square(2 * pairs - 1).sum()) / n**2)


def cophenetic_correlation(pairs: NDArray[np.float64]) -> float:
    """Return how well average linkage keeps the distances 1 - c; 1 where all are equal."""
    distances = 1 - pairs
    if np.ptp(distances) == 0:  # 0 / 0, but the tree keeps such distances exactly
        return 1.0
    correlation, _ = cophenet(linkage(distances, "average"), distances)
    return float(correlation)


def component_similarity(components: Tensor) -> float:
    """Return the mean cosine of matched components (n_runs, k, f) over all pairs of runs.

    Each pair of runs is matched one to one, so that the sum of cosines is largest.
    """
    n_runs, k, _ = components.shape
    length = torch.linalg.vector_norm(components, dim=2, keepdim=True)
    unit = (components / length.masked_fill(length == 0, 1)).flatten(0, 1)
    cosines = (unit @ unit.mT).reshape(n_runs, k, n_runs, k).cpu().numpy()
    total = 0.0
    for one, other in combinations(range(n_runs), 2):
        table = cosines[one, :, other]
        total += table[linear_sum_assignment(table, maximize=True)].mean()
    return total / (n_runs * (n_runs - 1) / 2)
