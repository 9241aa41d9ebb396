"""How the ops of the defence are called: with the gradient to features alone, at little cost.

That gradient is what an attack asks for. The autograd that torch.library registers takes half a
millisecond of Python for an op with lists of weights, as much as the op itself at the size of a
light network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnmf_cuda.ops._schema import is_reference_path, serving

Backward = Callable[[Tensor, Tensor, Tensor], Tensor]


def call_defence(
    name: str,
    x: Tensor,
    arguments: Sequence[Any],
    *,
    unasked: Sequence[str],
    **options: Any,
) -> Tensor:
    """Return the first result of an op on x and the arguments after it.

    `unasked` names the flags of the op's backward for gradients to anything but x; `options` are
    the keywords of both.
    """
    op = serving(name)
    if is_reference_path():
        return op(x, *arguments, keep_signs=False, **options)[0]  # type: ignore[no-any-return]
    others = [value for value in _flat(arguments) if isinstance(value, Tensor)]
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *others))
    if torch.compiler.is_compiling() or (wanted and any(t.requires_grad for t in others)):
        return op(x, *arguments, keep_signs=wanted, **options)[0]  # type: ignore[no-any-return]
    if not wanted:
        with _below_autograd():
            return op(x, *arguments, keep_signs=False, **options)[0]  # type: ignore[no-any-return]
    backward_op = getattr(torch.ops.nnmf_cuda, f"{name}_backward").default
    flags = dict.fromkeys(unasked, False)

    def backward(grad: Tensor, x: Tensor, signs: Tensor) -> Tensor:
        return backward_op(grad, x, *arguments, signs, **flags, **options)[0]  # type: ignore[no-any-return]

    result: Tensor = _InputGradient.apply(  # type: ignore[no-untyped-call]
        x, others, lambda x: op(x, *arguments, keep_signs=True, **options), backward
    )
    return result


def _flat(arguments: Sequence[Any]) -> list[Any]:
    return [
        value
        for argument in arguments
        for value in (argument if isinstance(argument, list) else (argument,))
    ]


def _below_autograd() -> AbstractContextManager[None]:
    """Call kernels directly inside the block; nobody may ask for a gradient through them.

    As torch.library's own wrappers do, but without the time that these take in Python.
    """
    return torch._C._AutoDispatchBelowAutograd()


class _InputGradient(torch.autograd.Function):
    """A change of one of `others` between the passes raises."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        others: Sequence[Tensor],
        forward: Callable[[Tensor], tuple[Tensor, Tensor]],
        backward: Backward,
    ) -> Tensor:
        with _below_autograd():
            result, signs = forward(x)
        ctx.save_for_backward(x, signs, *others)
        ctx.through = backward
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, signs, *_ = ctx.saved_tensors
        with _below_autograd():
            return ctx.through(grad, x, signs), None, None, None
