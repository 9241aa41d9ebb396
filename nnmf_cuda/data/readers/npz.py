"""Reader for ``.npz`` archives."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.dataset import SPLIT_ALIASES, Records, check_length, check_pixels, first_few
from nnmf_cuda.data.images import IMAGE_SHAPE, resize_images

GROUP_KEYS = ("patient", "patient_fold", "series")
# numpy.savez(path, file=...) clashes with its own first parameter; files=... does not.
FILE_KEYS = ("file", "files")


def read_npz(
    path: str | Path,
    *,
    label_key: str = "labels",
    image_shape: tuple[int, int] | None = IMAGE_SHAPE,
) -> Records:
    """Read images and labels from an archive made with ``numpy.savez``.

    Pickled arrays are never loaded. Arrays:

    - ``images`` (N, height, width), uint8 or floating in [0, 1]; or (N, height, width, 3), uint8;
    - ``labels`` (N,), integers or text; another array with `label_key`;
    - ``label_names``, optional: the names of labels 0, 1, ... For ``label_key="class_labels"`` it
      is ``class_names``, in general ``<stem>_names``;
    - ``split`` ("train", "valid", "test"), ``patient``, ``patient_fold``, ``series``, ``file`` or
      ``files``, all (N,) and optional.

    Parameters
    ----------
    path : path
    label_key : str, default="labels"
        The array that holds the labels.
    image_shape : tuple of int or None, default=(128, 128)
        Images of another height and width are brought to this one; None keeps them.

    Returns
    -------
    Records

    Raises
    ------
    ValueError
        If the archive cannot be read or needs pickle, an array is missing, arrays disagree in
        length, or pixels are negative, NaN, infinite, or above 1 in a floating array.
    """
    archive = _Archive(path)
    images = archive.take("images")
    colours = images.ndim == 4 and images.shape[-1] == 3 and images.dtype == np.uint8
    if not (colours and images.size):
        check_pixels(images, name=archive.of("images"))
    n_images = len(images)
    wanted = (label_key, "split", *GROUP_KEYS, *FILE_KEYS)
    arrays = {key: archive.take(key) for key in wanted if key == label_key or key in archive.keys}
    for key, array in arrays.items():
        check_length(array, n_images, name=archive.of(key))
    values, names = _read_labels(archive, arrays[label_key], label_key)
    images, notes = _convert(images, image_shape)
    files = [arrays[key].astype(np.str_) for key in FILE_KEYS if key in arrays]
    return Records(
        images=images,
        values=values,
        names=names,
        split=_read_split(archive, arrays["split"]) if "split" in arrays else None,
        files=files[0] if files else np.array([f"images[{index}]" for index in range(n_images)]),
        groups={key: arrays[key] for key in GROUP_KEYS if key in arrays},
        notes=notes,
    )


class _Archive:
    """An opened ``.npz`` whose errors name the file and the key."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            opened: Any = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or "not a whole .npz archive"
            raise ValueError(
                f"cannot read {str(path)!r}: {reason}; give a file made with numpy.savez"
            ) from error
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError(
                f"{path} holds a single array; give an .npz with 'images' and 'labels', made with "
                "numpy.savez"
            )
        self._opened = opened
        self.keys = tuple(opened.files)

    def of(self, key: str) -> str:
        """Return what a message calls an array."""
        return f"{self.path}: {key!r}"

    def take(self, key: str) -> NDArray[Any]:
        """Load one array."""
        if key not in self.keys:
            raise ValueError(f"{self.path} has no array {key!r}; it has {', '.join(self.keys)}")
        try:
            array: NDArray[Any] = self._opened[key]
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise ValueError(f"{self.of(key)} cannot be read: {error}") from error
            raise ValueError(
                f"{self.of(key)} holds Python objects, which only pickle could load, and a pickle "
                "can run any code; save it again as a plain array, e.g. with "
                ".astype(str) or .astype('int64')"
            ) from error
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.of(key)} is damaged: {error}; fetch the file anew") from error
        return array


def _names_key(label_key: str) -> str:
    if label_key == "labels":
        return "label_names"
    stem = label_key.removesuffix("_labels")
    return (stem if stem != label_key else label_key.removesuffix("s")) + "_names"


def _read_labels(
    archive: _Archive, labels: NDArray[Any], label_key: str
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
    names_key = _names_key(label_key)
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


def _read_split(archive: _Archive, split: NDArray[Any]) -> NDArray[np.str_]:
    found = [str(name) for name in np.unique(split).tolist()]
    unknown = [name for name in found if name.lower() not in SPLIT_ALIASES]
    if unknown:
        raise ValueError(
            f"{archive.of('split')} holds {first_few([repr(name) for name in unknown])}; give "
            "'train', 'valid' and 'test'"
        )
    return np.array([SPLIT_ALIASES[str(name).lower()] for name in split.tolist()])


def _convert(
    images: NDArray[Any], image_shape: tuple[int, int] | None
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Bring checked images to one colour, one size and one of two dtypes."""
    if images.dtype != np.uint8:
        images = images.astype(np.float32, copy=False)
    height, width = images.shape[1:3]
    to_shape = image_shape or (height, width)
    if images.ndim == 3 and (height, width) == to_shape:
        return images, ()
    colours = " with colours" if images.ndim == 4 else ""
    note = (
        f"Images of {height} x {width} pixels{colours} were converted to grey images of "
        f"{to_shape[0]} x {to_shape[1]}"
    )
    return resize_images(images, to_shape), (note,)
