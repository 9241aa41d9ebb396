"""Weights of entries of X: how a mask becomes bits, and what the ops that take weights check."""

from __future__ import annotations

import torch
from torch import Tensor

from nnmf_cuda.ops._schema import (
    raise_in_backward,
    require_dims,
    require_dtype,
    require_same_device,
    require_shape,
    require_tensor,
)
from nnmf_cuda.ops.nnmf_sparse import is_sparse

__all__ = ["pack_mask"]


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a mask into bits, as the argument `weights` of the factorisations takes them.

    Parameters
    ----------
    mask : Tensor of shape (..., n_features)
        bool: where it is True an entry of X counts, elsewhere it is as if it were not there.

    Returns
    -------
    Tensor of shape (..., ceil(n_features / 8))
        uint8. Feature j is bit ``j % 8`` of byte ``j // 8``, as in
        ``numpy.packbits(mask, axis=-1, bitorder="little")``; bits beyond the last feature are 0.

    Raises
    ------
    TypeError, ValueError
        If `mask` is not bool, or has no dimension.

    Examples
    --------
    >>> pack_mask(torch.tensor([[True, False, True]]))
    tensor([[5]], dtype=torch.uint8)
    """
    require_tensor("mask", mask)
    require_dtype("mask", mask, (torch.bool,))
    if mask.dim() == 0:
        raise ValueError("mask must have at least one dimension, got shape ()")
    padded = torch.nn.functional.pad(mask, (0, -mask.shape[-1] % 8))
    packed = torch.zeros_like(padded[..., ::8], dtype=torch.uint8)
    for bit in range(8):
        packed |= padded[..., bit::8].to(torch.uint8) << bit
    return packed


def require_weights(weights: Tensor, X: Tensor, W: Tensor) -> None:
    """Raise unless `weights` are bits or numbers for all entries of X; their signs are not seen."""
    if is_sparse(X):
        raise TypeError(
            "weights need dense X: what a sparse X does not store is a zero that counts; use "
            "X.to_dense()"
        )
    require_tensor("weights", weights)
    if weights.dtype == torch.bool:
        raise TypeError("weights must be bits or numbers, got torch.bool: use ops.pack_mask(mask)")
    require_dtype("weights", weights, (W.dtype, torch.uint8))
    require_same_device(W=W, weights=weights)
    require_dims("weights", weights, (2, 3) if X.dim() == 3 else (2,))
    n_features = X.shape[-1]
    width, what = n_features, "n_features"
    if weights.dtype == torch.uint8:
        width, what = (n_features + 7) // 8, "ceil(n_features / 8)"
    lead = tuple(X.shape[:-1]) if weights.dim() == X.dim() else (X.shape[-2],)
    meaning = f"({'' if len(lead) == 1 else 'batch of X, '}n_samples of X, {what})"
    require_shape("weights", weights, (*lead, width), meaning)


for _name in ("nnmf_weighted_mu", "nnmf_weighted_hals", "nnmf_weighted_divergence"):
    raise_in_backward(_name, "detach its inputs")
