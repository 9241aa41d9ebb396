"""Multiplicative updates, HALS and the beta-divergence, as scikit-learn defines them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["EPSILON", "PRECISIONS", "nnmf_divergence", "nnmf_hals", "nnmf_mu"]

EPSILON = torch.finfo(torch.float32).eps
"""Floor of W H where it is divided by or raised to a negative power, where no other is given
(scikit-learn's), and what stands for a denominator of zero."""

CLAMP = torch.finfo(torch.float64).eps
"""Factors below this become exact zeros where beta_loss < 1 (W) or beta_loss <= 1 (H)."""


PRECISIONS = ("float32", "tf32x3")
"""How float32 factors may be updated: by multiply-adds, or on tensor cores in TF32 thrice."""


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
        return divergence_terms(X, W @ H, beta_loss, floor).sum((-2, -1))
    V = unpacked(weights, X.shape[-1], X.dtype).double()
    terms = divergence_terms(torch.where(V != 0, X, 1), W @ H, beta_loss, floor)
    return torch.where(V != 0, V * terms, 0).sum((-2, -1))


def divergence_terms(X: Tensor, WH: Tensor, beta_loss: float, floor: float) -> Tensor:
    """Return what each entry of X adds to the divergence, in the shape of W H."""
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
    of_fit = (safe if beta_loss < 0 else WH) ** beta_loss
    total = power - beta_loss * cross + (beta_loss - 1) * of_fit
    return total / (beta_loss * (beta_loss - 1))


def no_divergence(W: Tensor) -> Tensor:
    """Return what stands for the divergence of each problem where nobody asks for it, (B,)."""
    return W.new_full((len(W),), torch.nan, dtype=torch.float64)


class Data(ABC):
    """X (n, f), or a batch of them, by what iterations need of it for W (..., n, k)."""

    @property
    @abstractmethod
    def mT(self) -> Data:
        """X^T. H^T is to it what W is to X, so one formula serves both."""

    @abstractmethod
    def sums(self, W: Tensor, H: Tensor, beta_loss: float, floor: float) -> tuple[Tensor, Tensor]:
        """Return (V X (WH)^(beta-2)) H^T and (V (WH)^(beta-1)) H^T, V being weights or 1."""

    @abstractmethod
    def product(self, right: Tensor) -> Tensor:
        """Return X @ right."""

    def swept(
        self, W: Tensor, H: Tensor, n_inner: int, l1_reg: float, l2_reg: float, *, first: int
    ) -> Tensor:
        """Sweep `n_inner` times over W's columns from `first` on, each to its minimum in turn."""
        W = W.clone()
        cross = self.product(H.mT) - l1_reg
        others = H @ H.mT
        diagonal = others.diagonal(dim1=-2, dim2=-1)
        curvature = diagonal + l2_reg  # (..., k)
        # Where a column was has no part in where it goes: a step from there would miss a minimum
        # at 0 by rounding.
        diagonal.zero_()
        for _ in range(n_inner):
            for t in range(first, W.shape[-1]):
                hess = curvature[..., t, None]
                left = cross[..., t] - (W @ others[..., :, t, None]).squeeze(-1)
                W[..., t] = torch.where(hess == 0, W[..., t], (left / hess).clamp_min(0))
        return W


@dataclass(frozen=True)
class _Dense(Data):
    """X with all its entries, and their weights V; None where all are 1."""

    X: Tensor
    V: Tensor | None

    @classmethod
    def of(cls, X: Tensor, dtype: torch.dtype, weights: Tensor | None) -> _Dense:
        """Return X in `dtype`, with zeros in place of what has no weight."""
        X = as_float(X, dtype)
        if weights is None:
            return cls(X, None)
        V = unpacked(weights, X.shape[-1], dtype)
        return cls(torch.where(V != 0, X, 0), V)

    @property
    def mT(self) -> _Dense:
        return _Dense(self.X.mT, None if self.V is None else self.V.mT)

    def sums(self, W: Tensor, H: Tensor, beta_loss: float, floor: float) -> tuple[Tensor, Tensor]:
        V = self.V
        VX = self.X if V is None else V * self.X
        if beta_loss == 2:
            return VX @ H.mT, W @ (H @ H.mT) if V is None else (V * (W @ H)) @ H.mT
        WH = W @ H
        safe = WH.clamp_min(floor) if beta_loss < 2 else WH
        if beta_loss == 1:
            return (VX / safe) @ H.mT, H.sum(-1).unsqueeze(-2) if V is None else V @ H.mT
        slope = (safe if beta_loss < 1 else WH) ** (beta_loss - 1)
        return (VX * safe ** (beta_loss - 2)) @ H.mT, (slope if V is None else V * slope) @ H.mT

    def product(self, right: Tensor) -> Tensor:
        return self.X @ right

    def swept(
        self, W: Tensor, H: Tensor, n_inner: int, l1_reg: float, l2_reg: float, *, first: int
    ) -> Tensor:
        """Sweep; with weights each row has a Gram matrix of its own, which is never formed."""
        V = self.V
        if V is None:
            return super().swept(W, H, n_inner, l1_reg, l2_reg, first=first)
        W = W.clone()
        curvature = V @ H.square().mT + l2_reg  # (B, n, k)
        residual = V * (self.X - W @ H)
        for _ in range(n_inner):
            for t in range(first, W.shape[-1]):
                hess, column, h = curvature[:, :, t], W[:, :, t].clone(), H[:, t, :, None]
                gradient = l1_reg + l2_reg * column - (residual @ h).squeeze(-1)
                moved = torch.where(hess == 0, column, (column - gradient / hess).clamp_min(0))
                residual = residual - V * ((moved - column)[:, :, None] * h.mT)
                W[:, :, t] = moved
        return W


def mu_iterations(
    X: Data,
    W: Tensor,
    H: Tensor,
    *,
    beta_loss: float,
    floor: float,
    n_iter: int,
    update_H: bool = True,
    l1_reg_W: float = 0.0,
    l1_reg_H: float = 0.0,
    l2_reg_W: float = 0.0,
    l2_reg_H: float = 0.0,
    n_fixed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return W (..., n, k) and H (..., k, f) after `n_iter` multiplicative updates, W before H.

    The first `n_fixed` rows of H stay as they are.
    """
    for _ in range(n_iter):
        W = _updated(X, W, H, beta_loss, floor, l1_reg_W, l2_reg_W, sums_of_zero=0.0)
        if beta_loss < 1:
            W = W.masked_fill(W < CLAMP, 0)
        if update_H:
            moved = _updated(
                X.mT, H.mT, W.mT, beta_loss, floor, l1_reg_H, l2_reg_H, sums_of_zero=1.0
            ).mT
            if beta_loss <= 1:
                moved = moved.masked_fill(moved < CLAMP, 0)
            H = torch.cat((H[..., :n_fixed, :], moved[..., n_fixed:, :]), dim=-2)
    return W, H


def _updated(
    X: Data,
    W: Tensor,
    H: Tensor,
    beta_loss: float,
    floor: float,
    l1_reg: float,
    l2_reg: float,
    sums_of_zero: float,
) -> Tensor:
    """One update: W * (numerator / (denominator + l1 + l2 W))^gamma, of the two `Data.sums`."""
    numerator, denominator = X.sums(W, H, beta_loss, floor)
    if beta_loss == 1:
        denominator = denominator.masked_fill(denominator == 0, sums_of_zero)
    if l1_reg > 0:
        denominator = denominator + l1_reg
    if l2_reg > 0:
        denominator = denominator + l2_reg * W
    denominator = denominator.masked_fill(denominator == 0, EPSILON)
    ratio = numerator / denominator
    gamma = mm_exponent(beta_loss)
    return W * (ratio if gamma == 1 else ratio**gamma)


def nnmf_mu(
    X: Tensor,
    W: Tensor,
    H: Tensor,
    active: Tensor | None = None,
    *,
    beta_loss: float,
    compute_divergence: bool = False,
    floor: float = EPSILON,
    weights: Tensor | None = None,
    precision: str = "float32",
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `mu_iterations` with their options; returns W, H and the divergence (B,).

    Problems where `active` (B,) is False stay as they are. `weights` as in `nnmf_divergence`.
    `precision` is what kernels on a GPU may do; here all is computed in W's type.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    data = _Dense.of(X, W.dtype, weights)
    given = tuple(t.clone(memory_format=torch.contiguous_format) for t in (W, H))
    W, H = mu_iterations(data, *given, beta_loss=beta_loss, floor=floor, **options)
    if active is not None:
        W, H = (torch.where(active[:, None, None], *two) for two in zip((W, H), given, strict=True))
    if not compute_divergence:
        return W, H, no_divergence(W)
    return W, H, nnmf_divergence(data.X, W, H, data.V, beta_loss=beta_loss, floor=floor)


def hals_iterations(
    X: Data,
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
    n_fixed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return W (..., n, k) and H (..., k, f) after `n_iter` iterations, W before H.

    The first `n_fixed` rows of H stay as they are.
    """
    for _ in range(n_iter):
        W = X.swept(W, H, n_inner, l1_reg_W, l2_reg_W, first=0)
        if update_H:
            Ht = X.mT.swept(H.mT, W.mT, n_inner, l1_reg_H, l2_reg_H, first=n_fixed)
            H = Ht.mT.contiguous()
    return W, H


def nnmf_hals(
    X: Tensor,
    W: Tensor,
    H: Tensor,
    *,
    compute_divergence: bool = False,
    weights: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `hals_iterations` with their options; returns W, H and half the squared error (B,).

    `weights` as in `nnmf_divergence`.
    """
    data = _Dense.of(X, W.dtype, weights)
    W, H = (t.clone(memory_format=torch.contiguous_format) for t in (W, H))
    W, H = hals_iterations(data, W, H, **options)
    if not compute_divergence:
        return W, H, no_divergence(W)
    return W, H, nnmf_divergence(data.X, W, H, data.V, beta_loss=2.0)
