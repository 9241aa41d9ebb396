"""Semi-NMF: X of any sign, made of components of any sign in non-negative amounts."""

from __future__ import annotations

import torch
from torch import Tensor

from nnmf_cuda.nnmf.graph import Graph
from nnmf_cuda.nnmf.matrix import Matrix


def semi_updates(
    X: Matrix,
    W: Tensor,
    H: Tensor,
    *,
    n_iter: int,
    n_sweeps: int = 0,
    update_H: bool = True,
    l1_reg_W: float = 0.0,
    l1_reg_H: float = 0.0,
    l2_reg_W: float = 0.0,
    l2_reg_H: float = 0.0,
    n_fixed: int = 0,
    graph: Graph | None = None,
) -> tuple[Tensor, Tensor]:
    """Return W (B, n, k) >= 0 and H (B, k, f) after `n_iter` iterations, W before H.

    Each lowers half the squared error of W H, plus the penalties and the graph's, in W by the
    update of Ding, Li & Jordan (2010), eq. 11, or by `n_sweeps` sweeps of HALS, which know no
    graph, and in H to its minimum. The first `n_fixed` rows of H are held; an L1 penalty of H has
    no such minimum in closed form and must be 0.
    """
    assert l1_reg_H == 0
    assert n_sweeps == 0 or graph is None
    of_W = {"l1_reg_W": l1_reg_W, "l2_reg_W": l2_reg_W}
    for _ in range(n_iter):
        if n_sweeps:
            W = X.hals(W, H, n_iter=1, n_inner=n_sweeps, update_H=False, **of_W)[0]
        else:
            W = _updated_W(X, W, H, graph=graph, **of_W)
        if update_H:
            H = least_squares_H(X, W, H, l2_reg_H=l2_reg_H, n_fixed=n_fixed)
    return W, H


def _updated_W(
    X: Matrix, W: Tensor, H: Tensor, *, l1_reg_W: float, l2_reg_W: float, graph: Graph | None
) -> Tensor:
    """One update of W by the square root of what pulls at it over what holds it.

    With the parts P - M of X H^T and of H H^T the objective has terms -P and +M: it lies below
    -P W' (1 + log(W / W')) and M (W^2 + W'^2) / 2 W', equal at W', whose minimum this is. An L1
    penalty is bounded as M is; an L2 penalty is W^2 already.
    """
    cross, gram = X.products(H.mT), H @ H.mT
    up = cross.clamp_min(0) + W @ gram.neg().clamp_min(0)
    down = cross.neg().clamp_min(0) + W @ gram.clamp_min(0) + l1_reg_W + l2_reg_W * W
    if graph is not None:
        up, down = up + graph.pull(W), down + graph.hold(W)
    # Without anything to hold an entry there is nothing to pull it: its component is zero.
    return W.where(down == 0, W * (up / down).sqrt())


def least_squares_H(
    X: Matrix, W: Tensor, H: Tensor, *, l2_reg_H: float = 0.0, n_fixed: int = 0
) -> Tensor:
    """Return the H (B, k, f) of any sign that minimises, its first `n_fixed` rows held.

    It is reached by one Newton step from the given H, so that what W does not tell apart stays as
    it was, and the objective cannot rise. Sums are float64: float32 would lose what columns of W
    that are nearly alike differ by.
    """
    if n_fixed == H.shape[1]:
        return H
    wide, free = W.double(), H[:, n_fixed:].double()
    chosen = wide[:, :, n_fixed:]
    cross = X.transposed_products(chosen).mT
    (gram,) = X.totals(chosen.mT @ wide)
    gradient = gram @ H.double() + l2_reg_H * free - cross
    unit = torch.eye(free.shape[1], dtype=wide.dtype, device=W.device)
    curvature = gram[:, :, n_fixed:] + l2_reg_H * unit
    # Decompositions raise for what is not finite; an overflow is the caller's to report.
    finite = curvature.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    inverse = torch.linalg.pinv(curvature.where(finite, unit), hermitian=True)
    moved = (free - inverse @ gradient).where(finite, torch.nan)
    return torch.cat((H[:, :n_fixed], moved.to(H.dtype)), dim=1)
