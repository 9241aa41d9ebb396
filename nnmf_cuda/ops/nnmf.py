"""Non-negative matrix factorisation: `nnmf_mu`, `nnmf_hals` and `nnmf_divergence`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nnmf_cuda.ops._schema import (
    FLOATS,
    LIBRARY,
    raise_in_backward,
    require_count,
    require_dims,
    require_dtype,
    require_non_negative,
    require_same_device,
    require_shape,
    require_tensor,
    serving,
)
from nnmf_cuda.ops.nnmf_sparse import is_sparse, require_data, serving_data, unfilled
from nnmf_cuda.ops.nnmf_weights import require_weights
from nnmf_cuda.reference import EPSILON

__all__ = ["EPSILON", "beta_loss_to_float", "nnmf_divergence", "nnmf_hals", "nnmf_mu"]

_BETA_LOSSES = {"frobenius": 2.0, "kullback-leibler": 1.0, "itakura-saito": 0.0}
_PENALTIES = ("l1_reg_W", "l1_reg_H", "l2_reg_W", "l2_reg_H")


def beta_loss_to_float(beta_loss: float | str) -> float:
    """Return the number behind 'frobenius' (2), 'kullback-leibler' (1), 'itakura-saito' (0)."""
    if isinstance(beta_loss, str):
        if beta_loss not in _BETA_LOSSES:
            known = ", ".join(map(repr, _BETA_LOSSES))
            raise ValueError(f"beta_loss must be a number or one of {known}, got {beta_loss!r}")
        return _BETA_LOSSES[beta_loss]
    try:
        finite = math.isfinite(beta_loss)
    except TypeError as error:
        raise TypeError(f"beta_loss must be a number or a name, got {beta_loss!r}") from error
    if not finite:
        raise ValueError(f"beta_loss must be finite, got {beta_loss}")
    return float(beta_loss)


def nnmf_mu(
    X: Tensor,
    W: Tensor,
    H: Tensor,
    *,
    beta_loss: float | str = "kullback-leibler",
    n_iter: int,
    update_H: bool = True,
    l1_reg_W: float = 0.0,
    l1_reg_H: float = 0.0,
    l2_reg_W: float = 0.0,
    l2_reg_H: float = 0.0,
    compute_divergence: bool = False,
    active: Tensor | None = None,
    floor: float = EPSILON,
    n_fixed: int = 0,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run multiplicative updates on one or many factorisations X ~= W @ H.

    W is updated before H in each iteration. All iterations are run: there is no convergence test
    (see `nnmf_cuda.NNMF` for one).

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features) or (B, n_samples, n_features)
        Non-negative data, of W's dtype, or uint8 read as pixels (x / 255). Two-dimensional X is
        shared by all problems of the batch. Signs are not checked. Or one matrix in torch's sparse
        CSR, of W's dtype, which is never made dense; its columns ascend within a row, each there
        once, as torch requires without checking it (`coalesce` of COO sums what is there twice).
        Kernels on the CPU check that and raise RuntimeError. On CUDA nothing does: indices out of
        range read and write memory of others (`torch.sparse.check_sparse_tensor_invariants` checks
        where a tensor is made, and `NNMF` what it is given).
    W : Tensor of shape (n_samples, n_components) or (B, n_samples, n_components)
        Non-negative start, float32 or float64.
    H : Tensor of shape (n_components, n_features) or (B, n_components, n_features)
        Non-negative start, same dtype, device and batch as W.
    beta_loss : float or {'frobenius', 'kullback-leibler', 'itakura-saito'}
        Divergence to lower. With beta_loss <= 0, X must not contain zeros.
    n_iter : int
        Number of iterations.
    update_H : bool, default=True
        False keeps H and updates W alone.
    l1_reg_W, l1_reg_H, l2_reg_W, l2_reg_H : float, default=0
        Penalties, added to the denominators as l1 + l2 * factor.
    compute_divergence : bool, default=False
        Whether to return the divergence of the final factors.
    active : Tensor of shape (B,), optional
        bool: problems where it is False are returned as they are. A batch can so be run until each
        problem has converged, without a word from the host (see the examples).
    floor : float, default=EPSILON
        Lower bound of W H where it is divided by or raised to a negative power, at least the
        smallest normal number of W's dtype. The default is scikit-learn's: right for entries of X
        around 1, too high for much smaller ones, which then call for ``EPSILON * X.mean()``.
    n_fixed : int, default=0
        The first `n_fixed` rows of H stay as they are, while their columns of W are updated.
    weights : Tensor of shape (n_samples, n_features) or of X's, optional
        What is lowered is the sum of weight times divergence over all entries. Numbers >= 0 of W's
        dtype (signs are not checked), or a mask as bits: uint8, with ceil(n_features / 8) in place
        of n_features (`pack_mask`). An entry of weight 0 is not read: it may be anything, NaN too.

    Returns
    -------
    W, H : Tensor
        Updated factors, shaped as given.
    divergence : Tensor of shape () or (B,)
        float64, without penalties, of all problems, with the same `floor`; NaN unless
        `compute_divergence`.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices disagree, a penalty is negative, the floor too low or `n_fixed`
        above n_components.

    Notes
    -----
    With Q = X (W H)^(beta - 2) the update is W <- W * (Q H^T / ((W H)^(beta - 1) H^T))^gamma, then
    the same for H, with gamma and all other floors as in scikit-learn. (Its version 1.9.1 adds
    `l1_reg_W` anew in every iteration with `update_H=False` and Kullback-Leibler; this op adds it
    once.) Weights multiply Q and (W H)^(beta - 1) entry by entry [3]_; a row or a column of X whose
    weights are all 0 gets factors of 0.
    O(B n_samples n_features n_components) per iteration. Not differentiable: backward raises.

    References
    ----------
    .. [1] Lee & Seung (2001), Algorithms for non-negative matrix factorization, NIPS 13.
    .. [2] Fevotte & Idier (2011), Algorithms for nonnegative matrix factorization with the
       beta-divergence, Neural Computation 23(9).
    .. [3] Blondel, Ho & Van Dooren (2008), Weighted nonnegative matrix factorization and face
       feature extraction, report of UCLouvain.

    Examples
    --------
    >>> X = torch.rand(100, 64)
    >>> W, H, divergence = nnmf_mu(
    ...     X, torch.rand(100, 5), torch.rand(5, 64), n_iter=50, compute_divergence=True
    ... )

    Eight problems, each of which stops where ten iterations gain less than one in a thousand:

    >>> X, W, H = torch.rand(8, 30, 20), torch.rand(8, 30, 3), torch.rand(8, 3, 20)
    >>> active, before = torch.ones(8, dtype=torch.bool), nnmf_divergence(X, W, H)
    >>> for _ in range(20):
    ...     W, H, divergence = nnmf_mu(
    ...         X, W, H, n_iter=10, compute_divergence=True, active=active
    ...     )
    ...     active &= divergence < 0.999 * before
    ...     before = divergence
    """
    _check_active(active, W)
    check_floor(floor, W)
    return run_solver(
        X,
        W,
        H,
        n_iter,
        n_fixed,
        (l1_reg_W, l1_reg_H, l2_reg_W, l2_reg_H),
        lambda W, H: _serving("nnmf_mu", X, W, H, weights),
        beta_loss=beta_loss_to_float(beta_loss),
        update_H=update_H,
        compute_divergence=compute_divergence,
        active=active,
        floor=floor,
    )


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
    """Run hierarchical alternating least squares on one or many factorisations X ~= W @ H.

    Lowers half the squared Frobenius norm of X - W H: each column of W in turn goes to its own
    minimum with all else fixed, `n_inner` times over, then each row of H. All iterations are run:
    there is no convergence test (see `nnmf_cuda.NNMF` for one).

    Parameters
    ----------
    X, W, H : Tensor
        As in `nnmf_mu`. Zeros of a start can become positive again.
    n_iter : int
        Number of iterations.
    n_inner : int, default=1
        Sweeps over a factor before X is read again: more of them where X is large beside the
        factors [2]_. 1 is the coordinate descent of scikit-learn's ``solver="cd"``.
    update_H : bool, default=True
        False keeps H and updates W alone.
    l1_reg_W, l1_reg_H, l2_reg_W, l2_reg_H : float, default=0
        Penalties: l1 * sum(factor) + l2 / 2 * sum(factor ** 2) is added to what is lowered.
    compute_divergence : bool, default=False
        Whether to return the divergence of the final factors.
    n_fixed : int, default=0
        The first `n_fixed` rows of H stay as they are, while their columns of W are updated.
    weights : Tensor, optional
        As in `nnmf_mu`.

    Returns
    -------
    W, H, divergence : Tensor
        As from `nnmf_mu`; the divergence with ``beta_loss=2``.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices disagree, a penalty is negative or `n_fixed` above
        n_components.

    Notes
    -----
    With G = H H^T and C = X H^T - l1, column t of W becomes
    max(0, (C_t - sum over s != t of W_s G_st) / (G_tt + l2)), for t in ascending order; a column
    with G_tt + l2 = 0 stays.
    The objective never rises. O(B n_samples n_features n_components) per iteration, and
    `n_inner` times (n_samples + n_features) n_components^2. With weights each row has a G of its
    own, which is never formed: each sweep is over all of X. Not differentiable: backward raises.

    References
    ----------
    .. [1] Cichocki & Phan (2009), Fast local algorithms for large scale nonnegative matrix and
       tensor factorizations, IEICE Transactions E92-A(3).
    .. [2] Gillis & Glineur (2012), Accelerated multiplicative updates and hierarchical ALS
       algorithms for nonnegative matrix factorization, Neural Computation 24(4).

    Examples
    --------
    >>> X = torch.rand(100, 64)
    >>> W, H, divergence = nnmf_hals(
    ...     X, torch.rand(100, 5), torch.rand(5, 64), n_iter=50, compute_divergence=True
    ... )
    """
    require_count("n_inner", n_inner, low=1)
    return run_solver(
        X,
        W,
        H,
        n_iter,
        n_fixed,
        (l1_reg_W, l1_reg_H, l2_reg_W, l2_reg_H),
        lambda W, H: _serving("nnmf_hals", X, W, H, weights),
        n_inner=n_inner,
        update_H=update_H,
        compute_divergence=compute_divergence,
    )


def run_solver(
    X: Tensor,
    W: Tensor,
    H: Tensor,
    n_iter: int,
    n_fixed: int,
    penalties: tuple[float, float, float, float],
    serving_factors: Callable[[Tensor, Tensor], Callable[..., Any]],
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments that the solvers share and call the op with a batch dimension.

    `serving_factors` returns what serves the op for checked factors, a function of these, W
    (B, n, k) and H (B, k, f), and of options.
    """
    named = dict(zip(_PENALTIES, penalties, strict=True))
    _check_factors(X, W, H)
    require_count("n_iter", n_iter, low=0)
    require_non_negative(**named)
    require_count("n_fixed", n_fixed, low=0)
    if n_fixed > W.shape[-1]:
        raise ValueError(
            f"n_fixed must be at most n_components = {W.shape[-1]}, got {n_fixed}: only rows of H "
            "can be held"
        )
    batched = W.dim() == 3
    if not batched:
        W, H = W.unsqueeze(0), H.unsqueeze(0)
    op = serving_factors(W, H)
    new_W, new_H, divergence = op(W, H, n_iter=n_iter, n_fixed=n_fixed, **named, **options)
    if batched:
        return new_W, new_H, divergence
    return new_W.squeeze(0), new_H.squeeze(0), divergence.squeeze(0)


def _serving(
    name: str, X: Tensor, W: Tensor, H: Tensor, weights: Tensor | None
) -> Callable[..., Any]:
    """Return what serves the op `name` for checked factors: a function of W, H and options."""
    if weights is None:
        return serving_data(name, X, W, H)
    require_weights(weights, X, W)
    return partial(serving(name.replace("nnmf_", "nnmf_weighted_"), W, H), X, weights=weights)


def nnmf_divergence(
    X: Tensor,
    W: Tensor,
    H: Tensor,
    *,
    beta_loss: float | str = "kullback-leibler",
    floor: float = EPSILON,
    weights: Tensor | None = None,
) -> Tensor:
    """Beta-divergence of X from W @ H, per problem.

    Parameters
    ----------
    X, W, H : Tensor
        As in `nnmf_mu`.
    beta_loss : float or {'frobenius', 'kullback-leibler', 'itakura-saito'}
        2 is half the squared Frobenius norm of X - W H, 1 the generalised Kullback-Leibler
        divergence, 0 Itakura-Saito.
    floor : float, default=EPSILON
        Lower bound of W H where it is divided by or raised to a negative power; entries of X up to
        it count as zeros. As in `nnmf_mu`; scikit-learn's by default.
    weights : Tensor, optional
        As in `nnmf_mu`.

    Returns
    -------
    Tensor of shape () or (B,)
        float64, summed in float64. Compiled kernels form W H in the factors' dtype and each term
        without cancellation, so that float32 keeps about 7 digits even near an exact fit, where
        what is left is the rounding of W H. For sparse X, W H is formed in float64; what it puts
        where X is zero is its whole sum less that at the non-zeros, so that what lies below about
        1e-15 of that sum is rounding.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices disagree, or the floor is too low.

    Notes
    -----
    Not differentiable: backward raises.

    References
    ----------
    .. [1] Fevotte & Idier (2011), Neural Computation 23(9), equation 2.

    Examples
    --------
    >>> nnmf_divergence(torch.ones(2, 3), torch.ones(2, 1), torch.ones(1, 3))
    tensor(0., dtype=torch.float64)
    """
    _check_factors(X, W, H)
    check_floor(floor, W)
    batched = W.dim() == 3
    divergence: Tensor = _serving("nnmf_divergence", X, W, H, weights)(
        W if batched else W.unsqueeze(0),
        H if batched else H.unsqueeze(0),
        beta_loss=beta_loss_to_float(beta_loss),
        floor=floor,
    )
    return divergence if batched else divergence.squeeze(0)


def _check_active(active: Tensor | None, W: Tensor) -> None:
    if active is None:
        return
    require_tensor("active", active)
    require_dtype("active", active, (torch.bool,))
    require_tensor("W", W)
    if W.dim() != 3:
        raise ValueError(
            f"active is for a batch, W of shape (B, n_samples, n_components), got {tuple(W.shape)}"
        )
    require_shape("active", active, (len(W),), "(batch of W,)")
    require_same_device(W=W, active=active)


def check_floor(floor: float, W: Tensor) -> None:
    """Raise unless the floor is a number that W's type holds to all its digits."""
    require_tensor("W", W)
    require_dtype("W", W, FLOATS)
    limits = torch.finfo(W.dtype)  # kernels take what is below its smallest normal number for zero
    if not limits.tiny <= floor <= limits.max:
        dtype = str(W.dtype).removeprefix("torch.")
        raise ValueError(
            f"floor must be a positive normal number of {dtype}, {limits.tiny:.3g} or more, got"
            f" {floor}: scale X to larger values, or use float64"
        )


def _check_factors(X: Tensor, W: Tensor, H: Tensor) -> None:
    if _are_dense_factors(X, W, H):
        return  # nearly always; what follows finds the words, at several times the cost
    require_data(X)
    for name, value in (("W", W), ("H", H)):
        require_tensor(name, value)
    require_dtype("W", W, FLOATS)
    require_dtype("H", H, (W.dtype,))
    require_dtype("X", X, (W.dtype,) if is_sparse(X) else (W.dtype, torch.uint8))
    require_same_device(X=X, W=W, H=H)
    require_dims("W", W, (2, 3))
    require_dims("H", H, (W.dim(),))
    require_dims("X", X, (2, 3) if W.dim() == 3 else (2,))
    (n, f), k = X.shape[-2:], W.shape[-1]
    batch = tuple(W.shape[:-2])
    require_shape("W", W, (*batch, n, k), "(..., n_samples of X, n_components)")
    require_shape("H", H, (*batch, k, f), "(..., n_components of W, n_features of X)")
    if X.dim() == 3:
        require_shape("X", X, (*batch, n, f), "(batch of W, n_samples, n_features)")


def _are_dense_factors(X: Tensor, W: Tensor, H: Tensor) -> bool:
    """Whether all that `_check_factors` asks for is so, and X dense."""
    if not (
        isinstance(X, Tensor)
        and isinstance(W, Tensor)
        and isinstance(H, Tensor)
        and X.layout is W.layout is H.layout is torch.strided
        and W.dtype in FLOATS
        and H.dtype is W.dtype
        and X.dtype in (W.dtype, torch.uint8)
        and X.device == W.device == H.device
        and 2 <= X.dim() <= W.dim() <= 3
    ):
        return False
    batch, (n, f), k = W.shape[:-2], X.shape[-2:], W.shape[-1]
    of_each = X.dim() == 2 or X.shape[:1] == batch
    return of_each and W.shape == (*batch, n, k) and H.shape == (*batch, k, f)


@torch.library.register_fake("nnmf_cuda::nnmf_hals", lib=LIBRARY)
@torch.library.register_fake("nnmf_cuda::nnmf_mu", lib=LIBRARY)
@torch.library.register_fake("nnmf_cuda::nnmf_weighted_hals", lib=LIBRARY)
@torch.library.register_fake("nnmf_cuda::nnmf_weighted_mu", lib=LIBRARY)
def _(
    X: Tensor, W: Tensor, H: Tensor, *_others: Tensor | None, **_options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return unfilled(W, H)


@torch.library.register_fake("nnmf_cuda::nnmf_divergence", lib=LIBRARY)
@torch.library.register_fake("nnmf_cuda::nnmf_weighted_divergence", lib=LIBRARY)
def _(X: Tensor, W: Tensor, H: Tensor, *_others: Tensor, **_options: Any) -> Tensor:
    return W.new_empty((W.shape[0],), dtype=torch.float64)


_REMEDY = (
    "detach its inputs, or reach the features through nnmf_cuda.ops.project, which has a gradient"
)
for _name in ("nnmf_mu", "nnmf_hals", "nnmf_divergence"):
    raise_in_backward(_name, _REMEDY)
