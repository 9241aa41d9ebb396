"""Fuzzy c-means: clusters that a sample belongs to by degrees; of many grey histograms at once."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted

Floats = NDArray[np.float64]

_NEAREST = np.finfo(np.float64).eps
"""Distances below are taken as this: a sample on a centre belongs to it."""


class FuzzyClusters(NamedTuple):
    """Clusters of B sets of samples.

    Attributes
    ----------
    centers : ndarray of shape (B, n_clusters, n_features)
    memberships : ndarray of shape (B, n_samples, n_clusters)
        Rows sum to 1; they are those of `centers`.
    n_iter : ndarray of shape (B,)
        Iterations made.
    """

    centers: Floats
    memberships: Floats
    n_iter: NDArray[np.int64]


class FuzzyCMeans(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Fuzzy c-means [1]_.

    Centres and memberships in turns lower
    ``sum(memberships[i, j] ** m * |X[i] - centers[j]| ** 2)``, each to its minimum.

    Parameters
    ----------
    n_clusters : int, default=4
        Number of clusters.
    m : float, default=2.0
        How soft memberships are, above 1, where they are hard.
    tol : float, default=1e-5
        It has converged when the Frobenius norm of the change of all memberships in an iteration
        is below.
    max_iter : int, default=300
        Most iterations.
    init : {"random", "spread"} or array, default="random"
        Start: random memberships; centres at the middles of `n_clusters` equal parts of the range
        of each feature; or an array, of centres (n_clusters, n_features) or of memberships
        (n_samples, n_clusters), which are scaled to sum to 1. An array of a shape that is both is
        taken for centres.
    random_state : int, RandomState or None, default=None
        Seed of the random start.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
    memberships_ : ndarray of shape (n_samples, n_clusters)
    labels_ : ndarray of shape (n_samples,)
        The cluster to which each sample belongs most.
    objective_ : float
        What is minimised, at the end.
    n_iter_ : int
    n_features_in_ : int

    Notes
    -----
    uint8 means pixels and is read as x / 255. Of one feature of this type (grey values) the
    histogram is clustered, 256 samples with weights, which has the same iterates. (scikit-fuzzy's
    `cmeans` has them too.)

    References
    ----------
    .. [1] Bezdek (1981), Pattern Recognition with Fuzzy Objective Function Algorithms, Plenum.

    Examples
    --------
    >>> import numpy as np
    >>> from nnmf_cuda.baselines import FuzzyCMeans
    >>> model = FuzzyCMeans(2, init="spread").fit(np.array([[0.0], [0.1], [0.9], [1.0]]))
    >>> model.cluster_centers_.round(2).ravel()
    array([0.05, 0.95])
    """

    def __init__(
        self,
        n_clusters: int = 4,
        *,
        m: float = 2.0,
        tol: float = 1e-5,
        max_iter: int = 300,
        init: Any = "random",
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.m = m
        self.tol = tol
        self.max_iter = max_iter
        self.init = init
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Cluster the samples X (n_samples, n_features); `y` is not used."""
        check_settings(self.n_clusters, self.m, self.tol, self.max_iter)
        given = np.asarray(X)
        points = _points(given)
        if len(points) < self.n_clusters:
            raise ValueError(
                f"n_clusters={self.n_clusters} is more than the {len(points)} samples of X: give "
                "more samples or fewer clusters"
            )
        n_iter, centers = 0, self._first_centers(points)
        memberships = None
        if centers is None:
            memberships = self._first_memberships(points)
            n_iter, centers = 1, _centers(points, memberships.T[None] ** self.m)[0]
            moved = _memberships(points, centers[None], self.m)[0].T
            if float(np.linalg.norm(moved - memberships)) < self.tol or self.max_iter == 1:
                return self._keep(points, centers, n_iter)
        if given.dtype == np.uint8 and given.shape[1] == 1:
            values = np.arange(256)[:, None] / 255
            weights = np.bincount(given[:, 0], minlength=256).astype(np.float64)
        else:
            values, weights = points, np.ones(len(points))
        found = fuzzy_clusters(
            values,
            weights[None],
            centers[None],
            m=self.m,
            tol=self.tol,
            max_iter=self.max_iter - n_iter,
        )
        return self._keep(points, found.centers[0], n_iter + int(found.n_iter[0]))

    def predict_memberships(self, X: ArrayLike) -> Floats:
        """Return how much samples X belong to each cluster, (n_samples, n_clusters)."""
        check_is_fitted(self)
        points = _points(np.asarray(X))
        if points.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {points.shape[1]} features, but FuzzyCMeans was fitted to "
                f"{self.n_features_in_}: give as many"
            )
        memberships: Floats = _memberships(points, self.cluster_centers_[None], self.m)[0].T
        return memberships

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return the cluster to which each of the samples X belongs most, (n_samples,)."""
        labels: NDArray[np.int64] = self.predict_memberships(X).argmax(1)
        return labels

    def _keep(self, points: Floats, centers: Floats, n_iter: int) -> Self:
        self.cluster_centers_ = centers
        self.memberships_ = _memberships(points, centers[None], self.m)[0].T
        self.labels_ = self.memberships_.argmax(1)
        squares = _squared_distances(points, centers[None])[0].T
        self.objective_ = float((self.memberships_**self.m * squares).sum())
        self.n_iter_, self.n_features_in_ = n_iter, points.shape[1]
        return self

    def _first_centers(self, points: Floats) -> Floats | None:
        """Return the centres to start from; None where memberships are given or drawn."""
        if isinstance(self.init, str):
            if self.init not in ("random", "spread"):
                raise ValueError(f'init must be "random", "spread" or an array, got {self.init!r}')
            return None if self.init == "random" else spread_centers(points, self.n_clusters)
        start = check_array(self.init, dtype=np.float64, input_name="init")
        if start.shape == (self.n_clusters, points.shape[1]):
            return np.array(start)
        if start.shape != (len(points), self.n_clusters):
            raise ValueError(
                f"init has the shape {start.shape}: give centres {self.n_clusters, points.shape[1]}"
                f" or memberships {len(points), self.n_clusters}"
            )
        return None

    def _first_memberships(self, points: Floats) -> Floats:
        if isinstance(self.init, str):
            drawn = check_random_state(self.random_state).random_sample(
                (len(points), self.n_clusters)
            )
        else:
            drawn = np.asarray(self.init, dtype=np.float64)
            if drawn.min() < 0 or drawn.sum(1).min() == 0:
                raise ValueError(
                    "init: memberships must not be negative, nor those of a sample all zero"
                )
        scaled: Floats = drawn / drawn.sum(1, keepdims=True)
        return scaled


def fuzzy_clusters(
    points: Floats,
    weights: Floats,
    centers: Floats,
    *,
    m: float = 2.0,
    tol: float = 1e-5,
    max_iter: int = 300,
) -> FuzzyClusters:
    """Cluster B sets of weighted samples at once, from given centres.

    Parameters
    ----------
    points : ndarray of shape (n_samples, n_features)
        Shared by all sets.
    weights : ndarray of shape (B, n_samples)
        How often each set has each sample, such as histograms over grey values.
    centers : ndarray of shape (B, n_clusters, n_features)
        Start. Not modified.
    m, tol, max_iter
        As of `FuzzyCMeans`. Each set ends when it has converged, on its own.

    Returns
    -------
    FuzzyClusters
        Memberships are one to a sample, whatever its weight.
    """
    centers = centers.copy()
    memberships = _memberships(points, centers, m)
    n_iter = np.zeros(len(centers), dtype=np.int64)
    going = np.arange(len(centers))
    for _ in range(max_iter):
        if not len(going):
            break
        before = memberships[going]
        own = weights[going, None]
        centers[going] = _centers(points, own * before**m)
        after = _memberships(points, centers[going], m)
        memberships[going] = after
        n_iter[going] += 1
        change = np.sqrt((own * (after - before) ** 2).sum((1, 2)))
        going = going[change >= tol]
    return FuzzyClusters(centers, memberships.swapaxes(1, 2), n_iter)


def spread_centers(points: Floats, n_clusters: int) -> Floats:
    """Return the middles of `n_clusters` equal parts of the range of each feature."""
    low, high = points.min(0), points.max(0)
    middles = (np.arange(n_clusters) + 0.5) / n_clusters
    spread: Floats = low + middles[:, None] * (high - low)
    return spread


def check_settings(n_clusters: int, m: float, tol: float, max_iter: int) -> None:
    """Raise ValueError for what no fuzzy clustering can have."""
    if n_clusters < 1:
        raise ValueError(f"n_clusters must be at least 1, got {n_clusters}")
    if not (np.isfinite(m) and m > 1):
        raise ValueError(f"m must be a finite number > 1, got {m}: 2 is usual")
    if not tol >= 0:
        raise ValueError(f"tol must be >= 0, got {tol}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")


def _points(X: NDArray[Any]) -> Floats:
    checked = check_array(X, dtype=None, input_name="X")
    points: Floats = checked.astype(np.float64)
    return points / 255 if checked.dtype == np.uint8 else points


# Sums over a few numbers that lie side by side are slow: inside, memberships and distances are
# (B, n_clusters, n_samples).


def _centers(points: Floats, powers: Floats) -> Floats:
    """Return the mean of the points by weights (B, n_clusters, n_samples)."""
    total = np.maximum(powers.sum(2), np.finfo(np.float64).tiny)
    centers: Floats = powers @ points / total[..., None]
    return centers


def _squared_distances(points: Floats, centers: Floats) -> Floats:
    """Return (B, n_clusters, n_samples), without the cancellation of a product."""
    squares = np.zeros((*centers.shape[:2], len(points)))
    for feature in range(points.shape[1]):
        squares += (points[:, feature] - centers[..., feature, None]) ** 2
    return squares


def _memberships(points: Floats, centers: Floats, m: float) -> Floats:
    """Return (B, n_clusters, n_samples), by the inverse of distances; Bezdek (1981)."""
    squares = np.maximum(_squared_distances(points, centers), _NEAREST**2)
    # By the nearest, so that no power overflows.
    ratios = squares.min(1, keepdims=True) / squares
    if m != 2:
        ratios **= 1 / (m - 1)
    memberships: Floats = ratios / ratios.sum(1, keepdims=True)
    return memberships
