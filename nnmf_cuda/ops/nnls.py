"""Non-negative least squares: `nnls` from a Gram matrix, `project` from images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from nnmf_cuda.ops._schema import (
    FLOATS,
    require_dims,
    require_dtype,
    require_non_negative,
    require_same_device,
    require_shape,
    require_tensor,
    serving,
)
from nnmf_cuda.ops._transforms import find_op
from nnmf_cuda.ops.nnmf_sparse import is_sparse, product_with, require_data
from nnmf_cuda.reference.nnmf import as_float

__all__ = ["NnlsInfo", "PreparedComponents", "nnls", "prepare_components", "project"]

_RESIDUAL_ROWS = 256
"""Rows of X that `project` has in float64 together for their residuals."""


class NnlsInfo(NamedTuple):
    """What `nnls` and `project` tell about their answers, for every row of h.

    Attributes
    ----------
    residual : Tensor of h's shape without the last dimension
        KKT residual, max_j abs(min(h, h G - c)) / max_j abs(c), float64.
    passive : Tensor of h's shape
        bool: the variables that are free at the end, all positive ones among them. Given again as
        `passive`, it is where a neighbouring problem starts from.
    pivots : Tensor of h's shape without the last dimension
        int64: how many variables changed sides on the way, each as often as it did.
    """

    residual: Tensor
    passive: Tensor
    pivots: Tensor


@dataclass(frozen=True)
class PreparedComponents:
    """Components with what `project` needs of them alone; see `prepare_components`.

    Attributes
    ----------
    H : Tensor of shape (n_components, n_features) or (B, n_components, n_features)
        The components: a copy, without gradient.
    packed, grams : Tensor
        What the kernels of H's device made of them, for these kernels alone.
    """

    H: Tensor
    packed: Tensor
    grams: Tensor

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out of a copy what other kernels may have to read."""
        return prepare_components, (self.H,)


def prepare_components(H: Tensor) -> PreparedComponents:
    """Make components ready for many calls of `project`.

    A call of `project` first forms the Gram matrix of H and its factor. That depends on H alone and
    takes as long as the rows do where there are few: about a third of a call with 2048 images on a
    GPU, nearly all of one with a single image.

    Parameters
    ----------
    H : Tensor of shape (n_components, n_features) or (B, n_components, n_features)
        float32 or float64. A copy is kept: what becomes of H afterwards changes nothing.

    Returns
    -------
    PreparedComponents
        To be given to `project` in place of H. On H's device; make it anew on another.

    Raises
    ------
    TypeError, ValueError
        If H is no tensor of two or three dimensions in float32 or float64.

    Notes
    -----
    Without gradient to H; the one to X is that of `project`. `project` gives the same bits with it
    as with H, wherever the rows start with all variables free.

    Examples
    --------
    >>> ready = prepare_components(torch.eye(2, 3))
    >>> project(torch.tensor([[2.0, 0.0, 1.0]]), ready)
    tensor([[2., 0.]])
    """
    require_tensor("H", H)
    require_dtype("H", H, FLOATS)
    require_dims("H", H, (2, 3))
    kept = H.detach().clone(memory_format=torch.contiguous_format)
    packed, grams = find_op("prepare_components")(with_dims(kept, 3))
    return PreparedComponents(kept, packed, grams)


@overload
def nnls(
    gram: Tensor,
    cross: Tensor,
    *,
    passive: Tensor | None = ...,
    tol: float = ...,
    return_residual: Literal[False] = ...,
    return_info: Literal[False] = ...,
) -> Tensor: ...
@overload
def nnls(
    gram: Tensor,
    cross: Tensor,
    *,
    passive: Tensor | None = ...,
    tol: float = ...,
    return_residual: Literal[True],
    return_info: Literal[False] = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def nnls(
    gram: Tensor,
    cross: Tensor,
    *,
    passive: Tensor | None = ...,
    tol: float = ...,
    return_residual: Literal[False] = ...,
    return_info: Literal[True],
) -> tuple[Tensor, NnlsInfo]: ...
def nnls(
    gram: Tensor,
    cross: Tensor,
    *,
    passive: Tensor | None = None,
    tol: float = 0.0,
    return_residual: bool = False,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, Tensor | NnlsInfo]:
    """Solve min_{h >= 0} 1/2 h G h^T - c h^T exactly, for every row c of `cross`.

    Parameters
    ----------
    gram : Tensor of shape (k, k) or (B, k, k)
        Positive semi-definite, float32 or float64; its symmetric part is used, in float64.
    cross : Tensor of shape (k,), (n, k) or (B, n, k)
        float32 or float64, with gram's batch. One dimension is one row.
    passive : Tensor of cross's shape, optional
        bool: the variables to start from as free (a warm start), such as those of `NnlsInfo` of a
        neighbouring problem. By default all are. The answer does not depend on it, beyond
        rounding, where it is the only one.
    tol : float, default=0
        KKT residual, as in `NnlsInfo`, at which a row may end. 0 goes on to rounding.
    return_residual : bool, default=False
        Whether to return the KKT residual of each row as well.
    return_info : bool, default=False
        Whether to return an `NnlsInfo` as well.

    Returns
    -------
    h : Tensor of cross's shape
        Of cross's dtype.
    residual : Tensor of shape (), (n,) or (B, n)
        As in `NnlsInfo`, without gradient: zero at the exact answer, and zero where c is zero.
    info : NnlsInfo

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices disagree, tol is negative, or both return_residual and
        return_info are asked for.

    Notes
    -----
    Block principal pivoting [3]_ with the factor in float64, and the active-set method [1]_ [2]_
    for rows that it does not bring to their end. The residual is that of the normal equations: of
    gram = A^T A with a condition number of A above about 1e7, whose square is beyond float64, they
    no longer tell how close A h comes to a target (see `nnls_dense`). Where the minimiser is not
    unique, as with more components than features, it is one of independent components; both
    products should then be formed in float64, as `project` does, or the rounding of `cross` lies
    outside the range of `gram`, where the objective has no minimum.

    Differentiable in both arguments by implicit differentiation on the free variables {h > 0}: with
    u the (minimum-norm) solution of G_FF u = grad_F, cross receives u and gram
    -(u^T h + h^T u) / 2. A variable that is exactly zero has zero gradient. Under vmap of
    torch.func, rows that share gram are solved together. A row with NaN or infinity has NaN for an
    answer and a residual, and no free variables.

    References
    ----------
    .. [1] Lawson & Hanson (1974), Solving Least Squares Problems, chapter 23.
    .. [2] Bro & De Jong (1997), A fast non-negativity-constrained least squares algorithm,
       J. Chemometrics 11.
    .. [3] Kim & Park (2011), Fast nonnegative matrix factorization: an active-set-like method and
       comparisons, SIAM J. Sci. Comput. 33(6).

    Examples
    --------
    >>> nnls(torch.eye(2), torch.tensor([[1.0, -1.0]]))
    tensor([[1., 0.]])

    A problem that has changed a little, from the free variables of the one before:

    >>> gram, cross = 2 * torch.eye(2), torch.tensor([[1.0, -1.0]])
    >>> h, info = nnls(gram, cross, return_info=True)
    >>> h, info = nnls(gram, cross + 0.1, passive=info.passive, return_info=True)
    >>> h, info.pivots
    (tensor([[0.5500, 0.0000]]), tensor([0]))
    """
    for name, value in (("gram", gram), ("cross", cross)):
        require_tensor(name, value)
        require_dtype(name, value, FLOATS)
    require_same_device(gram=gram, cross=cross)
    require_dims("cross", cross, (1, 2, 3))
    require_dims("gram", gram, (max(2, cross.dim()),))
    k = cross.shape[-1]
    require_shape("gram", gram, (*cross.shape[:-2], k, k), "(batch, k, k) for k columns of cross")
    start = check_options(cross, cross.shape, passive, tol, return_residual, return_info)
    solved, free, pivots = serving("nnls", gram, cross)(
        with_dims(gram, 3), with_dims(cross, 3), start, tol=tol
    )
    h: Tensor = solved.reshape(cross.shape)
    return with_info(
        h, free, pivots, partial(kkt_residual, gram, cross, h), return_residual, return_info
    )


@overload
def project(
    X: Tensor,
    H: Tensor | PreparedComponents,
    *,
    passive: Tensor | None = ...,
    tol: float = ...,
    return_residual: Literal[False] = ...,
    return_info: Literal[False] = ...,
) -> Tensor: ...
@overload
def project(
    X: Tensor,
    H: Tensor | PreparedComponents,
    *,
    passive: Tensor | None = ...,
    tol: float = ...,
    return_residual: Literal[True],
    return_info: Literal[False] = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def project(
    X: Tensor,
    H: Tensor | PreparedComponents,
    *,
    passive: Tensor | None = ...,
    tol: float = ...,
    return_residual: Literal[False] = ...,
    return_info: Literal[True],
) -> tuple[Tensor, NnlsInfo]: ...
def project(
    X: Tensor,
    H: Tensor | PreparedComponents,
    *,
    passive: Tensor | None = None,
    tol: float = 0.0,
    return_residual: bool = False,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, Tensor | NnlsInfo]:
    """Project the rows of X onto fixed components: min_{h >= 0} ||x - h H||_2.

    Parameters
    ----------
    X : Tensor of shape (n_features,), (n_samples, n_features) or (B, n_samples, n_features)
        Of H's dtype, or uint8 read as pixels (x / 255). Two-dimensional X is shared by a batch
        of H; one-dimensional X is one row, for two-dimensional H. Or a matrix in torch's sparse
        CSR, as in `nnmf_mu`, which is never made dense and has no gradient.
    H : Tensor of shape (n_components, n_features) or (B, n_components, n_features)
        float32 or float64. Or what `prepare_components` has made of it, once for many calls.
    passive : Tensor of h's shape, optional
        Free variables to start from (see `nnls`).
    tol : float, default=0
        KKT residual at which a row may end (see `nnls`).
    return_residual : bool, default=False
        Whether to return the KKT residual of each row as well (see `nnls`).
    return_info : bool, default=False
        Whether to return an `NnlsInfo` as well.

    Returns
    -------
    h : Tensor of shape (n_components,), (n_samples, n_components) or (B, n_samples, n_components)
        Of H's dtype.
    residual : Tensor of shape (), (n_samples,) or (B, n_samples)
    info : NnlsInfo

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices disagree, tol is negative, or both return_residual and
        return_info are asked for.

    Notes
    -----
    The Gram matrix and its factor are float64. Above a condition number of about 1e7 of H, the
    distance to rows that H can reach is no smaller than about 1e-8 of their norm: see `nnls_dense`.
    Differentiable in X (where it is floating point)
    and H, through `nnls`.

    Examples
    --------
    >>> project(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    tensor([[2., 0.]])
    """
    require_data(X)
    ready: tuple[Tensor | None, Tensor | None] = None, None
    if isinstance(H, PreparedComponents):
        ready, H = (H.packed, H.grams), H.H
    require_tensor("H", H)
    require_dtype("H", H, FLOATS)
    require_dtype("X", X, (H.dtype,) if is_sparse(X) else (H.dtype, torch.uint8))
    require_same_device(X=X, H=H)
    require_dims("H", H, (2, 3))
    require_dims("X", X, (2, 3) if H.dim() == 3 else (1, 2))
    if X.shape[-1] != H.shape[-1]:
        raise ValueError(
            f"X and H must have the same number of features, got {X.shape[-1]} and {H.shape[-1]}"
        )
    if X.dim() == 3 and X.shape[0] != H.shape[0]:
        raise ValueError(
            f"X and H must have the same batch size, got {X.shape[0]} and {H.shape[0]}"
        )
    shape = (*H.shape[:-2], *X.shape[-2:-1], H.shape[-2])
    start = check_options(H, shape, passive, tol, return_residual, return_info)
    if is_sparse(X):
        return _project_sparse(X, H, start, tol, return_residual, return_info)
    solved, free, pivots = serving("project", X, H)(
        with_dims(X, 2), with_dims(H, 3), start, *ready, tol=tol
    )
    h: Tensor = solved.reshape(shape)
    residual = partial(_project_residual, with_dims(X, 2), H, with_dims(h, 2))
    return with_info(h, free, pivots, residual, return_residual, return_info)


def _project_sparse(
    X: Tensor,
    H: Tensor,
    start: Tensor | None,
    tol: float,
    return_residual: bool,
    return_info: bool,
) -> Tensor | tuple[Tensor, Tensor | NnlsInfo]:
    """Solve `project`'s rows from their products with H, which need the non-zeros alone."""
    if X.requires_grad:
        raise ValueError("project has no gradient to sparse X: detach it, or use X.to_dense()")
    wide = H.double()
    gram, cross = wide @ wide.mT, product_with(X, wide.mT)
    solved, free, pivots = serving("nnls", gram, cross)(
        with_dims(gram, 3), with_dims(cross, 3), start, tol=tol
    )
    h = solved.to(H.dtype).reshape(cross.shape)
    residual = partial(kkt_residual, gram, cross, h)
    return with_info(h, free, pivots, residual, return_residual, return_info)


def with_dims(tensor: Tensor, dims: int) -> Tensor:
    """Return the tensor with dimensions of size one before its own, at least `dims` in all."""
    if tensor.dim() >= dims:
        return tensor
    return tensor.reshape((1,) * (dims - tensor.dim()) + tuple(tensor.shape))


def check_options(
    like: Tensor,
    shape: tuple[int, ...],
    passive: Tensor | None,
    tol: float,
    return_residual: bool,
    return_info: bool,
) -> Tensor | None:
    """Check what `nnls` and `project` share; return `passive` as the ops take it.

    h is on the device of `like` and has this shape.
    """
    require_non_negative(tol=tol)
    if return_residual and return_info:
        raise ValueError(
            "return_residual and return_info exclude each other: the info has the residual"
        )
    if passive is None:
        return None
    require_tensor("passive", passive)
    require_dtype("passive", passive, (torch.bool,))
    require_shape("passive", passive, tuple(shape), "that of h")
    if passive.device != like.device:
        raise ValueError(
            f"passive must be on {like.device}, as the other tensors, got {passive.device}"
        )
    return with_dims(passive, 3)


def with_info(
    h: Tensor,
    free: Tensor,
    pivots: Tensor,
    residual: Callable[[], Tensor],
    return_residual: bool,
    return_info: bool,
) -> Tensor | tuple[Tensor, Tensor | NnlsInfo]:
    """Return h with what its user wants to be told; the rest is shaped as h's rows are."""
    if not (return_residual or return_info):
        return h
    of_rows = residual().reshape(h.shape[:-1])
    if not return_info:
        return h, of_rows
    return h, NnlsInfo(of_rows, free.reshape(h.shape), pivots.reshape(of_rows.shape))


def _project_residual(X: Tensor, H: Tensor, h: Tensor) -> Tensor:
    H = H.detach().double()
    gram = H @ H.mT
    # Blocks of rows: X may be large, and a float64 copy of uint8 X has eight times its size.
    blocks = zip(X.detach().split(_RESIDUAL_ROWS, -2), h.split(_RESIDUAL_ROWS, -2), strict=True)
    residuals = [
        kkt_residual(gram, as_float(rows, torch.float64).double() @ H.mT, solved)
        for rows, solved in blocks
    ]
    return torch.cat(residuals, -1)


def kkt_residual(gram: Tensor, cross: Tensor, h: Tensor) -> Tensor:
    """Return the KKT residual of each row of h, as in `NnlsInfo`."""
    gram, cross, h = gram.detach().double(), cross.detach().double(), h.detach().double()
    violation = torch.minimum(h, h @ ((gram + gram.mT) / 2) - cross).abs()
    if cross.shape[-1] == 0:
        return cross.new_zeros(cross.shape[:-1])
    scale = cross.abs().amax(-1)
    return torch.where(scale == 0, 0, violation.amax(-1) / scale)
