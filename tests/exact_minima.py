"""Small networks whose least margin over a box or a disk is known in rationals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from nnmf_cuda.models import FeatureCNN

Affine = tuple[Fraction, Fraction, Fraction]
"""a + b x + c y."""
Polygon = list[tuple[Fraction, Fraction]]


def at(f: Affine, p: tuple[Fraction, Fraction]) -> Fraction:
    return f[0] + f[1] * p[0] + f[2] * p[1]


def cut(polygon: Polygon, f: Affine) -> tuple[Polygon, Polygon]:
    """Part a convex polygon into where f <= 0 and where f >= 0, exactly; () for none."""
    values = [at(f, p) for p in polygon]
    below: Polygon = []
    above: Polygon = []
    for (p, u), (q, v) in itertools.pairwise(
        [*zip(polygon, values, strict=True)] + [(polygon[0], values[0])]
    ):
        if u <= 0:
            below.append(p)
        if u >= 0:
            above.append(p)
        if (u < 0 < v) or (v < 0 < u):
            t = u / (u - v)
            new = (p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1]))
            below.append(new)
            above.append(new)
    return (
        below if any(v < 0 for v in values) or not any(v > 0 for v in values) else [],
        above if any(v > 0 for v in values) else [],
    )


def combine(row: Tensor, units: Sequence[Affine], bias: float) -> Affine:
    terms = [(Fraction(float(w)), f) for w, f in zip(row, units, strict=True) if float(w)]
    sums = [sum((w * f[i] for w, f in terms), Fraction(0)) for i in range(3)]
    return (sums[0] + Fraction(float(bias)), sums[1], sums[2])


ZERO: Affine = (Fraction(0), Fraction(0), Fraction(0))


def linear_pieces(
    weights: Sequence[Tensor],
    objective: Sequence[int],
    low: Sequence[Fraction],
    high: Sequence[Fraction],
) -> list[tuple[Polygon, Affine]]:
    """Part a box into polygons on which a functional of the logits is linear, in rationals.

    Every polygon on which all units of a network of two inputs keep their signs is visited, layer
    by layer.
    """
    corners = [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]
    regions: list[tuple[Polygon, list[Affine]]] = [
        (
            corners,
            [(Fraction(0), Fraction(1), Fraction(0)), (Fraction(0), Fraction(0), Fraction(1))],
        )
    ]

    def relu(parts: list[tuple[Polygon, list[Affine]]]) -> list[tuple[Polygon, list[Affine]]]:
        for i in range(len(parts[0][1])):
            after = []
            for polygon, units in parts:
                below, above = cut(polygon, units[i])
                if below:
                    after.append((below, [*units[:i], ZERO, *units[i + 1 :]]))
                if above:
                    after.append((above, units))
            parts = after
        return parts

    def apply(weight: Tensor, bias: Tensor) -> list[tuple[Polygon, list[Affine]]]:
        return [
            (polygon, [combine(w, units, float(b)) for w, b in zip(weight, bias, strict=True)])
            for polygon, units in regions
        ]

    layers = list(zip(weights[::2], weights[1::2], strict=True))
    if weights[0].dim() == 3:
        # Dense matrices of the convolutions, read off by asking them about unit vectors.
        for weight, bias in layers[:2]:
            channels = weight.shape[1]
            eye = torch.eye(2 * channels).view(-1, channels, 2)
            dense = nn.functional.conv1d(eye, weight.float(), padding=1).flatten(1).T
            regions = relu(apply(dense, bias.repeat_interleave(2)))
        pooled = []
        for polygon, units in regions:
            parts = [(polygon, list[Affine]())]
            for a, b in zip(units[::2], units[1::2], strict=True):
                difference: Affine = (a[0] - b[0], a[1] - b[1], a[2] - b[2])
                after = []
                for part, chosen in parts:
                    below, above = cut(part, difference)
                    after += [(q, [*chosen, f]) for q, f in ((below, b), (above, a)) if q]
                parts = after
            pooled += parts
        regions, layers = pooled, layers[2:]
    for weight, bias in layers[:-1]:
        regions = relu(apply(weight, bias))
    regions = apply(*layers[-1])
    sign = torch.tensor(objective, dtype=torch.float64)
    return [(polygon, combine(sign, units, 0.0)) for polygon, units in regions]


def exact_minimum(
    weights: Sequence[Tensor],
    objective: Sequence[int],
    low: Sequence[Fraction],
    high: Sequence[Fraction],
) -> Fraction:
    """Minimise a functional of the logits of a network of two inputs over a box, in rationals."""
    pieces = linear_pieces(weights, objective, low, high)
    return min(at(f, p) for polygon, f in pieces for p in polygon)


def minimum_in_disk(pieces: list[tuple[Polygon, Affine]], center: Tensor, radius: float) -> float:
    """Minimise over a disk what is linear on each polygon: at a vertex, an edge or the circle."""
    c = center.double().numpy()
    least = math.inf
    for polygon, affine in pieces:
        corners = np.array([[float(v) for v in p] for p in polygon])
        f = [float(v) for v in affine]
        points = list(corners)
        for p, q in zip(corners, np.roll(corners, -1, 0), strict=True):
            d, m = q - p, p - c
            under = (m @ d) ** 2 - (d @ d) * (m @ m - radius**2)
            if d @ d > 0 and under >= 0:
                ts = [(-(m @ d) + s * math.sqrt(under)) / (d @ d) for s in (1, -1)]
                points += [p + t * d for t in ts if 0 <= t <= 1]
        steep = math.hypot(f[1], f[2])
        lowest = c - radius * np.array(f[1:]) / steep if steep > 0 else c
        cross = [
            (q - p)[0] * (lowest - p)[1] - (q - p)[1] * (lowest - p)[0]
            for p, q in zip(corners, np.roll(corners, -1, 0), strict=True)
        ]
        if min(cross) >= 0 or max(cross) <= 0:
            points.append(lowest)
        inside = [p for p in points if np.linalg.norm(p - c) <= radius * (1 + 1e-12)]
        least = min([least, *(f[0] + f[1] * p[0] + f[2] * p[1] for p in inside)])
    return least


def grid(shape: tuple[int, ...], rng: np.random.Generator, size: float) -> Tensor:
    """Draw numbers that need few bits, so that rationals stay short."""
    return torch.from_numpy(np.round(rng.standard_normal(shape) * size * 64) / 64).float()


def planted_mlp(seed: int) -> nn.Sequential:
    rng = np.random.default_rng(seed)
    widths = [(2, 4, 2), (2, 3, 3, 2), (2, 5, 4, 2), (2, 2, 2, 2, 2)][seed % 4]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layer = nn.Linear(inputs, outputs)
        layer.weight.data = grid((outputs, inputs), rng, 1.5)
        layer.bias.data = grid((outputs,), rng, 0.5)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def planted_cnn(seed: int) -> FeatureCNN:
    """A light CNN of two inputs of which a few channels say something."""
    rng = np.random.default_rng(seed)
    model = FeatureCNN(2, 2)
    for weight in model.weights():
        weight.data = torch.zeros_like(weight)
    w = model.weights()
    w[0].data[:2], w[1].data[:2] = grid((2, 1, 3), rng, 1.5), grid((2,), rng, 0.5)
    w[2].data[:3, :2], w[3].data[:3] = grid((3, 2, 3), rng, 1.5), grid((3,), rng, 0.5)
    w[4].data[:3, :3], w[5].data[:3] = grid((3, 3), rng, 1.5), grid((3,), rng, 0.5)
    w[6].data[:, :3], w[7].data[:] = grid((2, 3), rng, 1.5), grid((2,), rng, 0.5)
    return model


def box_around(x: Tensor, eps: float, more: float = 0.0) -> tuple[list[Fraction], list[Fraction]]:
    reach = Fraction(eps) + Fraction(more)
    middle = [Fraction(float(v)) for v in x]
    return [max(v - reach, Fraction(0)) for v in middle], [
        min(v + reach, Fraction(1)) for v in middle
    ]


def last_bias(model: nn.Module) -> Tensor:
    return list(model.parameters())[-1].data
