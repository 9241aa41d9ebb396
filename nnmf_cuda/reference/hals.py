"""Hierarchical alternating least squares: coordinate descent, one component at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from nnmf_cuda.reference.nnmf import as_float, nnmf_divergence


def nnmf_hals(
    X: Tensor,
    W: Tensor,
    H: Tensor,
    *,
    n_iter: int,
    n_inner: int = 1,
    update_H: bool = True,
    l1_reg_W: float = 0.0,
    l1_reg_H: float = 0.0,
    l2_reg_W: float = 0.0,
    l2_reg_H: float = 0.0,
    compute_divergence: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `n_iter` iterations, W before H; returns W, H and half the squared error (B,)."""
    X = as_float(X, W.dtype)
    W, H = (t.clone(memory_format=torch.contiguous_format) for t in (W, H))
    for _ in range(n_iter):
        W = _swept(X, W, H, n_inner, l1_reg_W, l2_reg_W)
        if update_H:
            # H^T is to X^T what W is to X, so one formula serves both.
            H = _swept(X.mT, H.mT, W.mT, n_inner, l1_reg_H, l2_reg_H).mT.contiguous()
    if compute_divergence:
        divergence = nnmf_divergence(X, W, H, beta_loss=2.0)
    else:
        divergence = W.new_full((W.shape[0],), torch.nan, dtype=torch.float64)
    return W, H, divergence


def _swept(X: Tensor, W: Tensor, H: Tensor, n_inner: int, l1_reg: float, l2_reg: float) -> Tensor:
    """Sweep `n_inner` times over the columns of W: each to its own minimum, the others fixed."""
    W = W.clone()
    cross = X @ H.mT - l1_reg
    gram = H @ H.mT + l2_reg * torch.eye(H.shape[-2], dtype=H.dtype, device=H.device)
    curvature = gram.diagonal(dim1=-2, dim2=-1)  # (B, k)
    for _ in range(n_inner):
        for t in range(W.shape[-1]):
            hess = curvature[:, t, None]
            gradient = (W @ gram[:, :, t, None]).squeeze(-1) - cross[:, :, t]
            column = (W[:, :, t] - gradient / hess).clamp_min(0)
            W[:, :, t] = torch.where(hess == 0, W[:, :, t], column)
    return W
