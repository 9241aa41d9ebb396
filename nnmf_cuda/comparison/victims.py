"""A fitted system as attacks see it: rows of pixels to logits, and who is right on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.objectives import finite, majority_right, margin_loss
from nnmf_cuda.baselines import ImageClassifier, PixelNetwork
from nnmf_cuda.models.networks import frozen, isolated

_AT_ONCE = 64
"""Images that a network is given at a time where no gradient is kept."""

_TRIED = 32
"""Images at which a gradient is tried before anything is made of it."""

_SMALLEST = float(np.finfo(np.float64).tiny)
"""Probability below which a logarithm is cut: as low as can be, since where it is cut a search by
answers sees no difference and would call a confident system a robust one."""


class Victim:
    """A fitted system of images of one shape.

    Parameters
    ----------
    estimator : ImageClassifier
        Fitted to labels 0 .. n_classes - 1.
    image_shape : tuple of int
        Height and width.
    seed : int
        Of the fresh answers of a random system, which no attack has seen.

    Attributes
    ----------
    rows : nn.Module
        Rows (n, height * width) in [0, 1] to logits (n, n_classes); differentiable where
        `has_gradient`.
    has_gradient, is_random : bool
    """

    def __init__(
        self, estimator: ImageClassifier, image_shape: tuple[int, int], *, seed: int
    ) -> None:
        network = estimator.pixel_network()
        self.rows: nn.Module
        if network is None:
            self.rows, self.device = _Answers(estimator, image_shape), torch.device("cpu")
        else:
            self.rows, self.device = _Network(network, image_shape).eval(), network.device
        self.has_gradient = network is not None
        self.is_random = estimator.is_random if network is None else network.is_random
        self.n_classes = len(estimator.classes_)
        self.image_shape, self.seed = image_shape, seed

    def right(self, points: Tensor, y: Tensor) -> Tensor:
        """Return who (n,) is named rightly; of a random system by the majority of fresh answers."""
        if not len(points):
            return torch.zeros(0, dtype=torch.bool, device=points.device)
        if self.is_random:
            parts = zip(points.split(_AT_ONCE), y.split(_AT_ONCE), strict=True)
            return torch.cat([majority_right(self.rows, p, of, seed=self.seed) for p, of in parts])
        with torch.no_grad():
            return finite(self.rows(points)).argmax(1) == y

    def leads(self, images: Tensor, y: Tensor, *, eps: float) -> bool:
        """Whether the margin's gradient reaches the pixels of most images, finite and not zero.

        At the images (n, height * width), or at random points within `eps` of them. An attack that
        climbs along another one stands still, and would call robust what only rounds its input or
        detaches it: Athalye, Carlini & Wagner (2018), Obfuscated gradients give a false sense of
        security, ICML.
        """
        images, y = images[:_TRIED], y[:_TRIED]
        found = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        with frozen(self.rows), isolated(self.seed), torch.enable_grad():
            beside = (images + eps * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
            for points in (images, beside):
                tried = points.detach().clone().requires_grad_()
                margin = margin_loss(self.rows(tried), y).sum()
                if not margin.requires_grad:
                    continue
                (slope,) = torch.autograd.grad(margin, tried, allow_unused=True)
                if slope is not None:
                    found |= slope.isfinite().all(1) & (slope != 0).any(1)
        return bool(found.double().mean() >= 0.5)


class _Network(nn.Module):
    def __init__(self, network: PixelNetwork, image_shape: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.image_shape = network, image_shape

    def forward(self, rows: Tensor) -> Tensor:
        """Return logits (n, n_classes), in parts where no gradient is asked for."""
        images = rows.reshape(-1, *self.image_shape)
        if torch.is_grad_enabled() or len(images) <= _AT_ONCE:
            logits: Tensor = self.network(images)
            return logits
        return torch.cat([self.network(part) for part in images.split(_AT_ONCE)])


class _Answers(nn.Module):
    """Logarithms of the probabilities of an estimator that has no gradient."""

    def __init__(self, estimator: ImageClassifier, image_shape: tuple[int, int]) -> None:
        super().__init__()
        self.estimator, self.image_shape = estimator, image_shape

    def forward(self, rows: Tensor) -> Tensor:
        """Return logits (n, n_classes)."""
        if not len(rows):  # a search whose images are all broken asks about none
            return rows.new_zeros(0, len(self.estimator.classes_))
        images = rows.reshape(-1, *self.image_shape).detach().cpu().numpy()
        answers = np.log(np.maximum(self.estimator.fresh_proba(images), _SMALLEST))
        return torch.from_numpy(answers).to(rows)
