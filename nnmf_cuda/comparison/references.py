"""What every table needs beside its systems: an answer that does not look, and mere memory."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nnmf_cuda.baselines import ImageClassifier, LabelledImages, PixelNetwork, System
from nnmf_cuda.data.leakage import standardised_means

RESOLUTION = 32
"""Side of the grid of block means that the nearest neighbour compares, as `audit` does."""

_SHARPNESS = 50.0
"""By which correlations are multiplied, so that probabilities are not all alike."""

_AT_ONCE = 256
"""Images that are answered at a time."""


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

    Nothing is learned: what it scores on a split is what memory alone scores. Probabilities are the
    softmax of each class's highest correlation, which is differentiable.

    Parameters
    ----------
    resolution : int, default=32
        Side of the grid of block means; of smaller images their own side.
    """

    def __init__(self, resolution: int = RESOLUTION) -> None:
        self.resolution = resolution

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Remember images X (n_images, height, width) and labels y (n_images,)."""
        images: NDArray[Any] = np.asarray(X)
        self.classes_, numbers = np.unique(np.asarray(y), return_inverse=True)
        side = min(self.resolution, *images.shape[1:])
        rows = torch.from_numpy(standardised_means(images, side))
        self.network_ = _Correlations(rows, torch.from_numpy(numbers), images.shape[1:], side)
        self.n_parameters_ = rows.numel()
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return class probabilities (n_images, n_classes)."""
        images: NDArray[Any] = np.asarray(X)
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        if images.dtype == np.uint8:
            pixels = pixels.double() / 255
        with torch.no_grad():
            logits = torch.cat([self.network_(part) for part in pixels.split(_AT_ONCE)])
        answers: NDArray[np.float64] = logits.double().softmax(1).numpy()
        return answers

    def pixel_network(self) -> PixelNetwork:
        """Return the same from pixels to logits."""
        return self.network_


class _Correlations(PixelNetwork):
    """The highest correlation with training images of each class, times `_SHARPNESS`."""

    rows: Tensor
    means: Tensor
    means_across: Tensor

    def __init__(
        self, rows: Tensor, classes: Tensor, image_shape: tuple[int, ...], side: int
    ) -> None:
        super().__init__()
        order = classes.argsort(stable=True)
        self.register_buffer("rows", rows[order])
        self.sizes = torch.bincount(classes).tolist()
        for name, length in zip(("means", "means_across"), image_shape, strict=True):
            # As `block_means` cuts a side into blocks.
            block = ((torch.arange(length) + 1) * side - 1) // length
            matrix = torch.nn.functional.one_hot(block, side).T.double()
            self.register_buffer(name, matrix / matrix.sum(1, keepdim=True))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n_images, n_classes)."""
        means = (self.means @ images.double() @ self.means_across.T).flatten(1)
        means = means - means.mean(1, keepdim=True)
        correlations = torch.nn.functional.normalize(means, dim=1) @ self.rows.T
        highest = [part.amax(1) for part in correlations.split(self.sizes, dim=1)]
        return _SHARPNESS * torch.stack(highest, 1).to(images.dtype)


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
