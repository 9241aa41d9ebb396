"""A small data set with patients, and two stand-ins for systems: without and with a gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from nnmf_cuda.baselines import ImageClassifier, LabelledImages, PixelNetwork, Setting, System


class NearestCentroid(ImageClassifier):
    """Answers by the distance to the mean image of each class; no gradient."""

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        rows, labels = self._rows(X), np.asarray(y)
        self.classes_ = np.unique(labels)
        self.centroids_ = np.stack([rows[labels == label].mean(0) for label in self.classes_])
        self.n_parameters_ = self.centroids_.size
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        distances = ((self._rows(X)[:, None] - self.centroids_) ** 2).mean(2)
        near = np.exp(-20 * (distances - distances.min(1, keepdims=True)))
        return near / near.sum(1, keepdims=True)

    def _rows(self, X: ArrayLike) -> NDArray[np.float64]:
        images = np.asarray(X)
        scale = 255 if images.dtype == np.uint8 else 1
        return images[:, ::4, ::4].reshape(len(images), -1) / scale


class SmallCNN(ImageClassifier):
    """A convolution and a linear layer, with a gradient; random where `noise` is above 0."""

    def __init__(self, seed: int = 0, noise: float = 0.0) -> None:
        self.seed, self.noise = seed, noise

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        self.classes_, numbers = np.unique(np.asarray(y), return_inverse=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            layers = [
                nn.AvgPool2d(8),
                nn.Conv2d(1, 4, 3),
                nn.ReLU(),
                nn.Flatten(),
                nn.LazyLinear(len(self.classes_)),
            ]
            self.network_ = _Small(nn.Sequential(*layers), self.noise)
            images, labels = self._images(X), torch.from_numpy(numbers)
            self.network_(images)
            optimiser = torch.optim.Adam(self.network_.parameters(), lr=0.03)
            for _ in range(25):
                loss = nn.functional.cross_entropy(self.network_(images), labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        self.network_.requires_grad_(False).eval()
        self.n_parameters_ = sum(p.numel() for p in self.network_.parameters())
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            return self.network_(self._images(X)).double().softmax(1).numpy()

    def pixel_network(self) -> PixelNetwork:
        return self.network_

    def _images(self, X: ArrayLike) -> Tensor:
        images = np.asarray(X)
        return torch.from_numpy(images).float() / (255 if images.dtype == np.uint8 else 1)


class _Small(PixelNetwork):
    def __init__(self, layers: nn.Module, noise: float) -> None:
        super().__init__()
        self.layers, self.noise, self.is_random = layers, noise, noise > 0

    def forward(self, images: Tensor) -> Tensor:
        logits = self.layers(images.unsqueeze(1))
        return logits + self.noise * torch.randn_like(logits) if self.noise else logits


def system(name: str, make: Callable[[Setting], ImageClassifier], **more: str) -> System:
    facts = {"authors": "A. Author 2020", "source": "a journal", "described": "as described"}
    facts |= {"title": f"the {name}", "really": "something else", "reported": "99 %"} | more
    return System(name=name, make=make, **facts)


def fails(setting: Setting) -> ImageClassifier:
    raise ImportError("needs what is not installed: run `pip install it`")


CENTROID = system("centroid", lambda setting: NearestCentroid())
CNN = system("cnn", lambda setting: SmallCNN(setting.seed), authors="Deem et al. 2026")
BROKEN = system("broken", fails)


def images_of(n_patients: int, per_patient: int, n_classes: int, *, seed: int = 0) -> dict:
    """Return arrays of an .npz: each class has a bright place, each patient a pattern."""
    rng = np.random.default_rng(seed)
    images, labels, patients = [], [], []
    for patient in range(n_patients):
        label = patient % n_classes
        pattern = 60 * rng.random((32, 32))
        pattern[4 + 8 * label : 12 + 8 * label, 8:24] += 70
        for _ in range(per_patient):
            images.append(pattern + 30 * rng.random((32, 32)))
            labels.append(label)
            patients.append(patient)
    return {
        "images": np.stack(images).astype(np.uint8),
        "labels": np.array(labels),
        "label_names": np.array([f"kind {label}" for label in range(n_classes)]),
        "patient": np.array(patients),
    }


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """Write images of twelve patients of two kinds."""
    path = tmp_path / "images.npz"
    np.savez(path, **images_of(12, 5, 2))
    return path


@pytest.fixture
def npz3(tmp_path: Path) -> Path:
    """Write images of eighteen patients of three kinds."""
    path = tmp_path / "images3.npz"
    np.savez(path, **images_of(18, 4, 3))
    return path
