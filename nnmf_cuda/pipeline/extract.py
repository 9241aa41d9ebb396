"""Images through a model batch by batch, and their features to a file.

Memory does not grow with the number of images: `computed_batches` sends them through a device two
batches at a time, and `extract_to_file` writes what comes back as it comes.
"""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Literal, Protocol
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnmf_cuda.data import ImageBatch, ImageSource, ReadFailure, ReadOptions, iter_image_batches
from nnmf_cuda.data.images import MOST_NAMED, failed_images
from nnmf_cuda.data.names import harmless, on_one_line
from nnmf_cuda.data.reading import DEFAULT_READING, OnError
from nnmf_cuda.models.features import FeatureExtractor
from nnmf_cuda.nnmf.inputs import shared_tensor
from nnmf_cuda.pipeline.places import Place, cannot_write

logger = logging.getLogger(__name__)

FORMATS = (".npy", ".npz", ".parquet")

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
        result = np.empty((len(batch.images), n_columns), _numpy_dtype(dtype))
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
            return batch, np.empty((0, n_columns), _numpy_dtype(dtype))
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


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    found: np.dtype[Any] = torch.empty(0, dtype=dtype).numpy().dtype
    return found


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
    """
    _check_out(out, overwrite=overwrite)  # before any work, and again once no other can write
    transform: Callable[[torch.Tensor], torch.Tensor] = (
        extractor.forward if normalize else extractor.coefficients
    )
    n_columns = extractor.n_features if normalize else len(extractor.components)
    n_written = 0
    with _outputs(out, n_columns, overwrite=overwrite) as (writer, failures):
        batches = iter_image_batches(
            files,
            batch_size=batch_size,
            image_shape=extractor.image_shape,
            reading=reading,
            on_error="skip" if on_error == "skip" else "list",
            progress=progress,
        )
        n_read = 0

        def wanted() -> Iterator[ImageBatch]:
            nonlocal n_read
            for batch in batches:
                n_read += len(batch.images)
                failures.write(batch.failures)
                if on_error == "skip" or not failures.count:
                    yield batch  # else it is read on, to name the others, but nothing is computed

        for batch, features in computed_batches(
            wanted(), transform, device=extractor.components.device, n_columns=n_columns
        ):
            if len(features):
                writer.write(batch, features)
                n_written += len(features)
        if failures.count and on_error == "raise":
            n_files = n_read + failures.count
            raise ValueError(failed_images(failures.first, n_files, n_failed=failures.count))
        if n_written == 0:
            first = "".join(f"; the first: {failure.message}" for failure in failures.first[:1])
            raise ValueError(f"none of the {failures.count} images could be read{first}")
    return n_written, failures.count


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.suffix not in FORMATS:
        raise ValueError(f"--out {out}: the ending must be one of {', '.join(FORMATS)}")
    if out.exists() and not overwrite:
        raise ValueError(f"--out {out} exists: give another name, or --overwrite to replace it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the directory {out.parent} does not exist")


class PassedColumns:
    """What sources say beside their images, as columns of a table that is written on and on.

    The first images decide which columns there are. One that comes up later is left out, with a
    warning; one whose name the table needs itself, a name in `taken`, gets ``given_`` before it.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = frozenset(taken)
        self._keys: tuple[str, ...] | None = None
        self._left_out: set[str] = set()
        self.header: list[str] = []
        """The names of the columns, once there were images."""

    def cells(self, columns: Sequence[Mapping[str, str]]) -> list[list[str]]:
        """Return a row for each image, in the order of `header`, with "" for what is not said."""
        if not columns:
            return []
        if self._keys is None:
            self._keys = tuple(dict.fromkeys(key for said in columns for key in said))
            for name in self._keys:
                while name in self._taken or name in self.header:
                    name = f"given_{name}"
                self.header.append(name)
        new = {key for said in columns for key in said} - set(self._keys) - self._left_out
        if new:
            self._left_out |= new
            logger.warning(
                "left out: columns that the first images do not have: %s", ", ".join(sorted(new))
            )
        return [[said.get(key, "") for key in self._keys] for said in columns]


class _Writer(Protocol):
    def write(self, batch: ImageBatch, features: NDArray[np.float32]) -> None: ...

    def finish(self) -> None:
        """Write what must wait for the last row."""

    def close(self) -> None: ...


@contextmanager
def _outputs(
    out: Path, n_columns: int, *, overwrite: bool
) -> Iterator[tuple[_Writer, _FailureList]]:
    """Yield writers into a folder beside `out`, whose files move there when the block ends well."""
    called = f"--out {out}"
    beside = [f"{out.name}.{what}" for what in ("failed.txt", "files.txt", "columns.csv")]
    try:
        with Place(out.parent, out.name).held(called) as place:
            _check_out(out, overwrite=overwrite)
            with place.staged([*beside, out.name]) as folder:
                failed, names, columns = (folder / name for name in beside)
                writer: _Writer
                if out.suffix == ".npy":
                    writer = _NpyWriter(folder / out.name, names, columns, n_columns)
                elif out.suffix == ".npz":
                    writer = _NpzWriter(folder / out.name, n_columns)
                else:
                    writer = _ParquetWriter(folder / out.name, n_columns)
                with closing(writer), closing(_FailureList(failed)) as failures:
                    yield writer, failures
                    writer.finish()
    except OSError as error:
        raise cannot_write(called, error) from error


class _FailureList:
    """Lines of file and message; there is no file while there is nothing to tell."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self.count = 0
        self.first: list[ReadFailure] = []
        """As many as an error names."""

    def write(self, failures: Sequence[ReadFailure]) -> None:
        if not failures:
            return
        if self._file is None:
            self._file = _text_file(self._path)
        self._file.writelines(
            f"{on_one_line(failure.file)}\t{harmless(failure.message, keep='')}\n"
            for failure in failures
        )
        self.count += len(failures)
        self.first += failures[: MOST_NAMED - len(self.first)]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _text_file(path: Path) -> IO[str]:
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")


def _write_header(file: IO[bytes], dtype: str, shape: tuple[int, ...]) -> None:
    """Begin an array of .npy; NumPy pads its header so that the first axis can grow in place."""
    description = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)


class _NpyWriter:
    """Rows appended to an .npy file; the header is written again when their number is known."""

    def __init__(self, path: Path, names: Path, columns: Path, n_columns: int) -> None:
        self._file: IO[bytes] = path.open("wb")
        self._names = _text_file(names)
        self._columns_path = columns
        self._columns_file: IO[str] | None = None  # until there is something to tell
        self._columns = PassedColumns(["file"])
        self._n_columns = n_columns
        self._n_rows = 0
        self._write_header()

    def _write_header(self) -> None:
        _write_header(self._file, "<f4", (self._n_rows, self._n_columns))

    def write(self, batch: ImageBatch, features: NDArray[np.float32]) -> None:
        features.astype("<f4", copy=False).tofile(self._file)
        names = [on_one_line(name) for name in batch.names()]
        self._names.writelines(f"{name}\n" for name in names)
        self._n_rows += len(features)
        cells = self._columns.cells(batch.columns)
        if not self._columns.header:
            return
        if self._columns_file is None:
            self._columns_file = _text_file(self._columns_path)
            csv.writer(self._columns_file).writerow(["file", *self._columns.header])
        csv.writer(self._columns_file).writerows(
            [name, *row] for name, row in zip(names, cells, strict=True)
        )

    def finish(self) -> None:
        self._file.seek(0)
        self._write_header()

    def close(self) -> None:
        self._file.close()
        self._names.close()
        if self._columns_file is not None:
            self._columns_file.close()


class _NpzWriter:
    """Arrays spooled to disk: their headers need their shapes, and a zip file never goes back."""

    def __init__(self, path: Path, n_columns: int) -> None:
        self._file: IO[bytes] = path.open("wb")
        # In the folder of the output, which has the space.
        self._features: IO[bytes] = TemporaryFile(dir=path.parent)
        self._texts: IO[str] = TemporaryFile("w+", dir=path.parent, encoding="ascii")
        self._shape = (0, n_columns)
        self._columns = PassedColumns(["features", "files"])
        self._longest: list[int] = []

    def write(self, batch: ImageBatch, features: NDArray[np.float32]) -> None:
        features.astype("<f4", copy=False).tofile(self._features)
        texts = [batch.names(), *map(list, zip(*self._columns.cells(batch.columns), strict=True))]
        self._texts.write(json.dumps(texts) + "\n")
        self._shape = (self._shape[0] + len(features), self._shape[1])
        longest = [max(map(len, of_column)) for of_column in texts]
        before = self._longest or [1] * len(longest)
        self._longest = [max(pair) for pair in zip(before, longest, strict=True)]

    def finish(self) -> None:
        self._features.seek(0)
        with ZipFile(self._file, "w") as archive:
            with archive.open("features.npy", "w", force_zip64=True) as member:
                _write_header(member, "<f4", self._shape)
                shutil.copyfileobj(self._features, member)
            for number, name in enumerate(["files", *self._columns.header]):
                # A column's name must not make a path of its own in the archive.
                key = name.replace("/", "_").replace("\\", "_")
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    dtype = f"<U{self._longest[number]}"
                    _write_header(member, dtype, self._shape[:1])
                    self._texts.seek(0)
                    for line in self._texts:
                        member.write(np.array(json.loads(line)[number], dtype=dtype).tobytes())

    def close(self) -> None:
        for file in (self._file, self._features, self._texts):
            file.close()


class _ParquetWriter:
    """Row groups of many batches: each group costs a place in the file's index."""

    _GROUP_ROWS = 65_536

    def __init__(self, path: Path, n_columns: int) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(
                "writing .parquet needs pyarrow: pip install 'nnmf-cuda[parquet]'"
            ) from error
        self._arrow: Any = pyarrow
        self._path = path
        self._names = [f"component_{i}" for i in range(n_columns)]
        self._columns = PassedColumns(["file", *self._names])
        self._file: Any = None  # until it is known which columns there are
        self._waiting: list[Any] = []

    def write(self, batch: ImageBatch, features: NDArray[np.float32]) -> None:
        cells = self._columns.cells(batch.columns)
        if self._file is None:
            texts = ["file", *self._columns.header]
            fields = [(name, self._arrow.string()) for name in texts]
            fields += [(name, self._arrow.float32()) for name in self._names]
            self._schema = self._arrow.schema(fields)
            self._file = self._arrow.parquet.ParquetWriter(self._path, self._schema)
        beside = [[_utf8(cell) for cell in column] for column in zip(*cells, strict=True)]
        arrays = [list(map(on_one_line, batch.names())), *beside, *features.T]
        self._waiting.append(self._arrow.table(arrays, schema=self._schema))
        if sum(table.num_rows for table in self._waiting) >= self._GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_table(self._arrow.concat_tables(self._waiting))
            self._waiting.clear()

    def finish(self) -> None:
        self._flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _utf8(text: str) -> str:
    """Return text that UTF-8 can hold: half a surrogate pair becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
