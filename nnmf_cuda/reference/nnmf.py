"""Multiplicative updates, HALS and the beta-divergence, as scikit-learn defines them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["EPSILON", "nnmf_divergence", "nnmf_hals", "nnmf_mu"]

EPSILON = torch.finfo(torch.float32).eps
"""Floor of W H where it is divided by or raised to a negative power, where no other is given
(scikit-learn's), and what stands for a denominator of zero."""

CLAMP = torch.finfo(torch.float64).eps
"""Factors below this become exact zeros where beta_loss < 1 (W) or beta_loss <= 1 (H)."""


def as_float(X: Tensor, dtype: torch.dtype) -> Tensor:
    """Return X in `dtype`; uint8 is read as pixels, x / 255."""
    return X.to(dtype) / 255 if X.dtype == torch.uint8 else X


def unpacked(weights: Tensor, n_features: int, dtype: torch.dtype) -> Tensor:
    """Return weights as numbers (..., n_features): uint8 holds bits, the first feature lowest."""
    if weights.dtype != torch.uint8:
        return weights
    bits = weights.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=weights.device) & 1
    return bits.flatten(-2)[..., :n_features].to(dtype)


def mm_exponent(beta_loss: float) -> float:
    """Exponent that makes the update monotone (Fevotte & Idier 2011, table 2)."""
    if beta_loss < 1:
        return 1 / (2 - beta_loss)
    if beta_loss > 2:
        return 1 / (beta_loss - 1)
    return 1.0


def nnmf_divergence(
    X: Tensor,
    W: Tensor,
    H: Tensor,
    weights: Tensor | None = None,
    *,
    beta_loss: float,
    floor: float = EPSILON,
) -> Tensor:
    """Beta-divergence of X (n, f) or (B, n, f) from W H, summed in float64; returns (B,).

    Entries of X up to `floor` count as zeros: they add what W H puts there and no logarithm.
    What an entry adds is multiplied by its weight (see `unpacked`); with 0 it is not read.
    """
    X, W, H = as_float(X, W.dtype).double(), W.double(), H.double()
    if weights is None:
        return _divergence_terms(X, W @ H, beta_loss, floor).sum((-2, -1))
    V = unpacked(weights, X.shape[-1], X.dtype).double()
    terms = _divergence_terms(torch.where(V != 0, X, 1), W @ H, beta_loss, floor)
    return torch.where(V != 0, V * terms, 0).sum((-2, -1))


def _divergence_terms(X: Tensor, WH: Tensor, beta_loss: float, floor: float) -> Tensor:
    """Return what each entry of X adds to the divergence, (B, n, f)."""
    if beta_loss == 2:
        return (X - WH).square() / 2
    positive = X > floor
    X = torch.where(positive, X, 0)
    safe = WH.clamp_min(floor)
    # X = ratio W H = (1 + excess) W H: near 1 the ratio leaves only its own rounding.
    ratio = torch.where(positive, X / safe, 1)
    excess = torch.where(positive, (X - safe) / safe, 0)
    log = torch.where(excess.abs() < 0.5, excess.log1p(), ratio.log())
    if beta_loss == 1:
        return torch.where(positive, safe * (ratio * log - excess) + (WH - safe), WH)
    if beta_loss == 0:
        return torch.where(positive, excess - log, -1)
    cross = torch.where(positive, X * safe ** (beta_loss - 1), 0)
    power = torch.where(positive, X**beta_loss, 0)
    total = power - beta_loss * cross + (beta_loss - 1) * WH**beta_loss
    return total / (beta_loss * (beta_loss - 1))


def nnmf_mu(
    X: Tensor,
    W: Tensor,
    H: Tensor,
    active: Tensor | None = None,
    *,
    beta_loss: float,
    n_iter: int,
    update_H: bool = True,
    l1_reg_W: float = 0.0,
    l1_reg_H: float = 0.0,
    l2_reg_W: float = 0.0,
    l2_reg_H: float = 0.0,
    compute_divergence: bool = False,
    floor: float = EPSILON,
    n_fixed: int = 0,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `n_iter` multiplicative updates, W before H; returns W, H and the divergence (B,).

    The first `n_fixed` rows of H stay as they are. `weights` as in `nnmf_divergence`.
    """
    X, V = _weighted(as_float(X, W.dtype), weights)
    VX = X if V is None else V * X
    given = W, H = tuple(t.clone(memory_format=torch.contiguous_format) for t in (W, H))
    for _ in range(n_iter):
        W = _updated(VX, V, W, H, beta_loss, floor, l1_reg_W, l2_reg_W, sums_of_zero=0.0)
        if beta_loss < 1:
            W = W.masked_fill(W < CLAMP, 0)
        if update_H:
            # H^T is to X^T what W is to X, so one formula serves both.
            other, penalties = None if V is None else V.mT, (l1_reg_H, l2_reg_H)
            moved = _updated(
                VX.mT, other, H.mT, W.mT, beta_loss, floor, *penalties, sums_of_zero=1.0
            ).mT
            if beta_loss <= 1:
                moved = moved.masked_fill(moved < CLAMP, 0)
            H = torch.cat((H[:, :n_fixed], moved[:, n_fixed:]), dim=1)
    if active is not None:
        W, H = (torch.where(active[:, None, None], *two) for two in zip((W, H), given, strict=True))
    if compute_divergence:
        divergence = nnmf_divergence(X, W, H, V, beta_loss=beta_loss, floor=floor)
    else:
        divergence = W.new_full((W.shape[0],), torch.nan, dtype=torch.float64)
    return W, H, divergence


def _weighted(X: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return X, with zeros in place of what has no weight, and the weights as numbers."""
    if weights is None:
        return X, None
    V = unpacked(weights, X.shape[-1], X.dtype)
    return torch.where(V != 0, X, 0), V


def _updated(
    VX: Tensor,
    V: Tensor | None,
    W: Tensor,
    H: Tensor,
    beta_loss: float,
    floor: float,
    l1_reg: float,
    l2_reg: float,
    sums_of_zero: float,
) -> Tensor:
    """One update: W * ((V X (WH)^(beta-2)) H^T / ((V (WH)^(beta-1)) H^T + l1 + l2 W))^gamma.

    V, the weights, is None where all are 1.
    """
    if beta_loss == 2:
        numerator = VX @ H.mT
        denominator = W @ (H @ H.mT) if V is None else (V * (W @ H)) @ H.mT
    else:
        WH = W @ H
        safe = WH.clamp_min(floor) if beta_loss < 2 else WH
        if beta_loss == 1:
            numerator = (VX / safe) @ H.mT
            sums = H.sum(-1).unsqueeze(-2) if V is None else V @ H.mT
            denominator = sums.masked_fill(sums == 0, sums_of_zero)
        else:
            numerator = (VX * safe ** (beta_loss - 2)) @ H.mT
            slope = (safe if beta_loss < 1 else WH) ** (beta_loss - 1)
            denominator = (slope if V is None else V * slope) @ H.mT
    if l1_reg > 0:
        denominator = denominator + l1_reg
    if l2_reg > 0:
        denominator = denominator + l2_reg * W
    denominator = denominator.masked_fill(denominator == 0, EPSILON)
    ratio = numerator / denominator
    gamma = mm_exponent(beta_loss)
    return W * (ratio if gamma == 1 else ratio**gamma)


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
    n_fixed: int = 0,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `n_iter` iterations, W before H; returns W, H and half the squared error (B,).

    The first `n_fixed` rows of H stay as they are. `weights` as in `nnmf_divergence`.
    """
    X, V = _weighted(as_float(X, W.dtype), weights)
    W, H = (t.clone(memory_format=torch.contiguous_format) for t in (W, H))
    for _ in range(n_iter):
        W = _swept(X, V, W, H, n_inner, l1_reg_W, l2_reg_W, first=0)
        if update_H:
            # H^T is to X^T what W is to X, so one formula serves both.
            other = None if V is None else V.mT
            Ht = _swept(X.mT, other, H.mT, W.mT, n_inner, l1_reg_H, l2_reg_H, first=n_fixed)
            H = Ht.mT.contiguous()
    if compute_divergence:
        divergence = nnmf_divergence(X, W, H, V, beta_loss=2.0)
    else:
        divergence = W.new_full((W.shape[0],), torch.nan, dtype=torch.float64)
    return W, H, divergence


def _swept(
    X: Tensor,
    V: Tensor | None,
    W: Tensor,
    H: Tensor,
    n_inner: int,
    l1_reg: float,
    l2_reg: float,
    *,
    first: int,
) -> Tensor:
    """Sweep `n_inner` times over W's columns from `first` on: each to its own minimum in turn."""
    W = W.clone()
    if V is not None:
        return _swept_with_weights(X, V, W, H, n_inner, l1_reg, l2_reg, first=first)
    cross = X @ H.mT - l1_reg
    gram = H @ H.mT + l2_reg * torch.eye(H.shape[-2], dtype=H.dtype, device=H.device)
    curvature = gram.diagonal(dim1=-2, dim2=-1)  # (B, k)
    for _ in range(n_inner):
        for t in range(first, W.shape[-1]):
            hess = curvature[:, t, None]
            gradient = (W @ gram[:, :, t, None]).squeeze(-1) - cross[:, :, t]
            column = (W[:, :, t] - gradient / hess).clamp_min(0)
            W[:, :, t] = torch.where(hess == 0, W[:, :, t], column)
    return W


def _swept_with_weights(
    X: Tensor,
    V: Tensor,
    W: Tensor,
    H: Tensor,
    n_inner: int,
    l1_reg: float,
    l2_reg: float,
    *,
    first: int,
) -> Tensor:
    """Change W as `_swept` says: each row has a Gram matrix of its own, which is never formed."""
    curvature = V @ H.square().mT + l2_reg  # (B, n, k)
    residual = V * (X - W @ H)
    for _ in range(n_inner):
        for t in range(first, W.shape[-1]):
            hess, column, h = curvature[:, :, t], W[:, :, t].clone(), H[:, t, :, None]
            gradient = l1_reg + l2_reg * column - (residual @ h).squeeze(-1)
            moved = torch.where(hess == 0, column, (column - gradient / hess).clamp_min(0))
            residual = residual - V * ((moved - column)[:, :, None] * h.mT)
            W[:, :, t] = moved
    return W
