"""Linear lower bounds of a network over boxes (CROWN), sound in exact arithmetic.

A functional of the logits is carried back through the network to the input: at each unit a line
below or above its activation takes the activation's place, whichever the sign of the coefficient
asks for, and the linear function of the input that is left has its minimum over the region in
closed form [1]_. The bounds of a layer, between which its lines lie, are found in the same way from
the layers below it; every choice of lines gives a valid bound, good ones a close one.

Rounding
--------
All bounds hold for the real-valued network of the given weights, although they are computed in
float64. With u = 2**-53 and region |x| <= X, the magnitudes A_1 = |W_1| X + |b_1|,
A_k = |W_k| A_{k-1} + |b_k| bound all units of layer k (a pooled unit counts the magnitudes of both
its parts). Slopes lie in [0, 1], so a functional c . z_k has coefficients whose magnitudes, times
those of the units which they multiply, add up to at most |c| . A_k at each layer on its way back.
Each layer there adds, to first order in u, at most

- 4 u |c| . A_k: coefficients times slopes;
- 2 n_k u |c| . A_k: the sum of n_k offsets and of n_k biases;
- n_k u |c| . A_k: a matrix product whose sums have n_k terms, times the units below;
- 6 D u |c| . A_k: what is summed so far, which D layers have added to, three times rounded;

and the minimum over the region 2 (n + 4) u |c| . A_k. With N the sum of inputs, outputs and 8 over
all D layers this is less than (D + 4) N u |c| . A_k, of which four times are taken off (`_slack`):
for terms of second order, for offsets up to twice the magnitude, and for the rounding of the
magnitudes themselves. Underflow, gradual or to zero, adds less than 2**-1000 for each operation,
times what may follow, which is less than the product of all layers' largest sums of magnitudes of
weights and bias, each at least 1: `_TINY` covers that. Where that product, times X, exceeds
`_LARGEST` or is not a number, the bound is -inf: even coefficients of features that are next to
zero stay finite. An offset is itself made large enough for its slope as that was rounded.

References
----------
.. [1] Zhang et al. (2018), Efficient neural network robustness certification with general
   activation functions, NeurIPS 31.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["CrownBounds", "crown_bounds"]

_UNIT = 2.0**-53
_TINY = 2.0**-900
_LARGEST = 1e150
"""Of numbers on the way: products of two stay finite."""
_ROWS = 2048
"""Rows times boxes that are carried back at once: what fits a cache."""


class CrownBounds(NamedTuple):
    """What `crown_bounds` returns; see there."""

    bound: Tensor
    slope: Tensor
    hidden_lower: Tensor
    hidden_upper: Tensor


def crown_bounds(
    lower: Tensor,
    upper: Tensor,
    weights: Sequence[Tensor],
    objective: Tensor,
    *,
    center: Tensor | None = None,
    radius: Tensor | None = None,
    hidden: tuple[Tensor, Tensor] | None = None,
) -> CrownBounds:
    """Bound a linear functional of the logits from below, over each of a batch of boxes.

    Signature and result are those of `nnmf_cuda.ops.crown_bounds`, arguments are taken as valid.
    """
    given = (lower, upper, objective, *weights)
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        raise ValueError("crown_bounds has no gradient: detach() its arguments, or use no_grad")
    layers = _layers([w.double() for w in weights], lower.shape[1])
    m = layers[-2].bias.numel()
    if hidden is None:
        wide = lower.new_full((len(lower), m), torch.inf)
        hidden = (-wide, wide)
    chunk = max(1, _ROWS // (2 * m))
    parts = []
    for first in range(0, len(lower), chunk):
        rows = slice(first, first + chunk)
        ball = None if center is None or radius is None else (center[rows], radius[rows])
        region = _Region.of(lower[rows], upper[rows], ball)
        parts.append(_bounds(layers, region, objective[rows], hidden[0][rows], hidden[1][rows]))
    if not parts:
        return CrownBounds(lower.new_empty(0), torch.empty_like(lower), *hidden)
    return CrownBounds(*(torch.cat(part) for part in zip(*parts, strict=True)))


class _Region(NamedTuple):
    """Boxes [middle - half, middle + half], and balls around centers: points of both."""

    middle: Tensor
    half: Tensor
    center: Tensor | None
    radius: Tensor | None  # (B, 1)
    magnitude: Tensor

    @classmethod
    def of(cls, lower: Tensor, upper: Tensor, ball: tuple[Tensor, Tensor] | None) -> _Region:
        middle, half = lower / 2 + upper / 2, upper / 2 - lower / 2
        magnitude = torch.maximum(lower.abs(), upper.abs())
        if ball is None:
            return cls(middle, half, None, None, magnitude)
        center, radius = ball[0], ball[1][:, None]
        return cls(middle, half, center, radius, torch.maximum(magnitude, center.abs() + radius))

    def minimum(self, coefficients: Tensor) -> Tensor:
        """Return the minimum (B, R) of linear functions (B or 1, R, n) over box or ball."""
        lowest = _dot(coefficients, self.middle) - _dot(coefficients.abs(), self.half)
        if self.center is None or self.radius is None:
            return lowest
        in_ball = _dot(coefficients, self.center) - self.radius * coefficients.norm(dim=2)
        return torch.maximum(lowest, in_ball)


def _dot(coefficients: Tensor, values: Tensor) -> Tensor:
    """Return the products (B, R) of rows (B or 1, R, n), the same for all boxes or not, and (B, n).

    One set of rows for all boxes would be copied by a batched product.
    """
    if len(coefficients) == 1:
        return values @ coefficients[0].T
    return (coefficients @ values[:, :, None]).squeeze(2)


class _Lines(NamedTuple):
    """Below relu: `lower` * z. Above it: `upper` * z + `offset`. Each (B, units)."""

    lower: Tensor
    upper: Tensor
    offset: Tensor

    @classmethod
    def of(cls, low: Tensor, high: Tensor) -> _Lines:
        """Return the lines of units within [low, high]: the chord, and the nearer of 0 and z."""
        crosses, on = (low < 0) & (high > 0), low >= 0
        chord = (high / (high - low)).clamp(0, 1)
        upper = torch.where(crosses, chord, on.to(low))
        # relu less a line is convex: largest at an end. 1 - upper is exact to a rounding.
        offset = torch.maximum(-low * upper, high * (1 - upper)) * (1 + 8 * _UNIT) + _TINY
        lower = (on | (crosses & (high > -low))).to(low)
        return cls(lower, upper, torch.where(crosses, offset, 0.0))

    def back(self, C: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """Carry functions C . relu(z) + constant back to z, from below."""
        negative = C.clamp(max=0)
        constant = constant + _dot(negative, self.offset)
        lower, upper = self.lower[:, None], self.upper[:, None]
        return torch.addcmul(C * lower, negative, upper - lower), constant


class _Dense:
    """z = W h + b, with relu after it except in the last layer."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias
        self.units = sum(weight.shape)
        self.growth = weight.abs().sum(1) + bias.abs()
        self.joined = torch.cat((weight, bias[:, None]), 1)

    def back(self, C: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """Carry functions C . z + constant back to h."""
        product = C @ self.joined
        return product[..., :-1], constant + product[..., -1]

    def magnitude(self, below: Tensor) -> Tensor:
        return below @ self.weight.abs().T + self.bias.abs()

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds of z where each h is anywhere within [low, high]."""
        plus, minus = self.weight.clamp(min=0).T, self.weight.clamp(max=0).T
        return low @ plus + high @ minus + self.bias, high @ plus + low @ minus + self.bias


class _Planes(NamedTuple):
    """Planes around p = max(a, b, 0): below it one of a, b and 0, above it any; each (B, units)."""

    lower_a: Tensor
    lower_b: Tensor
    upper_a: Tensor
    upper_b: Tensor
    offset: Tensor

    @classmethod
    def of(cls, low: Tensor, high: Tensor) -> _Planes:
        """Return planes where a, b and a - b, (B, 3, units), are within [low, high].

        The upper plane is the lowest of four at the middle. Each has the offset that the convex
        difference to p asks for, which is largest at a vertex of a polygon around the region.
        """
        (la, lb, ld), (ua, ub, ud) = low.unbind(1), high.unbind(1)
        corners_a = (la, ua, ua, (lb + ud).clamp(la, ua), la, (ub + ld).clamp(la, ua))
        corners_b = (lb, ub, (ua - ud).clamp(lb, ub), lb, (la - ld).clamp(lb, ub), ub)
        A, B = torch.stack(corners_a), torch.stack(corners_b)
        P = torch.maximum(A, B).clamp(min=0)

        def slope(at_high: Tensor, at_low: Tensor, width: Tensor) -> Tensor:
            rise = at_high.clamp(min=0) - at_low.clamp(min=0)
            return (rise / width.clamp(min=_TINY)).clamp(0, 1)

        low_low, high_high = torch.maximum(la, lb), torch.maximum(ua, ub)
        high_low, low_high = torch.maximum(ua, lb), torch.maximum(la, ub)
        wide_a, wide_b = ua - la, ub - lb
        first = slope(high_low, low_low, wide_a), slope(low_high, low_low, wide_b)
        second = slope(high_high, low_high, wide_a), slope(high_high, high_low, wide_b)
        share, whole = _Lines.of(ld, ud).upper, _Lines.of(low_low, high_high).upper
        tried_a = torch.stack((*(s[0] for s in (first, second)), whole * share))
        tried_b = torch.stack((*(s[1] for s in (first, second)), whole * (1 - share)))
        tried_a = torch.cat((tried_a, tried_a[:2].mean(0, keepdim=True)))
        tried_b = torch.cat((tried_b, tried_b[:2].mean(0, keepdim=True)))
        offsets = (P[:, None] - tried_a * A[:, None] - tried_b * B[:, None]).amax(0)
        at_middle = offsets + tried_a * ((la + ua) / 2) + tried_b * ((lb + ub) / 2)
        size = torch.maximum(la.abs(), ua.abs()) + torch.maximum(lb.abs(), ub.abs())
        # Equally good ones are common: the first, whatever the rounding.
        later = torch.arange(len(offsets), device=la.device).view(-1, *[1] * la.dim())
        best = (at_middle + later * (1e-9 * size)).argmin(0, keepdim=True)
        upper_a, upper_b, offset = (
            tried.gather(0, best).squeeze(0) for tried in (tried_a, tried_b, offsets)
        )
        # Corners are rounded once, products and sums five times; p and a plane change by at most 3
        # where a corner changes by 1.
        offset = offset + (size + torch.maximum(ld.abs(), ud.abs())) * 32 * _UNIT + _TINY
        nearer_a = (ld >= 0) | ((ud > 0) & (la + ua >= lb + ub))
        on = (low_low >= 0) | (high_high > -low_low)
        # A pair that is off needs no plane, not even the slack of one.
        off = high_high <= 0
        return cls(
            (nearer_a & on).to(la),
            (~nearer_a & on).to(la),
            upper_a.masked_fill(off, 0),
            upper_b.masked_fill(off, 0),
            offset.masked_fill(off, 0),
        )


class _Pool:
    """The second convolution, relu and max-pool of 2, by windows of 4 positions of the first.

    Units stand position by position, channels inside. The planes of a pair of positions are on the
    sums a and b of its two positions, before the bias of neither is forgotten.
    """

    def __init__(self, first: _Conv, weight: Tensor, bias: Tensor) -> None:
        self.first = first
        channels, below, _ = weight.shape
        self.channels, self.below, self.pairs = channels, below, first.n_features // 2
        self.bias = bias.repeat(self.pairs)
        self.units = 2 * self.bias.numel() + first.bias.numel()
        self.growth = 2 * (weight.abs().sum((1, 2)) + bias.abs())  # a pair is two units
        taps = weight.permute(0, 2, 1).reshape(channels, -1)  # position by position
        a, b = pad(taps, (0, below)), pad(taps, (below, 0))
        rows = torch.cat((a, b, a - b))
        self.signed = torch.cat((rows.clamp(min=0), rows.clamp(max=0)))
        self.constants = torch.cat((bias, bias, torch.zeros_like(bias)))
        self.joined = torch.cat((torch.cat((a, b)), torch.cat((bias, bias))[:, None]), 1)
        self.absolute = torch.cat((a, b)).abs()
        self.pair_bias = torch.cat((bias, bias)).abs()

    def windows(self, values: Tensor, width: int, around: int) -> Tensor:
        """Return (B, pairs, 2 + 2 around positions, `width`) of (B, n_features * width).

        What lies beyond the ends is zero.
        """
        n, m = self.first.n_features, self.pairs
        padded = pad(values.reshape(-1, n, width), (0, 0, around, around))
        return padded[:, : 2 * (m + around)].unfold(1, 2 + 2 * around, 2).movedim(2, 3)

    def magnitude(self, below: Tensor) -> Tensor:
        """Return the magnitudes (B, 3, units) of a, b and a - b."""
        windows = self.windows(below, self.below, 1).flatten(2)
        a, b = (windows @ self.absolute.T + self.pair_bias).chunk(2, 2)
        return torch.stack((a, b, a + b), 1).flatten(2)

    def bounds(self, region: _Region, lines: _Lines) -> tuple[Tensor, Tensor]:
        """Return bounds (B, 3, units) of a, b and a - b: the best of three choices of lines."""
        crosses = lines.offset > 0
        kinds = (
            lines.upper,
            lines.lower,
            lines.lower.masked_fill(crosses, 0),
            lines.lower.masked_fill(crosses, 1),
        )
        slopes = torch.stack([self.windows(kind, self.below, 1).flatten(2) for kind in kinds], 2)
        # As functions of 6 inputs and a constant: (B, pairs, kinds, 7, window of 4 positions).
        carried = slopes[:, :, :, None] * self.first.window
        carried[:, :, 0, 6] += self.windows(lines.offset, self.below, 1).flatten(2)
        n_rows = len(self.constants)
        product = carried @ self.signed.T
        plus, minus = product[..., :n_rows], product[..., n_rows:]
        low = self._minimum(region, plus[:, :, 1:] + minus[:, :, :1])
        high = -self._minimum(region, -minus[:, :, 1:] - plus[:, :, :1])
        shape = (len(low), self.pairs, 3, self.channels)
        return tuple(
            (bound + self.constants).reshape(shape).transpose(1, 2).flatten(2)
            for bound in (low.amax(2), high.amin(2))
        )  # type: ignore[return-value]

    def _minimum(self, region: _Region, functions: Tensor) -> Tensor:
        """Return the minima (B, pairs, kinds, rows) of functions (B, pairs, kinds, 7, rows)."""

        def weighted(values: Tensor, by: Tensor) -> Tensor:
            # Beyond the ends inputs are zero, whatever their coefficients.
            return (by.unsqueeze(2).mT @ values).squeeze(3)

        coefficients, constant = functions[..., :6, :], functions[..., 6, :]
        middle, half = (self.windows(v, 1, 2) for v in (region.middle, region.half))
        lowest = weighted(coefficients, middle) - weighted(coefficients.abs(), half)
        if region.center is not None and region.radius is not None:
            inside = self.windows(torch.ones_like(region.middle), 1, 2)
            length = weighted(coefficients.square(), inside).sqrt()
            center = weighted(coefficients, self.windows(region.center, 1, 2))
            lowest = torch.maximum(lowest, center - region.radius[:, :, None, None] * length)
        return lowest + constant

    def back(self, planes: _Planes, C: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """Carry functions C . p + constant back to the units of the first convolution."""
        negative = C.clamp(max=0)
        constant = constant + _dot(negative, planes.offset)
        lower_a, lower_b, upper_a, upper_b = (v[:, None] for v in planes[:4])
        n_boxes, n_rows, m = len(lower_a), C.shape[1], self.pairs
        pairs = C.new_empty(n_boxes, n_rows, m, 2, self.channels)
        shape = (n_boxes, n_rows, m, self.channels)
        for i, (lower, upper) in enumerate(((lower_a, upper_a), (lower_b, upper_b))):
            pairs[:, :, :, i] = torch.addcmul(C * lower, negative, upper - lower).view(shape)
        product = pairs.flatten(3) @ self.joined
        half = 2 * self.below
        out = product.new_zeros(n_boxes, n_rows, m + 1, half)  # from the position before the first
        out[:, :, :m] = product[..., :half]
        out[:, :, 1:] += product[..., half:-1]
        first, count = self.below, self.first.n_features * self.below
        return out.flatten(2)[..., first : first + count], constant + product[..., -1].sum(2)


class _Conv(_Dense):
    """The first convolution as a dense layer, and what a window of it asks of the input."""

    def __init__(self, weight: Tensor, bias: Tensor, n_features: int) -> None:
        self.n_features = n_features
        channels = len(weight)
        taps = weight[:, 0]
        dense = taps.new_zeros(n_features + 2, n_features, channels)
        window = taps.new_zeros(7, 4, channels)
        for i, tap in itertools.product(range(n_features), range(3)):
            dense[i + tap, i] = taps[:, tap]
        for i, tap in itertools.product(range(4), range(3)):
            window[i + tap, i] = taps[:, tap]
        window[6] = bias
        self.window = window.flatten(1)
        super().__init__(dense[1:-1].flatten(1).T.contiguous(), bias.repeat(n_features))


def _layers(weights: Sequence[Tensor], n_features: int) -> list[_Dense | _Pool]:
    """Return the layers of a CNN or an MLP, from the input on."""
    pairs = list(zip(weights[::2], weights[1::2], strict=True))
    if weights[0].dim() == 2:
        return [_Dense(weight, bias) for weight, bias in pairs]
    first = _Conv(*pairs[0], n_features)
    pool = _Pool(first, *pairs[1])
    weight, bias = pairs[2]
    # Units of the pool stand position by position here, channel by channel in the network.
    weight = weight.view(-1, pool.channels, pool.pairs).mT.flatten(1)
    return [first, pool, _Dense(weight, bias), _Dense(*pairs[3])]


def _slack(layers: Sequence[_Dense | _Pool], magnitude: Tensor, largest: Tensor) -> Tensor:
    """Return what rounding may have added to a bound of units (B, ...) of these magnitudes."""
    terms = sum(layer.units + 8 for layer in layers)
    over = _TINY * (1 + largest).view(-1, *[1] * (magnitude.dim() - 1))
    return 4 * (len(layers) + 4) * terms * _UNIT * magnitude + over


def _bounds(
    layers: list[_Dense | _Pool],
    region: _Region,
    objective: Tensor,
    hidden_lower: Tensor,
    hidden_upper: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return bound, slope and the last hidden layer's bounds of a few boxes."""
    relaxed: list[_Lines | _Planes] = []

    def to_input(C: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """Carry functions of the units after the last relaxed layer back to the input."""
        for layer, around in zip(reversed(layers[: len(relaxed)]), reversed(relaxed), strict=True):
            if isinstance(around, _Planes):
                assert isinstance(layer, _Pool)
                C, constant = layer.back(around, C, constant)
            else:
                assert isinstance(layer, _Dense)
                C, constant = layer.back(*around.back(C, constant))
        return C, constant

    magnitude, largest = region.magnitude, region.magnitude.amax(1).clamp(min=1)
    for layer in layers[:-1]:
        largest = largest * layer.growth.amax().clamp(min=1)
    low = high = region.middle  # of the units below; not used before the second layer
    n_hidden = len(layers) - 1
    for depth, layer in enumerate(layers[:-1]):
        magnitude = layer.magnitude(magnitude)
        slack = _slack(layers, magnitude, largest)
        if isinstance(layer, _Pool):
            lines = relaxed[-1]
            assert isinstance(lines, _Lines)
            low, high = layer.bounds(region, lines)
            low, high = low - slack, high + slack
            relaxed.append(_Planes.of(low, high))
            low, high = (torch.maximum(v[:, 0], v[:, 1]).clamp(min=0) for v in (low, high))
            magnitude = magnitude[:, 2]
            continue
        last = depth == n_hidden - 1
        if depth == 0:
            C = layer.weight[None]
            low = region.minimum(C) + layer.bias - slack
            high = layer.bias - region.minimum(-C) + slack
        else:
            low, high = layer.interval(low, high)
            low, high = low - slack, high + slack
        if last:
            low, high = torch.fmax(low, hidden_lower), torch.fmin(high, hidden_upper)
        if depth > 0:
            # Units whose sign is known are not made better known.
            open_ = ((low < 0) & (high > 0)).any(0).nonzero().squeeze(1)
            if len(open_):
                C, bias = layer.weight[open_], layer.bias[open_]
                C, constant = to_input(torch.cat((C, -C))[None], torch.cat((bias, -bias)))
                values = region.minimum(C) + constant
                less = slack[:, open_]
                below, above = values.chunk(2, 1)
                before, after = low[:, open_], high[:, open_]
                # What a box gets does not depend on the other boxes.
                own = (before < 0) & (after > 0)
                low[:, open_] = torch.where(own, torch.maximum(before, below - less), before)
                high[:, open_] = torch.where(own, torch.minimum(after, less - above), after)
        relaxed.append(_Lines.of(low, high))
        if not last:
            low, high = low.clamp(min=0), high.clamp(min=0)
    final = layers[-1]
    assert isinstance(final, _Dense)
    logits = final.magnitude(magnitude)
    sizes = (objective.abs() * logits).sum(1)
    largest = largest * (objective.abs() @ final.growth).clamp(min=1)
    C, constant = final.back(objective[:, None], torch.zeros_like(objective[:, :1]))
    C, constant = to_input(C, constant)
    bound = (region.minimum(C) + constant)[:, 0] - _slack(layers, sizes, largest)
    # Not (largest > limit), so that what is not a number counts too.
    known = (largest <= _LARGEST) & bound.isfinite()
    return (
        torch.where(known, bound, -torch.inf),
        torch.where(known[:, None], C[:, 0], 0.0),
        torch.where(known[:, None], low, -torch.inf),
        torch.where(known[:, None], high, torch.inf),
    )
