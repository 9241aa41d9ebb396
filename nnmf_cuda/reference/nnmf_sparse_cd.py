"""Coordinate descent for Kullback-Leibler where X is given by its non-zeros, by rows and columns.

With all else fixed, one entry t >= 0 of a row of W has the objective

    f(t) = a t + l2 / 2 t^2 - sum over j of x_j log(wh_j + (t - w) h_j),

a being the sum of H's row over all columns plus l1, j the row's non-zeros, w the entry as it is and
wh_j the entry (W H)_j. Its slope is f'(t) = a + l2 t - phi(t), where phi, a sum of poles
x / (c / h + t), falls and is convex, and 1 / phi is concave. Three things follow:

- The pole p / (q + t) that has phi's value S and slope -D at w, u = S / D = q + w, is nowhere above
  phi. Where it meets a + l2 t, the slope f' is <= 0: that point, `_pole_step`, is not beyond the
  minimum on the way up, and not above it on the way down.
- f' is concave, so that from w down to t, f falls by at least (w - t) (f'(t) + f'(w)) / 2: where
  that is not negative, the step stands. Otherwise pole steps from t lead up to the minimum from
  below.
- t phi(t) rises, so that the multiplicative point, `_multiplicative`, is between the minimum and w.

Kernels may spare what the test costs: phi at t <= w is at most S + D w (w - t) / t (the most that
poles -c / h <= 0 of these S and D can have), with which the step to an unclipped pole step t > 0
stands where t (a + l2 w + r) >= S w, r as in `_pole_step`; without l2 that is t >= half the
multiplicative point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnmf_cuda.reference.nnmf import EPSILON, no_divergence
from nnmf_cuda.reference.nnmf_sparse import Entries, nnmf_sparse_divergence

__all__ = ["nnmf_sparse_cd"]

_TRIALS = 4
"""Points below w that are tried before the multiplicative one is taken."""


@dataclass(frozen=True)
class _Penalised:
    """What a coordinate's slope has beside the sum over the non-zeros, the same in all rows."""

    a: Tensor  # () float64
    l2: float

    def slope(self, t: Tensor, S: Tensor) -> Tensor:
        return self.a + self.l2 * t - S


def nnmf_sparse_cd(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    ccol: Tensor,
    row: Tensor,
    column_values: Tensor,
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
    floor: float = EPSILON,
    n_fixed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run coordinate descent on W (B, n, k), then on H (B, k, f), `n_iter` times.

    Returns both and the divergence (B,). `ccol`, `row` and `column_values` are the CSR of X^T, and
    not read without `update_H`. Each row of W goes `n_inner` times over its coordinates.
    """
    W, H = (t.clone(memory_format=torch.contiguous_format) for t in (W, H))
    by_rows = Entries.of(crow, col, values, H.shape[-1])
    by_columns = Entries.of(ccol, row, column_values, W.shape[1]) if update_H else None
    for b in range(len(W)):  # one problem after another
        w, ht = W[b], H[b].mT.contiguous()
        for _ in range(n_iter):
            w = _swept(by_rows, w, ht, n_inner, l1_reg_W, l2_reg_W, floor, first=0)
            if by_columns is not None:
                ht = _swept(by_columns, ht, w, n_inner, l1_reg_H, l2_reg_H, floor, first=n_fixed)
        W[b], H[b] = w, ht.mT
    if not compute_divergence:
        return W, H, no_divergence(W)
    return W, H, nnmf_sparse_divergence(crow, col, values, W, H, beta_loss=1.0, floor=floor)


def _swept(
    entries: Entries,
    W: Tensor,
    Ht: Tensor,
    n_inner: int,
    l1: float,
    l2: float,
    floor: float,
    *,
    first: int,
) -> Tensor:
    """Return W (n, k) after `n_inner` sweeps over its columns from `first` on; H^T is (f, k)."""
    W = W.clone()
    WH = entries.of_product(W, Ht)
    sums_of_H = Ht.sum(0, dtype=torch.float64) + l1
    for _ in range(n_inner):
        for i in range(first, W.shape[1]):
            h = Ht[:, i][entries.cols]
            coordinate = _Coordinate(entries, h, _Penalised(sums_of_H[i], l2), floor)
            new = coordinate.moved(W[:, i].double(), WH).to(W.dtype)
            WH = WH + (new - W[:, i])[entries.rows] * h
            W[:, i] = new
    return W


@dataclass(frozen=True)
class _Coordinate:
    """One entry of each row of W: its non-zeros with their h, and the rest of its slope."""

    entries: Entries
    h: Tensor  # (n_nonzeros,)
    penalised: _Penalised
    floor: float

    def sums(self, WH: Tensor) -> tuple[Tensor, Tensor]:
        """Return S = sum x h / wh and D = sum x (h / wh)^2 of each row, (n,) float64."""
        ratio = self.h / WH.clamp_min(self.floor)
        terms = self.entries.values * ratio
        zeros = terms.new_zeros(self.entries.shape[0], dtype=torch.float64)
        S, D = (zeros.index_add(0, self.entries.rows, t.double()) for t in (terms, terms * ratio))
        return S, D

    def moved(self, w: Tensor, WH: Tensor) -> Tensor:
        """Return where the entries w (n,) float64 go: no row's objective rises."""
        p, rows = self.penalised, self.entries.rows
        S, D = self.sums(WH)
        fallback = _multiplicative(p, w, S)
        slope = p.slope(w, S)
        t = _pole_step(p, w, S, D)
        # Without a curvature that numbers can hold the pole is not known.
        t = torch.where(t.isnan(), fallback, t)
        if p.a > 0 or p.l2 > 0:
            t = torch.where(S == 0, 0, t)
        else:
            t = torch.where(S == 0, w, t)  # nothing depends on it
        tried = (t < w) & (S > 0)
        for _ in range(_TRIALS):
            if not tried.any():
                break
            # What the sums are where the trials stand.
            at_t = WH + ((t - w)[rows] * self.h.double()).to(WH.dtype)
            S_t, D_t = self.sums(at_t)
            tried = tried & ~(p.slope(t, S_t) + slope >= 0)
            up = _pole_step(p, t, S_t, D_t)
            t = torch.where(tried, torch.where(up.isnan(), fallback, up).minimum(fallback), t)
        return torch.where(tried, fallback, t)


def _pole_step(p: _Penalised, w: Tensor, S: Tensor, D: Tensor) -> Tensor:
    """Return where a + l2 t meets the pole with value S and slope -D at w, or 0; NaN without one.

    With u = S / D and g = S - a - l2 w that is w + 2 u g / (a + l2 (w + u) + r), where
    r = sqrt((a + l2 w - l2 u)^2 + 4 l2 u S).
    """
    u = S / D
    r = torch.hypot(p.a + p.l2 * (w - u), 2 * (p.l2 * u * S).sqrt())
    t = w - 2 * u * p.slope(w, S) / (p.a + p.l2 * (w + u) + r)
    return torch.where(t.isfinite(), t.clamp_min(0), torch.nan)


def _multiplicative(p: _Penalised, w: Tensor, S: Tensor) -> Tensor:
    """Return where a + l2 t meets w S / t; w itself where that is not a number."""
    t = 2 * w * S / (p.a + torch.hypot(p.a, 2 * (p.l2 * w * S).sqrt()))
    return torch.where(t.isfinite(), t, w)
