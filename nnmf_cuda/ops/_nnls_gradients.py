"""What torch must know of `nnls` and `project`: shapes, gradients and one more dimension."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nnmf_cuda import reference
from nnmf_cuda.ops._schema import LIBRARY, raise_in_backward
from nnmf_cuda.ops._transforms import find_op, register_gradient
from nnmf_cuda.reference.nnmf import as_float


def _fake_rows(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return h, h.new_empty(h.shape, dtype=torch.bool), h.new_empty(h.shape[:-1], dtype=torch.int64)


@torch.library.register_fake("nnmf_cuda::nnls", lib=LIBRARY)
def _(
    gram: Tensor, cross: Tensor, passive: Tensor | None = None, *, tol: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_rows(torch.empty_like(cross, memory_format=torch.contiguous_format))


@torch.library.register_fake("nnmf_cuda::nnls_backward", lib=LIBRARY)
def _(gram: Tensor, h: Tensor, grad: Tensor) -> Tensor:
    return grad.new_empty(grad.shape, dtype=torch.float64)


torch.library.register_fake(
    "nnmf_cuda::prepare_components", reference.prepare_components, lib=LIBRARY
)


@torch.library.register_fake("nnmf_cuda::project", lib=LIBRARY)
def _(
    X: Tensor,
    H: Tensor,
    passive: Tensor | None = None,
    packed: Tensor | None = None,
    grams: Tensor | None = None,
    *,
    tol: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_rows(H.new_empty((H.shape[0], X.shape[-2], H.shape[1])))


def _solve_free(gram: Tensor, h: Tensor, grad: Tensor) -> Tensor:
    """Return u, the gradient to cross, in float64 (an op: how it is solved depends on the data)."""
    u: Tensor = find_op("nnls_backward")(gram, h, grad)
    return u


def _to_gram(u: Tensor, h: Tensor) -> Tensor:
    outer = u.mT @ h.double()
    return -(outer + outer.mT) / 2


def _save_nnls(
    ctx: Any,
    inputs: Sequence[Any],
    output: tuple[Tensor, Tensor, Tensor],
    keyword_only_inputs: Any,
) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _nnls_backward(
    ctx: Any, grad: Tensor, _free: Any, _pivots: Any
) -> tuple[Tensor | None, Tensor | None, None]:
    gram, h = ctx.saved_tensors
    u = _solve_free(gram, h, grad)
    return (
        _to_gram(u, h).to(gram.dtype) if ctx.needs_input_grad[0] else None,
        u.to(h.dtype) if ctx.needs_input_grad[1] else None,
        None,
    )


def _save_project(
    ctx: Any,
    inputs: Sequence[Any],
    output: tuple[Tensor, Tensor, Tensor],
    keyword_only_inputs: Any,
) -> None:
    ctx.save_for_backward(*inputs[:2], output[0])


def _project_backward(
    ctx: Any, grad: Tensor, _free: Any, _pivots: Any
) -> tuple[Tensor | None, ...]:
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
    return grad_X, grad_H, None, None, None


def _save_all(
    ctx: Any, inputs: Sequence[Tensor], output: Tensor, keyword_only_inputs: Any = None
) -> None:
    ctx.save_for_backward(*inputs, output)


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


def _with_batch(value: Any, dim: int | None, size: int) -> Any:
    """Return the value with the dimension of vmap first."""
    if value is None:
        return None
    return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)


def _batched_rows(
    name: str, size: int, dims: Sequence[int | None], gram: Tensor, *rows: Any, **options: Any
) -> tuple[Any, Any]:
    """Call an op on gram (B, k, k) and rows (B, n, k) or None, over one more dimension of both.

    Where all share the Gram matrices, it makes more rows of each problem, otherwise more problems.
    """
    wide = [_with_batch(value, dim, size) for value, dim in zip(rows, dims[1:], strict=True)]
    if dims[0] is None:
        place, flat = 1, [None if v is None else v.movedim(0, 1).flatten(1, 2) for v in wide]
    else:
        gram = gram.movedim(dims[0], 0).flatten(0, 1)
        place, flat = 0, [None if v is None else v.flatten(0, 1) for v in wide]
    return _unfolded(find_op(name)(gram, *flat, **options), place, size)


def _unfolded(results: Any, place: int, size: int) -> tuple[Any, Any]:
    """Part a dimension that has taken in that of vmap, before its own, into both again."""
    if isinstance(results, Tensor):
        return results.unflatten(place, (size, results.shape[place] // size)), place
    parted = [_unfolded(value, place, size)[0] for value in results]
    return tuple(parted), (place,) * len(parted)


def _batched_project(
    size: int,
    dims: Sequence[int | None],
    X: Tensor,
    H: Tensor,
    passive: Tensor | None = None,
    *ready: Tensor | None,
    **options: Any,
) -> tuple[Any, Any]:
    """Call `project` over one more dimension: rows of X where all share H, otherwise problems.

    What was made ready is of one H.
    """
    start = _with_batch(passive, dims[2] if len(dims) > 2 else None, size)
    if dims[1] is None:
        X = _with_batch(X, dims[0], size)
        X = X.flatten(0, 1) if X.dim() == 3 else X.movedim(0, 1).flatten(1, 2)
        place, start = 1, None if start is None else start.movedim(0, 1).flatten(1, 2)
    else:
        H = H.movedim(dims[1], 0)
        if dims[0] is not None or X.dim() == 3:  # otherwise all problems share it
            X = _with_batch(X, dims[0], size)
            X = X.unsqueeze(1).expand(-1, H.shape[1], -1, -1) if X.dim() == 3 else X
            X = X.flatten(0, 1)
        H, ready = H.flatten(0, 1), (None, None)
        place, start = 0, None if start is None else start.flatten(0, 1)
    return _unfolded(find_op("project")(X, H, start, *ready, **options), place, size)


raise_in_backward("prepare_components", "give `project` H itself for a gradient to H")
register_gradient(
    LIBRARY, "nnls", _nnls_backward, save=_save_nnls, batched=partial(_batched_rows, "nnls")
)
register_gradient(
    LIBRARY, "project", _project_backward, save=_save_project, batched=_batched_project
)
register_gradient(
    LIBRARY,
    "nnls_backward",
    _nnls_double_backward,
    save=_save_all,
    batched=partial(_batched_rows, "nnls_backward"),
)
