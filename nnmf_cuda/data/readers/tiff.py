"""TIFF files of several pages: how many there are, and one of them as an image.

Pages are counted in the file's chain of directories, without decoding: a folder of many files is
looked through in little time. Thumbnails and reduced copies of a page are none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from numpy.typing import NDArray

from nnmf_cuda.data.decoding import to_grey
from nnmf_cuda.data.images import ImageSource, LazyImage
from nnmf_cuda.data.reading import ReadOptions, open_file, reason

SUFFIXES = (".tif", ".tiff")

_SUBFILE_TYPE = 254
_REDUCED, _TRANSPARENCY = 1, 4  # bits of it: no images of their own
_MAX_DIRECTORIES = 1_000_000


class Pages(NamedTuple):
    """The places of a TIFF's pages in its chain of directories, and whether that is whole."""

    places: list[int]
    whole: bool


def pages(path: Path) -> Pages:
    """Find the pages of a TIFF; none in another file."""
    places: list[int] = []
    if path.suffix.lower() not in SUFFIXES:
        return Pages(places, True)
    try:
        with open_file(path) as file:
            for at, is_page in enumerate(_directories(file)):
                if is_page:
                    places.append(at)
    except (OSError, struct.error, _BrokenError):
        return Pages(places, False)
    return Pages(places, True)


def expanded(files: Sequence[Path], options: ReadOptions) -> list[tuple[int, ImageSource]]:
    """Return `frames` of some files, each with its file's place among these."""
    return [(at, image) for at, file in enumerate(files) for image in frames(file, options)]


def frames(path: Path, options: ReadOptions) -> Iterator[ImageSource]:
    """Give a file as it is, or, of a TIFF of several pages, each page by itself.

    Where the chain of pages is broken, an image that cannot be read stands for those that are lost.
    """
    places, whole = pages(path)
    if len(places) < 2:
        # Behind the only page of a sound file may stand anything.
        yield path
        return
    for frame, place in enumerate([*places, None] if not whole else places):
        name = Path(f"{path}[{frame}]")
        read = partial(_read_place, path, place, name, options)
        yield LazyImage(name, read, found_at=path)


def read_page(
    path: Path, frame: int, name: Path, options: ReadOptions, image_shape: tuple[int, int]
) -> NDArray[Any]:
    """Read a page, counted from 0, as `LazyImage.read` does; `name` is for errors."""
    places, whole = pages(path)
    if frame >= len(places) and whole:
        raise ValueError(
            f"cannot read image {str(name)!r}: the file has {len(places)} pages, counted from 0"
        )
    place = places[frame] if frame < len(places) else None
    return _read_place(path, place, name, options, image_shape)


def _read_place(
    path: Path, place: int | None, name: Path, options: ReadOptions, image_shape: tuple[int, int]
) -> NDArray[Any]:
    from PIL import Image

    try:
        if place is None:
            raise ValueError("the file is cut short or damaged from this page on")
        with Image.open(path) as image:
            image.seek(place)
            return to_grey(image, image_shape, options)
    except Exception as error:  # decoders raise nearly anything for damaged files
        raise ValueError(f"cannot read image {str(name)!r}: {reason(error)}") from error


class _BrokenError(Exception):
    """A chain of directories that does not come to its end."""


def _directories(file: IO[bytes]) -> Iterator[bool]:
    """Tell of each directory in turn whether it is a page; struct.error where the file ends."""
    order = {b"II": "<", b"MM": ">"}.get(file.read(2))
    if order is None:
        return
    (version,) = struct.unpack(f"{order}H", file.read(2))
    if version == 42:
        count_format, offset_format, size = f"{order}H", f"{order}I", 12
    elif version == 43:  # BigTIFF
        count_format, offset_format, size = f"{order}Q", f"{order}Q", 20
        file.read(4)
    else:
        return
    seen: set[int] = set()
    while True:
        (offset,) = struct.unpack(offset_format, file.read(struct.calcsize(offset_format)))
        if offset == 0:
            return
        if offset in seen or len(seen) == _MAX_DIRECTORIES:
            raise _BrokenError
        seen.add(offset)
        file.seek(offset)
        (count,) = struct.unpack(count_format, file.read(struct.calcsize(count_format)))
        if count > 65_535:
            raise _BrokenError
        entries = file.read(count * size)
        if len(entries) < count * size:
            raise _BrokenError
        kind = 0
        for at in range(0, len(entries), size):
            tag, field_type = struct.unpack_from(f"{order}HH", entries, at)
            if tag == _SUBFILE_TYPE:
                value = f"{order}H" if field_type == 3 else f"{order}I"
                (kind,) = struct.unpack_from(value, entries, at + (8 if size == 12 else 12))
                break
        yield not kind & (_REDUCED | _TRANSPARENCY)
