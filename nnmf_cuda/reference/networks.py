"""The two networks, layer by layer, and their gradients: formulas only, no modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

BLOCK_ROWS = 32
"""Rows whose signs share a word."""


def pack_signs(signs: Sequence[Tensor], *, keep_signs: bool, like: Tensor) -> Tensor:
    """Pack bools (..., units), flat rows in front, as bits: int32 (n_blocks, all units).

    Bit r of word (b, u) belongs to row 32 b + r; bits beyond the last row are 0. Empty, on the
    device of `like`, if signs are not kept.
    """
    if not keep_signs:
        return torch.empty(0, dtype=torch.int32, device=like.device)
    if not signs:
        return torch.empty(0, 0, dtype=torch.int32, device=like.device)
    bits = torch.cat([sign.flatten(0, -2) for sign in signs], -1)
    bits = functional.pad(bits, (0, 0, 0, -len(bits) % BLOCK_ROWS))
    bits = bits.reshape(-1, BLOCK_ROWS, bits.shape[-1]).to(torch.int64)
    place = torch.arange(BLOCK_ROWS, dtype=torch.int64, device=bits.device).reshape(-1, 1)
    return (bits << place).sum(1).to(torch.int32)  # wraps: bit 31 is the sign


def mlp(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the input and every layer's output; ReLU after each layer but the last."""
    outputs = [x]
    for i in range(0, len(weights), 2):
        x = functional.linear(x, weights[i], weights[i + 1])
        if i + 2 < len(weights):
            x = x.relu()
        outputs.append(x)
    return outputs


def mlp_backward(
    grad: Tensor,
    outputs: list[Tensor],
    weights: Sequence[Tensor],
    grad_weights: list[Tensor] | None,
) -> Tensor:
    """Return the gradient to the input of `mlp`; add those of the weights to `grad_weights`."""
    for layer in reversed(range(len(weights) // 2)):
        if grad_weights is not None:
            rows = grad.flatten(0, -2)
            at = 2 * layer
            grad_weights[at] = grad_weights[at] + rows.mT @ outputs[layer].flatten(0, -2)
            grad_weights[at + 1] = grad_weights[at + 1] + rows.sum(0)
        grad = grad @ weights[2 * layer]
        if layer > 0:
            grad = grad * (outputs[layer] > 0)
    return grad


def feature_cnn(
    x: Tensor, weights: Sequence[Tensor], *, keep_signs: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the logits (n, n_classes) of features x (n, M), and the signs if they are kept.

    weights: those of two convolutions (kernel 3, padding 1), each with ReLU, and, after a max-pool
    of 2, of two fully connected layers with ReLU between. Signs, as `pack_signs` packs them: the
    first convolution's, position by position; the pooled ones', channel by channel; which of its
    pair each of these is (0 the first, also among equals); the hidden layer's.
    """
    first, pooled, from_second, layers = _feature_cnn(x, weights)
    hidden = [
        (first > 0).mT.flatten(1),
        (pooled > 0).flatten(1),
        from_second.flatten(1),
        layers[1] > 0,
    ]
    return layers[-1], pack_signs(hidden, keep_signs=keep_signs, like=x)


def feature_cnn_backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    signs: Tensor,
    *,
    weights_need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `feature_cnn` to x and, in one vector, to the weights (empty if not asked for).

    The signs are not needed here, where the forward pass is done again.
    """
    first, pooled, from_second, layers = _feature_cnn(x, weights)
    grad_layers = [torch.zeros_like(w) for w in weights[4:]] if weights_need_grad else None
    grad = mlp_backward(grad, layers, weights[4:], grad_layers).reshape(pooled.shape)
    grad = grad * (pooled > 0)
    pairs = torch.stack((grad * ~from_second, grad * from_second), -1).flatten(-2)
    at_second = functional.pad(pairs, (0, first.shape[-1] - pairs.shape[-1]))
    at_first = functional.conv_transpose1d(at_second, weights[2], padding=1) * (first > 0)
    grad_x = functional.conv_transpose1d(at_first, weights[0], padding=1).squeeze(1)
    if grad_layers is None:
        return grad_x, x.new_empty(0)
    grad_weights = (
        *_convolution_weights_gradient(at_first, x.unsqueeze(1), weights[0]),
        *_convolution_weights_gradient(at_second, first, weights[2]),
        *grad_layers,
    )
    return grad_x, torch.cat([g.flatten() for g in grad_weights])


def _feature_cnn(
    x: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Return the first convolution's output, the pooled one, which of each pair it is, the rest."""
    first = functional.conv1d(x.unsqueeze(1), weights[0], weights[1], padding=1).relu()
    second = functional.conv1d(first, weights[2], weights[3], padding=1).relu()
    pooled, index = functional.max_pool1d(second, 2, return_indices=True)
    return first, pooled, index % 2 == 1, mlp(pooled.flatten(1), weights[4:])


def _convolution_weights_gradient(
    grad: Tensor, given: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients to a convolution's weight (out, in, 3) and bias, from that to its output."""
    windows = functional.pad(given, (1, 1)).unfold(-1, weight.shape[-1], 1)
    return torch.einsum("nop,nipd->oid", grad, windows), grad.sum((0, 2))
