"""The one form in which images reach the rest of the package."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "valid", "test")

GROUPS = ("patient", "patient_fold", "series")
"""To what an image may be known to belong."""

_CLUSTERS = ("patient", "series")
"""Groups whose images are alike, the widest first. A fold holds many patients: it is none."""


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled grey images with a split; checked when made.

    Attributes
    ----------
    images : ndarray of shape (n_images, height, width)
        uint8, or float32 in [0, 1].
    labels : ndarray of shape (n_images,), int64
        0 .. n_classes - 1; the last class is the positive one.
    label_names : tuple of str
        One name a class.
    split : ndarray of shape (n_images,), str
        "train", "valid" or "test".
    groups : mapping of str to ndarray of shape (n_images,)
        Of `GROUPS`, those that the source has.
    files : ndarray of shape (n_images,), str
        The name of each image in its source.
    source : str
        The path as it was given, or "phantom".
    synthetic : bool, default=False
        True if no image was ever measured on anything.
    notes : tuple of str
        What the reader decided or skipped, one sentence each, for the report.

    Raises
    ------
    ValueError
        If lengths, dtypes or ranges do not fit, if there are fewer than two classes, if a split
        is empty, or if a class is missing from the training or test images.
    """

    images: NDArray[Any]
    labels: NDArray[np.int64]
    label_names: tuple[str, ...]
    split: NDArray[np.str_]
    groups: Mapping[str, NDArray[Any]]
    files: NDArray[np.str_]
    source: str
    synthetic: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_pixels(self.images, name=f"{self.source}: images")
        if self.images.dtype not in (np.uint8, np.float32):
            raise ValueError(
                f"{self.source}: images are {self.images.dtype}; give uint8, or float32 in [0, 1]"
            )
        n_images = len(self.images)
        arrays = {"labels": self.labels, "split": self.split, "files": self.files, **self.groups}
        for name, array in arrays.items():
            check_length(array, n_images, name=f"{self.source}: {name}")
        if not np.issubdtype(self.labels.dtype, np.integer):
            raise ValueError(f"{self.source}: labels are {self.labels.dtype}; give integers")
        if self.n_classes < 2:
            raise ValueError(
                f"{self.source}: only one class ({', '.join(self.label_names) or 'unnamed'}); "
                "a classifier needs images of at least two"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.n_classes:
            raise ValueError(
                f"{self.source}: labels run from {low} to {high}, but label_names has "
                f"{self.n_classes} names; labels must lie in 0..{self.n_classes - 1}"
            )
        self._check_split()

    def _check_split(self) -> None:
        unknown = sorted(set(np.unique(self.split).tolist()) - set(SPLITS))
        if unknown:
            raise ValueError(
                f"{self.source}: split holds {unknown[0]!r}; give only 'train', 'valid' and 'test'"
            )
        for split in SPLITS:
            labels = self.labels_of(split)
            if not len(labels):
                raise ValueError(
                    f"{self.source}: no {split} images; give some, or let the images be divided "
                    "anew with split_by='random'"
                )
            # A class without a test image has no recall and no ROC-AUC. The validation images
            # only choose an epoch.
            missing = sorted(set(range(self.n_classes)) - set(labels.tolist()))
            if missing and split != "valid":
                raise ValueError(
                    f"{self.source}: no {split} image of class {self.label_names[missing[0]]!r}; "
                    "give some, choose other classes, or let the images be divided anew with "
                    "split_by='random'"
                )

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return len(self.label_names)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of every image, in pixels."""
        return int(self.images.shape[1]), int(self.images.shape[2])

    def matrix(self, split: str) -> NDArray[Any]:
        """Return a copy (n, height * width) of the images of a split, in their dtype and order."""
        images = self.images[self._rows(split)]
        return images.reshape(len(images), -1)

    def labels_of(self, split: str) -> NDArray[np.int64]:
        """Return the labels of a split, in the order of `matrix`."""
        return self.labels[self._rows(split)]

    def sha256(self) -> str:
        """Return a fingerprint of images, labels and split as hexadecimal digits."""
        digest = hashlib.sha256(f"{self.images.dtype} {self.images.shape}\n".encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        digest.update("\n".join(self.split.tolist()).encode())
        return digest.hexdigest()

    def _rows(self, split: str) -> NDArray[np.bool_]:
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: choose 'train', 'valid' or 'test'")
        rows: NDArray[np.bool_] = self.split == split
        return rows


def groupings_of_test(dataset: ImageDataset) -> dict[str, NDArray[Any]]:
    """Return to which patient and series each test image belongs, the widest grouping first.

    Those that are known and do not hold the whole test split in one group.
    """
    test = dataset.split == "test"
    of_test = {name: dataset.groups[name][test] for name in _CLUSTERS if name in dataset.groups}
    return {name: groups for name, groups in of_test.items() if len(np.unique(groups)) > 1}


def check_length(array: NDArray[Any], n_images: int, *, name: str) -> None:
    """Raise ValueError unless `array` has one entry an image."""
    if array.ndim != 1 or len(array) != n_images:
        raise ValueError(
            f"{name} has shape {array.shape}, but there are {n_images} images; "
            f"give one entry an image, shape ({n_images},)"
        )


def check_pixels(images: NDArray[Any], *, name: str, start: int = 0) -> None:
    """Raise ValueError unless `images` are (n_images, height, width), uint8 or floats in [0, 1].

    `start` is the number of the first one, where they are a part of a larger stack.
    """
    if images.ndim != 3:
        raise ValueError(f"{name} have shape {images.shape}; expected (n_images, height, width)")
    if not images.size:
        raise ValueError(f"{name} are empty, shape {images.shape}; give at least one image a class")
    if images.dtype == np.uint8:
        return
    is_float = np.issubdtype(images.dtype, np.floating)
    # One pass over the data in the good case.
    low, high = (images.min(), images.max()) if images.dtype.kind in "if" else (0, 0)
    if is_float and not (np.isfinite(low) and np.isfinite(high)):
        index = int(np.argmin(np.isfinite(images).all(axis=(1, 2))))
        raise ValueError(
            f"{name} hold NaN or infinite pixels, first in image {start + index}; "
            "repair or leave it out"
        )
    if low < 0:
        index = int(np.argmax((images < 0).any(axis=(1, 2))))
        raise ValueError(
            f"{name} hold negative pixels, {low} the lowest, first in image {start + index}; "
            "shift them to begin at 0, since NNMF needs non-negative data"
        )
    if not is_float:
        raise ValueError(f"{name} are {images.dtype}; give uint8, or floats in [0, 1]")
    if high > 1:
        raise ValueError(
            f"{name} hold values up to {high:g}, but floats must lie in [0, 1]; "
            "divide them by their largest possible value (255 for 8 bits), or store uint8"
        )
