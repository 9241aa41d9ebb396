"""The rows of a table on disk: CSV and TSV as spreadsheets and programs write them, and parquet.

A row comes with its place, which is what a message calls it; a table is read as the caller goes
on, never as a whole.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from nnmf_cuda.data.reading import first_few, reason

SUFFIXES = (".csv", ".tsv", ".parquet")

_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)
"""The line with which Excel names the delimiter, before the header."""


class Row(NamedTuple):
    """A row of a table: where it stands, and its cells as text, "" for an empty one."""

    place: str
    cells: tuple[str, ...]


class Table:
    """A table whose header has been read.

    Attributes
    ----------
    path : Path
        The file.
    header : tuple of str
        The columns' names, each once; a column without a name is called ``column_N``.
    """

    def __init__(self, path: Path, known: Iterable[str] = ()) -> None:
        """Read the header; `known` are names by which the delimiter of a CSV is told."""
        self.path = path
        self._delimiter = ""
        if path.suffix.lower() == ".parquet":
            names = self._open_parquet()
        else:
            names = self._sniff({name.casefold() for name in known})
        self.header = _checked_header(names, path)

    def rows(self) -> Iterator[Row]:
        """Give the rows below the header; lines without any text are no rows.

        A row that has more or fewer cells than the header is a ValueError: which cell belongs to
        which column cannot be known.
        """
        yield from self._csv_rows() if self._delimiter else self._parquet_rows()

    def _sniff(self, known: set[str]) -> list[str]:
        """Choose the delimiter that makes most of the known names of the header, or most names."""
        headers = {}
        for delimiter in _DELIMITERS:
            with self._opened() as (file, given):
                delimiter = given or delimiter
                try:
                    headers[delimiter] = next(_records(file, delimiter))[1]
                except csv.Error:  # by a quote in a header that has another delimiter
                    continue
                except StopIteration:
                    raise ValueError(
                        f"{self.path} is empty; give a line of columns' names and a row an image"
                    ) from None

        def fit(delimiter: str) -> tuple[int, int]:
            cells = headers[delimiter]
            return sum(cell.strip().casefold() in known for cell in cells), len(cells)

        if not headers:
            raise ValueError(f"{self.path}: the quotes of its header are not closed; mend them")
        self._delimiter = max(headers, key=fit)
        return headers[self._delimiter]

    @contextmanager
    def _opened(self) -> Iterator[tuple[IO[str], str]]:
        """Open a CSV at its header, with the delimiter that a line before it names, or ""."""
        try:
            with self.path.open("rb") as raw:
                begin = raw.read(2)
            if begin in (b"\xff\xfe", b"\xfe\xff"):
                raise ValueError(f"{self.path} is UTF-16; {_SAVE_AS}")
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                found = _SEPARATOR_LINE.fullmatch(file.readline(16))
                if found is None:
                    file.seek(0)
                yield file, found[1] if found else ""
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path} is not UTF-8 (byte 0x{error.object[error.start]:02x}); {_SAVE_AS}"
            ) from error
        except OSError as error:
            raise ValueError(f"cannot read {str(self.path)!r}: {reason(error)}") from error

    def _csv_rows(self) -> Iterator[Row]:
        line = 0
        with self._opened() as (file, given):
            skipped = 1 if given else 0
            try:
                records = _records(file, self._delimiter)
                line, _ = next(records)
                for after, cells in records:
                    start, line = line + 1, after
                    if not any(cell.strip() for cell in cells):
                        continue
                    if len(cells) != len(self.header):
                        raise ValueError(
                            f"{self.path}, line {start + skipped}: {len(cells)} cells, but the"
                            f" header names {len(self.header)} columns; quote cells that hold"
                            f" {self._delimiter!r}, and give every row all columns"
                        )
                    yield Row(f"line {start + skipped}", tuple(cells))
            except csv.Error as error:
                raise ValueError(
                    f"{self.path}, line {line + 1 + skipped}: {error}; mend the quotes from there"
                ) from error

    def _open_parquet(self) -> list[str]:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(
                "reading .parquet needs pyarrow: pip install 'nnmf-cuda[parquet]'"
            ) from error
        try:
            file: Any = pyarrow.parquet.ParquetFile(self.path)
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"cannot read {str(self.path)!r}: {reason(error)}") from error
        with file:
            schema = file.schema_arrow
            nested = [field.name for field in schema if pyarrow.types.is_nested(field.type)]
        if nested:
            raise ValueError(
                f"{self.path}: column {first_few([repr(name) for name in nested])} holds structures"
                " or lists; give a table of plain cells, with images as files"
            )
        return list(schema.names)

    def _parquet_rows(self) -> Iterator[Row]:
        import pyarrow.parquet

        number = 0
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=4096):
                    for cells in zip(*(column.to_pylist() for column in batch), strict=True):
                        number += 1
                        texts = tuple("" if cell is None else str(cell) for cell in cells)
                        yield Row(f"row {number}", texts)
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(
                f"{self.path} is damaged after row {number}: {reason(error)}"
            ) from error


_SAVE_AS = (
    'save it as UTF-8 ("CSV UTF-8" in a spreadsheet), so that no letter of a name can be mistaken'
)


def _records(file: IO[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Give each record with the number of its last line; a cell in quotes may hold line ends."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    for cells in reader:
        yield reader.line_num, cells


def _checked_header(names: Sequence[str], path: Path) -> tuple[str, ...]:
    header = tuple(name.strip() or f"column_{number}" for number, name in enumerate(names, 1))
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(
            f"{path}: its header names {first_few([repr(name) for name in repeated])} more than"
            " once; give every column a name of its own"
        )
    return header
