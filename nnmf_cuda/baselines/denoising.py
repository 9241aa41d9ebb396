"""One network of images that classifies and denoises: Thiry & Guth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional

from nnmf_cuda.baselines.base import LabelledImages
from nnmf_cuda.baselines.torch_classifier import TorchImageClassifier, need, resized


@dataclass(kw_only=True, eq=False, repr=False)
class ThiryGuthNetwork(TorchImageClassifier):
    """A residual network whose gradient denoises, as GradResNet's does: GELU and GroupNorm.

    The logits f_c are read as log p(x, c) but for a constant, so that their softmax classifies and
    the gradient of log p(x) = logsumexp_c f_c(x) denoises: by Tweedie and Miyasawa the best guess
    of x_0 from y = x_0 + sigma n is y + sigma^2 grad log p(y). The loss is the cross-entropy of
    noised images plus `denoising_weight` times the mean square of sigma grad log p(y) + n, which is
    the guess's error over sigma; sigma is drawn for each image, evenly up to `sigma_max`, and the
    network is not told it. `nnmf_cuda.training.train_joint_classifier` is the same on features.

    It is a small network of MONAI's residual units, not the ResNet-18 of the article [1]_. Besides
    the class's logit, which reads means over the image, log p(x, c) has a term that is the same for
    every class, the sum over the image of linear functions of each unit's channels: by means alone
    no pixel moves the logits enough for a denoiser. The answer does not depend on it.

    Parameters
    ----------
    widths : sequence of int, default=(8, 16, 32, 64)
        Channels of each residual unit; each but the first halves height and width.
    sigma_max : float, default=0.2
        Largest standard deviation of the noise, of the range [0, 1] of pixels.
    denoising_weight : float, default=1
        Weight of the denoising error.
    epochs, batch_size, lr, weight_decay, label_smoothing, ema_decay, image_size, augmentation, \
random_state, device, progress
        As of `TorchImageClassifier`.

    References
    ----------
    .. [1] Thiry & Guth (2024), Classification-denoising networks, arXiv:2410.03505.
    .. [2] Miyasawa (1961), An empirical Bayes estimator of the mean of a normal population.
    """

    widths: Sequence[int] = (8, 16, 32, 64)
    epochs: int = 10
    lr: float = 3e-3
    image_size: int | None = 48
    sigma_max: float = 0.2
    denoising_weight: float = 1.0

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Train on images X (n_images, height, width) and labels y (n_images,).

        Raises
        ------
        TypeError, ValueError
            If images, labels or settings do not fit, or the loss stops being finite.
        """
        for name in ("sigma_max", "denoising_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number > 0, got {value}")
        return super().fit(X, y, validation=validation)

    def build(self, n_classes: int, image_shape: tuple[int, int]) -> nn.Module:
        """Return residual units, an energy of each, the mean over the image and a linear layer."""
        unit = need("monai.networks.blocks").ResidualUnit
        units: list[nn.Module] = []
        n_in = 1
        for n_out in self.widths:
            units.append(
                unit(
                    spatial_dims=2,
                    in_channels=n_in,
                    out_channels=n_out,
                    strides=1 if n_in == 1 else 2,
                    act="gelu",
                    norm=("group", {"num_groups": math.gcd(8, n_out)}),
                )
            )
            n_in = n_out
        return _Energetic(units, self.widths, n_classes)

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return noise levels (n, 1, 1) and noise (n, height, width) too."""
        sigma = self.sigma_max * torch.rand(len(images), 1, 1, generator=generator)
        noise = torch.randn(images.shape, generator=generator)
        return *super().draw(images, generator), sigma.to(images), noise.to(images)

    def loss(self, network: nn.Module, images: Tensor, y: Tensor, *drawn: Tensor) -> Tensor:
        """Return the cross-entropy of noised images plus the weighted denoising error."""
        *changes, sigma, noise = drawn
        seen = images if self.augmentation is None else self.augmentation(images, changes[0])
        logits, score = logits_and_score(network, seen + sigma * noise)
        error = (sigma * score + noise).square().mean()
        of_classes = functional.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        return of_classes + self.denoising_weight * error

    def denoise(self, X: ArrayLike, *, sigma: float) -> NDArray[np.float64]:
        """Return the network's guess of images without their normal noise.

        Parameters
        ----------
        X : array of shape (n_images, height, width)
            Floating point; with noise they may leave [0, 1]. Images of another size than the
            network sees are brought to it first, by which noise of single pixels lessens.
        sigma : float
            Standard deviation of the noise, in the size that the network sees.

        Returns
        -------
        ndarray of shape (n_images, size, size)
            In the size that the network sees.
        """
        check_is_fitted(self, "network_")
        noised = torch.as_tensor(np.asarray(X), dtype=torch.float32, device=self.device)
        network = self.network_.network
        small = resized(noised, self.network_.size)
        _, score = logits_and_score(network, small)
        guess: NDArray[np.float64] = (small + sigma**2 * score).double().detach().cpu().numpy()
        return guess


class _Energetic(nn.Module):
    """Logits of the last unit's means, and to all of them the same: the sum of energies.

    An energy is a linear function of a unit's channels, summed over the image.
    """

    def __init__(self, units: Sequence[nn.Module], widths: Sequence[int], n_classes: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.energies = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in widths)
        self.head = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        energy = x.new_zeros(len(x), 1)
        for unit, of_unit in zip(self.units, self.energies, strict=True):
            x = unit(x)
            energy = energy + of_unit(x).sum((2, 3))
        logits: Tensor = self.head(x.mean((2, 3))) + energy
        return logits


def logits_and_score(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, and the gradient of their log-sum-exp in the pixels.

    Both are differentiable in the network's weights.
    """
    leaf = images.detach().requires_grad_()
    logits: Tensor = network(leaf)
    (score,) = torch.autograd.grad(logits.logsumexp(1).sum(), leaf, create_graph=True)
    return logits, score
