"""The updates and the divergence of `nnmf.py` where X is given by its non-zeros alone.

X comes as torch's CSR has it: `crow` (n + 1,), `col` and `values` (n_nonzeros,). For Frobenius and
Kullback-Leibler nothing of X's size is ever made: numerators are sums over non-zeros, denominators
sums of a factor. For other beta, W H exists for a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nnmf_cuda.reference.nnmf import CLAMP, EPSILON, mm_exponent

__all__ = ["nnmf_sparse_divergence", "nnmf_sparse_hals", "nnmf_sparse_mu"]

_BLOCK_ENTRIES = 2**20
"""Numbers that are in memory together beside X and the factors."""


@dataclass(frozen=True)
class _Entries:
    """The non-zeros of X, by their places; `shape` is X's."""

    rows: Tensor
    cols: Tensor
    values: Tensor
    shape: tuple[int, int]

    @property
    def mT(self) -> _Entries:
        return _Entries(self.cols, self.rows, self.values, self.shape[::-1])

    def blocks(self, k: int) -> Iterator[_Entries]:
        """Give the same entries, few enough at a time for k numbers of each."""
        size = max(1, _BLOCK_ENTRIES // max(1, k))
        for begin in range(0, len(self.values), size):
            part = slice(begin, begin + size)
            yield _Entries(self.rows[part], self.cols[part], self.values[part], self.shape)

    def of_product(self, W: Tensor, Ht: Tensor) -> Tensor:
        """Return W H at the places of the entries."""
        parts = [(W[e.rows] * Ht[e.cols]).sum(1) for e in self.blocks(W.shape[1])]
        return torch.cat(parts) if parts else W.new_zeros(0)


def _entries_of(crow: Tensor, col: Tensor, values: Tensor, n_features: int) -> _Entries:
    rows = torch.arange(len(crow) - 1, device=col.device).repeat_interleave(crow.diff())
    return _Entries(rows, col.long(), values, (len(crow) - 1, n_features))


def nnmf_sparse_divergence(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    W: Tensor,
    H: Tensor,
    *,
    beta_loss: float,
    floor: float = EPSILON,
) -> Tensor:
    """Beta-divergence of X from W H, W (B, n, k), H (B, k, f), summed in float64; returns (B,).

    What W H puts where X is zero is its sum over all places less that over the stored ones.
    """
    entries = _entries_of(crow, col, values.double(), H.shape[-1])
    return torch.stack(
        [
            _divergence(entries, w.double(), h.double(), beta_loss, floor)
            for w, h in zip(W, H, strict=True)
        ]
        or [W.new_zeros((0,), dtype=torch.float64)]
    ).reshape(len(W))


def _divergence(entries: _Entries, W: Tensor, H: Tensor, beta_loss: float, floor: float) -> Tensor:
    x, WH = entries.values, entries.of_product(W, H.mT)
    if beta_loss == 2:
        squares = ((W.mT @ W) * (H @ H.mT)).sum() - WH.square().sum()
        return ((x - WH).square().sum() + squares.clamp_min(0)) / 2
    positive = x > floor
    x, WH = x[positive], WH[positive]
    safe = WH.clamp_min(floor)
    # X = ratio W H = (1 + excess) W H: near 1 the ratio leaves only its own rounding.
    ratio, excess = x / safe, (x - safe) / safe
    log = torch.where(excess.abs() < 0.5, excess.log1p(), ratio.log())
    if beta_loss == 1:
        elsewhere = W.sum(0) @ H.sum(1) - WH.sum()
        at_entries = safe * (ratio * log - excess) + (WH - safe)
        return at_entries.sum() + elsewhere.clamp_min(0)
    if beta_loss == 0:
        n_zeros = entries.shape[0] * entries.shape[1] - len(x)
        return (excess - log).sum() - n_zeros
    total = (x**beta_loss - beta_loss * x * safe ** (beta_loss - 1)).sum()
    for rows in _row_blocks(W, H.shape[1]):
        total = total + (beta_loss - 1) * ((rows @ H) ** beta_loss).sum()
    return total / (beta_loss * (beta_loss - 1))


def nnmf_sparse_mu(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `n_iter` multiplicative updates; all as in `nnmf_mu`, the non-zeros standing for X."""
    W, H = (t.clone(memory_format=torch.contiguous_format) for t in (W, H))
    entries = _entries_of(crow, col, values, H.shape[-1])
    for b in range(len(W)):
        if active is not None and not bool(active[b]):
            continue
        w, ht = W[b], H[b].mT
        for _ in range(n_iter):
            w = _updated(entries, w, ht, beta_loss, floor, l1_reg_W, l2_reg_W, sums_of_zero=0.0)
            if beta_loss < 1:
                w = w.masked_fill(w < CLAMP, 0)
            if update_H:
                moved = _updated(
                    entries.mT, ht, w, beta_loss, floor, l1_reg_H, l2_reg_H, sums_of_zero=1.0
                )
                if beta_loss <= 1:
                    moved = moved.masked_fill(moved < CLAMP, 0)
                ht = torch.cat((ht[:, :n_fixed], moved[:, n_fixed:]), dim=1)
        W[b], H[b] = w, ht.mT
    return W, H, _final(crow, col, values, W, H, compute_divergence, beta_loss, floor)


def _updated(
    entries: _Entries,
    W: Tensor,
    Ht: Tensor,
    beta_loss: float,
    floor: float,
    l1_reg: float,
    l2_reg: float,
    sums_of_zero: float,
) -> Tensor:
    """One update: W * ((X (WH)^(beta-2)) H^T / ((WH)^(beta-1) H^T + l1 + l2 W))^gamma."""
    numerator = _numerator(entries, W, Ht, beta_loss, floor)
    if beta_loss == 2:
        denominator = W @ (Ht.mT @ Ht)
    elif beta_loss == 1:
        sums = Ht.sum(0)
        denominator = sums.masked_fill(sums == 0, sums_of_zero).expand_as(W)
    else:
        parts = [
            (WH.clamp_min(floor) if beta_loss < 1 else WH) ** (beta_loss - 1) @ Ht
            for WH in (rows @ Ht.mT for rows in _row_blocks(W, len(Ht)))
        ]
        denominator = torch.cat(parts) if parts else torch.zeros_like(W)
    if l1_reg > 0:
        denominator = denominator + l1_reg
    if l2_reg > 0:
        denominator = denominator + l2_reg * W
    denominator = denominator.masked_fill(denominator == 0, EPSILON)
    ratio = numerator / denominator
    gamma = mm_exponent(beta_loss)
    return W * (ratio if gamma == 1 else ratio**gamma)


def _numerator(entries: _Entries, W: Tensor, Ht: Tensor, beta_loss: float, floor: float) -> Tensor:
    """Return (X (WH)^(beta-2)) H^T, summed over the non-zeros of each row."""
    numerator = torch.zeros_like(W)
    for e in entries.blocks(W.shape[1]):
        right, terms = Ht[e.cols], e.values
        if beta_loss != 2:
            WH = (W[e.rows] * right).sum(1)
            safe = WH.clamp_min(floor) if beta_loss < 2 else WH
            terms = terms / safe if beta_loss == 1 else terms * safe ** (beta_loss - 2)
        numerator.index_add_(0, e.rows, terms.unsqueeze(1) * right)
    return numerator


def nnmf_sparse_hals(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `n_iter` iterations; all as in `nnmf_hals`, the non-zeros standing for X."""
    W, H = (t.clone(memory_format=torch.contiguous_format) for t in (W, H))
    entries = _entries_of(crow, col, values, H.shape[-1])
    for w, h in zip(W, H, strict=True):  # one problem after another, in place
        for _ in range(n_iter):
            _sweep(entries, w, h.mT, n_inner, l1_reg_W, l2_reg_W, first=0)
            if update_H:
                _sweep(entries.mT, h.mT, w, n_inner, l1_reg_H, l2_reg_H, first=n_fixed)
    return W, H, _final(crow, col, values, W, H, compute_divergence, 2.0, EPSILON)


def _sweep(
    entries: _Entries,
    W: Tensor,
    Ht: Tensor,
    n_inner: int,
    l1_reg: float,
    l2_reg: float,
    *,
    first: int,
) -> None:
    """Sweep `n_inner` times over W's columns from `first` on: each to its own minimum in turn."""
    cross = _numerator(entries, W, Ht, 2.0, EPSILON) - l1_reg
    gram = Ht.mT @ Ht + l2_reg * torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
    for _ in range(n_inner):
        for t in range(first, W.shape[1]):
            column = (W[:, t] - (W @ gram[:, t] - cross[:, t]) / gram[t, t]).clamp_min(0)
            W[:, t] = torch.where(gram[t, t] == 0, W[:, t], column)


def _row_blocks(W: Tensor, n_features: int) -> tuple[Tensor, ...]:
    """Return W's rows, few enough at a time for their W H."""
    blocks: tuple[Tensor, ...] = W.split(max(1, _BLOCK_ENTRIES // max(1, n_features)))
    return blocks


def _final(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    W: Tensor,
    H: Tensor,
    compute_divergence: bool,
    beta_loss: float,
    floor: float,
) -> Tensor:
    if compute_divergence:
        return nnmf_sparse_divergence(crow, col, values, W, H, beta_loss=beta_loss, floor=floor)
    return W.new_full((len(W),), torch.nan, dtype=torch.float64)
