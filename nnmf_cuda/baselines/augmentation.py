"""Random flips, small moves and contrasts of images, in torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_N_DRAWS = 8
"""Numbers that are drawn for an image."""


@dataclass(frozen=True)
class Augmentation:
    """How far an image of the training set may be changed.

    The defaults are little, and no flips: a comparison has few epochs, in which much change can be
    more than a network learns to ignore. They were set by hand.

    Attributes
    ----------
    flip : bool
        Whether left and right are exchanged in half of the images.
    degrees : float
        Largest angle by which an image is turned, to either side.
    shift : float
        Largest move along each side, as a share of its length.
    scale : float
        Largest change of size, as a share of it.
    contrast : float
        Largest change of contrast around the image's mean, as a share of it.
    brightness : float
        Largest amount that is added to every pixel, of the range [0, 1].
    share : float
        Share of the images that are changed; the others are seen as they are.
    """

    flip: bool = False
    degrees: float = 5.0
    shift: float = 0.03
    scale: float = 0.05
    contrast: float = 0.1
    brightness: float = 0.02
    share: float = 0.5

    def draw(self, n_images: int, generator: torch.Generator) -> Tensor:
        """Return numbers (n_images, 8) in [-1, 1], which say how each image is changed."""
        return torch.rand(n_images, _N_DRAWS, generator=generator) * 2 - 1

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return images (n, height, width) in [0, 1], changed as `draws` (n, 8) say.

        What an image is moved away from is filled with its edge.
        """
        flip, turn, zoom, right, down, contrast, brightness, chosen = draws.to(images).unbind(1)
        angle = turn * math.radians(self.degrees)
        factor = 1 + zoom * self.scale
        mirror = torch.where(flip < 0, -1.0, 1.0) if self.flip else torch.ones_like(flip)
        cos, sin = angle.cos() / factor, angle.sin() / factor
        rows = (
            torch.stack((cos * mirror, -sin, 2 * self.shift * right), 1),
            torch.stack((sin * mirror, cos, 2 * self.shift * down), 1),
        )
        grid = functional.affine_grid(
            torch.stack(rows, 1), [len(images), 1, *images.shape[1:]], align_corners=False
        )
        moved = functional.grid_sample(
            images.unsqueeze(1), grid, padding_mode="border", align_corners=False
        ).squeeze(1)
        mean = moved.mean((1, 2), keepdim=True)
        gain = 1 + self.contrast * contrast[:, None, None]
        lighter = mean + gain * (moved - mean) + self.brightness * brightness[:, None, None]
        is_changed = (chosen + 1) / 2 < self.share
        return torch.where(is_changed[:, None, None], lighter.clamp(0, 1), images)
