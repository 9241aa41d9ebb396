"""What rounding can do: to the answers of a network, to the edges of a ball, to a distance.

A proof is of the real-valued network; what answers rounds at every step. Here is by how much its
logits can differ, whatever the order in which sums are taken, with fused multiply-adds or without,
and with numbers too small for the type kept or made zero (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd edition, 3.1: a sum of k products is off by at most
gamma_k = k u / (1 - k u) times the sum of the magnitudes). Sums in a narrower type than that of the
weights (TF32), or through transforms (Winograd), round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv1d, linear, max_pool1d

_OWN = 1 + 2.0**-30
"""Factor on sums of magnitudes that float64 has rounded itself."""


def _layer(weight: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return what applies a layer of this weight to units (B, ...)."""
    if weight.dim() == 3:
        return lambda h, w, b: conv1d(h, w, b, padding=1)
    return lambda h, w, b: linear(h.flatten(1), w, b)


def real_logits(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return the logits (B, n_classes) in float64 of a CNN's or an MLP's weights."""
    h = x.double()
    h = h[:, None] if weights[0].dim() == 3 else h
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    for i, (weight, bias) in enumerate(layers):
        h = _layer(weight)(h, weight.double(), bias.double())
        if i < len(layers) - 1:
            h = h.clamp(min=0)
        if weight.dim() == 3 and i == 1:
            h = max_pool1d(h, 2)
    return h


def logit_errors(
    weights: Sequence[Tensor], lower: Tensor, upper: Tensor, *, hidden_upper: Tensor | None = None
) -> Tensor:
    """Bound by how much a network's logits can differ from those of its real-valued self.

    Parameters
    ----------
    weights : sequence of Tensor
        As for `ops.crown_bounds`, in the type in which the network answers.
    lower, upper : Tensor of shape (n_boxes, n_features)
        float64 boxes. The network's input is any point of them that its type has.
    hidden_upper : Tensor of shape (n_boxes, n_hidden), optional
        Upper bounds of the last hidden layer before its ReLU: units that are off for certain are
        off in any arithmetic.

    Returns
    -------
    Tensor of shape (n_boxes, n_classes)
        float64; infinite where the network's type could overflow.
    """
    kind = torch.finfo(weights[0].dtype)
    unit = kind.eps / 2
    low, high = lower, upper
    if weights[0].dim() == 3:
        low, high = low[:, None], high[:, None]
    # What is too small for the type may be taken as zero: features, weights and results.
    error = torch.full_like(low, kind.tiny)
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    safe = torch.ones(len(low), dtype=torch.bool, device=low.device)
    for i, (weight, bias) in enumerate(layers):
        apply, w, b = _layer(weight), weight.double(), bias.double()
        magnitude = torch.maximum(low.abs(), high.abs())
        # One term a product, one for the bias, one for a last rounding to the type.
        terms = weight[0].numel() + 2
        gamma = terms * unit / (1 - terms * unit)
        size = apply(magnitude + error, w.abs(), b.abs()) * _OWN
        # What is not a number is not safe either.
        safe &= (size.flatten(1) < kind.max / 4).all(1)
        passed = apply(error, w.abs(), torch.zeros_like(b))
        small = apply(magnitude + error, *(v.abs() * (v.abs() < kind.tiny) for v in (w, b)))
        error = (passed + gamma * size + small + 2 * terms * kind.tiny) * _OWN
        middle = apply((low + high) / 2, w, b)
        around = apply((high - low) / 2, w.abs(), torch.zeros_like(b)) + 2.0**-40 * size
        low, high = middle - around, middle + around
        if i == len(layers) - 2 and hidden_upper is not None:
            high = torch.minimum(high, hidden_upper)
        if i < len(layers) - 1:
            error = torch.where(high + error < 0, 0.0, error)
            high = high.clamp(min=0)
            low = torch.minimum(low.clamp(min=0), high)
        if weight.dim() == 3 and i == 1:
            # The pool takes a larger one: no more wrong than either.
            error, low, high = (max_pool1d(v, 2) for v in (error, low, high))
    return torch.where(safe[:, None], error, torch.inf)


def outward(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return edges one float64 number further out: those of results that were rounded once."""
    far = torch.full_like(lower, torch.inf)
    return torch.nextafter(lower, -far), torch.nextafter(upper, far)


def inward(lower: Tensor, upper: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the outermost numbers of `dtype` between float64 edges, in that type."""
    low, high = lower.to(dtype), upper.to(dtype)
    far = torch.full_like(low, torch.inf)
    return (
        torch.where(low.double() < lower, torch.nextafter(low, far), low),
        torch.where(high.double() > upper, torch.nextafter(high, -far), high),
    )


def within_linf(points: Tensor, x: Tensor, eps: Tensor) -> Tensor:
    """Say which points (n, n_features) are at most eps from x in every feature: exactly.

    Points and x are in float64 or narrower, eps is float64 and may differ by feature.
    """
    a, b = points.double(), x.double()
    difference = a - b
    # What the subtraction has rounded off (Knuth's exact sum).
    back = difference - a
    rest = (a - (difference - back)) + (-b - back)
    distance = difference.abs()
    beyond = torch.where(difference < 0, -rest, rest) > 0
    return ((distance < eps) | ((distance == eps) & ~beyond)).all(1)


def within_l2(points: Tensor, x: Tensor, eps: Tensor) -> Tensor:
    """Say which points (n, n_features) are for certain at most eps from x, in L2.

    A point as near to the edge as float64 cannot tell counts as outside.
    """
    squares = (points.double() - x.double()).square().sum(1)
    doubt = (x.shape[1] + 8) * 2.0**-52
    return squares * (1 + doubt) <= eps.square() * (1 - doubt)
