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
from nnmf_cuda.data.readers import dicom, nifti, stacks, tiff
from nnmf_cuda.data.reading import ReadOptions


class Files:
    """Decodes files, or frames of them, and keeps some stacks open between their frames."""

    _N_STACKS = 8

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._stacks: OrderedDict[Path, stacks.CachedStack] = OrderedDict()
        self._lock = Lock()

    def image(
        self, file: Path, frame: int | None, name: Path
    ) -> Callable[[tuple[int, int]], NDArray[Any]]:
        """Return what decodes a file, or one of its frames counted from 0, as `LazyImage.read`.

        Nothing is opened before the image is asked for. Without a frame a file of several is a
        ValueError then: which one is meant cannot be known.
        """
        return partial(self._read, file, frame, name)

    def _read(
        self, file: Path, frame: int | None, name: Path, image_shape: tuple[int, int]
    ) -> NDArray[Any]:
        if stacks.recognises(file):
            if frame is None:
                raise ValueError(_which(name, "many images"))
            return self._stack(file).read(frame, name, image_shape)
        of_medicine = dicom.lazy(file, self._options, frame=frame) or nifti.lazy(
            file, self._options, frame=frame
        )
        if of_medicine is not None:
            return of_medicine.read(image_shape)
        n_pages = len(tiff.pages(file)) if file.suffix.lower() in tiff.SUFFIXES else 1
        if n_pages > 1 and frame is None:
            raise ValueError(_which(name, f"{n_pages} pages"))
        if n_pages > 1 and frame is not None:
            return tiff.read_page(file, frame, name, self._options, image_shape)
        if frame:
            raise ValueError(f"cannot read image {str(name)!r}: the file has one frame, 0")
        return read_image(file, image_shape=image_shape, reading=self._options)

    def _stack(self, file: Path) -> stacks.CachedStack:
        with self._lock:
            found = self._stacks.setdefault(file, stacks.CachedStack(file, self._options))
            self._stacks.move_to_end(file)
            if len(self._stacks) > self._N_STACKS:
                self._stacks.popitem(last=False)
            return found


def _which(name: Path, holds: str) -> str:
    return (
        f"cannot read image {str(name)!r}: the file holds {holds}; give a column 'frame' with the"
        " number of one, counted from 0"
    )
