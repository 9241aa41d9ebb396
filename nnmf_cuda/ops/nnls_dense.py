"""`nnls_dense`: non-negative least squares from the matrix itself, for ill-conditioned ones."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from nnmf_cuda import reference
from nnmf_cuda.ops._schema import (
    FLOATS,
    require_dims,
    require_dtype,
    require_same_device,
    require_shape,
    require_tensor,
)
from nnmf_cuda.ops._transforms import no_forward_mode
from nnmf_cuda.ops.nnls import (
    NnlsInfo,
    check_options,
    kkt_residual,
    nnls,
    with_dims,
    with_info,
)

__all__ = ["nnls_dense"]


@overload
def nnls_dense(
    A: Tensor,
    B: Tensor,
    *,
    passive: Tensor | None = ...,
    tol: float = ...,
    return_residual: Literal[False] = ...,
    return_info: Literal[False] = ...,
) -> Tensor: ...
@overload
def nnls_dense(
    A: Tensor,
    B: Tensor,
    *,
    passive: Tensor | None = ...,
    tol: float = ...,
    return_residual: Literal[True],
    return_info: Literal[False] = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def nnls_dense(
    A: Tensor,
    B: Tensor,
    *,
    passive: Tensor | None = ...,
    tol: float = ...,
    return_residual: Literal[False] = ...,
    return_info: Literal[True],
) -> tuple[Tensor, NnlsInfo]: ...
def nnls_dense(
    A: Tensor,
    B: Tensor,
    *,
    passive: Tensor | None = None,
    tol: float = 0.0,
    return_residual: bool = False,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, Tensor | NnlsInfo]:
    """Solve min_{h >= 0} ||A h^T - b^T||_2 for every row b of B, from A itself.

    `nnls` and `project` work on the Gram matrix A^T A, whose condition number is the square of A's:
    from about 1e7 on it no longer knows how well a target can be reached. Here systems are solved
    by QR factorisations of columns of A, so that what A can reach is reached to rounding.

    Parameters
    ----------
    A : Tensor of shape (m, k) or (batch, m, k)
        float32 or float64; any rank and condition.
    B : Tensor of shape (m,), (n, m) or (batch, n, m)
        Of A's dtype, with its batch. Each row is the right-hand side of a problem, as the rows of
        `nnls` and `project` are, and what they return can be used here: ``nnls_dense(A, b)`` is
        ``scipy.optimize.nnls(A, b)[0]``, and ``nnls_dense(H.T, X)`` is ``project(X, H)``.
    passive : Tensor of h's shape, optional
        bool: the variables to start from as free; by default those of the solution that the Gram
        matrix gives.
    tol : float, default=0
        KKT residual at which a row may end (see `NnlsInfo`, with G = A^T A and c = b A).
    return_residual : bool, default=False
        Whether to return the KKT residual of each row as well.
    return_info : bool, default=False
        Whether to return an `NnlsInfo` as well; pivots are those from `passive`, or from the
        solution of the Gram matrix.

    Returns
    -------
    h : Tensor of shape (k,), (n, k) or (batch, n, k)
        Of A's dtype. Where the minimiser is not unique, one whose positive variables belong to
        independent columns.
    residual : Tensor of shape (), (n,) or (batch, n)
    info : NnlsInfo

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices disagree, tol is negative, or both return_residual and
        return_info are asked for.

    Notes
    -----
    The active-set method of Lawson & Hanson [1]_ in float64, on R of A = Q R. It begins at the free
    variables that `nnls` finds and factorises the free columns again for each step from there:
    plain torch, so far slower than `nnls`, most so for ill-conditioned A. Under torch.compile it
    breaks the graph. In float64, consistent data at a condition number of 1e8 have a relative
    residual below 1e-12. Differentiable in A and B as `nnls` is, twice, with the free variables as
    they are. A row with NaN or infinity has NaN for an answer, and so have all of such an A.

    References
    ----------
    .. [1] Lawson & Hanson (1974), Solving Least Squares Problems, chapter 23.

    Examples
    --------
    >>> nnls_dense(torch.eye(2), torch.tensor([1.0, -1.0]))
    tensor([1., 0.])
    """
    for name, value in (("A", A), ("B", B)):
        require_tensor(name, value)
    require_dtype("A", A, FLOATS)
    require_dtype("B", B, (A.dtype,))
    require_same_device(A=A, B=B)
    require_dims("B", B, (1, 2, 3))
    require_dims("A", A, (max(2, B.dim()),))
    m, k = A.shape[-2:]
    require_shape("B", B, (*A.shape[:-2], *B.shape[-2:-1], m), "(..., rows of A)")
    shape = (*B.shape[:-1], k)
    start = check_options(A, shape, passive, tol, return_residual, return_info)
    matrices, rows = with_dims(A.double(), 3), with_dims(B.double(), 3)
    solved, free, pivots = _Minimise.apply(matrices, rows, start, tol)  # type: ignore[no-untyped-call]
    h: Tensor = solved.to(A.dtype).reshape(shape)

    def residual() -> Tensor:
        known = matrices.detach()
        return kkt_residual(known.mT @ known, rows.detach() @ known, with_dims(h, 3))

    return with_info(h, free, pivots, residual, return_residual, return_info)


def _one_batch(info: Any, in_dims: tuple[int | None, ...], *values: Any) -> list[Any]:
    """Make one dimension of problems of that of vmap and of the first of each tensor."""
    flat = []
    for value, dim in zip(values, in_dims, strict=True):
        if isinstance(value, Tensor):
            wide = (
                value.movedim(dim, 0)
                if dim is not None
                else value.expand(info.batch_size, *value.shape)
            )
            flat.append(wide.flatten(0, 1))
        else:
            flat.append(value)
    return flat


class _Minimise(torch.autograd.Function):
    """Minimisers, free variables and pivots for A (P, m, k), B (P, n, m), start (P, n, k) or None.

    On the free variables F, A_F^T (A_F h_F - b) = 0: with u of `_Adjoint`, B receives u A^T and A
    the outer products of b - A h and u, less those of A u and h.
    """

    @staticmethod
    def forward(
        A: Tensor, B: Tensor, start: Tensor | None, tol: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        if start is None:
            start = nnls(A.mT @ A, B @ A, return_info=True)[1].passive
        problems = zip(A, B, start, strict=True)
        solved = [reference.nnls_dense(*problem, tol) for problem in problems]
        if not solved:
            return A.new_zeros(start.shape), start, start.sum(-1)
        h, free, pivots = (torch.stack(values) for values in zip(*solved, strict=True))
        return h, free, pivots

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        h, free, pivots = output
        ctx.mark_non_differentiable(free, pivots)
        ctx.save_for_backward(*inputs[:2], h, free)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _free: Any, _pivots: Any) -> tuple[Any, ...]:
        A, B, h, free = ctx.saved_tensors
        u = _Adjoint.apply(A, free, grad)  # type: ignore[no-untyped-call]
        moved = u @ A.mT
        return (B - h @ A.mT).mT @ u - moved.mT @ h, moved, None, None

    @staticmethod
    def jvp(_ctx: Any, *_tangents: Any) -> None:
        raise no_forward_mode("nnls_dense")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *values: Any) -> tuple[Any, Any]:
        results = _Minimise.apply(*_one_batch(info, in_dims, *values))  # type: ignore[no-untyped-call]
        return tuple(value.unflatten(0, (info.batch_size, -1)) for value in results), (0, 0, 0)


class _Adjoint(torch.autograd.Function):
    """u with A_F^T A_F u_F = grad_F for A (P, m, k), free variables and grad (P, n, k)."""

    @staticmethod
    def forward(A: Tensor, free: Tensor, grad: Tensor) -> Tensor:
        problems = zip(A, free, grad, strict=True)
        solved = [reference.solve_normal_equations(*problem) for problem in problems]
        return torch.stack(solved) if solved else grad.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        A, free, u = ctx.saved_tensors
        v = _Adjoint.apply(A, free, grad)  # type: ignore[no-untyped-call]
        return -((u @ A.mT).mT @ v + (v @ A.mT).mT @ u), None, v

    @staticmethod
    def jvp(_ctx: Any, *_tangents: Any) -> None:
        raise no_forward_mode("nnls_dense")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *values: Any) -> tuple[Any, Any]:
        u = _Adjoint.apply(*_one_batch(info, in_dims, *values))  # type: ignore[no-untyped-call]
        return u.unflatten(0, (info.batch_size, -1)), 0
