"""What estimators of images check and convert before they begin."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnmf_cuda.data.dataset import check_pixels


class Labels(NamedTuple):
    """Classes, ascending, and labels (n_images,) that count them from 0."""

    classes: NDArray[np.int64]
    coded: NDArray[np.int64]


def as_grey_values(
    name: str, values: ArrayLike, shape: tuple[int, ...] | None = None
) -> NDArray[np.uint8]:
    """Return images (n, height, width) as uint8, the nearest of 256 grey values.

    `shape` is the height and width that they must have, those of the images of `fit`.

    Raises
    ------
    TypeError, ValueError
        If they are not uint8 or floating point in [0, 1], or of another shape.
    """
    array = np.asarray(values)
    check_pixels(array, name=name)
    if shape is not None and array.shape[1:] != tuple(shape):
        raise ValueError(
            f"{name} have shape {array.shape}, but the images of fit were"
            f" {shape[0]} x {shape[1]}: resize them to that"
        )
    if array.dtype == np.uint8:
        return array
    greys: NDArray[np.uint8] = (array * 255).round().astype(np.uint8)
    return greys


def as_labels(y: ArrayLike, n_images: int) -> Labels:
    """Return the labels y (n_images,) of at least two classes, counted from 0."""
    labels = np.asarray(y)
    if labels.shape != (n_images,):
        raise ValueError(f"y must have shape ({n_images},), one label an image; got {labels.shape}")
    classes, coded = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y holds one class only, {classes[0]}; give images of at least two")
    return Labels(classes, coded.astype(np.int64))
