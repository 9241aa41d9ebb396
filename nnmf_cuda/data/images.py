"""Images: what they come as, and decoding them, many at a time."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.decoding import IMAGE_SHAPE, read_image, resize_images
from nnmf_cuda.data.reading import (
    DEFAULT_READING,
    Account,
    OnError,
    ReadFailure,
    ReadOptions,
    is_special,
    reason,
)

logger = logging.getLogger(__name__)

_AHEAD = 512
"""Images decoded or queued ahead where all are wanted."""
_NONE: Mapping[str, str] = {}
_AS_THEY_ARE = (np.dtype(np.uint8), np.dtype(np.float32))
"""Pixels that are not converted."""
MOST_NAMED = 100
"""Unreadable images that one line names."""

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".tif", ".tiff", ".webp")


class ArrayImage(NamedTuple):
    """An image that its source holds as an array.

    Attributes
    ----------
    source : Path
        The source's path.
    key : str
        The image's name in the source.
    pixels : ndarray of shape (height, width) or (height, width, 3)
        uint8; without colours also floating in [0, 1]. Checked.
    stack : ndarray of shape (n, *pixels.shape), optional
        What `pixels` are a row of: rows that follow each other in it make a batch without a copy.
    row : int
        Which row of it.
    """

    source: Path
    key: str
    pixels: NDArray[Any]
    stack: NDArray[Any] | None = None
    row: int = 0

    @property
    def name(self) -> Path:
        """The source's path, and below it the image's name."""
        return self.source / self.key


@dataclass(frozen=True, eq=False)
class LazyImage:
    """An image that its source decodes when it is asked for: a frame, a slice, a row of a table.

    Attributes
    ----------
    name : Path
        The source's path, and below it the image's name in the source.
    read : callable
        From (height, width) to pixels of that shape: uint8, or float32 in [0, 1]. Called in
        threads; raises ValueError, naming the image, where it cannot be read.
    columns : mapping of str to str
        What the source says beside it, which passes through to the rows of a table.
    found_at : Path, optional
        The file it is read from, where the name does not say.
    """

    name: Path
    read: Callable[[tuple[int, int]], NDArray[Any]]
    columns: Mapping[str, str] = field(default_factory=dict)
    found_at: Path | None = None


def failing_image(file: Path, message: str) -> LazyImage:
    """Return an image that cannot be read, which says so when it is asked for."""

    def read(image_shape: tuple[int, int]) -> NDArray[Any]:
        raise ValueError(message)

    return LazyImage(file, read)


ImageSource: TypeAlias = Path | ArrayImage | LazyImage
"""An image that is still to be decoded: a file, pixels, or a part of a source."""


def is_image(path: Path) -> bool:
    """Tell by its suffix whether a file is taken for an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def walk_files(folder: Path, account: Account | None = None) -> Iterator[Path]:
    """Give the files of a folder and those below it, in sorted order.

    Names that begin with a dot, what an archiver of macOS adds, pipes and devices are left out, and
    symbolic links to folders are not followed: `account` is told of each, as it is of every file. A
    folder that cannot be read is a ValueError.
    """
    account = Account() if account is None else account

    def refuse(error: OSError) -> None:
        text = f"cannot read folder {str(error.filename)!r}: {reason(error)}"
        raise ValueError(text) from error

    for where, folders, names in os.walk(folder, onerror=refuse):
        entered = []
        for name in sorted(folders):
            path = Path(where, name)
            if is_hidden(path):
                account.skip(path, "hidden")
            elif path.is_symlink():
                account.skip(path, "a link to a folder, which is not followed")
            else:
                entered.append(name)
        folders[:] = entered
        for name in sorted(names):
            path = Path(where, name)
            if is_hidden(path):
                account.skip(path, "hidden")
            elif is_special(path):
                account.skip(path, "a pipe or a device, no file")
            else:
                account.met(path)
                yield path


def walk_images(folder: Path, account: Account | None = None) -> Iterator[Path]:
    """Give the image files among those of `walk_files`; `account` is told of the others."""
    account = Account() if account is None else account
    for path in walk_files(folder, account):
        if is_image(path):
            yield path
        else:
            account.skip(path, f"no image by its ending {path.suffix.lower()}".rstrip())


def is_hidden(path: Path) -> bool:
    """Tell whether a file or folder is none of the user's: by a dot, or as macOS adds it."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def walk_reaches(folder: Path, file: Path) -> bool:
    """Tell whether `walk_images(folder)` gives `file`, without walking."""
    return is_image(file) and is_below(folder, file)


def is_below(folder: Path, file: Path) -> bool:
    """Tell whether a file is found by walking a folder: not hidden, and through no link."""
    if not file.is_relative_to(folder):
        return False
    inside = file.relative_to(folder)
    hidden = any(is_hidden(Path(part)) for part in inside.parts)
    return not hidden and not any((folder / p).is_symlink() for p in inside.parents[:-1])


class ImageNames(Sequence[Path]):
    """The names of images, made when they are asked for: a path takes as long as a projection."""

    def __init__(self, sources: list[ImageSource]) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [name_of(source) for source in self._sources[index]]
        return name_of(self._sources[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def texts(self) -> list[str]:
        """Return what ``str`` makes of each."""
        folder, inside = None, ""
        texts = []
        for source in self._sources:
            if isinstance(source, ArrayImage) and _is_plain(source.key):
                if source.source is not folder:
                    folder, inside = source.source, str(source.source / "x")[:-1]
                texts.append(inside + source.key)
            else:
                texts.append(str(name_of(source)))
        return texts


def _is_plain(key: str) -> bool:
    """Tell whether a path has a name as it is, without anything to make shorter."""
    return "/" not in key and key not in ("", ".") and os.sep == "/"


class ImageBatch(NamedTuple):
    """Some images of a stream.

    Attributes
    ----------
    start : int
        How many images the stream gave before this batch.
    images : ndarray of shape (n, height, width)
        uint8, or float32 in [0, 1] where the source holds floats. Read only: it may be the memory
        of the source.
    files : sequence of Path
        The name of each image; an `ImageNames` in a stream.
    failures : list of ReadFailure
        The unreadable files met since the batch before, at most as many as a batch has images;
        empty where ``on_error="raise"``.
    columns : sequence of mappings
        What the source of each image says beside it, empty where it says nothing.
    """

    start: int
    images: NDArray[Any]
    files: Sequence[Path]
    failures: list[ReadFailure]
    columns: Sequence[Mapping[str, str]] = ()

    def names(self) -> list[str]:
        """Return the images' names as text."""
        if isinstance(self.files, ImageNames):
            return self.files.texts()
        return [str(file) for file in self.files]


def iter_image_batches(
    files: Iterable[str | ImageSource],
    *,
    batch_size: int = 256,
    image_shape: tuple[int, int] = IMAGE_SHAPE,
    reading: ReadOptions = DEFAULT_READING,
    on_error: OnError | Literal["list"] = "raise",
    n_workers: int | None = None,
    progress: bool = False,
) -> Iterator[ImageBatch]:
    """Decode many images, batch by batch, in order, while the caller works on the last batch.

    At most two batches are decoded ahead, and `files` is asked for no more, so the memory needed
    does not grow with their number.

    Parameters
    ----------
    files : iterable of paths, ArrayImage or LazyImage
        For example from `iter_images`.
    batch_size : int, default=256
        Images a batch; fewer in the last, and before sources that go over from bytes to floats or
        back.
    image_shape : tuple of int, default=(128, 128)
        Height and width of the result, in pixels.
    reading : ReadOptions, optional
        How image files are read: its ``window`` and ``decode``, see `read_image`.
    on_error : {"raise", "skip", "list"}, default="raise"
        Whether an unreadable file ends the stream, is logged and listed in the batch's `failures`,
        or only listed. A file that is skipped leaves no gap: batches stay full.
    n_workers : int, optional
        Decoding threads; by default one a processor that this process may use, at most 8.
    progress : bool, default=False
        Show a progress bar, if standard error is a terminal.

    Yields
    ------
    ImageBatch
        Without an image where it has only failures to tell: at the end, or because there are many.

    Raises
    ------
    ValueError
        If an argument is out of range, or as `read_image` with ``on_error="raise"``.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if on_error not in ("raise", "skip", "list"):
        raise ValueError(f"on_error={on_error!r}: choose 'raise', 'skip' or 'list'")
    if n_workers is not None and n_workers < 1:
        raise ValueError(f"n_workers={n_workers} must be at least 1")
    n_workers = n_workers or default_workers()
    decoded = _decode(files, 2 * batch_size, image_shape, reading, n_workers, progress)
    return _batches(decoded, batch_size, image_shape, on_error)


def default_workers() -> int:
    """Return the number of decoding threads: one a processor, at most 8."""
    # Linux: fewer than cpu_count in a container
    on_linux = hasattr(os, "sched_getaffinity")
    return min(8, len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1)


def name_of(source: ImageSource) -> Path:
    """Return the name of an image: of a file its path."""
    return source if isinstance(source, Path) else source.name


_Decoded: TypeAlias = tuple[ImageSource, NDArray[Any] | ValueError]


def _decode(
    files: Iterable[str | ImageSource],
    window: int,
    image_shape: tuple[int, int],
    reading: ReadOptions,
    n_workers: int,
    progress: bool,
) -> Generator[_Decoded]:
    """Give each image or error, in order, keeping at most `window` decoded or queued."""
    from tqdm import tqdm

    def read(source: ImageSource) -> NDArray[Any] | ValueError:
        if isinstance(source, ArrayImage):
            resized: NDArray[Any] = resize_images(source.pixels[None], image_shape)[0]
            return resized
        try:
            if isinstance(source, LazyImage):
                return source.read(image_shape)
            return read_image(source, image_shape=image_shape, reading=reading)
        except ValueError as error:
            return error

    with ExitStack() as stack:
        total = len(files) if isinstance(files, Sized) else None
        bar = stack.enter_context(
            tqdm(total=total, desc="images", unit="image", disable=None if progress else True)
        )
        pool = ThreadPoolExecutor(n_workers, thread_name_prefix="decode")
        # Also reached when the caller stops early: what is queued is dropped.
        stack.callback(pool.shutdown, cancel_futures=True)
        queue: deque[tuple[ImageSource, NDArray[Any] | Future[NDArray[Any] | ValueError]]] = deque()

        def oldest() -> _Decoded:
            source, image = queue.popleft()
            return source, image if isinstance(image, np.ndarray) else image.result()

        for file in files:
            source = Path(file) if isinstance(file, str) else file
            pixels = source.pixels if isinstance(source, ArrayImage) else None
            if pixels is None or pixels.shape != image_shape or pixels.dtype not in _AS_THEY_ARE:
                queue.append((source, pool.submit(read, source)))
            elif queue:
                queue.append((source, pixels))
            else:  # a thread would take longer to be told of it
                yield source, pixels
                bar.update()
            if len(queue) == window:
                yield oldest()
                bar.update()
        while queue:
            yield oldest()
            bar.update()


def _batches(
    decoded: Generator[_Decoded],
    batch_size: int,
    image_shape: tuple[int, int],
    on_error: OnError | Literal["list"],
) -> Iterator[ImageBatch]:
    """Gather images of one dtype, and the failures between them."""
    start = 0
    images: list[NDArray[Any]] = []
    sources: list[ImageSource] = []
    failures: list[ReadFailure] = []

    def batch() -> ImageBatch:
        nonlocal start, images, sources, failures
        made = ImageBatch(
            start,
            _stacked(sources, images) if images else np.empty((0, *image_shape), np.uint8),
            ImageNames(sources),
            failures,
            [source.columns if isinstance(source, LazyImage) else _NONE for source in sources],
        )
        start += len(images)
        images, sources, failures = [], [], []
        return made

    with closing(decoded):  # ends the threads when the caller stops early
        for source, image in decoded:
            if isinstance(image, ValueError):
                if on_error == "raise":
                    raise image
                if on_error == "skip":
                    logger.warning("skipped: %s", image)
                failures.append(ReadFailure(name_of(source), str(image)))
                if len(failures) == batch_size:
                    yield ImageBatch(start, np.empty((0, *image_shape), np.uint8), [], failures)
                    failures = []
                continue
            if images and images[0].dtype != image.dtype:
                yield batch()
            images.append(image)
            sources.append(source)
            if len(images) == batch_size:
                yield batch()
        if images or failures:
            yield batch()


def _stacked(sources: Sequence[ImageSource], images: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return images (height, width) as one array: part of their stack where they are that."""
    first = sources[0]
    if isinstance(first, ArrayImage) and first.stack is not None:
        stack, row = first.stack, first.row
        for at, (source, image) in enumerate(zip(sources, images, strict=True), row):
            if not isinstance(source, ArrayImage) or source.pixels is not image:
                break  # it has been resized
            if source.stack is not stack or source.row != at:
                break
        else:
            return stack[row : row + len(images)]
    return np.concatenate(images).reshape(-1, *images[0].shape)


def read_images(
    files: Sequence[str | ImageSource],
    *,
    image_shape: tuple[int, int] = IMAGE_SHAPE,
    reading: ReadOptions = DEFAULT_READING,
    progress: bool = False,
) -> NDArray[Any]:
    """Read images into one array (n, height, width): uint8, or float32 if one holds floats.

    Parameters
    ----------
    files, image_shape, reading, progress
        As in `iter_image_batches`; ``reading.on_error`` "skip" leaves unreadable images out.

    Raises
    ------
    ValueError
        As `read_image`; of several unreadable images the first few are named.
    """
    return read_readable(files, image_shape=image_shape, reading=reading, progress=progress).images


class Readable(NamedTuple):
    """Images (n, height, width), which of the sources they are, and why the others are not."""

    images: NDArray[Any]
    rows: NDArray[np.bool_]
    failures: list[ReadFailure]


def read_readable(
    files: Sequence[str | ImageSource],
    *,
    image_shape: tuple[int, int],
    reading: ReadOptions,
    progress: bool = False,
) -> Readable:
    """Read all images that can be read, as `read_images` does; it alone raises for the others."""
    images: NDArray[Any] = np.empty((len(files), *image_shape), dtype=np.uint8)
    rows = np.zeros(len(files), dtype=bool)
    failures: list[ReadFailure] = []
    decoded = _decode(files, _AHEAD, image_shape, reading, default_workers(), progress)
    with closing(decoded):
        for index, (source, image) in enumerate(decoded):
            if isinstance(image, ValueError):
                failures.append(ReadFailure(name_of(source), str(image)))
                continue
            if image.dtype != images.dtype:
                if not rows.any():
                    images = np.empty(images.shape, dtype=image.dtype)
                else:
                    images, image = in_unit_range(images), in_unit_range(image)
            images[index] = image
            rows[index] = True
    if failures and reading.on_error == "raise":
        raise ValueError(failed_images(failures, len(files)))
    return Readable(images if rows.all() else images[rows], rows, failures)


def failed_images(
    failures: Sequence[ReadFailure], n_files: int, *, n_failed: int | None = None
) -> str:
    """Say in one line which images could not be read; only the first `MOST_NAMED` are looked at.

    `n_failed` is their number where `failures` are not all.
    """
    n_failed = len(failures) if n_failed is None else n_failed
    if n_failed == n_files == 1:
        return f"{failures[0].message}; it is the only image"
    if n_failed == 1:
        return f"{failures[0].message}; repair or remove it, or leave it out with --on_error skip"
    if n_failed == n_files:  # for one reason mostly, which no list of all names is to hide
        return f"{n_failed} of {n_files} images cannot be read; the first: {failures[0].message}"
    names = ", ".join(repr(str(failure.file)) for failure in failures[:MOST_NAMED])
    more = f" and {n_failed - MOST_NAMED} more" if n_failed > MOST_NAMED else ""
    return (
        f"{n_failed} of {n_files} images cannot be read: {names}{more}; the first: "
        f"{failures[0].message}; repair or remove them, or leave them out with --on_error skip"
    )


def in_unit_range(images: NDArray[Any]) -> NDArray[np.float32]:
    """Return bytes, or floats in [0, 1], as float32 in [0, 1]."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images.astype(np.float32, copy=False)
