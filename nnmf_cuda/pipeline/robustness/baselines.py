"""Simpler defences to compare with: what a denoiser without diffusion and without noise gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LinearDenoiser"]


class LinearDenoiser(nn.Module):
    """Principal components of the training features before a classifier: no noise, no network.

    Features are projected on the components that hold `share` of the training variance, and back.

    Parameters
    ----------
    x : Tensor of shape (n_train, n_features)
        Training features.
    classifier : nn.Module
        Maps features to logits.
    share : float, default=0.95
        Of the variance.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, x: Tensor, classifier: nn.Module, share: float = 0.95) -> None:
        super().__init__()
        from sklearn.decomposition import PCA

        found = PCA(share, svd_solver="full").fit(x.double().cpu().numpy())
        self.classifier = classifier
        self.register_buffer("mean", torch.from_numpy(found.mean_).to(x))
        self.register_buffer("directions", torch.from_numpy(found.components_).to(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, n_classes) of features (n, n_features)."""
        kept = (x - self.mean) @ self.directions.T
        logits: Tensor = self.classifier(self.mean + kept @ self.directions)
        return logits
