"""A two-class problem of feature vectors that a plain CNN learns and an attack breaks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.training import train_classifier, train_denoiser


def _samples(n: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    features = 0.3 + 0.03 * rng.standard_normal((n, 6))
    features[np.arange(n), labels] += 0.12
    features = features.clip(0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return torch.as_tensor(features, dtype=torch.float32), torch.as_tensor(labels)


@pytest.fixture(scope="session")
def samples() -> tuple[Tensor, Tensor]:
    return _samples(40, 1)


@pytest.fixture(scope="session")
def _trained() -> DefendedClassifier:
    train, valid = _samples(200, 0), _samples(80, 2)
    classifier = train_classifier(*train, *valid, n_classes=2, epochs=10, lr=1e-2).model
    # Noise levels up to the distance of the classes, so that few epochs do.
    schedule = NoiseSchedule.linear(50, 1e-4, 1e-3)
    denoiser = train_denoiser(train[0], schedule, epochs=60, lr=3e-3, batch_size=16).model
    purifier = DiffusionPurifier(denoiser, schedule, timesteps=(20,), n_draws=4)
    return DefendedClassifier(purifier, classifier).eval()


@pytest.fixture
def defended(_trained) -> DefendedClassifier:
    return copy.deepcopy(_trained)


@pytest.fixture
def classifier(defended) -> nn.Module:
    return defended.classifier
