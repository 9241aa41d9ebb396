"""Classifier, denoiser, purifier, and the defended classifier made of them."""

from __future__ import annotations

from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.features import FeatureExtractor
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser, FeatureMLP

__all__ = [
    "DefendedClassifier",
    "DiffusionPurifier",
    "FeatureCNN",
    "FeatureDenoiser",
    "FeatureExtractor",
    "FeatureMLP",
    "NoiseSchedule",
]
