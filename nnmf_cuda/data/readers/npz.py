"""Reader for ``.npz`` archives, made with ``numpy.savez``. Pickled arrays are never loaded.

Arrays:

- ``images`` (N, height, width), uint8 or floating in [0, 1]; or (N, height, width, 3), uint8;
- ``labels`` (N,), integers or text; another array with `label_key`;
- ``label_names``, optional: the names of labels 0, 1, ... For ``label_key="class_labels"`` it is
  ``class_names``, in general ``<stem>_names``;
- ``split`` ("train", "valid", "test"), ``patient``, ``patient_fold``, ``series``, ``file`` or
  ``files``, all (N,) and optional.

Or those of MedMNIST: ``train_images``, ``train_labels`` (N, 1), and the same with ``val`` and
``test``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count, repeat
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.dataset import GROUPS, check_length, check_pixels
from nnmf_cuda.data.images import ArrayImage, ImageSource, failing_image
from nnmf_cuda.data.readers.base import SPLIT_ALIASES, Records, as_splits
from nnmf_cuda.data.reading import Account, ReadOptions, reason

# numpy.savez(path, file=...) clashes with its own first parameter; files=... does not.
FILE_KEYS = ("file", "files")

_MEDMNIST_SPLITS = ("train", "val", "test")

_BLOCK_BYTES = 2**24
"""Bytes of images that are read at a time from an archive."""

_REMEDY = (
    "floats must lie in [0, 1]: divide them by their largest possible value (255 for 8 bits), or"
    " store uint8"
)


HEEDS: frozenset[str] = frozenset()


def recognises(path: Path) -> bool:
    """Tell an archive by its suffix."""
    return path.suffix.lower() == ".npz" and not path.is_dir()


def read(
    path: Path, options: ReadOptions, account: Account, *, label_key: str = "labels"
) -> Records:
    """Read images and labels, those in the array `label_key`; see the module."""
    archive = _Archive(path)
    account.met(path)
    if _image_keys(archive) != ["images"]:
        return _read_medmnist(archive, label_key)
    pixels = archive.take("images")
    faults = faults_of(pixels, name=archive.of("images"), remedy=_REMEDY)
    n_images = len(pixels)
    wanted = (label_key, "split", *GROUPS, *FILE_KEYS)
    arrays = {key: archive.take(key) for key in wanted if key == label_key or key in archive.keys}
    for key, array in arrays.items():
        check_length(array, n_images, name=archive.of(key))
    values, names = read_labels(archive, arrays[label_key], label_key)
    files = file_names(arrays, n_images)
    return Records(
        images=list(sources(path, files.tolist(), pixels, faults)) if faults else pixels,
        values=values,
        names=names,
        split=as_splits(arrays["split"], called=archive.of("split")) if "split" in arrays else None,
        files=files,
        groups={key: arrays[key] for key in GROUPS if key in arrays},
    )


def images(path: Path, options: ReadOptions, account: Account) -> Iterator[ImageSource]:
    """Give the images one by one; some MiB of them are in memory."""
    archive = _Archive(path)
    account.met(path)
    arrays = {key: archive.take(key) for key in FILE_KEYS if key in archive.keys}
    for images_key in _image_keys(archive):
        start = 0
        for shape, block in archive.blocks(images_key):
            faults = faults_of(block, name=archive.of(images_key), remedy=_REMEDY, start=start)
            if start == 0:
                for key, array in arrays.items():
                    check_length(array, shape[0], name=archive.of(key))
                names = file_names(arrays, shape[0], images_key)
            yield from sources(path, names[start : start + len(block)].tolist(), block, faults)
            start += len(block)


def _image_keys(archive: _Archive) -> list[str]:
    """Return the keys of the images: one, or MedMNIST's, one a split."""
    of_splits = [f"{split}_images" for split in _MEDMNIST_SPLITS]
    if "images" in archive.keys or not any(key in archive.keys for key in of_splits):
        return ["images"]
    return [key for key in of_splits if key in archive.keys]


def _read_medmnist(archive: _Archive, label_key: str) -> Records:
    """Read MedMNIST's arrays, in which every split has images and labels of its own."""
    if label_key != "labels":
        raise ValueError(
            f"label_key={label_key!r}: {archive.path} has MedMNIST's arrays, with one kind of "
            "labels; leave it out"
        )
    images, labels, splits = [], [], []
    names: list[str] = []
    faults: dict[int, str] = {}
    for key in _image_keys(archive):
        split = key.removesuffix("_images")
        pixels, of_split = archive.take(key), archive.take(f"{split}_labels")
        found = faults_of(pixels, name=archive.of(key), remedy=_REMEDY)
        faults.update((len(names) + row, fault) for row, fault in found.items())
        if of_split.ndim == 2 and of_split.shape[1] > 1:
            raise ValueError(
                f"{archive.of(f'{split}_labels')} have {of_split.shape[1]} labels an image; give "
                "one, or a table with the column that is asked for"
            )
        check_length(of_split.ravel(), len(pixels), name=archive.of(f"{split}_labels"))
        images.append(pixels)
        labels.append(of_split.ravel())
        splits += [SPLIT_ALIASES[split]] * len(pixels)
        names += [f"{key}[{index}]" for index in range(len(pixels))]
    if len({(pixels.shape[1:], pixels.dtype) for pixels in images}) > 1:
        raise ValueError(f"{archive.path}: the images of its splits differ in shape or type")
    values, label_names = read_labels(archive, np.concatenate(labels), label_key)
    stack = np.concatenate(images)
    return Records(
        images=list(sources(archive.path, names, stack, faults)) if faults else stack,
        values=values,
        names=label_names,
        split=np.array(splits),
        files=np.array(names),
    )


def faults_of(images: NDArray[Any], *, name: str, remedy: str, start: int = 0) -> dict[int, str]:
    """Return what is wrong with single images of a stack, by their row in it.

    Parameters
    ----------
    images : ndarray of shape (n, height, width) or (n, height, width, 3)
        A stack or a block of one.
    name : str
        What messages call the stack.
    remedy : str
        What can be done about floats outside [0, 1].
    start : int, default=0
        The number of the first image, where others of the stack are before it.

    Raises
    ------
    ValueError
        If it is no stack of uint8, with colours or without, or of floats without: no image of it
        can be read then.
    """
    if images.ndim == 4 and images.shape[-1] == 3 and images.dtype == np.uint8 and images.size:
        return {}
    if images.ndim != 3 or images.dtype.kind != "f" or not images.size:
        check_pixels(images, name=name, start=start)
        return {}
    if images.min() >= 0 and images.max() <= 1:  # neither holds of NaN
        return {}
    lowest, highest = images.min(axis=(1, 2)), images.max(axis=(1, 2))
    faults = {}
    for row in np.flatnonzero(~((lowest >= 0) & (highest <= 1))).tolist():
        low, high = float(lowest[row]), float(highest[row])
        if np.isfinite((low, high)).all():
            faults[row] = (
                f"{name} hold values from {low:g} to {high:g} in image {start + row}; {remedy}"
            )
        else:
            faults[row] = f"{name} hold NaN or infinite pixels in image {start + row}"
    return faults


def sources(
    path: Path, names: Iterable[str], stack: NDArray[Any], faults: Mapping[int, str]
) -> Iterator[ImageSource]:
    """Give the rows of a stack by their names; those with a fault tell it when they are asked for.

    `faults` are those of `faults_of`, by row. Nothing is copied.
    """
    # No loop of Python's own: most images are handed on as they are, and cost nothing else.
    rows = map(ArrayImage._make, zip(repeat(path), names, stack, repeat(stack), count()))
    if not faults:
        return rows
    return (
        failing_image(image.name, faults[row]) if row in faults else image
        for row, image in enumerate(rows)
    )


def file_names(
    arrays: dict[str, NDArray[Any]], n_images: int, images_key: str = "images"
) -> NDArray[np.str_]:
    """Return what images are called in their source: by an array of `FILE_KEYS`, or by number."""
    files = [arrays[key].astype(np.str_) for key in FILE_KEYS if key in arrays]
    return files[0] if files else np.array([f"{images_key}[{index}]" for index in range(n_images)])


class Arrays(Protocol):
    """Arrays by their keys, from a source that errors name."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of all arrays."""

    def of(self, key: str) -> str:
        """Return what a message calls an array."""

    def take(self, key: str) -> NDArray[Any]:
        """Load one array."""


class _Archive:
    """An opened ``.npz`` whose errors name the file and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            opened: Any = np.load(path, allow_pickle=False)
        except Exception as error:  # as below
            said = getattr(error, "strerror", None) or "not a whole .npz archive"
            raise ValueError(
                f"cannot read {str(path)!r}: {said}; give a file made with numpy.savez"
            ) from error
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError(
                f"{path} holds a single array; give an .npz with 'images' and 'labels', made with "
                "numpy.savez"
            )
        assert opened.zip is not None  # as it is until it is closed
        self._opened, self._zip = opened, opened.zip
        self.keys = tuple(opened.files)

    def of(self, key: str) -> str:
        """Return what a message calls an array."""
        return f"{self.path}: {key!r}"

    def take(self, key: str) -> NDArray[Any]:
        """Load one array."""
        with self._named_errors(key):
            array: NDArray[Any] = self._opened[key]
            if not isinstance(
                array, np.ndarray
            ):  # the bytes of a member that does not begin as one
                raise ValueError("it is no array; give a file made with numpy.savez")
        return array

    def blocks(self, key: str) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
        """Give the rows of an array, some MiB at a time, each time with the whole array's shape."""
        with self._named_errors(key), self._zip.open(f"{key}.npy") as member:
            if np.lib.format.read_magic(member) == (1, 0):
                shape, in_columns, dtype = np.lib.format.read_array_header_1_0(member)
            else:
                shape, in_columns, dtype = np.lib.format.read_array_header_2_0(member)
            row_bytes = dtype.itemsize * prod(shape[1:])
            if shape and shape[0] and row_bytes and not (in_columns or dtype.hasobject):
                step = max(1, _BLOCK_BYTES // row_bytes)
                for start in range(0, shape[0], step):
                    n_rows = min(step, shape[0] - start)
                    content = member.read(n_rows * row_bytes)
                    yield shape, np.frombuffer(content, dtype).reshape(n_rows, *shape[1:])
                return
        array = self.take(key)
        yield array.shape, array

    @contextmanager
    def _named_errors(self, key: str) -> Iterator[None]:
        if key not in self.keys:
            raise ValueError(f"{self.path} has no array {key!r}; it has {', '.join(self.keys)}")
        try:
            yield
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise ValueError(f"{self.of(key)} cannot be read: {error}") from error
            raise ValueError(
                f"{self.of(key)} holds Python objects, which only pickle could load, and a pickle "
                "can run any code; save it again as a plain array, e.g. with "
                ".astype(str) or .astype('int64')"
            ) from error
        except Exception as error:  # the header is Python's literals, which fail in many ways
            raise ValueError(
                f"{self.of(key)} is damaged: {reason(error)}; fetch the file anew"
            ) from error


def read_labels(
    archive: Arrays, labels: NDArray[Any], label_key: str
) -> tuple[NDArray[np.str_], dict[str, str]]:
    """Return each image's label as text, and the names of the labels in order."""
    found = np.unique(labels).tolist()
    if labels.dtype.kind == "U":
        return labels.astype(np.str_), {value: value for value in found}
    if labels.dtype.kind not in "iu":
        raise ValueError(
            f"{archive.of(label_key)} are {labels.dtype}; give integers or text, e.g. "
            ".astype('int64')"
        )
    stem = label_key.removesuffix("_labels")
    names_key = (stem if stem != label_key else label_key.removesuffix("s")) + "_names"
    if names_key not in archive.keys:
        return labels.astype(np.str_), {str(value): f"{label_key} {value}" for value in found}
    names = archive.take(names_key).astype(np.str_).ravel().tolist()
    if len(set(names)) < len(names):
        raise ValueError(f"{archive.of(names_key)} gives two classes the same name: {names}")
    outside = [value for value in found if not 0 <= value < len(names)]
    if outside:
        raise ValueError(
            f"{archive.of(label_key)} holds {outside[0]}, but {names_key!r} names only labels "
            f"0..{len(names) - 1}; name every label, or leave {names_key!r} out"
        )
    return labels.astype(np.str_), {str(label): name for label, name in enumerate(names)}
