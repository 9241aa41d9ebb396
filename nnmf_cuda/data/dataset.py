"""The one form in which images reach the rest of the package."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "valid", "test")


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
        "patient", "patient_fold" and "series", where the source has them.
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
        self._check_labels()
        self._check_split()

    def _check_labels(self) -> None:
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
        """Return the images of a split as rows of a matrix.

        Parameters
        ----------
        split : {"train", "valid", "test"}

        Returns
        -------
        ndarray of shape (n, height * width)
            A copy, in the images' dtype and the dataset's order.
        """
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


CLUSTERS = ("patient", "series")
"""Groups whose images are alike, the widest first. A fold holds many patients: it is none."""


def groupings_of_test(dataset: ImageDataset) -> dict[str, NDArray[Any]]:
    """Return to which patient and series each test image belongs, the widest grouping first.

    Those that are known and do not hold the whole test split in one group.
    """
    test = dataset.split == "test"
    of_test = {name: dataset.groups[name][test] for name in CLUSTERS if name in dataset.groups}
    return {name: groups for name, groups in of_test.items() if len(np.unique(groups)) > 1}


def check_length(array: NDArray[Any], n_images: int, *, name: str) -> None:
    """Raise ValueError unless `array` has one entry an image."""
    if array.ndim != 1 or len(array) != n_images:
        raise ValueError(
            f"{name} has shape {array.shape}, but there are {n_images} images; "
            f"give one entry an image, shape ({n_images},)"
        )


def check_pixels(images: NDArray[Any], *, name: str) -> None:
    """Raise ValueError unless `images` is a stack of grey images with values that are intensities.

    Parameters
    ----------
    images : ndarray
        Expected of shape (n_images, height, width), uint8 or floating in [0, 1].
    name : str
        What the message calls the array.
    """
    if images.ndim != 3:
        raise ValueError(f"{name} have shape {images.shape}; expected (n_images, height, width)")
    if not images.size:
        raise ValueError(f"{name} are empty, shape {images.shape}; give at least one image a class")
    if images.dtype == np.uint8:
        return
    is_float = np.issubdtype(images.dtype, np.floating)
    if not is_float and not np.issubdtype(images.dtype, np.signedinteger):
        raise ValueError(f"{name} are {images.dtype}; give uint8, or floats in [0, 1]")
    # One pass over the data in the good case; NaN makes both comparisons false.
    low, high = images.min(), images.max()
    if is_float and not (np.isfinite(low) and np.isfinite(high)):
        index = int(np.argmin(np.isfinite(images).all(axis=(1, 2))))
        raise ValueError(
            f"{name} hold NaN or infinite pixels, first in image {index}; repair or leave it out"
        )
    if low < 0:
        index = int(np.argmax((images < 0).any(axis=(1, 2))))
        raise ValueError(
            f"{name} hold negative pixels, {low} the lowest, first in image {index}; "
            "shift them to begin at 0, since NNMF needs non-negative data"
        )
    if not is_float:
        raise ValueError(f"{name} are {images.dtype}; give uint8, or floats in [0, 1]")
    if high > 1:
        raise ValueError(
            f"{name} hold values up to {high:g}, but floats must lie in [0, 1]; "
            "divide them by their largest possible value (255 for 8 bits), or store uint8"
        )


# What a reader hands over, before classes are chosen and images are divided.
# What sources call the three parts, in lower case.
SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, eq=False)
class Records:
    """Images and the classes that their source gives them.

    Attributes
    ----------
    images : ndarray of shape (n_images, height, width)
        uint8, or float32 in [0, 1].
    values : ndarray of shape (n_images,), str
        The class of each image in the source's own words: a category id, a folder, a label.
    names : mapping of str to str
        From such a value to the class's name, in label order; may name classes without images.
    split : ndarray of shape (n_images,), str, or None
        "train", "valid", "test", or None where the source does not say.
    groups, files, notes
        As in `ImageDataset`.
    """

    images: NDArray[Any]
    values: NDArray[np.str_]
    names: Mapping[str, str]
    split: NDArray[np.str_] | None
    files: NDArray[np.str_]
    groups: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def take(self, rows: NDArray[np.bool_]) -> Records:
        """Return the records of the images marked in `rows`."""
        if rows.all():
            return self
        return Records(
            images=self.images[rows],
            values=self.values[rows],
            names=self.names,
            split=None if self.split is None else self.split[rows],
            files=self.files[rows],
            groups={name: array[rows] for name, array in self.groups.items()},
            notes=self.notes,
        )


def first_few(names: list[str], limit: int = 3) -> str:
    """Return at most `limit` names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
