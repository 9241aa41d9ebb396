"""Gradients of ops, for autograd and for torch.func's transforms.

`torch.library.register_autograd` makes of a backward an autograd.Function whose forward also saves
what it needs, which the transforms of torch.func (grad, vjp, jacrev, vmap) refuse. Inside them an
op is therefore called through `TransformedOp`, which does the same in the parts that they ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Result = Tensor | tuple[Tensor, ...]


class Batched(Protocol):
    """What an op is over one more dimension of `size` entries.

    `dims` has for each argument where that dimension is; None where there is none. Returns the
    result and where its tensors have it.
    """

    def __call__(
        self, size: int, dims: Sequence[Any], *args: Any, **options: Any
    ) -> tuple[Result, Any]: ...


@dataclass(frozen=True)
class _Gradient:
    backward: Callable[..., Any]
    save: Callable[..., None] | None
    batched: Batched | None


_GRADIENTS: dict[str, _Gradient] = {}


def register_gradient(
    library: torch.library.Library,
    name: str,
    backward: Callable[..., Any],
    *,
    save: Callable[..., None] | None = None,
    batched: Batched | None = None,
) -> None:
    """Give an op its backward.

    `save(ctx, inputs, output, keyword_only_inputs)` keeps what that needs. Without `batched`, vmap
    calls the op once for each entry.
    """
    torch.library.register_autograd(f"nnmf_cuda::{name}", backward, setup_context=save, lib=library)
    _GRADIENTS[name] = _Gradient(backward, save, batched)


def no_forward_mode(name: str) -> RuntimeError:
    """Return the error of an op whose argument has a tangent."""
    return RuntimeError(
        f"nnmf_cuda.ops.{name} has no forward-mode gradient: use reverse mode, or reference_path()"
    )


def is_transforming() -> bool:
    """Whether the call is inside a transform of torch.func."""
    return torch._C._are_functorch_transforms_active()


def find_op(name: str) -> Callable[..., Any]:
    """Return the op itself, or inside a transform of torch.func what stands for it there."""
    if is_transforming():
        return TransformedOp(name)
    return getattr(torch.ops.nnmf_cuda, name).default  # type: ignore[no-any-return]


@dataclass(frozen=True)
class TransformedOp:
    """An op as a function that torch.func can transform."""

    name: str

    def __call__(self, *args: Any, **options: Any) -> Result:
        sizes = tuple(len(a) if isinstance(a, (list, tuple)) else None for a in args)
        call = _Call(self.name, sizes, options)
        return _Transformed.apply(call, *call.flat(args))  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True)
class _Call:
    """An op, which of its arguments are lists, of how many tensors, and its options."""

    name: str
    sizes: tuple[int | None, ...]
    options: dict[str, Any]

    def flat(self, values: Sequence[Any]) -> list[Any]:
        """Return one value for each tensor."""
        flat: list[Any] = []
        for value, size in zip(values, self.sizes, strict=True):
            flat += [value] if size is None else list(value)
        return flat

    def nested(self, flat: Sequence[Any]) -> list[Any]:
        """Return one value, or a list of them, for each argument."""
        values, rest = [], list(flat)
        for size in self.sizes:
            count = 1 if size is None else size
            values.append(rest[0] if size is None else rest[:count])
            del rest[:count]
        return values


class _Transformed(torch.autograd.Function):
    @staticmethod
    def forward(call: _Call, *flat: Any) -> Result:
        op = getattr(torch.ops.nnmf_cuda, call.name).default
        return op(*call.nested(flat), **call.options)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Result) -> None:
        call, *flat = inputs
        ctx.call = call
        save = _GRADIENTS[call.name].save
        if save is not None:
            save(ctx, call.nested(flat), output=output, keyword_only_inputs=call.options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        call, needed = ctx.call, ctx.needs_input_grad
        ctx.needs_input_grad = tuple(call.nested(needed[1:]))
        try:
            results = _GRADIENTS[call.name].backward(ctx, *grads)
        finally:
            ctx.needs_input_grad = needed
        return (None, *call.flat(results))

    @staticmethod
    def jvp(ctx: Any, *_tangents: Any) -> None:
        raise no_forward_mode(ctx.call.name)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: _Call, *flat: Any) -> tuple[Result, Any]:
        batched = _GRADIENTS[call.name].batched
        if batched is not None:
            dims = call.nested(in_dims[1:])
            return batched(info.batch_size, dims, *call.nested(flat), **call.options)
        results = []
        for i in range(info.batch_size):
            own = [
                value if dim is None else value.select(dim, i)
                for value, dim in zip(flat, in_dims[1:], strict=True)
            ]
            results.append(find_op(call.name)(*call.nested(own), **call.options))
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])
