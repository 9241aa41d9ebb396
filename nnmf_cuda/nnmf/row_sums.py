"""Sums over the rows of X by which H is updated: denominators, and the normal equations."""

from __future__ import annotations

import torch
from torch import Tensor

from nnmf_cuda.nnmf.matrix import Dense, Matrix, row_slices

_BLOCK_ENTRIES = 2**19
"""Entries of X that are turned into floating point together: more cost less, until they leave the
cache."""


def denominators_of_H(
    X: Matrix, W: Tensor, H: Tensor, *, beta_loss: float, floor: float, weighted: bool
) -> Tensor:
    """Return W^T (V (W H)^(beta - 1)) of W (B, n, k) and H (B, k, f): (B, k, f) float64.

    V are the weights of X if `weighted`, else all 1. Sums are over all rows. They are 0 where
    those say nothing of H.
    """
    terms = row_terms(X, W, H, beta_loss=beta_loss, floor=floor, weighted=weighted)
    return times_H(X.totals(terms)[0], H, beta_loss=beta_loss, weighted=weighted)


def row_terms(
    X: Matrix, W: Tensor, H: Tensor, *, beta_loss: float, floor: float, weighted: bool
) -> Tensor:
    """Return what of the denominators is a sum over rows, of those of this process, float64.

    That is W summed (B, k, 1) for Kullback-Leibler and W^T W (B, k, k) for the Frobenius norm,
    both not `weighted`, else the denominators.
    """
    if beta_loss == 1 and not weighted:
        return W.sum(-2, dtype=torch.float64)[..., None]
    if beta_loss == 2 and not weighted:
        wide = W.double()
        return wide.mT @ wide
    total = torch.zeros_like(H, dtype=torch.float64)
    for rows in row_slices(W.shape[1], len(H) * H.shape[2], device=H.device):
        part = W[:, rows]
        WH = part @ H
        slope = (WH.clamp_min(floor) if beta_loss < 1 else WH) ** (beta_loss - 1)
        weights = X.weights_of(rows, H.dtype) if weighted else None
        total += part.mT @ (slope if weights is None else weights * slope)
    return total


def times_H(terms: Tensor, H: Tensor, *, beta_loss: float, weighted: bool) -> Tensor:
    """Return the denominators (B, k, f) float64 of the sums of `row_terms`."""
    if beta_loss == 2 and not weighted:
        return terms @ H.double()
    return terms.expand(H.shape)


def normal_equations(X: Matrix, W: Tensor, *, weighted: bool) -> tuple[Tensor, Tensor]:
    """Return W^T (V X) (B, k, f) and the Gram matrices of W (B, n, k), both float64.

    V are the weights of X. There is one Gram matrix, W^T W (B, 1, k, k); if `weighted`, each column
    j of X has one of its own, W^T diag(V_j) W: (B, f, k, k). Of dense X what is summed over a few
    rows is in W's type, as in the kernels.
    """
    (B, _, k), f = W.shape, X.shape[1]
    wide = W.double()
    gram = wide.new_zeros(B, f, k * k) if weighted else (wide.mT @ wide)[:, None]
    if not isinstance(X, Dense):
        return X.transposed_products(wide).mT, gram
    cross = wide.new_zeros(B, k, f)
    for rows, block in X.blocks_as(W.dtype, _BLOCK_ENTRIES):
        weights = X.weights_of(rows, W.dtype) if weighted else None
        cross += W[:, rows].mT @ (block if weights is None else weights * block)
        if weighted:
            of_rows = torch.ones_like(block) if weights is None else weights
            part = wide[:, rows]
            gram += of_rows.mT.double() @ (part[..., None] * part[..., None, :]).flatten(2)
    return cross / X.unit, gram.reshape(B, -1, k, k)


def swept(
    H: Tensor, cross: Tensor, gram: Tensor, l2_reg: float, *, n_sweeps: int, n_fixed: int
) -> Tensor:
    """Return H (B, k, f) after sweeps over its rows, each to its minimum in turn.

    `cross` and `gram` are those of `normal_equations`, `cross` less the L1 penalty. The first
    `n_fixed` rows are held. Computed in float64, as the kernels do.
    """
    wide = H.double().clone()
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    curvature = (diagonal + l2_reg).mT  # (B, k, f or 1)
    others = gram - torch.diag_embed(diagonal)
    for _ in range(n_sweeps):
        for t in range(n_fixed, H.shape[1]):
            # A sum over components for each column, in an order of its own on each device.
            taken = (others[:, :, t].mT * wide).sum(1)
            hess = curvature[:, t]
            moved = ((cross[:, t] - taken) / hess).clamp_min(0)
            wide[:, t] = torch.where(hess == 0, wide[:, t], moved)
    return wide.to(H.dtype)
