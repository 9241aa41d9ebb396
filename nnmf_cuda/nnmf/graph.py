"""Graphs over samples, the penalty that keeps W alike along their edges, and updates under it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import scipy.sparse
import torch
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
    A is the product of `factors`, sparse CSR float64, never multiplied out.
    """

    factors: Sequence[Tensor]
    strength: float

    @classmethod
    def of_matrix(cls, matrix: Any, n_samples: int, strength: float, device: torch.device) -> Self:
        """Return the graph of a user's matrix of weights, checked."""
        weights = _as_csr(matrix)
        if weights.shape != (n_samples, n_samples):
            raise ValueError(
                f"graph has shape {weights.shape}, but X has {n_samples} samples: give a weight "
                f"for each pair of them, ({n_samples}, {n_samples})"
            )
        if not np.isfinite(weights.data).all() or (weights.data < 0).any():
            raise ValueError(
                "graph must have finite weights >= 0, 0 or nothing where two samples are not joined"
            )
        largest = weights.data.max(initial=0)
        if abs(weights - weights.T).max() > _ASYMMETRY * largest:
            raise ValueError(
                "graph must be symmetric: give graph.maximum(graph.T), which joins two samples "
                "where one is a neighbour of the other"
            )
        return cls((_as_tensor(weights, device),), strength)

    @classmethod
    def of_labels(cls, y: Any, n_samples: int, strength: float, device: torch.device) -> Self:
        """Return the graph that joins all samples of a class, by 1 / (size of the class).

        The penalty is then half the scatter of W within classes, times the strength. Samples of
        the label -1 are joined to none.
        """
        labels = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
        if labels.shape != (n_samples,):
            raise ValueError(
                f"y has shape {labels.shape}, but graph='labels' needs one label for each of the "
                f"{n_samples} samples of X, {UNLABELLED} where there is none"
            )
        if labels.dtype.kind == "f" and np.isnan(labels).any():
            raise ValueError(f"y contains NaN; the label of a sample without one is {UNLABELLED}")
        known = np.flatnonzero(labels != UNLABELLED)
        names, classes, sizes = np.unique(labels[known], return_inverse=True, return_counts=True)
        member = scipy.sparse.csr_array(
            (np.ones(len(known)), (known, classes)), shape=(n_samples, len(names))
        )
        average = scipy.sparse.csr_array(
            (1 / sizes[classes], (classes, known)), shape=(len(names), n_samples)
        )
        return cls((_as_tensor(member, device), _as_tensor(average, device)), strength)

    @cached_property
    def degrees(self) -> Tensor:
        """The row sums of A, (n, 1)."""
        last = self.factors[-1]
        return self._times(torch.ones(last.shape[1], 1, dtype=last.dtype, device=last.device))

    def _times(self, right: Tensor) -> Tensor:
        for factor in reversed(self.factors):
            right = factor @ right
        return right

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

    def value(self, W: Tensor) -> Tensor:
        """Return the penalty of each start of W (B, n, k): (B,) float64."""
        wide = W.double()
        differences = wide * (self.degrees * wide - self._around(W))
        # Rounding may leave less than nothing of neighbours that are all alike.
        return self.strength / 2 * differences.sum((1, 2)).clamp_min(0)

    def digest(self) -> str:
        """Return what tells the graph from others."""
        sha256 = hashlib.sha256()
        for factor in self.factors:
            for part in (factor.crow_indices(), factor.col_indices(), factor.values()):
                sha256.update(part.cpu().numpy().tobytes())
        return sha256.hexdigest()[:16]


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
            up, down = X.transposed_products(W).mT, (W.mT @ W) @ H
            moved = _multiplied(H, up, down + l1_reg_H + l2_reg_H * H)
        else:
            sums = W.sum(-2).unsqueeze(-1)
            up = _updated_once(X.transposed, H.mT, W.mT, floor).mT * sums
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
