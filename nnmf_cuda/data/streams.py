"""Decoding many image files while the caller works on those already decoded."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.images import IMAGE_SHAPE, read_image

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
