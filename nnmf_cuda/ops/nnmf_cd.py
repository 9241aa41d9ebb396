"""Coordinate descent for Kullback-Leibler on sparse X: `nnmf_cd`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nnmf_cuda.ops._schema import (
    LIBRARY,
    raise_in_backward,
    require_count,
    require_dtype,
    require_same_device,
    require_shape,
    serving,
)
from nnmf_cuda.ops.nnmf import check_floor, run_solver
from nnmf_cuda.ops.nnmf_sparse import REMEDY, is_sparse, transposed_parts, unfilled
from nnmf_cuda.reference import EPSILON

__all__ = ["nnmf_cd"]


def nnmf_cd(
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
    floor: float = EPSILON,
    n_fixed: int = 0,
    transposed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run coordinate descent for Kullback-Leibler on one or many factorisations X ~= W @ H.

    Each entry of a row of W in turn goes towards its own minimum with all else fixed, `n_inner`
    times over; then each column of H. The objective never rises, but for rounding and by what
    entries of W H below `floor` may add. All iterations are run: there is no convergence test (see
    `nnmf_cuda.NNMF` for one).

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Non-negative counts in torch's sparse CSR, of W's dtype, as in `nnmf_mu`. Dense X has no
        such kernel: use ``X.to_sparse_csr()``, or `nnmf_mu`.
    W, H : Tensor
        As in `nnmf_mu`. Zeros of a start can become positive.
    n_iter : int
        Number of iterations.
    n_inner : int, default=1
        Sweeps over a row of W, or a column of H, before the next is visited.
    update_H : bool, default=True
        False keeps H and updates W alone.
    l1_reg_W, l1_reg_H, l2_reg_W, l2_reg_H : float, default=0
        Penalties: l1 * sum(factor) + l2 / 2 * sum(factor ** 2) is added to what is lowered.
    compute_divergence : bool, default=False
        Whether to return the divergence of the final factors.
    floor : float, default=EPSILON
        Lower bound of W H where it is divided by, as in `nnmf_mu`. Divided by twice: where
        X (H / floor)^2 is beyond W's type, as for X around 1e12 in float32, rows whose W H is 0
        stay as they are unless it is larger.
    n_fixed : int, default=0
        The first `n_fixed` rows of H stay as they are, while their columns of W are updated.
    transposed : Tensor of shape (n_features, n_samples), optional
        X^T in CSR, with indices of X's type, for who calls often; made in every call that updates H
        if not given. That it is X^T is not checked.

    Returns
    -------
    W, H, divergence : Tensor
        As from `nnmf_mu`; the divergence with ``beta_loss=1``.

    Raises
    ------
    TypeError, ValueError
        If X is dense, dtypes, shapes or devices disagree, a penalty is negative, the floor too low
        or `n_fixed` above n_components.

    Notes
    -----
    With S = sum x h / wh and D = sum x h^2 / wh^2 over the non-zeros x of a row, h a row of H there
    and wh what W H is, and a the sum of that row of H plus l1, an entry w goes to
    max(0, w + (S / D) (S - a) / a); with l2 to the root of a quadratic in its place. Upwards that
    is longer than Newton's step [1]_ and never beyond the minimum; where a step down cannot be
    shown to lower the objective, it is shortened. O(n_nonzeros n_components) per sweep and factor;
    beside X^T and the factors each thread holds the columns of H that a row of X needs. Not
    differentiable: backward raises.

    References
    ----------
    .. [1] Hsieh & Dhillon (2011), Fast coordinate descent methods with variable selection for
       non-negative matrix factorization, KDD.
    .. [2] Carbonetto et al. (2021), Non-negative matrix factorization algorithms greatly improve
       topic model fits, arXiv 2105.13440.

    Examples
    --------
    >>> X = torch.poisson(torch.rand(100, 64)).to_sparse_csr()
    >>> W, H, divergence = nnmf_cd(
    ...     X, torch.rand(100, 5), torch.rand(5, 64), n_iter=20, compute_divergence=True
    ... )
    """
    check_floor(floor, W)
    require_count("n_inner", n_inner, low=1)

    def serving_factors(W: Tensor, H: Tensor) -> Callable[..., Any]:
        if not is_sparse(X):
            raise TypeError(
                "nnmf_cd takes X in torch.sparse_csr only, got a dense tensor: use "
                "X.to_sparse_csr(), or nnmf_mu"
            )
        by_rows = X.crow_indices(), X.col_indices(), X.values()
        if update_H and transposed is not None:
            by_columns = _parts(transposed, X)
        else:
            by_columns = transposed_parts(X, empty=not update_H)
        return partial(serving("nnmf_sparse_cd", X.values(), W, H), *by_rows, *by_columns)

    return run_solver(
        X,
        W,
        H,
        n_iter,
        n_fixed,
        (l1_reg_W, l1_reg_H, l2_reg_W, l2_reg_H),
        serving_factors,
        n_inner=n_inner,
        update_H=update_H,
        compute_divergence=compute_divergence,
        floor=floor,
    )


def _parts(transposed: Tensor, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three tensors of what is given as X^T."""
    if not (isinstance(transposed, Tensor) and is_sparse(transposed)):
        what = transposed.layout if isinstance(transposed, Tensor) else type(transposed).__name__
        raise TypeError(f"transposed must be torch.sparse_csr, as X, got {what}")
    require_dtype("transposed", transposed, (X.dtype,))
    require_same_device(X=X, transposed=transposed)
    require_shape("transposed", transposed, (X.shape[1], X.shape[0]), "(n_features, n_samples)")
    parts = transposed.crow_indices(), transposed.col_indices(), transposed.values()
    if len(parts[2]) != len(X.values()):
        raise ValueError(
            f"transposed must have as many values as X, {len(X.values())}, got {len(parts[2])}"
        )
    index = X.col_indices().dtype
    if parts[1].dtype != index:
        raise TypeError(f"transposed must have indices of X's type, {index}, got {parts[1].dtype}")
    return parts


@torch.library.register_fake("nnmf_cuda::nnmf_sparse_cd", lib=LIBRARY)
def _(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    ccol: Tensor,
    row: Tensor,
    column_values: Tensor,
    W: Tensor,
    H: Tensor,
    **_options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return unfilled(W, H)


raise_in_backward("nnmf_sparse_cd", REMEDY)
