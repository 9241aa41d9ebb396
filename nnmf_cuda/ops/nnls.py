"""Non-negative least squares: `nnls` from a Gram matrix, `project` from images."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from nnmf_cuda.ops._schema import (
    FLOATS,
    LIBRARY,
    require_dims,
    require_dtype,
    require_same_device,
    require_shape,
    require_tensor,
    serving,
)
from nnmf_cuda.reference.nnmf import as_float

__all__ = ["nnls", "project"]

_RESIDUAL_ROWS = 256
"""Rows of X that `project` has in float64 together for their residuals."""


@overload
def nnls(gram: Tensor, cross: Tensor, *, return_residual: Literal[False] = ...) -> Tensor: ...
@overload
def nnls(
    gram: Tensor, cross: Tensor, *, return_residual: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def nnls(
    gram: Tensor, cross: Tensor, *, return_residual: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Solve min_{h >= 0} 1/2 h G h^T - c h^T exactly, for every row c of `cross`.

    Parameters
    ----------
    gram : Tensor of shape (k, k) or (B, k, k)
        Positive semi-definite, float32 or float64; its symmetric part is used, in float64.
    cross : Tensor of shape (n, k) or (B, n, k)
        float32 or float64, with gram's batch.
    return_residual : bool, default=False
        Whether to return the KKT residual of each row as well.

    Returns
    -------
    h : Tensor of shape (n, k) or (B, n, k)
        Of cross's dtype.
    residual : Tensor of shape (n,) or (B, n)
        max_j abs(min(h, h G - c)) / max_j abs(c), float64, without gradient: zero at the exact
        answer, and zero where c is zero.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices disagree.
    RuntimeError
        With more than 256 components on CUDA, where the compiled kernels serve.

    Notes
    -----
    Active-set method with the factor in float64. Differentiable in both arguments by implicit
    differentiation on the free variables {h > 0}: with u the (minimum-norm) solution of
    G_FF u = grad_F, cross receives u and gram -(u^T h + h^T u) / 2. A variable that is exactly
    zero has zero gradient. A row with NaN or infinity has NaN for an answer and a residual.

    References
    ----------
    .. [1] Lawson & Hanson (1974), Solving Least Squares Problems, chapter 23.
    .. [2] Bro & De Jong (1997), A fast non-negativity-constrained least squares algorithm,
       J. Chemometrics 11.

    Examples
    --------
    >>> nnls(torch.eye(2), torch.tensor([[1.0, -1.0]]))
    tensor([[1., 0.]])
    """
    for name, value in (("gram", gram), ("cross", cross)):
        require_tensor(name, value)
        require_dtype(name, value, FLOATS)
    require_same_device(gram=gram, cross=cross)
    require_dims("cross", cross, (2, 3))
    require_dims("gram", gram, (cross.dim(),))
    k = cross.shape[-1]
    require_shape("gram", gram, (*cross.shape[:-2], k, k), "(batch, k, k) for k columns of cross")
    batched = cross.dim() == 3
    h: Tensor = serving("nnls", gram, cross)(
        gram if batched else gram.unsqueeze(0), cross if batched else cross.unsqueeze(0)
    )
    h = h if batched else h.squeeze(0)
    return (h, _kkt_residual(gram, cross, h)) if return_residual else h


@overload
def project(X: Tensor, H: Tensor, *, return_residual: Literal[False] = ...) -> Tensor: ...
@overload
def project(X: Tensor, H: Tensor, *, return_residual: Literal[True]) -> tuple[Tensor, Tensor]: ...
def project(
    X: Tensor, H: Tensor, *, return_residual: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Project the rows of X onto fixed components: min_{h >= 0} ||x - h H||_2.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features) or (B, n_samples, n_features)
        Of H's dtype, or uint8 read as pixels (x / 255). Two-dimensional X is shared by a batch
        of H.
    H : Tensor of shape (n_components, n_features) or (B, n_components, n_features)
        float32 or float64.
    return_residual : bool, default=False
        Whether to return the KKT residual of each row as well (see `nnls`).

    Returns
    -------
    h : Tensor of shape (n_samples, n_components) or (B, n_samples, n_components)
        Of H's dtype.
    residual : Tensor of shape (n_samples,) or (B, n_samples)

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices disagree.
    RuntimeError
        With more than 256 components on CUDA, where the compiled kernels serve.

    Notes
    -----
    The Gram matrix and its factor are float64. Differentiable in X (where it is floating point)
    and H, through `nnls`.

    Examples
    --------
    >>> project(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    tensor([[2., 0.]])
    """
    for name, value in (("X", X), ("H", H)):
        require_tensor(name, value)
    require_dtype("H", H, FLOATS)
    require_dtype("X", X, (H.dtype, torch.uint8))
    require_same_device(X=X, H=H)
    require_dims("H", H, (2, 3))
    require_dims("X", X, (2, 3) if H.dim() == 3 else (2,))
    if X.shape[-1] != H.shape[-1]:
        raise ValueError(
            f"X and H must have the same number of features, got {X.shape[-1]} and {H.shape[-1]}"
        )
    if X.dim() == 3 and X.shape[0] != H.shape[0]:
        raise ValueError(
            f"X and H must have the same batch size, got {X.shape[0]} and {H.shape[0]}"
        )
    batched = H.dim() == 3
    h: Tensor = serving("project", X, H)(X, H if batched else H.unsqueeze(0))
    h = h if batched else h.squeeze(0)
    if not return_residual:
        return h
    H = H.detach().double()
    gram = H @ H.mT
    # Blocks of rows: X may be large, and a float64 copy of uint8 X has eight times its size.
    blocks = zip(X.detach().split(_RESIDUAL_ROWS, -2), h.split(_RESIDUAL_ROWS, -2), strict=True)
    residuals = [
        _kkt_residual(gram, as_float(rows, torch.float64).double() @ H.mT, solved)
        for rows, solved in blocks
    ]
    return h, torch.cat(residuals, -1)


def _kkt_residual(gram: Tensor, cross: Tensor, h: Tensor) -> Tensor:
    gram, cross, h = gram.detach().double(), cross.detach().double(), h.detach().double()
    violation = torch.minimum(h, h @ ((gram + gram.mT) / 2) - cross).abs()
    if cross.shape[-1] == 0:
        return cross.new_zeros(cross.shape[:-1])
    scale = cross.abs().amax(-1)
    return torch.where(scale == 0, 0, violation.amax(-1) / scale)


@torch.library.register_fake("nnmf_cuda::nnls", lib=LIBRARY)
def _(gram: Tensor, cross: Tensor) -> Tensor:
    return torch.empty_like(cross, memory_format=torch.contiguous_format)


@torch.library.register_fake("nnmf_cuda::nnls_backward", lib=LIBRARY)
def _(gram: Tensor, h: Tensor, grad: Tensor) -> Tensor:
    return grad.new_empty(grad.shape, dtype=torch.float64)


@torch.library.register_fake("nnmf_cuda::project", lib=LIBRARY)
def _(X: Tensor, H: Tensor) -> Tensor:
    return H.new_empty((H.shape[0], X.shape[-2], H.shape[1]))


def _solve_free(gram: Tensor, h: Tensor, grad: Tensor) -> Tensor:
    """Return u, the gradient to cross, in float64 (an op: how it is solved depends on the data)."""
    u: Tensor = torch.ops.nnmf_cuda.nnls_backward.default(gram, h, grad)
    return u


def _to_gram(u: Tensor, h: Tensor) -> Tensor:
    outer = u.mT @ h.double()
    return -(outer + outer.mT) / 2


def _save_nnls(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _nnls_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    gram, h = ctx.saved_tensors
    u = _solve_free(gram, h, grad)
    return (
        _to_gram(u, h).to(gram.dtype) if ctx.needs_input_grad[0] else None,
        u.to(h.dtype) if ctx.needs_input_grad[1] else None,
    )


def _save_all(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _project_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    X, H, h = ctx.saved_tensors
    wide = H.double()
    u = _solve_free(wide @ wide.mT, h, grad)
    grad_cross = u.to(H.dtype)
    grad_X = grad_H = None
    if ctx.needs_input_grad[0]:
        grad_X = grad_cross @ H
        grad_X = grad_X.sum(0) if X.dim() == 2 else grad_X
    if ctx.needs_input_grad[1]:
        # The gradient to the Gram matrix is symmetric: both factors of H H^T contribute the same.
        grad_H = grad_cross.mT @ as_float(X, H.dtype) + (2 * _to_gram(u, h) @ wide).to(H.dtype)
    return grad_X, grad_H


def _nnls_double_backward(
    ctx: Any, grad: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Solve the same system again: u = G_FF^-1 grad_F is linear in grad, and F is constant."""
    gram, h, given, u = ctx.saved_tensors
    v = _solve_free(gram, h.double(), grad)
    return (
        _to_gram(v, u).to(gram.dtype) if ctx.needs_input_grad[0] else None,
        None,
        v.to(given.dtype) if ctx.needs_input_grad[2] else None,
    )


torch.library.register_autograd(
    "nnmf_cuda::nnls", _nnls_backward, setup_context=_save_nnls, lib=LIBRARY
)
torch.library.register_autograd(
    "nnmf_cuda::project", _project_backward, setup_context=_save_all, lib=LIBRARY
)
torch.library.register_autograd(
    "nnmf_cuda::nnls_backward",
    _nnls_double_backward,
    setup_context=_save_all,
    lib=LIBRARY,
)
