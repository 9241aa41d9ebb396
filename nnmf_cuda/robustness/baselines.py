"""Simpler defences at the same noise level: what of a defence is the diffusion denoiser's merit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.surrogates import surrogate
from nnmf_cuda.models.defended import DefendedClassifier


class NoiseOnly(nn.Module):
    """Plain noise before the classifier, at the purifier's level, without a denoiser.

    x + sqrt((1 - abar) / abar) noise: x_t of the schedule, brought back to the scale of x. What
    this gains is not the denoiser's merit.
    """

    def __init__(self, defended: DefendedClassifier) -> None:
        super().__init__()
        self.scale = defended.purifier.schedule.noise_level(int(defended.purifier.timesteps[0]))
        self.n_draws = defended.purifier.n_draws
        self.classifier = defended.classifier

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, n_classes) of features (n, n_features), averaged over the draws."""
        noisy = x.repeat(self.n_draws, 1)
        noisy = noisy + self.scale * torch.randn_like(noisy)
        logits: Tensor = self.classifier(self.denoised(noisy))
        return logits.reshape(self.n_draws, len(x), -1).mean(0)

    def denoised(self, noisy: Tensor) -> Tensor:
        """Return noisy features (rows, n_features) as they are."""
        return noisy


class LinearDenoiser(NoiseOnly):
    """Noise as before the diffusion denoiser, and the best linear denoiser behind it.

    The Wiener filter mean + C (C + sigma^2 I)^-1 (x + sigma noise - mean): of all linear maps it
    has the least squared error on features of the mean and covariance C of x (n_train, n_features).
    Of each of their principal components it keeps the share variance / (variance + sigma^2).
    """

    mean: Tensor
    filter: Tensor

    def __init__(self, defended: DefendedClassifier, x: Tensor) -> None:
        super().__init__(defended)
        features = x.double()
        covariance = torch.cov(features.T)
        noisy = covariance + self.scale**2 * torch.eye(len(covariance)).to(covariance)
        self.register_buffer("mean", features.mean(0).to(x))
        self.register_buffer("filter", torch.linalg.solve(noisy, covariance).to(x))

    def denoised(self, noisy: Tensor) -> Tensor:
        """Return the guesses of x from x + sigma noise, both (rows, n_features)."""
        return self.mean + (noisy - self.mean) @ self.filter


class WithoutNoise(nn.Module):
    """The defence with zeros in its noise's place: the denoiser alone, which is not random."""

    def __init__(self, defended: DefendedClassifier) -> None:
        super().__init__()
        self.defended = surrogate(defended, 1)  # all draws would be equal

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, n_classes) of features (n, n_features)."""
        noise = x.new_zeros(self.defended.purifier.noise_shape(x))
        logits: Tensor = self.defended(x, noise=noise)
        return logits
