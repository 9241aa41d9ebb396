"""The defended classifier: a purifier before a classifier, and the mean over its draws."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from nnmf_cuda import ops
from nnmf_cuda.models.diffusion import DiffusionPurifier
from nnmf_cuda.models.networks import Fusible, FusibleLayers, why_not_part


class DefendedClassifier(Fusible):
    """Purify features, classify every draw, average the logits.

    Random unless `noise` is given: two calls on the same features differ. Gradients flow through
    noising, denoiser, classifier and average.

    Parameters
    ----------
    purifier : DiffusionPurifier
        Draws K purified versions of each sample.
    classifier : nn.Module
        Maps features (n_samples, n_features) to logits (n_samples, n_classes).
    """

    fused_by = "defended_logits"
    computed_by = ("forward", "classify")

    def __init__(self, purifier: DiffusionPurifier, classifier: nn.Module) -> None:
        super().__init__()
        self.purifier = purifier
        self.classifier = classifier

    def forward(
        self,
        x: Tensor,
        *,
        noise: Tensor | int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the mean logits (n_samples, n_classes) over the draws.

        `noise` and `generator` are as in `DiffusionPurifier.forward`. With a `FeatureCNN` it is
        all one op.
        """
        purifier, classifier = self.purifier, cast(FusibleLayers, self.classifier)
        if ops.is_reference_path() or not self.is_fused():
            return self.classify(purifier(x, noise=noise, generator=generator))
        noise = purifier.noise_for(x, noise, generator)
        return ops.defended_logits(
            x,
            noise,
            purifier.timesteps,
            purifier.alphas_cumprod,
            purifier.weights(),
            classifier.weights(),
            eta=purifier.eta,
            n_draws=None if isinstance(noise, Tensor) else purifier.n_draws,
        )

    def why_modules(self) -> str:
        """Say what keeps `ops.defended_logits` from computing it all; empty if nothing does."""
        return (
            Fusible.why_modules(self)
            or why_not_part(self, "purifier", "purify")
            or why_not_part(self, "classifier", "feature_cnn")
        )

    def classify(self, purified: Tensor) -> Tensor:
        """Return the mean logits (n_samples, n_classes) of draws (n_samples, K, n_features)."""
        logits: Tensor = self.classifier(purified.flatten(0, 1))
        return logits.reshape(*purified.shape[:2], logits.shape[1]).mean(1)

    def behind(self, purifier: DiffusionPurifier) -> DefendedClassifier:
        """Return the same classifier, not a copy, behind another purifier."""
        return DefendedClassifier(purifier, self.classifier)
