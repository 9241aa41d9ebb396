"""Reader for stacks of images on disk: ``.npy``, HDF5 and Zarr, read block by block.

Arrays are called as in an ``.npz`` (see `nnmf_cuda.data.readers.npz`): datasets of an HDF5 file,
arrays of a Zarr group, and beside ``NAME.npy`` the files ``NAME_labels.npy``, ``NAME_patient.npy``
and so on (beside ``images.npy`` also ``labels.npy``). ``--columns file=x,label=y`` names images and
labels that are called otherwise. With ``--window`` pixels may be of any number of bits.
"""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.dataset import GROUPS, check_length
from nnmf_cuda.data.decoding import resize_images
from nnmf_cuda.data.images import ImageSource, LazyImage
from nnmf_cuda.data.readers.base import Records, as_splits
from nnmf_cuda.data.readers.npz import (
    FILE_KEYS,
    Arrays,
    faults_of,
    file_names,
    read_labels,
    sources,
)
from nnmf_cuda.data.reading import (
    Account,
    ReadOptions,
    Window,
    is_special,
    reason,
    to_unit_range,
)

_HDF5 = (".h5", ".hdf5", ".hdf")
_ZARR_MARKS = ("zarr.json", ".zarray", ".zgroup")

_BLOCK_BYTES = 2**24
"""Bytes of images that are read at a time, if chunks are not larger."""

_MAX_IMAGE_BYTES = 2**30
"""Size from where an image or chunk is refused: a damaged or malicious shape would fill memory."""

_MOST_BLACK = 1000
"""Chunks for each one that a Zarr array stores, from where it is taken for a shape alone."""


HEEDS = frozenset({"columns", "window"})

_COLUMNS = {"patient_fold": "fold"}
"""What ``--columns`` calls groups, where that is another name."""
_CHOOSE = (
    "choose which values are black and white with --window LOW:HIGH, or p1:p99 for percentiles of "
    "each image"
)
_REMEDY = f"{_CHOOSE}, or store floats in [0, 1]"


def recognises(path: Path) -> bool:
    """Tell ``.npy`` and HDF5 by their suffix, Zarr by what is in its folder."""
    if path.is_dir():
        return any((path / mark).is_file() for mark in _ZARR_MARKS)
    return path.suffix.lower() in (".npy", *_HDF5)


def images(path: Path, options: ReadOptions, account: Account) -> Iterator[ImageSource]:
    """Give the images one by one; some MiB of them are in memory."""
    account.met(path)
    arrays = _opened(path, options)
    stack = _Stack(arrays, options)
    given = _taken(arrays, FILE_KEYS, stack.n_images)
    names = file_names(given, stack.n_images) if given else None
    for start in range(0, stack.n_images, stack.step):
        block = stack.block(start)
        rows = range(start, start + len(block.pixels))
        called = (
            [f"images[{at}]" for at in rows] if names is None else names[start : rows.stop].tolist()
        )
        yield from sources(path, called, block.pixels, block.faults)


def read(
    path: Path, options: ReadOptions, account: Account, *, label_key: str = "labels"
) -> Records:
    """List the images of a stack, whose pixels are read when they are asked for."""
    account.met(path)
    if label_key == "labels":
        label_key = options.column_names.get("label", label_key)
    arrays = _opened(path, options)
    n_images = _Stack(arrays, options).n_images
    called = _called(arrays, options)
    wanted = dict.fromkeys((label_key, *called.values(), *FILE_KEYS))
    found = _taken(arrays, (key for key in wanted if key in arrays.keys), n_images)
    if label_key not in found:
        raise ValueError(
            f"{path} has no array {label_key!r}; it has {', '.join(arrays.keys)}"
            f"{arrays.remedy(label_key)}, or give a table with a column 'frame'"
        )
    values, names = read_labels(arrays, found[label_key], label_key)
    of_split = called["split"]
    split = as_splits(found[of_split], called=arrays.of(of_split)) if of_split in found else None
    files = file_names(found, n_images)
    pixels = CachedStack(path, options)
    return Records(
        images=[
            LazyImage(path / str(name), partial(pixels.read, at, path / str(name)))
            for at, name in enumerate(files)
        ],
        values=values,
        names=names,
        split=split,
        files=files,
        groups={name: found[called[name]] for name in GROUPS if called[name] in found},
    )


class _Arrays(Arrays, Protocol):
    """An opened source of arrays."""

    @property
    def path(self) -> Path:
        """The file or folder."""

    def rows(self, key: str) -> Any:
        """Return an array that is read where it is sliced."""

    def lack(self, key: str) -> str:
        """Return what of an array is not there, though its shape says so; "" if it is whole."""

    def remedy(self, key: str) -> str:
        """Return where an array of this name would be looked for."""


class _Block(NamedTuple):
    """Images that follow each other: uint8, or floats in [0, 1]; and why some cannot be read.

    Faults are by row, counted from the first of the block, and what is in such a row is no image.
    """

    pixels: NDArray[Any]
    faults: Mapping[int, str]


class _Stack:
    """The images of a source, as blocks of rows that are checked when they are read."""

    def __init__(self, arrays: _Arrays, options: ReadOptions) -> None:
        self._key = _images_key(arrays, options)
        self._name = arrays.of(self._key)
        self._rows = arrays.rows(self._key)
        self._window = options.grey_window
        shape, dtype = tuple(self._rows.shape), np.dtype(self._rows.dtype)
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
            hint = "; move the colours to the end" if len(shape) == 4 and shape[1] in (1, 3) else ""
            raise ValueError(
                f"{self._name} have shape {shape}; expected (n_images, height, width), or"
                f" (n_images, height, width, 3){hint}"
            )
        if not prod(shape):
            raise ValueError(f"{self._name} are empty, shape {shape}; give at least one image")
        if dtype.kind not in "iuf":
            raise ValueError(f"{self._name} are {dtype}; give uint8, or floats in [0, 1]")
        row_bytes = dtype.itemsize * prod(shape[1:])
        chunks = getattr(self._rows, "chunks", None) or (1,)
        if max(row_bytes, dtype.itemsize * prod(chunks)) > _MAX_IMAGE_BYTES:
            raise ValueError(
                f"{self._name} have shape {shape}, in pieces of {chunks}: one would fill the memory"
            )
        # A shape alone costs a damaged or malicious file nothing.
        if lack := arrays.lack(self._key):
            raise ValueError(f"{self._name} have shape {shape}, but {lack}; write it anew")
        if dtype.kind in "iu" and dtype != np.uint8 and self._window is None:
            raise ValueError(f"{self._name} are {dtype}; {_CHOOSE}, or store uint8")
        self.n_images, self._chunk = shape[0], chunks[0]
        # Whole chunks, as each is unpacked as a whole.
        self.step = max(1, _BLOCK_BYTES // row_bytes // chunks[0]) * chunks[0]

    def block(self, start: int) -> _Block:
        """Return the images from `start`, at most `step`; they are looked at together if all fit.

        What no image of the stack could pass is a ValueError.
        """
        faults: dict[int, str] = {}
        try:
            block = np.asarray(self._rows[start : start + self.step])
        except Exception:  # filters and codecs raise nearly anything for damaged chunks
            block, faults = self._by_chunks(start)
        if block.ndim == 4 and block.shape[3] == 1:
            block = block[..., 0]
        if self._window is not None and block.dtype != np.uint8 and block.ndim == 3:
            block = self._in_window(block, self._window)
        found = faults_of(block, name=self._name, remedy=_REMEDY, start=start)
        return _Block(block, found | faults)

    def _by_chunks(self, start: int) -> tuple[NDArray[Any], dict[int, str]]:
        """Return a block whose chunks are read one by one, black where that fails, and why."""
        stop = min(start + self.step, self.n_images)
        block = np.zeros((stop - start, *self._rows.shape[1:]), self._rows.dtype)
        faults: dict[int, str] = {}
        for first in range(start, stop, self._chunk):
            rows = range(first, min(first + self._chunk, stop))
            try:
                block[first - start : rows.stop - start] = self._rows[first : rows.stop]
            except Exception as error:  # as above
                said = reason(error)
                faults |= {
                    at - start: f"{self._name} cannot be read in image {at}: {said}" for at in rows
                }
        return block, faults

    def _in_window(self, block: NDArray[Any], window: Window) -> NDArray[np.float32]:
        """Return images in [0, 1]; of one that is not finite some pixels are NaN."""
        finite = block.dtype.kind != "f" or bool(np.isfinite((block.min(), block.max())).all())
        scaled = np.empty(block.shape, np.float32)
        for row, image in zip(scaled, block, strict=True):
            if finite or np.isfinite(image).all():
                row[:] = to_unit_range(image, window.limits(image))
            else:
                row[:] = np.nan
        return scaled


class CachedStack:
    """Images of a source by their number, in threads, with the last blocks kept."""

    _N_BLOCKS = 2

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self._path, self._options = path, options
        self._stack: _Stack | None = None
        self._blocks: OrderedDict[int, _Block] = OrderedDict()
        self._lock = Lock()

    def read(self, at: int, name: Path, image_shape: tuple[int, int]) -> NDArray[Any]:
        """Return one image, counted from 0, as `LazyImage.read` does; `name` is for errors."""
        image: NDArray[Any] = resize_images(self._image(at, name)[None], image_shape)[0]
        return image

    def _image(self, at: int, name: Path) -> NDArray[Any]:
        with self._lock:
            if self._stack is None:
                self._stack = _Stack(_opened(self._path, self._options), self._options)
            stack = self._stack
            if at >= stack.n_images:
                raise ValueError(
                    f"cannot read image {str(name)!r}: there are {stack.n_images}, counted from 0"
                )
            start = at // stack.step * stack.step
            if start not in self._blocks:
                self._blocks[start] = stack.block(start)
                if len(self._blocks) > self._N_BLOCKS:
                    self._blocks.popitem(last=False)
            block, row = self._blocks[start], at - start
            if row in block.faults:
                raise ValueError(block.faults[row])
            image: NDArray[Any] = block.pixels[row]
            return image


def _called(arrays: _Arrays, options: ReadOptions) -> dict[str, str]:
    """Return what the arrays of the split and of `GROUPS` are called; those asked for are there."""
    asked = options.column_names
    if left := [name for name in ("mask", "frame") if name in asked]:
        raise ValueError(f"columns: a stack has no {left[0]}; leave {left[0]} out")
    called = {name: name for name in ("split", *GROUPS)}
    for name in called:
        key = asked.get(_COLUMNS.get(name, name), name)
        if key != name and key not in arrays.keys:
            raise ValueError(
                f"{arrays.path} has no array {key!r} (for {name}); it has {', '.join(arrays.keys)}"
            )
        called[name] = key
    return called


def _images_key(arrays: _Arrays, options: ReadOptions) -> str:
    """Return the key of the images: as named, "images", or the only array that can be."""
    asked = options.column_names.get("file")
    if asked is not None or "images" in arrays.keys:
        key = asked or "images"
        if key not in arrays.keys:
            raise ValueError(
                f"{arrays.path} has no array {key!r} (for images); it has {', '.join(arrays.keys)}"
            )
        return key
    fitting = [key for key in arrays.keys if len(arrays.rows(key).shape) >= 3]
    if len(fitting) == 1:
        return fitting[0]
    shapes = ", ".join(f"{key} {tuple(arrays.rows(key).shape)}" for key in arrays.keys) or "none"
    raise ValueError(
        f"{arrays.path} has no array 'images'; its arrays: {shapes}; name it with --columns"
        " file=KEY"
    )


def _taken(arrays: _Arrays, keys: Iterable[str], n_images: int) -> dict[str, NDArray[Any]]:
    """Load arrays with an entry an image; of labels in a column, the column."""
    found = {}
    for key in keys:
        if key not in arrays.keys:
            continue
        if prod(arrays.rows(key).shape) > n_images:  # before it fills the memory
            shape = tuple(arrays.rows(key).shape)
            raise ValueError(
                f"{arrays.of(key)} has shape {shape}, but there are {n_images} images; give one"
                " entry an image"
            )
        array = arrays.take(key)
        if array.ndim > 1 and array.shape == (n_images,) + (1,) * (array.ndim - 1):
            array = array.reshape(n_images)
        check_length(array, n_images, name=arrays.of(key))
        found[key] = array
    return found


def _n_chunks(shape: Sequence[int], chunks: Sequence[int]) -> int:
    return prod(-(-side // piece) for side, piece in zip(shape, chunks, strict=True))


def _opened(path: Path, options: ReadOptions) -> _Arrays:
    """Open a source, which is closed with the last that is known of it."""
    if path.is_dir():
        return _Zarr(path)
    return _Npy(path, options) if path.suffix.lower() == ".npy" else _Hdf5(path)


def _special_below(folder: str) -> str | None:
    """Return a pipe or a device in a folder or below it; what is plainly a file costs no look."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if (found := _special_below(entry.path)) is not None:
                    return found
            elif not entry.is_file(follow_symlinks=False) and is_special(Path(entry.path)):
                return entry.path
    return None


def _zarr_arrays(group: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Give the arrays of a group by their names, in order.

    They are opened one by one. The library would open all at once, and of several that are damaged
    leave the errors after the first to be told when the interpreter ends.
    """
    import zarr

    for name in sorted(entry.name for entry in path.iterdir() if entry.is_dir()):
        try:
            member = group[name]
        except KeyError:  # a folder that is none of the library's
            continue
        except Exception as error:
            raise ValueError(f"its {name!r} is damaged: {reason(error)}") from error
        if isinstance(member, zarr.Array):
            yield name, member


def _text(array: NDArray[Any]) -> NDArray[Any]:
    """Return text of any kind as NumPy's own."""
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8")
    if array.dtype.kind in "OT":
        texts = [x.decode() if isinstance(x, bytes) else str(x) for x in array.ravel().tolist()]
        return np.array(texts, dtype=np.str_).reshape(array.shape)
    return array


class _Npy:
    """A stack in ``NAME.npy``, with what is known of its images in files beside it."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path = path
        self._files: dict[str, Path] = {"images": path}
        asked_for = (key for ours, key in options.column_names.items() if ours != "file")
        keys = ("labels", "label_names", "split", *GROUPS, *FILE_KEYS, *asked_for)
        for key in keys:
            for file in self._places(key):
                if file.is_file():
                    self._files.setdefault(key, file)
        asked = options.column_names.get("file")
        if asked is not None:
            raise ValueError(
                f"columns: file={asked} names an array, but {path} is one; leave it out"
            )
        self.keys = tuple(self._files)

    def _places(self, key: str) -> list[Path]:
        plain = [self.path.with_name(f"{key}.npy")] if self.path.stem == "images" else []
        return [self.path.with_name(f"{self.path.stem}_{key}.npy"), *plain]

    def of(self, key: str) -> str:
        return f"{self._files[key]}: {key!r}"

    def remedy(self, key: str) -> str:
        return f"; save it as {self._places(key)[-1].name} beside it"

    def take(self, key: str) -> NDArray[Any]:
        return _text(np.array(self.rows(key)))

    def rows(self, key: str) -> Any:
        path = self._files[key]
        try:
            with warnings.catch_warnings():  # of a header that NumPy finds odd
                warnings.simplefilter("ignore")
                opened: Any = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # the header is Python's literals, which fail in many ways
            if "empty file" in str(error):  # which cannot be mapped
                return np.load(path, allow_pickle=False)
            raise ValueError(
                f"cannot read {str(path)!r}: {reason(error)}; give a file made with numpy.save, of"
                " numbers or text"
            ) from error
        return opened

    def lack(self, key: str) -> str:
        return ""  # what cannot be mapped in full is refused


class _Held:
    """Arrays that a library has opened, by their names."""

    called = "an array"

    def __init__(self, path: Path, found: Mapping[str, Any]) -> None:
        self.path = path
        self.keys = tuple(found)
        self._found = found

    def of(self, key: str) -> str:
        return f"{self.path}: {key!r}"

    def remedy(self, key: str) -> str:
        return f"; name it with --columns label=KEY, or add {self.called} {key!r}"

    def take(self, key: str) -> NDArray[Any]:
        rows = self.rows(key)
        if prod(rows.shape) * np.dtype(rows.dtype).itemsize > _MAX_IMAGE_BYTES:
            shape = tuple(rows.shape)
            raise ValueError(f"{self.of(key)} has shape {shape}, too large to be loaded")
        try:
            return _text(np.asarray(rows[...]))
        except Exception as error:  # as in _Stack.block
            raise ValueError(f"{self.of(key)} cannot be read: {reason(error)}") from error

    def rows(self, key: str) -> Any:
        return self._found[key]


class _Hdf5(_Held):
    """Datasets of an HDF5 file; links to other files are not followed, null ones are none."""

    called = "a dataset"

    def __init__(self, path: Path) -> None:
        try:
            import h5py
        except ImportError as error:
            raise ImportError(
                f"reading {path} needs h5py: pip install 'nnmf-cuda[stacks]'"
            ) from error
        found: dict[str, Any] = {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.shape is not None and not item.external:
                found[name] = item

        try:
            h5py.File(path, "r").visititems(visit)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ValueError(
                f"cannot read {str(path)!r}: {reason(error)}; give a whole HDF5 file"
            ) from error
        super().__init__(path, found)

    def lack(self, key: str) -> str:
        found = self._found[key]
        if found.is_virtual:
            return ""
        if found.chunks is None:
            return "" if found.id.get_storage_size() else "nothing is stored"
        n_chunks, n_stored = _n_chunks(found.shape, found.chunks), found.id.get_num_chunks()
        return "" if n_stored >= n_chunks else f"{n_stored} of {n_chunks} chunks are stored"


class _Zarr(_Held):
    """A Zarr array, or the arrays of a group."""

    def __init__(self, path: Path) -> None:
        try:
            import zarr
        except ImportError as error:
            raise ImportError(
                f"reading {path} needs zarr: pip install 'nnmf-cuda[stacks]'"
            ) from error
        try:
            if (special := _special_below(str(path))) is not None:
                raise ValueError(
                    f"{special!r} is a pipe or a device, no file; take it away, or fetch it anew"
                )
            opened: Any = zarr.open(store=str(path), mode="r")
            if isinstance(opened, zarr.Array):
                found: dict[str, Any] = {"images": opened}
            else:
                found = dict(_zarr_arrays(opened, path))
        except Exception as error:  # JSON of any content is met with any error
            raise ValueError(f"cannot read {str(path)!r}: {reason(error)}") from error
        super().__init__(path, found)

    def lack(self, key: str) -> str:
        found = self._found[key]
        # Black chunks are not stored; and asked how many are, the library looks for each.
        n_chunks = _n_chunks(found.shape, found.shards or found.chunks)
        names = (name for *_, files in os.walk(self.path / found.path) for name in files)
        chunks = (name for name in names if name != "zarr.json" and not name.startswith(".z"))
        n_stored = sum(1 for _ in islice(chunks, 1 + n_chunks // _MOST_BLACK))
        if n_stored > n_chunks // _MOST_BLACK:
            return ""
        return f"{n_stored} of {n_chunks} chunks are stored"
