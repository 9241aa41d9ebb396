"""The sets that an attack stays in: a ball around each sample, cut by the box of the features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnmf_cuda.attacks.sphere import onto_cap, onto_sphere_in_box

Box = tuple[float | Tensor, float | Tensor]

BOX_TOLERANCE = 1e-6
"""Rounding of an L2 normalisation in float32 may leave the box by an ulp or two."""

SPHERE_TOLERANCE = 1e-5
"""By how much rounding may change a length: of an entry of float32 by 6e-8, and a sum of them."""

# Keeps the direction of a zero vector finite.
_TINY = 1e-12


class Ball(ABC):
    """Points of a box at most `radius` from the centers (n, M), which lie in the box.

    The radius is a number, or one for each center (n, 1); that of an Linf ball may also be one for
    each feature (M,): then `radius` is the largest, of which the others are `shares` (M,). The box
    is a low and a high corner, numbers or tensors (M,).
    """

    def __init__(self, centers: Tensor, radius: float | Tensor, box: Box = (0.0, 1.0)) -> None:
        self.centers = centers
        self.radius, self.shares = radius, centers.new_ones(())
        if isinstance(radius, Tensor) and radius.dim() == 1:
            self.radius = float(radius.max())
            self.shares = radius.to(centers) / self.radius
        self.low, self.high = (_edge(edge, centers) for edge in box)

    def random_start(self) -> Tensor:
        """Draw a point on the ball's surface, put into the box."""
        # Drawn on the CPU, whatever the device: the same numbers everywhere.
        directions = self._direction(self._draw(self.centers.shape).to(self.centers.device))
        return self._held(self.centers + self.radius * directions * self.shares)

    def step(self, points: Tensor, gradient: Tensor, size: Tensor, *, out: Tensor) -> None:
        """Go up by steps of `size` (n, 1), then back into the ball."""
        self._steepest(gradient, out=out)
        out.mul_(size * self.shares).add_(points)
        self.project_(out)

    def random_corner(self) -> Tensor:
        """Draw a first guess of a random search: every feature moved as far as it goes."""
        whole = torch.ones(self.centers.shape, dtype=torch.bool, device=self.centers.device)
        values = self._draw_values(self.centers.shape).to(self.centers.device)
        return self.changed(self.centers, whole, values)

    def draw_change(self, share: float) -> tuple[Tensor, Tensor]:
        """Draw on the host what `changed` takes to change a random share of the features."""
        n, m = self.centers.shape
        count = max(1, round(share * m))
        chosen = torch.rand(n, m).argsort(1)[:, :count]
        mask = torch.zeros(n, m, dtype=torch.bool).scatter_(1, chosen, True)
        values = self._draw_values(self.centers.shape)
        if self.centers.device.type == "cuda":  # from there the copy to the device does not wait
            return mask.pin_memory(), values.pin_memory()
        return mask, values

    def _held(self, points: Tensor) -> Tensor:
        """Put points of the ball, drawn afresh, into the box."""
        return points.clamp_(self.low, self.high)

    @abstractmethod
    def changed(self, points: Tensor, mask: Tensor, values: Tensor) -> Tensor:
        """Return points with the marked features (n, M) as drawn (n, M), in ball and box."""

    @abstractmethod
    def _draw_values(self, shape: torch.Size) -> Tensor:
        """Draw from torch's global CPU generator what changed features become."""

    @abstractmethod
    def project_(self, points: Tensor) -> None:
        """Put points back into ball and box, in place."""

    @abstractmethod
    def _draw(self, shape: torch.Size) -> Tensor:
        """Draw from torch's global CPU generator what makes a random direction."""

    @abstractmethod
    def _direction(self, vectors: Tensor) -> Tensor:
        """Scale to length 1."""

    @abstractmethod
    def _steepest(self, gradient: Tensor, *, out: Tensor) -> None:
        """Write the direction of length 1 in which the loss grows most."""


class _LinfBall(Ball):
    def __init__(self, centers: Tensor, radius: float | Tensor, box: Box = (0.0, 1.0)) -> None:
        super().__init__(centers, radius, box)
        if isinstance(radius, Tensor):
            radius = radius.to(centers)
        else:  # made on the device, which does not wait for the host so
            radius = centers.new_full((), radius)
        # Ball and box are both boxes: so is what they share.
        self._lower = (centers - radius).clamp_(min=self.low)
        self._upper = (centers + radius).clamp_(max=self.high)

    def changed(self, points: Tensor, mask: Tensor, values: Tensor) -> Tensor:
        changed = torch.where(mask, torch.where(values, self._upper, self._lower), points)
        # Few features are often drawn as they are; to ask about the same point again is wasted.
        same = (changed == points).all(1, keepdim=True)
        flipped = torch.where(points == self._upper, self._lower, self._upper)
        return torch.where(mask & same, flipped, changed)

    def _draw_values(self, shape: torch.Size) -> Tensor:
        return torch.rand(shape) < 0.5  # whether up

    def project_(self, points: Tensor) -> None:
        torch.clamp(points, self._lower, self._upper, out=points)

    def _draw(self, shape: torch.Size) -> Tensor:
        return 2 * torch.rand(shape) - 1

    def _direction(self, vectors: Tensor) -> Tensor:
        return vectors / (vectors.abs().amax(1, keepdim=True) + _TINY)

    def _steepest(self, gradient: Tensor, *, out: Tensor) -> None:
        torch.sign(gradient, out=out)


class _L2Ball(Ball):
    def changed(self, points: Tensor, mask: Tensor, values: Tensor) -> Tensor:
        scale = self.radius / math.sqrt(points.shape[1])
        moved = torch.where(mask, scale * values, points - self.centers)
        moved = self.centers + self.radius * self._direction(moved)
        self.project_(moved)
        return moved

    def _draw_values(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape).to(self.centers.dtype)

    def project_(self, points: Tensor) -> None:
        points.sub_(self.centers)
        length = _length(points)
        points.div_(length + _TINY).mul_(length.clamp_(max=self.radius))
        points.add_(self.centers).clamp_(self.low, self.high)

    def _draw(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape)

    def _direction(self, vectors: Tensor) -> Tensor:
        return vectors / (_length(vectors) + _TINY)

    def _steepest(self, gradient: Tensor, *, out: Tensor) -> None:
        torch.div(gradient, _length(gradient) + _TINY, out=out)


def _edge(edge: float | Tensor, like: Tensor) -> Tensor:
    """Return a corner of the box on the device; a number is made there, without waiting."""
    if isinstance(edge, Tensor):
        return edge.to(like)
    # Rounded to float32, as a tensor of it would be, whatever the type of the features.
    return like.new_full((), float(np.float32(edge)))


def _length(vectors: Tensor) -> Tensor:
    """Return the L2 norms (n, 1), rounded as the authors' implementation rounds them."""
    return vectors.square().sum(1, keepdim=True).sqrt_()


class _LinfOnSphere(_LinfBall):
    """The part of the ball whose points are as long as their centers, which are non-negative."""

    def __init__(self, centers: Tensor, radius: float | Tensor, box: Box = (0.0, 1.0)) -> None:
        super().__init__(centers, radius, box)
        self._lengths = torch.linalg.vector_norm(centers.double(), dim=1, keepdim=True)

    def _held(self, points: Tensor) -> Tensor:
        self.project_(points)
        return points

    def changed(self, points: Tensor, mask: Tensor, values: Tensor) -> Tensor:
        return self._held(super().changed(points, mask, values))

    def project_(self, points: Tensor) -> None:
        points.copy_(onto_sphere_in_box(points, self._lower, self._upper, self._lengths))

    def _steepest(self, gradient: Tensor, *, out: Tensor) -> None:
        # Signs know only corners of the box, of which few are on the sphere.
        torch.div(gradient, gradient.abs().amax(1, keepdim=True) + _TINY, out=out)


class _L2OnSphere(_L2Ball):
    """The same of an L2 ball, in a box that ends at 0 below and beyond the length above."""

    def _held(self, points: Tensor) -> Tensor:
        self.project_(points)
        return points

    def project_(self, points: Tensor) -> None:
        points.copy_(onto_cap(points, self.centers, self.radius))


BALLS: Mapping[str, type[Ball]] = {"Linf": _LinfBall, "L2": _L2Ball}
"""By norm: all points of the ball."""

BALLS_ON_SPHERE: Mapping[str, type[Ball]] = {"Linf": _LinfOnSphere, "L2": _L2OnSphere}
"""By norm: the points of the ball that are as long as their center."""


@dataclass(frozen=True)
class Threat:
    """By how much an attacker may change features: the ball, and the box that they must stay in.

    Attributes
    ----------
    attack_eps : float or Tensor of shape (n_features,)
        Radius of the ball, in units of the features; under Linf each feature may have its own, of
        which 0 holds a feature fixed.
    norm : {"Linf", "L2"}, default="Linf"
        Norm of the ball.
    box : pair of float or Tensor of shape (n_features,), default=(0, 1)
        Lowest and highest value of each feature.
    keeps_length : bool, default=False
        Whether a point must be as long as its sample (L2). With a box from 0 on, points then are
        what features are: non-negative and, where the samples are, of length 1.

    Raises
    ------
    ValueError
        If there is no such norm, the radius is not finite and above 0, or `keeps_length` goes with
        a box whose points cannot be moved along the sphere: one below 0, or with norm L2 one that
        does not begin at 0 and reach 1.
    """

    attack_eps: float | Tensor
    norm: str = "Linf"
    box: Box = (0.0, 1.0)
    keeps_length: bool = False

    def __post_init__(self) -> None:
        if self.norm not in BALLS:
            raise ValueError(f"norm must be one of {', '.join(BALLS)}; got {self.norm!r}")
        eps = torch.as_tensor(self.attack_eps, dtype=torch.float64)
        if eps.dim() > 0 and (eps.dim() > 1 or self.norm != "Linf" or eps.numel() == 0):
            raise ValueError(
                "attack_eps must be a number, or with norm='Linf' one for each feature, of shape"
                f" (n_features,); got shape {tuple(eps.shape)} with norm={self.norm!r}"
            )
        if not bool(eps.isfinite().all() and (eps >= 0).all() and (eps > 0).any()):
            raise ValueError(f"attack_eps must be a finite number > 0, got {self.attack_eps}")
        low, high = (torch.as_tensor(edge) for edge in self.box)
        if self.keeps_length and not (bool((low >= 0).all()) and self._has_caps(low, high)):
            raise ValueError(
                f"keeps_length needs a box from 0 on, and with norm='L2' the box (0, 1); got"
                f" box={self.box} with norm={self.norm!r}"
            )

    def _has_caps(self, low: Tensor, high: Tensor) -> bool:
        return self.norm == "Linf" or bool((low == 0).all() and (high >= 1).all())

    @property
    def single_eps(self) -> float:
        """The radius, for what knows only one; raises ValueError where features have their own."""
        if isinstance(self.attack_eps, Tensor) and self.attack_eps.dim() > 0:
            raise ValueError(
                "attack_eps must be one number here, as AutoAttack and the evaluation of a run have"
                f" no radius of each feature; got {self.attack_eps.numel()}"
            )
        return float(self.attack_eps)

    def as_keywords(self) -> dict[str, Any]:
        """Return the arguments of the attacks that take them one by one."""
        kept = {"keeps_length": True} if self.keeps_length else {}  # few attacks can
        return {"attack_eps": self.attack_eps, "norm": self.norm, "box": self.box, **kept}

    def ball(self, x: Tensor) -> Ball:
        """Return the ball around each sample of x (n, n_features)."""
        balls = BALLS_ON_SPHERE if self.keeps_length else BALLS
        return balls[self.norm](x, self.attack_eps, self.box)

    def distances(self, points: Tensor, x: Tensor) -> Tensor:
        """Return how far (n,) points are from x, both (n, n_features), in the norm."""
        lengths: Tensor = (points - x).norm(p=float("inf") if self.norm == "Linf" else 2.0, dim=1)
        return lengths

    def check_features(self, x: Tensor) -> None:
        """Raise ValueError unless x is floating point (n, n_features) inside the box.

        A radius of each feature must be one of each of these.
        """
        if x.dim() != 2 or x.numel() == 0 or not x.is_floating_point():
            raise ValueError(
                "x must be floating point of shape (n_samples, n_features) and not empty, got"
                f" {tuple(x.shape)} {x.dtype}"
            )
        if isinstance(self.attack_eps, Tensor) and self.attack_eps.numel() not in (1, x.shape[1]):
            raise ValueError(
                f"attack_eps has {self.attack_eps.numel()} radii, x {x.shape[1]} features: give one"
                " of each, or one number"
            )
        low, high = (torch.as_tensor(edge).to(x) for edge in self.box)
        outside = ~((x >= low - BOX_TOLERANCE) & (x <= high + BOX_TOLERANCE))
        if bool(outside.any()):
            raise ValueError(
                f"x must be inside the box, {int(outside.sum())} of {x.numel()} entries are not"
                f" (they span {float(x.min()):.6g} to {float(x.max()):.6g}): an attack would move"
                " them by more than attack_eps; widen the box or rescale x"
            )

    def check_points(self, points: Tensor, x: Tensor, *, attack: str) -> float:
        """Return the largest distance of points from x, both (n, n_features).

        Raises RuntimeError if the attack of that name has left the ball, the box or, where it must
        keep to it, the sphere.
        """
        moves, wide = points.double() - x.double(), x.double()
        distance = float(self.distances(points.double(), wide).max())
        eps = torch.as_tensor(self.attack_eps).to(moves)
        beyond = float((moves.abs() - eps).max()) if eps.dim() else distance - self.single_eps
        length = 0.0
        if self.keeps_length:
            lengths = (torch.linalg.vector_norm(rows, dim=1) for rows in (points.double(), wide))
            length = float(torch.sub(*lengths).abs().max())
        low, high = (torch.as_tensor(edge).to(points) for edge in self.box)
        inside = bool(((points >= low) & (points <= high)).all())
        # Not (a > b) but not (a <= b), so that NaN fails too.
        if not (beyond <= BOX_TOLERANCE and length <= SPHERE_TOLERANCE and inside):
            kept = f", off the sphere by {length:.6g}" if self.keeps_length else ""
            raise RuntimeError(
                f"{attack}: the points broke the bound: largest {self.norm} distance"
                f" {distance:.6g} for attack_eps {self.attack_eps}, inside the box: {inside}{kept}"
            )
        return distance
