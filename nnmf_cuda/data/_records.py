"""What a reader hands over, before classes are chosen and images are divided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
