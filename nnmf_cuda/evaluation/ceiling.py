"""The ceiling: the robust accuracy that no classifier of any kind can exceed on given points.

Two points of different classes whose balls share a point cannot both be robust: whatever is
answered there is wrong for one of them. So the robust samples of any classifier are an independent
set of the graph of such conflicts, and what bounds independent sets bounds robust accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_METRICS = {"Linf": "chebyshev", "L2": "euclidean"}
_BLOCK = 2**22
"""Distances held at a time: 32 MiB in float64."""

_ROUNDING = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Ceiling:
    """The most samples that any classifier can answer robustly.

    Attributes
    ----------
    eps : float
        Radius of the ball around each point.
    norm : {"Linf", "L2"}
        Its norm.
    n_samples, n_conflicts : int
        Points, and pairs of points of different classes whose balls share a point.
    n_lost : int
        Samples that every classifier loses: the largest matching of such pairs with two classes.
    """

    eps: float
    norm: str
    n_samples: int
    n_conflicts: int
    n_lost: int

    @property
    def accuracy(self) -> float:
        """The highest robust accuracy, as a share of the samples."""
        return (self.n_samples - self.n_lost) / self.n_samples

    def as_dict(self) -> dict[str, Any]:
        """Return the accuracy and what it is made of, for JSON."""
        return {"accuracy": self.accuracy, **asdict(self)}


def ceiling(
    x: Tensor | NDArray[Any], y: Tensor | NDArray[Any], eps: float, norm: str = "Linf"
) -> Ceiling:
    """Bound the robust accuracy of every classifier on these points.

    Parameters
    ----------
    x : Tensor or array of shape (n, n_features)
        Points, taken as float64 exactly.
    y : Tensor or array of shape (n,)
        Their classes, integers.
    eps : float
        Radius of the ball within which a point may be moved, in units of the features.
    norm : {"Linf", "L2"}, default="Linf"
        Norm of the ball. A box that holds the points changes nothing: it also holds what lies
        between them.

    Returns
    -------
    Ceiling
        No classifier has more robust samples on these points, whatever it is made of. With two
        classes a set of points without a conflict is as large as that (König), so that among all
        functions the bound is met.

    Raises
    ------
    ValueError
        If shapes do not fit, there is no point, or an argument is not finite or not known.

    Notes
    -----
    A maximum matching by Hopcroft and Karp, exact in integers. With more classes it is the
    largest *fractional* matching, half of one of the graph's bipartite double cover, which bounds
    independent sets at least as tightly as a matching does; it is no longer always met.

    A conflict counts where a float32 point surely lies in both balls: the distance must be at most
    2 eps less the spacing of float32 numbers and the rounding of its own computation, so that the
    ceiling is never too low, for a network that reads float32 as for the real numbers.

    References
    ----------
    .. [1] Bhagoji, Cullina & Mittal (2019), Lower bounds on adversarial robustness from optimal
       transport, arXiv:1909.12272.
    .. [2] Nemhauser & Trotter (1975), Vertex packings: structural properties and algorithms.
    """
    points, labels = _checked(x, y, norm)
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be a finite number >= 0, got {eps!r}")
    return _ceiling(points, labels, eps, norm)


def largest_eps(
    x: Tensor | NDArray[Any], y: Tensor | NDArray[Any], at_least: float, norm: str = "Linf"
) -> float:
    """Return the largest radius at which the ceiling of these points is at least so high.

    Parameters
    ----------
    x, y, norm
        As for `ceiling`.
    at_least : float
        A share of the samples in (0, 1].

    Returns
    -------
    float
        The radius, to a relative 1e-4 from below; infinite where no radius costs so much, as with
        one class; 0 where points of different classes are equal and that alone costs more.
    """
    points, labels = _checked(x, y, norm)
    if not 0 < at_least <= 1:
        raise ValueError(f"at_least must lie in (0, 1], got {at_least!r}")
    low, high = 0.0, 1e-6
    if _ceiling(points, labels, low, norm).accuracy < at_least:
        return 0.0
    # From below: a graph of few conflicts is small, whatever the number of points.
    diameter = np.linalg.norm(np.ptp(points, axis=0), ord=np.inf if norm == "Linf" else 2)
    while _ceiling(points, labels, high, norm).accuracy >= at_least:
        if high > diameter + 1e-6:
            return math.inf
        low, high = high, 2 * high
    return largest_below(
        lambda eps: _ceiling(points, labels, eps, norm).accuracy >= at_least,
        *(low, high),
        relative=1e-4,
    )


def largest_below(
    holds: Callable[[float], bool], low: float, high: float, *, relative: float
) -> float:
    """Bisect between a radius that holds and one that does not; return one that holds."""
    while high - low > relative * low + 1e-12:
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def _checked(
    x: Tensor | NDArray[Any], y: Tensor | NDArray[Any], norm: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    points, labels = (
        a.detach().cpu().numpy() if isinstance(a, Tensor) else np.asarray(a) for a in (x, y)
    )
    if norm not in _METRICS:
        raise ValueError(f"norm must be Linf or L2, got {norm!r}")
    if points.ndim != 2 or labels.shape != points.shape[:1] or not points.size:
        raise ValueError(
            "x must have shape (n, n_features) and y shape (n,), with n at least 1; got"
            f" {points.shape} and {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"y must hold integers, the classes; got {labels.dtype}")
    if not np.isfinite(points).all():
        raise ValueError("x holds NaN or infinity: give finite features")
    return points.astype(np.float64), labels.astype(np.int64)


def _ceiling(
    points: NDArray[np.float64], labels: NDArray[np.int64], eps: float, norm: str
) -> Ceiling:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    first, second = _conflicts(points, labels, eps, norm)
    n, n_conflicts = len(points), len(first)
    # Both ways: the double cover, whose largest matching is twice the fractional one of the graph.
    ends = np.concatenate([first, second]), np.concatenate([second, first])
    cover = coo_array((np.ones(2 * n_conflicts, dtype=bool), ends), shape=(n, n)).tocsr()
    n_matched = int((maximum_bipartite_matching(cover, perm_type="column") >= 0).sum())
    # The robust are whole samples: a half left over is lost as well.
    return Ceiling(float(eps), norm, n, n_conflicts, (n_matched + 1) // 2)


def _conflicts(
    points: NDArray[np.float64], labels: NDArray[np.int64], eps: float, norm: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of different classes whose balls surely share a float32 point."""
    n_features = points.shape[1]
    spacing = float(np.spacing(np.abs(points).max().astype(np.float32)))
    if norm == "L2":
        spacing *= math.sqrt(n_features)
    reach = 2 * eps * (1 - 4 * _ROUNDING)
    found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for rows, columns, distances in _distances(points, labels, norm):
        longest = distances * (1 + (n_features + 4) * _ROUNDING) + spacing
        i, j = np.nonzero((longest <= reach) | (distances == 0))
        sure = longest[i, j] <= reach
        i, j = rows[i], columns[j]
        # Squares of tiny differences vanish: a distance of 0 may be that of points that differ.
        sure |= (points[i] == points[j]).all(1)
        found.append((i[sure], j[sure]))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    first, second = (np.concatenate(ends) for ends in zip(*found, strict=True))
    return first, second


def _distances(
    points: NDArray[np.float64], labels: NDArray[np.int64], norm: str
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Yield blocks of distances between each class and all later ones: rows, columns, distances."""
    from scipy.spatial.distance import cdist

    for label in np.unique(labels)[:-1]:
        own, later = np.nonzero(labels == label)[0], np.nonzero(labels > label)[0]
        step = max(1, _BLOCK // len(later))
        for start in range(0, len(own), step):
            rows = own[start : start + step]
            yield rows, later, cdist(points[rows], points[later], _METRICS[norm])
