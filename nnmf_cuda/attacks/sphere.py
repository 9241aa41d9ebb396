"""Onto the sphere: the nearest points of given length within a box or a ball.

All features are non-negative and of length 1, for that is how they are made; these functions keep
an attacker to such points.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Lifts entries of 0, which could not grow by a factor, hardly above it.
_LIFT = 1e-9


def onto_sphere_in_box(points: Tensor, low: Tensor, high: Tensor, lengths: Tensor) -> Tensor:
    """Return the points of given lengths in a box that are nearest to the given ones.

    Among points z of one length, |z - p| is least where p z is largest. Over the box and the whole
    ball within that length, which is convex, the largest p z is at z = clamp(t p, low, high) for
    some t (the stationary point of the Lagrangian, with t the inverse of the multiplier), and |z|
    grows with t where low >= 0: where t lets it reach the length, it is on the sphere. Between the
    2 n_features values of t at which an entry enters or leaves the box, |z|^2 = a + b t^2.

    Parameters
    ----------
    points : Tensor of shape (n, n_features)
        Any; put into the box first.
    low, high : Tensor of shape (n, n_features)
        Corners of the box, 0 <= low <= high.
    lengths : Tensor of shape (n, 1)
        L2 norms that the points shall have; raised to |low| and lowered to |high| where the box has
        no such point.

    Returns
    -------
    Tensor of shape (n, n_features)
        In the box exactly; of the lengths but for rounding.
    """
    p, below, above = (tensor.double() for tensor in (points, low, high))
    p = p.clamp(below, above).clamp_min_(_LIFT)
    wanted = lengths.double().square()
    edges = torch.cat((below / p, above / p), 1)  # (n, 2 n_features), values of t
    at_edges = _clamped(p, edges, below, above).square().sum(2)
    # t is between the last edge that is too short and the first that is not.
    short = at_edges < wanted
    start = edges.where(short, 0).amax(1, keepdim=True)
    end = edges.where(~short, torch.inf).amin(1, keepdim=True)
    middle = torch.where(end.isfinite(), (start + end) / 2, start)
    moving = (middle * p > below) & (middle * p < above)
    fixed = torch.where(moving, 0, (middle * p).clamp(below, above))
    growing = (p * moving).square().sum(1, keepdim=True)
    left = (wanted - fixed.square().sum(1, keepdim=True)).clamp_min(0)
    t = torch.where(growing > 0, (left / growing.clamp_min(1e-300)).sqrt(), middle)
    t = t.clamp(start, end)  # where rounding took a length for too short
    found = (t * p).clamp(below, above).to(points.dtype)
    # float32 rounds t p, but an entry at the edge of the box is the edge itself.
    return found.clamp(low, high)


def _clamped(p: Tensor, t: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return clamp(t p, low, high) for several t of each row: (n, number of t, n_features)."""
    scaled = t.unsqueeze(2) * p.unsqueeze(1)
    return scaled.clamp_(low.unsqueeze(1), high.unsqueeze(1))


def onto_cap(points: Tensor, centers: Tensor, radius: float | Tensor) -> Tensor:
    """Return points as long as their centers, non-negative and at most `radius` from them.

    A point beyond is brought back on the arc that leads to its center: z = a c + b q with
    non-negative a and b is non-negative like both. Not always the nearest point of the cap, but a
    point of it, and points of it stay where they are.

    Parameters
    ----------
    points, centers : Tensor of shape (n, n_features)
        Centers are non-negative; a center of zeros is its own cap.
    radius : float or Tensor of shape (n, 1)
        L2 distance.

    Returns
    -------
    Tensor of shape (n, n_features)
    """
    p, c = points.double().clamp_min(0), centers.double()
    length = _length(c)
    unit = c / length.clamp_min(1e-300)
    q_length = _length(p)
    q = torch.where(q_length > 0, p / q_length.clamp_min(1e-300), unit)
    # On the unit sphere a chord d spans the angle 2 asin(d / 2).
    chord = (radius / length.clamp_min(1e-300)).clamp(max=2**0.5)
    sideways = q - (q * unit).sum(1, keepdim=True) * unit
    sine, cosine = _length(sideways), (q * unit).sum(1, keepdim=True)
    angle = torch.atan2(sine, cosine)
    kept = torch.minimum(angle, 2 * torch.asin(chord / 2))
    moved = kept.cos() * unit + kept.sin() * sideways / sine.clamp_min(1e-300)
    arc = torch.where(angle > kept, moved, q)
    return (length * arc).clamp_min_(0).to(points.dtype)


def _length(vectors: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return lengths
