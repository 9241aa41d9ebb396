"""Interval bounds of a classifier's answers over a ball, differentiable in its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# Keeps the gradient of a square root finite.
_TINY = 1e-24


def margin_bounds(
    weights: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    radius: float | Tensor,
    *,
    norm: str = "Linf",
) -> Tensor:
    """Bound by how much each class can beat the right one within a ball and the box [0, 1].

    The interval of each unit follows from those of the layer before it. Of the last layer it is the
    differences of logits that are bounded, which is tighter than to bound the logits one by one. In
    float32, and not rounded outwards: to train by, not to prove by.

    Parameters
    ----------
    weights : sequence of Tensor
        Weight and bias of each layer, of a `FeatureCNN` or a `FeatureMLP`.
    x : Tensor of shape (n_samples, n_features)
        Centers, in the box.
    y : Tensor of shape (n_samples,)
        int64 labels.
    radius : float or Tensor of shape (n_samples, 1)
        Of the balls, in units of the features.
    norm : {"Linf", "L2"}, default="Linf"
        Norm of the balls.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        Upper bounds of logit j minus logit y; 0 at the label itself.

    References
    ----------
    .. [1] Gowal, Dvijotham, Stanforth, Bunel, Qin, Uesato, Arandjelovic, Mann & Kohli (2018), On
       the effectiveness of interval bound propagation for training verifiably robust models,
       arXiv:1810.12715.
    """
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    (first, bias), *others, (last, offset) = layers
    lower, upper = _interval((x - radius).clamp_min(0), (x + radius).clamp_max(1), first, bias)
    if norm == "L2":
        # Radius times the length of a unit's weights; at the edges a part of a kernel lies outside.
        squares = _affine((radius * torch.ones_like(x)).square(), first.square(), None)
        middle, spread = _affine(x, first, bias), squares.clamp_min(_TINY).sqrt()
        lower = torch.maximum(lower, middle - spread)
        upper = torch.minimum(upper, middle + spread)
    lower, upper = lower.relu(), upper.relu()
    for weight, bias in others:
        if lower.dim() == 3 and weight.dim() == 2:
            lower, upper = (functional.max_pool1d(end, 2).flatten(1) for end in (lower, upper))
        lower, upper = _interval(lower, upper, weight, bias)
        lower, upper = lower.relu(), upper.relu()
    difference = last.unsqueeze(0) - last[y].unsqueeze(1)  # (n_samples, n_classes, n_units)
    middle, spread = ((lower + upper) / 2).unsqueeze(2), ((upper - lower) / 2).unsqueeze(2)
    bounds = (difference @ middle + difference.abs() @ spread).squeeze(2)
    return bounds + (offset.unsqueeze(0) - offset[y].unsqueeze(1))


def _interval(lower: Tensor, upper: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and largest values of a layer, before its ReLU."""
    middle = _affine((lower + upper) / 2, weight, bias)
    spread = _affine((upper - lower) / 2, weight.abs(), None)
    return middle - spread, middle + spread


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    values: Tensor
    if weight.dim() == 2:
        values = functional.linear(x, weight, bias)
    else:
        channels = x if x.dim() == 3 else x.unsqueeze(1)
        values = functional.conv1d(channels, weight, bias, padding=1)
    return values
