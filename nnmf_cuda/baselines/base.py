"""What every system of the comparison is: images in, class probabilities out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor, nn


class LabelledImages(NamedTuple):
    """Images and their labels, as `ImageClassifier.fit` takes them for validation."""

    images: NDArray[Any]
    labels: NDArray[np.int64]


class ImageClassifier(ClassifierMixin, BaseEstimator, ABC):  # type: ignore[misc]
    """An estimator in scikit-learn's manner whose samples are grey images.

    Images are arrays (n_images, height, width), uint8 or floating point in [0, 1], all of one
    shape; `fit` may be given validation images, for the choice of an epoch or of a setting. What
    is fitted has `classes_`, sorted as by `numpy.unique`, and `n_parameters_`, the count of
    numbers that were learned.

    A system whose answer is a differentiable function of the pixels overrides `pixel_network`.
    """

    classes_: NDArray[np.int64]
    n_parameters_: int
    is_random: bool = False
    """Whether two calls may answer differently, of a system without a `pixel_network`."""
    spared_seconds_: float = 0.0
    """Of work that `fit` took over from another system's, which counts as its own training."""

    @abstractmethod
    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Learn from images X (n_images, height, width) and labels y (n_images,)."""

    @abstractmethod
    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return class probabilities (n_images, n_classes) of images, in the order of `classes_`.

        An answer may be random; it is drawn from a generator that is seeded anew at each call.
        """

    def fresh_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return probabilities as `predict_proba` does, which a random system draws at each call.

        From torch's generators as they are, or its own.
        """
        return self.predict_proba(X)

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return the most probable class (n_images,) of each image."""
        predicted: NDArray[np.int64] = self.classes_[self.predict_proba(X).argmax(1)]
        return predicted

    def pixel_network(self) -> PixelNetwork | None:
        """Return what an attack can differentiate through, or None where there is no such thing."""
        return None


class PixelNetwork(nn.Module, ABC):
    """Float images (n_images, height, width) in [0, 1] to logits (n_images, n_classes).

    The answers are those of `predict_proba`, and their gradient reaches the pixels. It is in eval
    mode, and its parameters need no gradient.
    """

    is_random: bool = False
    """Whether two calls may answer differently."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n_images, n_classes)."""

    @property
    def device(self) -> torch.device:
        """Where it computes; of a network without numbers the CPU."""
        held = [*self.parameters(), *self.buffers()]
        return held[0].device if held else torch.device("cpu")


def probabilities_of_margins(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax of margins, (n, n_classes).

    A margin (n,) of two classes counts for the second and against the first by half of it each, so
    that the most probable class is always the one that the margins name. The probabilities order
    samples as the margins do and are not calibrated: they say nothing of how often they are right.
    """
    if margins.ndim == 1:
        margins = np.stack([-margins / 2, margins / 2], axis=1)
    probabilities: NDArray[np.float64] = softmax(margins, axis=1)
    return probabilities
