"""What a reader is, and what it hands over before classes are chosen and images are divided.

Also what readers do alike: what folders say of files, the order of classes, folds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.images import ImageSource
from nnmf_cuda.data.reading import Account, PathPattern, ReadOptions, first_few

SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
"""What sources call the three parts, in lower case."""


class Reader(Protocol):
    """A module that reads one kind of source.

    Errors are ValueErrors that name the source.
    """

    @property
    def HEEDS(self) -> frozenset[str]:
        """The options that change what it reads, of `ReadOptions`; ``on_error`` is everyone's."""

    def recognises(self, path: Path) -> bool:
        """Tell whether an existing path is a source of this kind; cheap, and never raises."""

    def read(
        self, path: Path, options: ReadOptions, account: Account, *, label_key: str = "labels"
    ) -> Records:
        """Return every labelled image, for training; files are listed, not decoded.

        `account` is told of every file that is met, and of what is left out and why.

        `label_key` chooses among several sets of labels; see `refuse_label_key`.
        """

    def images(self, path: Path, options: ReadOptions, account: Account) -> Iterator[ImageSource]:
        """Give every image, labelled or not, one by one; memory does not grow with their number.

        A source without images is a ValueError, raised before anything is given.
        """


@dataclass(frozen=True, eq=False)
class Records:
    """Images and the classes that their source gives them; arrays are (n_images,) unless said."""

    images: Sequence[ImageSource] | NDArray[Any]
    """What is still to be decoded, or checked pixels (n_images, height, width[, 3]): uint8, or grey
    floats in [0, 1]."""
    values: NDArray[np.str_]
    """The class of each image in the source's own words: a category id, a folder, a label."""
    names: Mapping[str, str]
    """From such a value to the class's name, in label order; may name classes without images."""
    split: NDArray[np.str_] | None
    """"train", "valid", "test"; None where the source does not say."""
    files: NDArray[np.str_]
    """The name of each image in its source."""
    groups: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Of `nnmf_cuda.data.dataset.GROUPS`, those that the source knows."""
    columns: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    """What else the source says of each image."""
    notes: tuple[str, ...] = ()
    """What the reader decided or skipped, one sentence each, for the report."""

    def take(self, rows: NDArray[np.bool_]) -> Records:
        """Return the records of the images marked in `rows`."""
        if rows.all():
            return self
        images = self.images
        return Records(
            images=images[rows] if isinstance(images, np.ndarray) else list(compress(images, rows)),
            values=self.values[rows],
            names=self.names,
            split=None if self.split is None else self.split[rows],
            files=self.files[rows],
            groups={name: array[rows] for name, array in self.groups.items()},
            columns={name: array[rows] for name, array in self.columns.items()},
            notes=self.notes,
        )


def refuse_label_key(path: Path, label_key: str) -> None:
    """Raise ValueError if labels are chosen where there is nothing to choose: in a folder."""
    if label_key != "labels":
        raise ValueError(
            f"label_key={label_key!r} picks an array of an .npz, but {path} is a folder; "
            "leave it out"
        )


def in_order(values: Sequence[str]) -> list[str]:
    """Return the different values, as numbers where all are, else as text."""
    found = set(values)
    if all(re.fullmatch(r"-?[0-9]+", value) for value in found):
        return sorted(found, key=int)
    return sorted(found)


def as_splits(names: NDArray[Any], *, called: str) -> NDArray[np.str_]:
    """Return the split of each image as this package calls it; errors call the names `called`."""
    found = [str(name) for name in np.unique(names).tolist()]
    if unknown := [repr(name) for name in found if name.lower() not in SPLIT_ALIASES]:
        raise ValueError(f"{called} holds {first_few(unknown)}; give 'train', 'valid' and 'test'")
    return np.array([SPLIT_ALIASES[str(name).lower()] for name in names.tolist()])


def as_folds(names: Sequence[str]) -> NDArray[Any]:
    """Return the folds of images: integers where all are, so that 10 comes after 9, else text."""
    if all(re.fullmatch(r"[0-9]{1,9}", name) for name in names):
        return np.array([int(name) for name in names])
    return np.array(names)


def parts_of(
    below: Iterable[str | PurePath], pattern: PathPattern | None
) -> dict[str, NDArray[np.str_]]:
    """Return label, patient and series of each path below a source, those that a pattern takes."""
    if pattern is None:
        return {}
    found = [pattern.match(path) for path in below]
    taken = [part for part in ("label", "patient", "series") if part in pattern.names]
    return {part: np.array([names[part] for names in found], np.str_) for part in taken}


def splits_of(below: Sequence[Path]) -> NDArray[np.str_] | None:
    """Return the split that the first folder of each path names; None unless all name one."""
    tops = [path.parts[0].lower() if len(path.parts) > 1 else "" for path in below]
    if not all(top in SPLIT_ALIASES for top in tops):
        return None
    return np.array([SPLIT_ALIASES[top] for top in tops])


def refuse_mixed_splits(root: Path, folders: Collection[str]) -> None:
    """Raise ValueError if some folders of a source are called as splits, but not all."""
    strangers = sorted(name for name in folders if name.lower() not in SPLIT_ALIASES)
    if strangers and len(strangers) < len(folders):
        raise ValueError(
            f"{root} mixes split folders and others, e.g. {strangers[0]!r}; keep either only "
            "train, valid, test, or only class folders"
        )


def classes_of(
    below: Sequence[Path], root: Path, options: ReadOptions, *, otherwise: str = ""
) -> list[str]:
    """Return the class of each file by its folder, or by the pattern where that has a {label}.

    Parameters
    ----------
    below : sequence of paths
        Relative to the source.
    root : Path
        The source, for messages.
    options : ReadOptions
        Its pattern is asked.
    otherwise : str, default=""
        Another remedy for files that lie in no class folder.
    """
    if options.takes("label"):
        labels: list[str] = parts_of(below, options.pattern)["label"].tolist()
        return labels
    level = 0 if splits_of(below) is None else 1
    loose = sorted({path.as_posix() for path in below if len(path.parts) < level + 2})
    if loose:
        raise ValueError(
            f"{root}: {first_few([repr(name) for name in loose])} lie in no class folder; sort "
            f"files into root/class/ or root/split/class/, {otherwise}name them with their labels "
            "in a CSV (columns file and label), or give --patient_from a pattern with {label}"
        )
    refuse_mixed_splits(root, {path.parts[0] for path in below})
    return [path.parts[level] for path in below]
