"""Graphs over samples, the penalty that keeps W alike along their edges, and updates under it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from nnmf_cuda.nnmf.inputs import check_choice, check_integer, check_real, shared_tensor
from nnmf_cuda.nnmf.matrix import Matrix
from nnmf_cuda.ops.nnmf_sparse import csr_tensor
from nnmf_cuda.reference import EPSILON

GRAPHS = ("neighbors", "labels")
"""What the parameter `graph` of `NNMF` may be, beside a matrix."""

NEIGHBORS = 5
"""Neighbours of a sample where nothing else is said: the number of Cai et al. (2011)."""

UNLABELLED = -1
"""The label of a sample that has none, as in scikit-learn's semi-supervised estimators."""

_ASYMMETRY = 1e-6  # of the largest weight: what float32 and the order of sums leave

_ASYMMETRIC = (
    "graph must be symmetric: give graph.maximum(graph.T), which joins two samples where one is a "
    "neighbour of the other"
)


def neighbor_graph(
    X: Any,
    n_neighbors: int = NEIGHBORS,
    *,
    weights: str = "binary",
    bandwidth: float | None = None,
) -> scipy.sparse.csr_array:
    """Return the graph that joins each sample with its nearest neighbours.

    Two samples are joined where one is among the `n_neighbors` nearest of the other [1]_.

    Parameters
    ----------
    X : array-like, sparse matrix or Tensor of shape (n_samples, n_features)
        The samples, of any sign.
    n_neighbors : int, default=5
        Neighbours of each sample, itself not counted; below n_samples.
    weights : {"binary", "heat", "cosine"}, default="binary"
        Of an edge between x and y: 1, ``exp(-|x - y|^2 / bandwidth)``, or the cosine of the angle
        between x and y (0 where that is negative), for which the nearest are those at the smallest
        angle.
    bandwidth : float or None, default=None
        Of "heat", in the squared units of X; None takes the mean of ``|x - y|^2`` over neighbours.

    Returns
    -------
    csr_array of shape (n_samples, n_samples)
        Symmetric, float64, without loops: what ``NNMF(graph=...)`` takes.

    Raises
    ------
    TypeError, ValueError
        If a parameter is out of range or X is not a finite matrix.

    References
    ----------
    .. [1] Cai, He, Han & Huang (2011), Graph regularized nonnegative matrix factorization for
       data representation, IEEE TPAMI 33(8), section 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> from nnmf_cuda.nnmf import neighbor_graph
    >>> neighbor_graph(np.array([[0.0], [1.0], [5.0]]), 1).toarray()
    array([[0., 1., 0.],
           [1., 0., 1.],
           [0., 1., 0.]])
    """
    check_choice("weights", weights, ("binary", "heat", "cosine"))
    if isinstance(X, Tensor):
        X = _of_tensor(X)
    n_samples = X.shape[0] if hasattr(X, "shape") else len(X)
    check_integer("n_neighbors", n_neighbors, low=1, high=n_samples - 1)
    if bandwidth is not None:
        check_real("bandwidth", bandwidth, low=np.finfo(np.float64).tiny)
    metric = "cosine" if weights == "cosine" else "euclidean"
    search = NearestNeighbors(n_neighbors=n_neighbors, metric=metric).fit(X)
    distances, neighbors = search.kneighbors()  # of the samples themselves: none is its own
    if weights == "binary":
        values = np.ones_like(distances)
    elif weights == "cosine":
        values = (1 - distances).clip(0, 1)
    else:
        squares = distances**2
        values = np.exp(-squares / (bandwidth or squares.mean() or 1.0))
    starts = np.arange(0, neighbors.size + 1, n_neighbors)
    shape = (n_samples, n_samples)
    graph = scipy.sparse.csr_array((values.ravel(), neighbors.ravel(), starts), shape=shape)
    joined = scipy.sparse.csr_array(graph.maximum(graph.T), dtype=np.float64)
    joined.eliminate_zeros()
    return joined


@dataclass(frozen=True)
class Graph:
    """Weights A between samples, and the penalty strength / 2 * tr(W^T (D - A) W).

    That is strength / 4 times the sum of A_ij |w_i - w_j|^2, with D the diagonal of A's row sums.
    A is the product of `factors`, sparse CSR float64, never multiplied out. Where processes share
    the rows of X, the first factor has this one's rows of A, and `meet` makes what it is multiplied
    with of what each process has of that.
    """

    factors: Sequence[Tensor]
    strength: float
    meet: Callable[[Tensor], Tensor]

    @classmethod
    def of_matrix(cls, matrix: Any, X: Matrix, strength: float) -> Self:
        """Return the graph of a user's matrix of weights, checked.

        It has all rows, or those of X that this process has.
        """
        weights = _as_csr(matrix)
        n_samples, own = X.whole_shape[0], X.own_rows
        of_own = (own.stop - own.start, n_samples)
        if weights.shape not in (of_own, (n_samples, n_samples)):
            raise ValueError(
                f"graph has shape {weights.shape}, but X has {n_samples} samples: give a weight "
                f"for each pair of them, ({n_samples}, {n_samples})"
            )
        _check_weights(weights)
        # All together: one that has all rows of X cannot tell by itself.
        by_rows = any(X.gathered(weights.shape[0] < n_samples))
        if not by_rows:
            largest = weights.data.max(initial=0)
            if abs(weights - weights.T).max() > _ASYMMETRY * largest:
                raise ValueError(_ASYMMETRIC)
        if weights.shape != of_own:
            weights = weights[own]
        graph = cls((_as_tensor(weights, X.device),), strength, X.whole_rows)
        if by_rows:
            graph._check_symmetry(X)
        return graph

    def _check_symmetry(self, X: Matrix) -> None:
        """Raise unless A, of which each process has rows, is symmetric, by two drawn vectors."""
        own, n_samples = X.own_rows, X.whole_shape[0]
        drawn = np.random.default_rng(0).uniform(0.5, 1.5, size=(n_samples, 2))
        u, v = torch.from_numpy(drawn[own]).to(X.device).T
        of_u, of_v = self._times(torch.stack((u, v), 1)).T
        one, other = X.totals(torch.stack(((v * of_u).sum(), (u * of_v).sum())))[0].tolist()
        if abs(one - other) > _ASYMMETRY * max(one, other):
            raise ValueError(_ASYMMETRIC)

    @classmethod
    def of_labels(cls, y: Any, X: Matrix, strength: float) -> Self:
        """Return the graph that joins all samples of a class, by 1 / (size of the class).

        The penalty is then half the scatter of W within classes, times the strength. Samples of
        the label -1 are joined to none.
        """
        n_samples = X.shape[0]
        labels = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
        if labels.shape != (n_samples,):
            raise ValueError(
                f"y has shape {labels.shape}, but graph='labels' needs one label for each of the "
                f"{n_samples} samples of X, {UNLABELLED} where there is none"
            )
        if labels.dtype.kind == "f" and np.isnan(labels).any():
            raise ValueError(f"y contains NaN; the label of a sample without one is {UNLABELLED}")
        known = np.flatnonzero(labels != UNLABELLED)
        names, counts = np.unique(labels[known], return_counts=True)
        classes, sizes = _in_all(names, counts, X)
        classes = classes[np.searchsorted(names, labels[known])]
        member = scipy.sparse.csr_array(
            (np.ones(len(known)), (known, classes)), shape=(n_samples, len(sizes))
        )
        average = scipy.sparse.csr_array(
            (1 / sizes[classes], (classes, known)), shape=(len(sizes), n_samples)
        )
        factors = (_as_tensor(member, X.device), _as_tensor(average, X.device))
        return cls(factors, strength, lambda of_classes: X.totals(of_classes)[0])

    @cached_property
    def degrees(self) -> Tensor:
        """The row sums of A, (n, 1)."""
        first = self.factors[0]
        return self._times(torch.ones(first.shape[0], 1, dtype=first.dtype, device=first.device))

    def _times(self, right: Tensor) -> Tensor:
        first, *others = self.factors
        for factor in reversed(others):
            right = factor @ right
        return first @ self.meet(right)

    def _around(self, W: Tensor) -> Tensor:
        """Return A W for each start of W (B, n, k), float64."""
        B, n, k = W.shape
        columns = W.double().transpose(0, 1).reshape(n, B * k)
        return self._times(columns).reshape(n, B, k).transpose(0, 1)

    def pull(self, W: Tensor) -> Tensor:
        """Return strength * A W: how the neighbours pull at W (B, n, k)."""
        return (self.strength * self._around(W)).to(W.dtype)

    def hold(self, W: Tensor) -> Tensor:
        """Return strength * D W: how much they hold it."""
        return self.curvature.to(W.dtype) * W

    @cached_property
    def curvature(self) -> Tensor:
        """The diagonal of strength * D, (n, 1) float64."""
        return self.strength * self.degrees

    def value_of_rows(self, W: Tensor) -> Tensor:
        """Return what the rows of this process add to the penalty, for each start of W (B, n, k).

        (B,) float64; the sum over all rows is >= 0.
        """
        wide = W.double()
        differences = wide * (self.degrees * wide - self._around(W))
        return self.strength / 2 * differences.sum((1, 2))

    def digest(self) -> str:
        """Return what tells the graph from others."""
        sha256 = hashlib.sha256()
        for factor in self.factors:
            for part in (factor.crow_indices(), factor.col_indices(), factor.values()):
                sha256.update(part.cpu().numpy().tobytes())
        return sha256.hexdigest()[:16]


def _in_all(
    names: NDArray[Any], counts: NDArray[np.int64], X: Matrix
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each class here its place among those of all processes, and the sizes of these."""
    of_all = X.gathered((names, counts))
    every, classes = np.unique(np.concatenate([one for one, _ in of_all]), return_inverse=True)
    sizes = np.zeros(len(every), np.int64)
    np.add.at(sizes, classes, np.concatenate([one for _, one in of_all]))
    return np.searchsorted(every, names), sizes


def _check_weights(weights: scipy.sparse.csr_array) -> None:
    """Raise unless weights are finite and >= 0."""
    bad = np.flatnonzero(~(np.isfinite(weights.data) & (weights.data >= 0)))
    if len(bad):
        row = np.searchsorted(weights.indptr, bad[0], side="right") - 1
        raise ValueError(
            "graph must have finite weights >= 0, 0 or nothing where two samples are not joined;"
            f" got {weights.data[bad[0]]:g} between samples {row} and {weights.indices[bad[0]]}"
        )


def _as_csr(matrix: Any) -> scipy.sparse.csr_array:
    """Return a user's matrix of weights, sparse or dense, of NumPy, SciPy or torch."""
    if isinstance(matrix, Tensor):
        matrix = _of_tensor(matrix)
    if not scipy.sparse.issparse(matrix):
        matrix = np.asarray(matrix)
        if matrix.dtype.kind not in "biuf" or matrix.ndim != 2:
            raise TypeError(
                f"graph must be one of {', '.join(map(repr, GRAPHS))}, None, or a matrix of "
                f"weights between samples, got {matrix!r:.80}"
            )
    csr = scipy.sparse.csr_array(matrix, dtype=np.float64)
    if not csr.has_canonical_format:  # its arrays may be the user's
        csr = csr.copy()
        csr.sum_duplicates()
    return csr


def _of_tensor(X: Tensor) -> Any:
    """Return a tensor as NumPy or, where it is sparse, SciPy has it."""
    X = X.detach().cpu()
    if X.layout == torch.strided:
        return X.numpy()
    coo = X.to_sparse_coo().coalesce()
    return scipy.sparse.csr_array((coo.values().numpy(), coo.indices().numpy()), shape=coo.shape)


def _as_tensor(matrix: scipy.sparse.csr_array, device: torch.device) -> Tensor:
    # SciPy made it: there is nothing to check.
    crow, col = (shared_tensor(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    return csr_tensor(crow, col, shared_tensor(matrix.data), matrix.shape).to(device)


def graph_updates(
    X: Matrix,
    W: Tensor,
    H: Tensor,
    graph: Graph,
    *,
    beta_loss: float,
    n_iter: int,
    floor: float,
    update_H: bool = True,
    l1_reg_W: float = 0.0,
    l1_reg_H: float = 0.0,
    l2_reg_W: float = 0.0,
    l2_reg_H: float = 0.0,
    n_fixed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return W (B, n, k), H (B, k, f) after `n_iter` multiplicative updates, W before H.

    For the Frobenius norm they are those of Cai et al. (2011), eq. 14 and 15. For Kullback-Leibler
    each goes to the minimum of a bound on the same penalty, which Cai et al. replace by one of
    logarithms; so the objective never rises for either. Options are those of `ops.nnmf_mu`.
    """
    for _ in range(n_iter):
        if beta_loss == 2:
            up, down = X.products(H.mT) + graph.pull(W), W @ (H @ H.mT) + graph.hold(W)
            W = _multiplied(W, up, down + l1_reg_W + l2_reg_W * W)
        else:
            sums = H.sum(-1).unsqueeze(-2)
            up = _updated_once(X, W, H, floor) * sums + W * graph.pull(W)
            curvature = graph.curvature.to(W.dtype) + l2_reg_W
            W = _lowest(up, sums + l1_reg_W, curvature)
        if not update_H:
            continue
        if beta_loss == 2:
            up, down = X.transposed_products(W).mT, X.totals(W.mT @ W)[0] @ H
            moved = _multiplied(H, up, down + l1_reg_H + l2_reg_H * H)
        else:
            sums, up = W.sum(-2).unsqueeze(-1), torch.zeros_like(H)
            if X.shape[0]:
                up = _updated_once(X.own.transposed, H.mT, W.mT, floor).mT * sums
            sums, up = X.totals(sums, up)
            moved = _lowest(up, sums + l1_reg_H, H.new_full((), l2_reg_H))
        H = torch.cat((H[:, :n_fixed], moved[:, n_fixed:]), dim=1)
    return W, H


def _updated_once(X: Matrix, W: Tensor, H: Tensor, floor: float) -> Tensor:
    """Return W after one update for Kullback-Leibler without a penalty."""
    W, H = W.contiguous(), H.contiguous()
    return X.mu(W, H, beta_loss=1.0, n_iter=1, update_H=False, floor=floor)[0]


def _multiplied(factor: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return factor * (up / down.masked_fill(down == 0, EPSILON))


def _lowest(logarithm: Tensor, line: Tensor, curvature: Tensor) -> Tensor:
    """Return where -logarithm * log(w) + line * w + curvature / 2 * w ** 2 is lowest, w >= 0."""
    below = line + (line.square() + 4 * curvature * logarithm).sqrt()
    return 2 * logarithm / below.masked_fill(below == 0, EPSILON)
