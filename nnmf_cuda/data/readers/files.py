"""One file, or a frame of it, as an image: what a row of a table names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from nnmf_cuda.data.decoding import read_image
from nnmf_cuda.data.images import is_image
from nnmf_cuda.data.readers import dicom, stacks, tiff
from nnmf_cuda.data.readers.volume import Volume, is_nifti, open_volume, slices
from nnmf_cuda.data.reading import ReadOptions


class Files:
    """Decodes files, or frames of them, and keeps some of many frames open between these."""

    _N_OPEN = 8

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._open: OrderedDict[Path, stacks.CachedStack | Volume] = OrderedDict()
        self._lock = Lock()

    def image(
        self, file: Path, frame: int | None, name: Path
    ) -> Callable[[tuple[int, int]], NDArray[Any]]:
        """Return what decodes a file, or one of its frames counted from 0, as `LazyImage.read`.

        Nothing is opened before the image is asked for. Without a frame a file of several is a
        ValueError then: which one is meant cannot be known.
        """
        return partial(self._read, file, frame, name)

    def patient(self, file: Path, frame: int | None) -> str | None:
        """Return the patient, hashed, whom a DICOM file names itself; None where none is named.

        What cannot be read is a ValueError.
        """
        found = None if is_image(file) else dicom.lazy(file, self._options, frame=frame)
        return None if found is None else found.columns.get("patient")

    def _read(
        self, file: Path, frame: int | None, name: Path, image_shape: tuple[int, int]
    ) -> NDArray[Any]:
        if not is_image(file):
            found = dicom.lazy(file, self._options, frame=frame)
            if found is not None:
                return found.read(image_shape)
            if is_nifti(file):
                return self._slice(file, frame, name, image_shape)
            if stacks.recognises(file):
                return self._row(file, frame, name, image_shape)
        n_pages = len(tiff.pages(file).places)
        if n_pages > 1 and frame is None:
            raise _unnamed(name, f"{n_pages} pages")
        if n_pages > 1 and frame is not None:
            return tiff.read_page(file, frame, name, self._options, image_shape)
        if frame:
            raise ValueError(f"cannot read image {str(name)!r}: the file has one frame, 0")
        return read_image(file, image_shape=image_shape, reading=self._options)

    def _slice(
        self, file: Path, frame: int | None, name: Path, image_shape: tuple[int, int]
    ) -> NDArray[Any]:
        volume = self._kept(file, open_volume)
        assert isinstance(volume, Volume)
        found = slices(volume, self._options)
        if frame is None and len(found) > 1:
            raise _unnamed(name, f"{len(found)} {self._options.axis} slices")
        if (frame or 0) >= len(found):
            raise ValueError(
                f"cannot read image {str(name)!r}: there are {len(found)} {self._options.axis}"
                " slices, counted from 0"
            )
        return found[frame or 0].read(image_shape)

    def _row(
        self, file: Path, frame: int | None, name: Path, image_shape: tuple[int, int]
    ) -> NDArray[Any]:
        if frame is None:
            raise _unnamed(name, "many images")
        stack = self._kept(file, lambda path: stacks.CachedStack(path, self._options))
        assert isinstance(stack, stacks.CachedStack)
        return stack.read(frame, name, image_shape)

    def _kept(
        self, file: Path, opened: Callable[[Path], stacks.CachedStack | Volume]
    ) -> stacks.CachedStack | Volume:
        """Open a file, or return it as it was opened before."""
        with self._lock:
            if file not in self._open:
                self._open[file] = opened(file)
            self._open.move_to_end(file)
            if len(self._open) > self._N_OPEN:
                self._open.popitem(last=False)
            return self._open[file]


def _unnamed(name: Path, holds: str) -> ValueError:
    return ValueError(
        f"cannot read image {str(name)!r}: the file holds {holds}; give a column 'frame' with the"
        " number of one, counted from 0"
    )
