"""Epochs of training by Adam with a moving average of the weights: formulas only, no modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nnmf_cuda.reference.defence import feature_cnn, feature_cnn_backward, mlp, mlp_backward

__all__ = ["train_feature_cnn_epoch", "train_mlp_epoch"]

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8

# (rows, what they should become, weights) -> (mean loss, its gradient in one vector)
_Gradient = Callable[[Tensor, Tensor, list[Tensor]], tuple[Tensor, Tensor]]


def train_feature_cnn_epoch(
    x: Tensor,
    labels: Tensor,
    state: Tensor,
    *,
    widths: Sequence[int],
    batch_size: int,
    step: int,
    lr: float,
    ema_decay: float,
) -> tuple[Tensor, Tensor]:
    """Train a `feature_cnn` by cross-entropy on slices of x, in their order.

    x (n, M), labels (n,); state (4, P): weights, both moments of Adam, moving average, each in one
    vector; widths: channels of both convolutions, hidden units, classes. `step` steps have been
    made before. Returns the state after the epoch and the mean loss as float64.
    """
    first, second, hidden, n_classes = widths
    shapes = [(first, 1, 3), (second, first, 3), (hidden, second * (x.shape[1] // 2))]

    def gradient(x: Tensor, labels: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, signs = feature_cnn(x, weights)
        share = (logits.softmax(1) - functional.one_hot(labels, n_classes)) / len(x)
        return functional.cross_entropy(logits, labels), feature_cnn_backward(
            share, x, weights, signs, weights_need_grad=True
        )[1]

    return _epoch(
        x, labels, state, [*shapes, (n_classes, hidden)], gradient, batch_size, step, lr, ema_decay
    )


def train_mlp_epoch(
    x: Tensor,
    targets: Tensor,
    state: Tensor,
    *,
    widths: Sequence[int],
    batch_size: int,
    step: int,
    lr: float,
    ema_decay: float,
) -> tuple[Tensor, Tensor]:
    """Train an `mlp` to turn x (n, inputs) into targets (n, outputs) by mean squared error.

    As `train_feature_cnn_epoch`; widths are the outputs of each layer.
    """
    shapes = list(zip(widths, (x.shape[1], *widths[:-1]), strict=True))

    def gradient(x: Tensor, targets: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
        outputs = mlp(x, weights)
        grad_weights = [torch.zeros_like(w) for w in weights]
        error = outputs[-1] - targets
        mlp_backward(2 * error / error.numel(), outputs, weights, grad_weights)
        return error.square().mean(), torch.cat([g.flatten() for g in grad_weights])

    return _epoch(x, targets, state, shapes, gradient, batch_size, step, lr, ema_decay)


def _epoch(
    x: Tensor,
    wanted: Tensor,
    state: Tensor,
    shapes: Sequence[tuple[int, ...]],
    gradient: _Gradient,
    batch_size: int,
    step: int,
    lr: float,
    ema_decay: float,
) -> tuple[Tensor, Tensor]:
    flat, mean, square, average = state.unbind()
    sizes = [size for shape in shapes for size in (math.prod(shape), shape[0])]
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for begin in range(0, len(x), batch_size):
        step += 1
        rows = x[begin : begin + batch_size]
        parts = iter(flat.split(sizes))
        weights = [part for shape in shapes for part in (next(parts).reshape(shape), next(parts))]
        loss, grad = gradient(rows, wanted[begin : begin + batch_size], weights)
        total += loss.double() * len(rows)
        # Kingma & Ba (2015), algorithm 1, as torch.optim.Adam rounds it.
        mean = mean.lerp(grad, 1 - _BETA1)
        square = _BETA2 * square + (1 - _BETA2) * grad.square()
        root = square.sqrt() / math.sqrt(1 - _BETA2**step) + _EPSILON
        flat = flat - lr / (1 - _BETA1**step) * mean / root
        # Faster at first, so that a short run is averaged too.
        average = average.lerp(flat, 1 - min(ema_decay, step / (9 + step)))
    return torch.stack((flat, mean, square, average)), total / len(x)
