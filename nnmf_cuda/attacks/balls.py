"""The sets that an attack stays in: a ball around each sample, cut by the box of the features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["BALLS", "Ball", "Box"]

Box = tuple[float | Tensor, float | Tensor]

# Keeps the direction of a zero vector finite.
_TINY = 1e-12


class Ball(ABC):
    """Points of a box at most `radius` from the centers (n, M), which lie in the box.

    The box is a low and a high corner, numbers or tensors (M,).
    """

    def __init__(self, centers: Tensor, radius: float, box: Box = (0.0, 1.0)) -> None:
        self.centers = centers
        self.radius = radius
        self.low, self.high = (torch.as_tensor(edge).to(centers) for edge in box)

    def random_start(self) -> Tensor:
        """Draw a point on the ball's surface, put into the box."""
        # Drawn on the CPU, whatever the device: the same numbers everywhere.
        directions = self._direction(self._draw(self.centers.shape).to(self.centers.device))
        return (self.centers + self.radius * directions).clamp_(self.low, self.high)

    def step(self, points: Tensor, gradient: Tensor, size: Tensor, *, out: Tensor) -> None:
        """Go up by steps of `size` (n, 1), then back into the ball."""
        self._steepest(gradient, out=out)
        out.mul_(size).add_(points)
        self.project_(out)

    def random_corner(self) -> Tensor:
        """Draw a first guess of a random search: every feature moved as far as it goes."""
        whole = torch.ones(self.centers.shape, dtype=torch.bool, device=self.centers.device)
        return self._changed(self.centers, whole)

    def random_neighbour(self, points: Tensor, share: float) -> Tensor:
        """Draw points that differ from the given ones in a random share of the features."""
        n, m = points.shape
        count = max(1, round(share * m))
        chosen = torch.rand(n, m).argsort(1)[:, :count].to(points.device)
        mask = torch.zeros(n, m, dtype=torch.bool, device=points.device)
        return self._changed(points, mask.scatter_(1, chosen, True))

    @abstractmethod
    def _changed(self, points: Tensor, mask: Tensor) -> Tensor:
        """Return points with the marked features (n, M) changed at random, in ball and box."""

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
    def __init__(self, centers: Tensor, radius: float, box: Box = (0.0, 1.0)) -> None:
        super().__init__(centers, radius, box)
        # Ball and box are both boxes: so is what they share.
        self._lower = (centers - radius).clamp_(min=self.low)
        self._upper = (centers + radius).clamp_(max=self.high)

    def _changed(self, points: Tensor, mask: Tensor) -> Tensor:
        up = (torch.rand(points.shape) < 0.5).to(points.device)
        changed = torch.where(mask, torch.where(up, self._upper, self._lower), points)
        # Few features are often drawn as they are; to ask about the same point again is wasted.
        same = (changed == points).all(1, keepdim=True)
        flipped = torch.where(points == self._upper, self._lower, self._upper)
        return torch.where(mask & same, flipped, changed)

    def project_(self, points: Tensor) -> None:
        torch.clamp(points, self._lower, self._upper, out=points)

    def _draw(self, shape: torch.Size) -> Tensor:
        return 2 * torch.rand(shape) - 1

    def _direction(self, vectors: Tensor) -> Tensor:
        return vectors / (vectors.abs().amax(1, keepdim=True) + _TINY)

    def _steepest(self, gradient: Tensor, *, out: Tensor) -> None:
        torch.sign(gradient, out=out)


class _L2Ball(Ball):
    def _changed(self, points: Tensor, mask: Tensor) -> Tensor:
        scale = self.radius / math.sqrt(points.shape[1])
        fresh = scale * torch.randn(points.shape).to(points)
        moved = torch.where(mask, fresh, points - self.centers)
        moved = self.centers + self.radius * self._direction(moved)
        self.project_(moved)
        return moved

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


def _length(vectors: Tensor) -> Tensor:
    """Return the L2 norms (n, 1), rounded as the authors' implementation rounds them."""
    return vectors.square().sum(1, keepdim=True).sqrt_()


BALLS: Mapping[str, type[Ball]] = {"Linf": _LinfBall, "L2": _L2Ball}
