"""Files of features that grow batch by batch: .npy, .npz and .parquet, and what stands beside."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Protocol
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data import ImageBatch, ReadFailure
from nnmf_cuda.data.images import MOST_NAMED, failed_images
from nnmf_cuda.data.names import harmless, on_one_line
from nnmf_cuda.data.reading import OnError
from nnmf_cuda.pipeline.places import Place, cannot_write

logger = logging.getLogger(__name__)

FORMATS = (".npy", ".npz", ".parquet")


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise ValueError if features cannot be written there."""
    if out.suffix not in FORMATS:
        raise ValueError(f"--out {out}: the ending must be one of {', '.join(FORMATS)}")
    if out.exists() and not overwrite:
        raise ValueError(f"--out {out} exists: give another name, or --overwrite to replace it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the directory {out.parent} does not exist")


class PassedColumns:
    """What sources say beside their images, as columns of a table that is written on and on.

    The first images decide which columns there are. One that comes up later is left out, with a
    warning; one whose name the table needs itself, a name in `taken`, gets ``given_`` before it. So
    does one that has another's name once it is as the file can have it, which `spelt` returns.
    """

    def __init__(self, taken: Iterable[str], spelt: Callable[[str], str] = str) -> None:
        self._taken, self._spelt = frozenset(taken), spelt
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
            for name in map(self._spelt, self._keys):
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


@dataclass
class Output:
    """What rows and failures are written to, and how many rows were."""

    writer: _Writer
    failures: FailureList
    n_written: int = 0

    def write(self, batch: ImageBatch, features: NDArray[np.float32]) -> None:
        """Write the features of a batch, where there are any."""
        if len(features):
            self.writer.write(batch, features)
            self.n_written += len(features)

    def check(self, on_error: OnError, n_read: int) -> None:
        """Raise ValueError for images that could not be read, or if there is no row."""
        failures = self.failures
        if failures.count and on_error == "raise":
            n_files = n_read + failures.count
            raise ValueError(failed_images(failures.first, n_files, n_failed=failures.count))
        if self.n_written == 0:
            first = "".join(f"; the first: {failure.message}" for failure in failures.first[:1])
            raise ValueError(f"none of the {failures.count} images could be read{first}")


@contextmanager
def outputs(
    out: Path, n_columns: int, *, overwrite: bool, keep_shared: bool = False
) -> Iterator[Output]:
    """Yield writers into a folder beside `out`, whose files move there when the block ends well."""
    called = f"--out {out}"
    beside = [f"{out.name}.{what}" for what in ("failed.txt", "files.txt", "columns.csv")]
    try:
        with Place(out.parent, out.name).held(called, keep_shared=keep_shared) as place:
            check_out(out, overwrite=overwrite)
            with place.staged([*beside, out.name]) as folder:
                failed, names, columns = (folder / name for name in beside)
                writer: _Writer
                if out.suffix == ".npy":
                    writer = _NpyWriter(folder / out.name, names, columns, n_columns)
                elif out.suffix == ".npz":
                    writer = _NpzWriter(folder / out.name, n_columns)
                else:
                    writer = _ParquetWriter(folder / out.name, n_columns)
                with closing(writer), closing(FailureList(failed)) as failures:
                    yield Output(writer, failures)
                    writer.finish()
    except OSError as error:
        raise cannot_write(called, error) from error


class FailureList:
    """Lines of file and message; there is no file while there is nothing to tell."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self.count = 0
        self.first: list[ReadFailure] = []
        """As many as an error names."""

    def write(self, failures: Sequence[ReadFailure]) -> None:
        """Add a line for each."""
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
        """Close the file."""
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
        self._columns = PassedColumns(["features", "files"], _name_of_array)
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
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
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
        self._columns = PassedColumns(["file", *self._names], _utf8)
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


def _name_of_array(column: str) -> str:
    """Return a column's name as an archive can have it, in which it is neither a path nor a file.

    NumPy takes ``features.npy`` for ``features``, and a zip file ends a name where a 0 is.
    """
    return re.sub(r"[/\\\0]|\.(?=npy\Z)", "_", _utf8(column))


def _utf8(text: str) -> str:
    """Return text that UTF-8 can hold: half a surrogate pair becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
