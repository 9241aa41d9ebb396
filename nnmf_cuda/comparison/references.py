"""What every table needs beside its systems: an answer that does not look, and mere memory."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnmf_cuda.baselines import ImageClassifier, LabelledImages, System
from nnmf_cuda.data.leakage import standardised_means

RESOLUTION = 32
"""Side of the grid of block means that the nearest neighbour compares, as `audit` does."""


class ConstantAnswer(ImageClassifier):
    """Answers the shares of the training labels, whatever the image."""

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Count labels y (n_images,)."""
        self.classes_, counts = np.unique(np.asarray(y), return_counts=True)
        self.shares_ = counts / counts.sum()
        self.n_parameters_ = len(counts)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the shares (n_images, n_classes) of the training labels."""
        return np.tile(self.shares_, (len(np.asarray(X)), 1))


class NearestNeighbour(ImageClassifier):
    """Answers the label of the training image that correlates most in block means.

    Nothing is learned: what it scores on a split is what memory alone scores. Of its probabilities
    the label's is 1.

    Parameters
    ----------
    resolution : int, default=32
        Side of the grid of block means; of smaller images their own side.
    """

    def __init__(self, resolution: int = RESOLUTION) -> None:
        self.resolution = resolution

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Remember images X (n_images, height, width) and labels y (n_images,)."""
        self.classes_, self.of_row_ = np.unique(np.asarray(y), return_inverse=True)
        self.rows_ = self._rows(X)
        self.n_parameters_ = self.rows_.size
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return 1 for the neighbour's class and 0 for others (n_images, n_classes)."""
        nearest = (self._rows(X) @ self.rows_.T).argmax(1)
        answers: NDArray[np.float64] = np.eye(len(self.classes_))[self.of_row_[nearest]]
        return answers

    def _rows(self, X: ArrayLike) -> NDArray[np.float64]:
        images: NDArray[Any] = np.asarray(X)
        return standardised_means(images, min(self.resolution, *images.shape[1:]))


REFERENCES = (
    System(
        "constant",
        "the constant answer",
        "this package",
        source="",
        described="always the most frequent class of the training images",
        really="",
        reported="",
        make=lambda setting: ConstantAnswer(),
    ),
    System(
        "nearest",
        "the nearest training image",
        "this package",
        source="",
        described=f"the label of the training image that correlates most in {RESOLUTION} x"
        f" {RESOLUTION} block means: memory alone",
        really="",
        reported="",
        make=lambda setting: NearestNeighbour(),
    ),
)
"""Rows that stand in every table."""
