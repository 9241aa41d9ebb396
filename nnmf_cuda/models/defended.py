"""The defended classifier: a purifier before a classifier, and the mean over its draws."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnmf_cuda import ops
from nnmf_cuda.models.diffusion import DiffusionPurifier
from nnmf_cuda.models.networks import FUSED, FeatureCNN, is_observed

__all__ = ["DefendedClassifier"]


class DefendedClassifier(nn.Module):
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

        `noise` and `generator` are as in `DiffusionPurifier.forward`. A `FeatureCNN` is fused with
        the purifier into one op.
        """
        if type(self.classifier) is FeatureCNN and not is_observed(self):
            return ops.defended_logits(
                x,
                denoiser=self.purifier.denoiser.weights(),
                classifier=self.classifier.weights(),
                **self.purifier.chain(x, noise, generator),
            )
        return self.classify(self.purifier(x, noise=noise, generator=generator))

    def classify(self, purified: Tensor) -> Tensor:
        """Return the mean logits (n_samples, n_classes) of draws (n_samples, K, n_features)."""
        logits: Tensor = self.classifier(purified.flatten(0, 1))
        return logits.reshape(*purified.shape[:2], logits.shape[1]).mean(1)

    def behind(self, purifier: DiffusionPurifier) -> DefendedClassifier:
        """Return the same classifier, not a copy, behind another purifier."""
        return DefendedClassifier(purifier, self.classifier)


FUSED.update((DiffusionPurifier, DefendedClassifier))
