"""The updates and the divergence of `nnmf.py` where X is given by its non-zeros alone.

X comes as torch's CSR has it: `crow` (n + 1,), `col` and `values` (n_nonzeros,). For Frobenius and
Kullback-Leibler nothing of X's size is ever made: numerators are sums over non-zeros, denominators
sums of a factor. For other beta, W H exists for a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnmf_cuda.reference.nnmf import (
    EPSILON,
    Data,
    divergence_terms,
    hals_iterations,
    mu_iterations,
    no_divergence,
)

__all__ = ["nnmf_sparse_divergence", "nnmf_sparse_hals", "nnmf_sparse_mu"]

_BLOCK_ENTRIES = 2**20
"""Numbers that are in memory together beside X and the factors."""


@dataclass(frozen=True)
class Entries(Data):
    """The non-zeros of X, by their places; `shape` is X's. Factors are those of one problem."""

    rows: Tensor
    cols: Tensor
    values: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, crow: Tensor, col: Tensor, values: Tensor, n_features: int) -> Entries:
        """Return those of a matrix in CSR."""
        rows = torch.arange(len(crow) - 1, device=col.device).repeat_interleave(crow.diff())
        return cls(rows, col.long(), values, (len(crow) - 1, n_features))

    @property
    def mT(self) -> Entries:
        return Entries(self.cols, self.rows, self.values, self.shape[::-1])

    def blocks(self, k: int) -> Iterator[Entries]:
        """Give the same entries, few enough at a time for k numbers of each."""
        size = max(1, _BLOCK_ENTRIES // max(1, k))
        for begin in range(0, len(self.values), size):
            part = slice(begin, begin + size)
            yield Entries(self.rows[part], self.cols[part], self.values[part], self.shape)

    def of_product(self, W: Tensor, Ht: Tensor) -> Tensor:
        """Return W H at the places of the entries."""
        parts = [(W[e.rows] * Ht[e.cols]).sum(1) for e in self.blocks(W.shape[1])]
        return torch.cat(parts) if parts else W.new_zeros(0)

    def sums(self, W: Tensor, H: Tensor, beta_loss: float, floor: float) -> tuple[Tensor, Tensor]:
        if beta_loss == 2:
            return self.product(H.mT), W @ (H @ H.mT)
        W, Ht = W.contiguous(), H.mT.contiguous()  # of which rows are gathered
        numerator = torch.zeros_like(W)
        for e in self.blocks(W.shape[1]):
            right = Ht[e.cols]
            WH = (W[e.rows] * right).sum(1)
            safe = WH.clamp_min(floor) if beta_loss < 2 else WH
            terms = e.values / safe if beta_loss == 1 else e.values * safe ** (beta_loss - 2)
            numerator.index_add_(0, e.rows, terms.unsqueeze(1) * right)
        if beta_loss == 1:
            return numerator, Ht.sum(0)
        parts = [
            (WH.clamp_min(floor) if beta_loss < 1 else WH) ** (beta_loss - 1) @ Ht
            for WH in (rows @ H for rows in _row_blocks(W, len(Ht)))
        ]
        return numerator, torch.cat(parts) if parts else torch.zeros_like(W)

    def product(self, right: Tensor) -> Tensor:
        right = right.contiguous()
        result = right.new_zeros(self.shape[0], right.shape[1])
        for e in self.blocks(right.shape[1]):
            result.index_add_(0, e.rows, e.values.unsqueeze(1) * right[e.cols])
        return result


def _row_blocks(W: Tensor, n_features: int) -> tuple[Tensor, ...]:
    """Return W's rows, few enough at a time for their W H."""
    blocks: tuple[Tensor, ...] = W.split(max(1, _BLOCK_ENTRIES // max(1, n_features)))
    return blocks


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
    entries = Entries.of(crow, col, values.double(), H.shape[-1])
    return torch.stack(
        [
            _divergence(entries, w.double(), h.double(), beta_loss, floor)
            for w, h in zip(W, H, strict=True)
        ]
        or [W.new_zeros((0,), dtype=torch.float64)]
    ).reshape(len(W))


def _divergence(entries: Entries, W: Tensor, H: Tensor, beta_loss: float, floor: float) -> Tensor:
    x, WH = entries.values, entries.of_product(W, H.mT)
    if beta_loss == 2:
        squares = ((W.mT @ W) * (H @ H.mT)).sum() - WH.square().sum()
        return ((x - WH).square().sum() + squares.clamp_min(0)) / 2
    positive = x > floor
    x, WH = x[positive], WH[positive]
    if beta_loss == 0:
        n_zeros = entries.shape[0] * entries.shape[1] - len(x)
        return divergence_terms(x, WH, beta_loss, floor).sum() - n_zeros
    if beta_loss == 1:
        elsewhere = W.sum(0) @ H.sum(1) - WH.sum()
        return divergence_terms(x, WH, beta_loss, floor).sum() + elsewhere.clamp_min(0)
    safe = WH.clamp_min(floor)
    total = (x**beta_loss - beta_loss * x * safe ** (beta_loss - 1)).sum()
    lowest = floor if beta_loss < 0 else 0.0
    for rows in _row_blocks(W, H.shape[1]):
        total = total + (beta_loss - 1) * ((rows @ H).clamp_min(lowest) ** beta_loss).sum()
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
    compute_divergence: bool = False,
    floor: float = EPSILON,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run multiplicative updates; all as in `nnmf_mu`, the non-zeros standing for X."""
    W, H = (t.clone(memory_format=torch.contiguous_format) for t in (W, H))
    entries = Entries.of(crow, col, values, H.shape[-1])
    options |= {"beta_loss": beta_loss, "floor": floor}
    for b in range(len(W)):
        if active is None or bool(active[b]):
            W[b], H[b] = mu_iterations(entries, W[b], H[b], **options)
    if not compute_divergence:
        return W, H, no_divergence(W)
    return W, H, nnmf_sparse_divergence(crow, col, values, W, H, beta_loss=beta_loss, floor=floor)


def nnmf_sparse_hals(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    W: Tensor,
    H: Tensor,
    *,
    compute_divergence: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run alternating least squares; all as in `nnmf_hals`, the non-zeros standing for X."""
    W, H = (t.clone(memory_format=torch.contiguous_format) for t in (W, H))
    entries = Entries.of(crow, col, values, H.shape[-1])
    for b in range(len(W)):  # one problem after another
        W[b], H[b] = hals_iterations(entries, W[b], H[b], **options)
    if not compute_divergence:
        return W, H, no_divergence(W)
    return W, H, nnmf_sparse_divergence(crow, col, values, W, H, beta_loss=2.0)
