"""Image files: finding them, and decoding one.

Every file becomes a grey image of one size by Pillow's ``convert("L")`` and
``resize((width, height), BILINEAR)``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image
import logging
from collections import deque
from collections.abc import Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import Literal, NamedTuple

IMAGE_SHAPE = (128, 128)
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".tif", ".tiff", ".webp")


def is_image(path: Path) -> bool:
    """Tell by its suffix whether a file is taken for an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def find_images(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """List image files.

    Parameters
    ----------
    paths : path or iterable of paths
        A file is taken as it is, whatever its suffix. A folder is walked, its image files
        (`IMAGE_SUFFIXES`) in sorted order; names that begin with a dot are left out, and symbolic
        links to folders are not followed, unless given here themselves.

    Returns
    -------
    list of Path
        In the order of `paths`; a file reached twice is listed once.

    Raises
    ------
    ValueError
        If a path does not exist, a folder holds no image, or a folder cannot be read.
    """
    return list(iter_images(paths))


def iter_images(paths: str | Path | Iterable[str | Path]) -> Iterator[Path]:
    """Give image files one by one, as `find_images` lists them.

    Folders are walked as the caller goes on: in memory are the names of one folder, not all files.
    The paths are checked at once, before the first file is asked for; a folder inside them that
    cannot be read is told when the walk arrives there.

    Parameters
    ----------
    paths : path or iterable of paths
        As in `find_images`.

    Yields
    ------
    Path

    Raises
    ------
    ValueError
        As `find_images`.
    """
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not given:
        raise ValueError("no images given; name at least one file or folder")
    for path in given:
        if path.is_dir():
            if next(_walk(path), None) is None:
                raise ValueError(
                    f"no images in folder {str(path)!r}; looked for {', '.join(IMAGE_SUFFIXES)}"
                )
        elif not path.exists():
            raise ValueError(f"no such file or folder: {str(path)!r}")
    return _each_once(given)


def _each_once(given: list[Path]) -> Iterator[Path]:
    """Walk what was given; a file that an earlier argument has reached is left out.

    What was reached is told from the arguments alone: a set of all files would grow with them.
    """
    files: set[Path] = set()
    folders: list[Path] = []
    for path in given:
        walked = path.is_dir()
        for file in _walk(path) if walked else (path,):
            if file not in files and not any(_walk_reaches(folder, file) for folder in folders):
                yield file
        if walked:
            folders.append(path)
        else:
            files.add(path)


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(where, name)
            if not name.startswith(".") and is_image(path):
                yield path


def _refuse_folder(error: OSError) -> None:
    raise ValueError(f"cannot read folder {str(error.filename)!r}: {_reason(error)}") from error


def _walk_reaches(folder: Path, file: Path) -> bool:
    """Tell whether `_walk(folder)` gives `file`, without walking."""
    if not file.is_relative_to(folder) or not is_image(file):
        return False
    inside = file.relative_to(folder)
    between = [folder / parent for parent in inside.parents][:-1]
    return not (
        any(part.startswith(".") for part in inside.parts)
        or any(parent.is_symlink() for parent in between)
    )


def read_image(
    path: str | Path, *, image_shape: tuple[int, int] = IMAGE_SHAPE
) -> NDArray[np.uint8]:
    """Read one image file as grey values.

    Parameters
    ----------
    path : path
        Any 8-bit format that Pillow reads: grey, RGB, palette, or with transparency, which is
        dropped. Of several frames the first is read.
    image_shape : tuple of int, default=(128, 128)
        Height and width of the result, in pixels.

    Returns
    -------
    ndarray of shape (height, width), uint8

    Raises
    ------
    ValueError
        If the file cannot be read or is cut short, or holds 16-bit, 32-bit or floating grey
        values: which of them are black and white is not in the file, and Pillow's own conversion
        would clip them at 255.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(
                    f"holds grey values of more than 8 bits (mode {image.mode}); choose a window "
                    "and save it as an 8-bit image"
                )
            return to_grey(image, image_shape)
    # Pillow's decoders raise all of these for damaged files; DecompressionBombError is for files
    # that would unpack to more pixels than Image.MAX_IMAGE_PIXELS allows.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {str(path)!r}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__ if not str(error) else " ".join(str(error).split())


def to_grey(image: Image, image_shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Convert an open 8-bit Pillow image to grey values of shape `image_shape`."""
    from PIL import Image as pillow

    height, width = image_shape
    grey = image.convert("L").resize((width, height), pillow.Resampling.BILINEAR)
    return np.array(grey, dtype=np.uint8)


def resize_images(images: NDArray[Any], image_shape: tuple[int, int]) -> NDArray[Any]:
    """Bring a stack of images to `image_shape`, as `read_image` does for files.

    Parameters
    ----------
    images : ndarray of shape (n, height, width) or (n, height, width, 3)
        uint8; without colours also float32 in [0, 1].
    image_shape : tuple of int
        Height and width of the result.

    Returns
    -------
    ndarray of shape (n, *image_shape), same dtype
    """
    from PIL import Image

    height, width = image_shape
    resized = np.empty((len(images), height, width), dtype=images.dtype)
    for row, image in zip(resized, images, strict=True):
        if images.dtype == np.uint8:
            row[:] = to_grey(Image.fromarray(image), image_shape)
        else:
            grey = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
            row[:] = np.clip(np.asarray(grey), 0.0, 1.0)  # rounding may pass 1 by an ulp
    return resized


# Decoding many image files while the caller works on those already decoded.

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


class ReadFailure(NamedTuple):
    """A file that could not be read, and why."""

    file: Path
    message: str


class ImageBatch(NamedTuple):
    """Some images of a stream.

    Attributes
    ----------
    start : int
        How many images the stream gave before this batch.
    images : ndarray of shape (n, height, width), uint8
    files : list of Path
        One a row of `images`.
    failures : list of ReadFailure
        The unreadable files met since the batch before, at most as many as a batch has images;
        empty unless ``on_error="skip"``.
    """

    start: int
    images: NDArray[np.uint8]
    files: list[Path]
    failures: list[ReadFailure]


def iter_image_batches(
    files: Iterable[str | Path],
    *,
    batch_size: int = 256,
    image_shape: tuple[int, int] = IMAGE_SHAPE,
    on_error: OnError = "raise",
    n_workers: int | None = None,
    progress: bool = False,
) -> Iterator[ImageBatch]:
    """Decode many files, batch by batch, in order, while the caller works on the last batch.

    At most two batches are decoded ahead, and `files` is asked for no more, so the memory needed
    does not grow with their number.

    Parameters
    ----------
    files : iterable of paths
        For example from `iter_images`.
    batch_size : int, default=256
        Images a batch; the last may hold fewer.
    image_shape : tuple of int, default=(128, 128)
        Height and width of the result, in pixels.
    on_error : {"raise", "skip"}, default="raise"
        Whether an unreadable file ends the stream, or is logged and listed in the batch's
        `failures`. A file that is skipped leaves no gap: batches stay full.
    n_workers : int, optional
        Decoding threads; by default one a processor that this process may use, at most 8.
    progress : bool, default=False
        Show a progress bar, if standard error is a terminal.

    Yields
    ------
    ImageBatch
        ``start``, ``images``, ``files``, ``failures``. A batch has no image where it has only
        failures to tell: at the end, or because there are many.

    Raises
    ------
    ValueError
        If an argument is out of range, or as `read_image` with ``on_error="raise"``.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: choose 'raise' or 'skip'")
    if n_workers is not None and n_workers < 1:
        raise ValueError(f"n_workers={n_workers} must be at least 1")
    workers = n_workers or min(8, _usable_processors())
    return _batches(files, batch_size, image_shape, on_error, workers, progress)


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: fewer than cpu_count in a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _batches(
    files: Iterable[str | Path],
    batch_size: int,
    image_shape: tuple[int, int],
    on_error: OnError,
    n_workers: int,
    progress: bool,
) -> Iterator[ImageBatch]:
    start = 0
    images: list[NDArray[np.uint8]] = []
    kept: list[Path] = []
    failures: list[ReadFailure] = []

    def batch() -> ImageBatch:
        stacked = np.stack(images) if images else np.empty((0, *image_shape), dtype=np.uint8)
        return ImageBatch(start, stacked, list(kept), list(failures))

    for file, image in _decode(files, 2 * batch_size, image_shape, n_workers, progress):
        if isinstance(image, ValueError):
            if on_error == "raise":
                raise image
            logger.warning("skipped: %s", image)
            failures.append(ReadFailure(file, str(image)))
            if len(failures) == batch_size:
                yield ImageBatch(start, np.empty((0, *image_shape), np.uint8), [], list(failures))
                failures.clear()
            continue
        images.append(image)
        kept.append(file)
        if len(images) == batch_size:
            yield batch()
            start += batch_size
            images.clear()
            kept.clear()
            failures.clear()
    if images or failures:
        yield batch()


def _decode(
    files: Iterable[str | Path],
    window: int,
    image_shape: tuple[int, int],
    n_workers: int,
    progress: bool,
) -> Iterator[tuple[Path, NDArray[np.uint8] | ValueError]]:
    """Give each file's image or error, in order, keeping at most `window` decoded or queued."""
    from tqdm import tqdm

    def read(path: Path) -> NDArray[np.uint8] | ValueError:
        try:
            return read_image(path, image_shape=image_shape)
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
        waiting = map(Path, files)
        queue: deque[tuple[Path, Future[NDArray[np.uint8] | ValueError]]] = deque(
            (path, pool.submit(read, path)) for path in islice(waiting, window)
        )
        while queue:
            path, future = queue.popleft()
            yield path, future.result()
            bar.update()
            queue.extend((path, pool.submit(read, path)) for path in islice(waiting, 1))


def read_images(
    files: Sequence[str | Path],
    *,
    image_shape: tuple[int, int] = IMAGE_SHAPE,
    on_error: OnError = "raise",
    progress: bool = False,
) -> tuple[NDArray[np.uint8], list[Path], list[ReadFailure]]:
    """Read image files into one array.

    Parameters
    ----------
    files, image_shape, on_error, progress
        As in `iter_image_batches`.

    Returns
    -------
    images : ndarray of shape (n, height, width), uint8
    files : list of Path
        One a row of `images`.
    failures : list of ReadFailure
        Empty unless ``on_error="skip"``.

    Raises
    ------
    ValueError
        As `iter_image_batches`.
    """
    images = np.empty((len(files), *image_shape), dtype=np.uint8)
    kept: list[Path] = []
    failures: list[ReadFailure] = []
    for batch in iter_image_batches(
        files, image_shape=image_shape, on_error=on_error, progress=progress
    ):
        images[batch.start : batch.start + len(batch.images)] = batch.images
        kept += batch.files
        failures += batch.failures
    return images[: len(kept)], kept, failures
