"""Images through a model batch by batch, and their features to a file.

Memory does not grow with the number of images: `computed_batches` sends them through a device two
batches at a time, and `extract_to_file` writes what comes back as it comes.
"""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import (
    Callable,
    Container,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import chain, count, cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnmf_cuda._version import __version__
from nnmf_cuda.data import ImageBatch, ImageSource, ReadOptions, iter_image_batches
from nnmf_cuda.data.reading import DEFAULT_READING, OnError
from nnmf_cuda.distributed.crew import ALONE, Crew
from nnmf_cuda.models.features import FeatureExtractor
from nnmf_cuda.nnmf.inputs import shared_tensor
from nnmf_cuda.nnmf.matrix import numpy_dtype
from nnmf_cuda.pipeline.extract_parts import Block, Parts, rebatched
from nnmf_cuda.pipeline.feature_files import check_out, outputs
from nnmf_cuda.pipeline.places import Place, cannot_write, remove

logger = logging.getLogger(__name__)

Compute = Callable[[Tensor], Tensor]
Result = tuple[ImageBatch, NDArray[Any]]
StreamName = Literal["upload", "compute", "download"]


def computed_batches(
    batches: Iterable[ImageBatch],
    compute: Compute,
    *,
    device: torch.device,
    n_columns: int,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Result]:
    """Yield each batch with what `compute` makes of its images, an array (n, n_columns), in order.

    On a GPU batch i + 1 is staged and uploaded while batch i is computed, and a result is yielded
    when the batch after it is on its way; there are never more than two batches on the device.
    Elsewhere a result is computed when it is asked for. `compute` maps images (n, height, width) on
    `device` to a tensor (n, n_columns) there; it is called without gradients, on the stream that is
    current when the first batch is asked for, and not at all for a batch without images. Raises
    ValueError, with the name of the image, for a result that is not finite.
    """
    with closing(_computed(batches, compute, device, n_columns, dtype)) as computed:
        for batch, result in computed:
            finite = np.isfinite(result).all(axis=1)
            if not finite.all():
                name = str(batch.files[int(np.argmin(finite))])
                raise ValueError(
                    f"what the model makes of {name!r} is not finite: its weights are damaged, or"
                    " far from any that training finds; run the experiment again"
                )
            yield batch, result


def _computed(
    batches: Iterable[ImageBatch],
    compute: Compute,
    device: torch.device,
    n_columns: int,
    dtype: torch.dtype,
) -> Generator[Result]:
    if device.type == "cuda":
        yield from pipelined(batches, compute, Streams(device), n_columns, dtype)
        return
    for batch in batches:
        result = np.empty((len(batch.images), n_columns), numpy_dtype(dtype))
        if len(result):
            with torch.no_grad():
                result[:] = compute(shared_tensor(batch.images).to(device)).cpu().numpy()
        yield batch, result


def pipelined(
    batches: Iterable[ImageBatch],
    compute: Compute,
    streams: Streams,
    n_columns: int,
    dtype: torch.dtype,
) -> Iterator[Result]:
    """Yield what `computed_batches` does, through two slots that take turns."""
    slots = cycle(_Slot(streams, n_columns, dtype) for _ in range(2))
    under_way: deque[tuple[ImageBatch, _Slot | None]] = deque()

    def oldest() -> Result:
        batch, slot = under_way.popleft()
        if slot is None:
            return batch, np.empty((0, n_columns), numpy_dtype(dtype))
        return batch, slot.receive()

    try:
        for batch in batches:
            slot = next(slots) if len(batch.images) else None
            if slot is not None:
                slot.send(batch.images, compute)
            under_way.append((batch, slot))
            if len(under_way) == 2:
                # The slot that the next batch gets is free after this.
                yield oldest()
        while under_way:
            yield oldest()
    finally:
        # The slots' memory may not be let go while a stream still works in it.
        streams.finish()


class _Slot:
    """A place for one batch on its way through the device.

    Events order the three streams within a batch. Between two batches in the same slot stands
    `receive`: the host has then waited for the last thing that happens to a batch.
    """

    def __init__(self, streams: Streams, n_columns: int, dtype: torch.dtype) -> None:
        self._streams = streams
        self._n_columns = n_columns
        self._dtype = dtype
        self._capacity: tuple[int, ...] = (0,)
        self._n_rows = 0
        self._returned: torch.cuda.Event | None = (
            None  # the event of a batch that has not been received
        )

    def send(self, batch: NDArray[Any], compute: Compute) -> None:
        """Start a batch; only where the one before has been received."""
        assert self._returned is None
        images = shared_tensor(batch)
        fits = len(images) <= self._capacity[0] and images.shape[1:] == self._capacity[1:]
        if not fits or images.dtype != self._staged.dtype:
            self._allocate(tuple(images.shape), images.dtype)
        self._n_rows = n = len(images)
        self._staged[:n].copy_(images)
        streams = self._streams
        streams.submit("upload", lambda: _copy(self._images[:n], self._staged[:n]))
        streams.hold("compute", streams.record("upload"))
        streams.submit("compute", lambda: _compute(self._results[:n], compute, self._images[:n]))
        streams.hold("download", streams.record("compute"))
        streams.submit("download", lambda: _copy(self._landed[:n], self._results[:n]))
        self._returned = streams.record("download")

    def receive(self) -> NDArray[Any]:
        """Wait for the batch and return its results; the slot is then free."""
        assert self._returned is not None
        self._streams.wait(self._returned)
        self._returned = None
        result: NDArray[Any] = self._landed[: self._n_rows].numpy().copy()
        return result

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        streams, results = self._streams, (shape[0], self._n_columns)
        self._capacity = shape
        self._staged = streams.host_memory(shape, dtype)
        self._landed = streams.host_memory(results, self._dtype)
        self._images = streams.device_memory(shape, dtype)
        self._results = streams.device_memory(results, self._dtype)
        # What "compute" has still to do may work in memory that was handed to us.
        streams.hold("upload", streams.record("compute"))


def _copy(to: Tensor, source: Tensor) -> None:
    to.copy_(source, non_blocking=True)


def _compute(to: Tensor, compute: Compute, images: Tensor) -> None:
    with torch.no_grad():
        to.copy_(compute(images))


class Streams:
    """Memory and queues of a CUDA device: two streams for copies beside the one that is current."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = {
            "upload": torch.cuda.Stream(device),
            "compute": torch.cuda.current_stream(device),
            "download": torch.cuda.Stream(device),
        }

    def host_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory of the host that is copied from and to without the host's help."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def device_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory of the device, free for what is submitted to "compute" from now on."""
        with torch.cuda.stream(self._streams["compute"]):
            return torch.empty(shape, dtype=dtype, device=self._device)

    def submit(self, stream: StreamName, work: Callable[[], None]) -> None:
        """Have work done after all that is in the stream, and no later than `finish`."""
        with torch.cuda.stream(self._streams[stream]):
            work()

    def record(self, stream: StreamName) -> torch.cuda.Event:
        """Return an event that happens when all that is in the stream is done."""
        event: torch.cuda.Event = self._streams[stream].record_event()
        return event

    def hold(self, stream: StreamName, event: torch.cuda.Event) -> None:
        """Let what is submitted to the stream from now on wait for the event."""
        self._streams[stream].wait_event(event)

    def wait(self, event: torch.cuda.Event) -> None:
        """Let the host wait for the event."""
        event.synchronize()

    def finish(self) -> None:
        """Let the host wait for all streams."""
        for stream in self._streams.values():
            stream.synchronize()


def extract_to_file(
    files: Iterable[str | ImageSource],
    extractor: FeatureExtractor,
    out: Path,
    *,
    normalize: bool = False,
    reading: ReadOptions = DEFAULT_READING,
    on_error: OnError = "raise",
    batch_size: int = 256,
    overwrite: bool = False,
    progress: bool = False,
    crew: Crew = ALONE,
) -> tuple[int, int]:
    r"""Write the features of images to `out`, in memory that their number does not change.

    Images are decoded by threads while those before them are projected; on a GPU, copies to and
    from it go on beside both. Rows are in the order of `files`, which are asked for as the work
    goes on (see `nnmf_cuda.data.iter_images`); they are the raw NNLS coefficients or, with
    `normalize`, the classifier's features.

    `.npy`: one float32 array (n_images, n_columns), fit for memory-mapping, with the names in
    `<out>.files.txt`, one a line. `.npz`: arrays `features` and `files`; takes twice the space on
    disk while it is written. `.parquet`: a column `file` and one a feature; needs pyarrow. Names
    are written as UTF-8; in them a byte that is not becomes a backslash escape (``\xff``), so do
    control characters and line separators (``\n``, ``\x1b``, ``\u2028``), and a backslash is
    doubled. `.npz` keeps them as Python has them.

    What sources say beside their images, as a table's other columns, goes along: in
    `<out>.columns.csv` beside `.npy`, in arrays and columns of their names in the others; see
    `PassedColumns`.

    With `on_error` "skip" unreadable images are left out and listed in `<out>.failed.txt`: a name,
    a tab and the reason on each line. Returns the numbers of rows and of images that could not be
    read. Raises ValueError, and writes nothing, if `out` does not allow it or an image cannot be
    read; all images are tried before, so that the error names all that cannot.

    The processes of a `crew`, which are given the same, compute blocks of `_BLOCK_BATCHES` batches
    in turn, and rank 0 writes; that takes the space of the features once more. A start after one
    that was killed goes on from the blocks that are there.
    """
    work = _Work(extractor, normalize, reading, on_error, batch_size)
    if crew.leads:
        check_out(out, overwrite=overwrite)  # before any work, and again once no other can write
    if crew.size > 1:
        return _extract_together(files, work, out, overwrite, progress, crew)
    n_read = 0
    with outputs(out, work.n_columns, overwrite=overwrite) as output:

        def note(batch: ImageBatch) -> bool:
            nonlocal n_read
            n_read += len(batch.images)
            output.failures.write(batch.failures)
            return work.goes_on(output.failures.count)

        # After one that ends the command others are read on, so that all are named.
        told: Literal["skip", "list"] = "skip" if on_error == "skip" else "list"
        for batch, features in work.results(files, note, on_error=told, progress=progress):
            output.write(batch, features)
        output.check(on_error, n_read)
    return output.n_written, output.failures.count


_BLOCK_BATCHES = 4
"""Batches that a process of several computes before it leaves as many to each of the others."""


@dataclass(frozen=True)
class _Work:
    """What is made of images."""

    extractor: FeatureExtractor
    normalize: bool
    reading: ReadOptions
    on_error: OnError
    batch_size: int

    @property
    def n_columns(self) -> int:
        return self.extractor.n_features if self.normalize else len(self.extractor.components)

    def goes_on(self, n_failed: int) -> bool:
        """Return whether more is computed after so many images that could not be read."""
        return self.on_error == "skip" or not n_failed

    def results(
        self,
        files: Iterable[str | ImageSource],
        note: Callable[[ImageBatch], bool],
        *,
        on_error: Literal["skip", "list"],
        progress: bool = False,
    ) -> Iterator[Result]:
        """Yield the batches that `note`, which is told of all, wants, with their features."""
        batches = iter_image_batches(
            files,
            batch_size=self.batch_size,
            image_shape=self.extractor.image_shape,
            reading=self.reading,
            on_error=on_error,
            progress=progress,
        )
        transform: Compute = (
            self.extractor.forward if self.normalize else self.extractor.coefficients
        )
        yield from computed_batches(
            filter(note, batches),
            transform,
            device=self.extractor.components.device,
            n_columns=self.n_columns,
        )


def _extract_together(
    files: Iterable[str | ImageSource],
    work: _Work,
    out: Path,
    overwrite: bool,
    progress: bool,
    crew: Crew,
) -> tuple[int, int]:
    """Extract with the other processes; rank 0 holds the place and joins what all have found."""
    shared = Place(out.parent, out.name).shared
    settings = (work.normalize, work.reading, work.on_error, work.batch_size)
    parts = Parts(shared, f"{__version__} {settings}", work.n_columns)
    written: tuple[int, int] | None = None
    with ExitStack() as stack:
        if crew.leads:
            output = stack.enter_context(
                outputs(out, work.n_columns, overwrite=overwrite, keep_shared=crew.restarted)
            )
            stack.enter_context(_folder_of_parts(shared, out, crew))
        known = set(crew.first(parts.known))
        listed = _add_own_blocks(files, work, parts, known, progress, crew)
        lists = crew.gathered(listed)
        if len(set(lists)) > 1:
            raise ValueError(
                f"the processes see different numbers of images ({', '.join(map(str, lists))}):"
                " they must all have the same files"
            )
        if crew.leads:
            n_read = 0

            def noted(blocks: Iterable[Block]) -> Iterator[Block]:
                nonlocal n_read
                for block in blocks:
                    n_read += block.n_read
                    output.failures.write(block.failures)
                    if work.on_error == "skip":
                        for failure in block.failures:
                            logger.warning("skipped: %s", failure.message)
                    if work.goes_on(output.failures.count):
                        yield block

            blocks = parts.blocks(-(-listed // _block_size(work)))
            for batch, features in rebatched(noted(blocks), work.batch_size):
                output.write(batch, features)
            output.check(work.on_error, n_read)
            written = output.n_written, output.failures.count
    return crew.first(lambda: written) or (0, 0)


@contextmanager
def _folder_of_parts(shared: Path, out: Path, crew: Crew) -> Iterator[None]:
    """Make the folder of the blocks; it stays where another start can go on from it."""
    from nnmf_cuda.distributed.ranks import RanksError

    try:
        if not crew.restarted:
            remove(shared)
        shared.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(f"--out {out}", error) from error
    keeps = False
    try:
        yield
    except BaseException as error:
        ended = isinstance(error, RanksError) or not isinstance(error, Exception)
        keeps = crew.may_restart and ended
        raise
    finally:
        if not keeps:
            shutil.rmtree(shared, ignore_errors=True)


def _block_size(work: _Work) -> int:
    return _BLOCK_BATCHES * work.batch_size


class _Counted(Iterator[str | ImageSource]):
    """A stream of images, and how many it has given."""

    def __init__(self, files: Iterable[str | ImageSource]) -> None:
        self._files = iter(files)
        self.n = 0

    def __next__(self) -> str | ImageSource:
        image = next(self._files)
        self.n += 1
        return image


def _add_own_blocks(
    files: Iterable[str | ImageSource],
    work: _Work,
    parts: Parts,
    known: Container[int],
    progress: bool,
    crew: Crew,
) -> int:
    """Compute in turn with others the blocks that are not known; return the number of images."""
    from tqdm import tqdm

    stream, n_new, n_failed = _Counted(files), 0, 0
    bar = tqdm(desc="images", unit="image", disable=None if progress else True)
    with closing(parts.begin()) as file, bar:
        for number in count():
            images = islice(stream, _block_size(work))
            first = next(images, None)
            if first is None:
                return stream.n
            if number not in known:
                if n_new % crew.size == crew.rank:
                    block = _computed_block(number, chain([first], images), work, n_failed)
                    n_failed += len(block.failures)
                    parts.add(file, block)
                n_new += 1
            deque(images, maxlen=0)  # those that are another's
            bar.update(stream.n - bar.n)
    raise AssertionError  # numbers do not end


def _computed_block(
    number: int, images: Iterable[str | ImageSource], work: _Work, n_failed: int
) -> Block:
    block = Block(number)

    def note(batch: ImageBatch) -> bool:
        block.n_read += len(batch.images)
        block.failures += batch.failures
        return work.goes_on(n_failed + len(block.failures))

    for batch, features in work.results(images, note, on_error="list"):
        block.add(batch, features)
    return block
