"""The gradient to features alone, at little cost a call: what an attack asks for.

The autograd that torch.library registers takes half a millisecond of Python for an op with lists of
weights, as much as the op itself at the size of a light network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
Backward = Callable[[Tensor, Tensor, Tensor], Tensor]


def below_autograd() -> AbstractContextManager[None]:
    """Call kernels directly inside the block; nobody may ask for a gradient through them.

    As torch.library's own wrappers do, but without the tenth of a millisecond that these take.
    """
    return torch._C._AutoDispatchBelowAutograd()


def only_x_needs_gradient(x: Tensor, others: Sequence[Tensor | None]) -> bool:
    """Whether `differentiable_in_x` serves: eager mode, and gradients to x alone."""
    return (
        not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and x.requires_grad
        and not any(t is not None and t.requires_grad for t in others)
    )


def differentiable_in_x(
    x: Tensor, others: Sequence[Tensor | None], forward: Forward, backward: Backward
) -> Tensor:
    """Return the first of forward(x) -> (result, signs), differentiable by backward.

    ``backward(grad, x, signs)`` is the gradient to x; `others` are the tensors that it reads
    beside, so that a change of one of them in between raises.
    """
    result: Tensor = _InputGradient.apply(x, tuple(others), forward, backward)  # type: ignore[no-untyped-call]
    return result


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, others: tuple[Tensor | None, ...], forward: Forward, backward: Backward
    ) -> Tensor:
        with below_autograd():
            result, signs = forward(x)
        ctx.save_for_backward(x, signs, *others)
        ctx.through = backward
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, signs, *_ = ctx.saved_tensors
        with below_autograd():
            return ctx.through(grad, x, signs), None, None, None
