"""What multiplicative updates of H divide by."""

from __future__ import annotations

import torch
from torch import Tensor

from nnmf_cuda.nnmf.matrix import Matrix, row_slices


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
    if beta_loss in (1, 2) and not weighted:
        B, n, k = W.shape
        sums = W.new_zeros(B, k, 1 if beta_loss == 1 else k, dtype=torch.float64)
        for rows in row_slices(n, B * k, device=W.device):  # no float64 of all of W
            part = W[:, rows].double()
            sums += part.sum(-2)[..., None] if beta_loss == 1 else part.mT @ part
        return sums
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
