"""Reader for tables of images: a row an image, as CSV, TSV or parquet.

Columns are ``file`` and, where there are such, ``label``, ``patient``, ``series``, ``split``,
``fold``, ``mask`` and ``frame``; they are known by these and some usual names, or named with
``--columns``. Paths are relative to the table's folder. All other columns pass through.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.images import ImageSource, LazyImage
from nnmf_cuda.data.readers import masks
from nnmf_cuda.data.readers.base import SPLIT_ALIASES, Records, as_folds, in_order, parts_of
from nnmf_cuda.data.readers.files import Files
from nnmf_cuda.data.readers.rows import SUFFIXES, Row, Table
from nnmf_cuda.data.reading import TABLE_COLUMNS, Account, ReadOptions

_USUAL: Mapping[str, tuple[str, ...]] = {
    "file": ("file", "path", "filename", "filepath", "image", "imagepath", "imagefile", "img"),
    "label": ("label", "labels", "class", "classname", "target"),
    "patient": ("patient", "patientid", "pid", "subject", "subjectid", "participant",
                "participantid", "case", "caseid"),
    "series": ("series", "seriesid", "seriesuid", "seriesinstanceuid"),
    "split": ("split", "subset", "partition"),
    "fold": ("fold", "patientfold"),
    "mask": ("mask", "maskpath", "maskfile", "segmentation", "seg"),
    "frame": ("frame",),
}  # fmt: skip
"""What tables call these columns, without case, blanks and signs; the first goes before others."""
_UNKNOWN = ("na", "n/a", "#n/a", "<na>", "nan", "null")
"""What spreadsheets and statistics write for a label that is missing; "none" may be a class."""


HEEDS = frozenset({"axis", "columns", "decode", "keep_ids", "mask_area", "patient_from", "window"})


def recognises(path: Path) -> bool:
    """Tell a table by its suffix."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def images(path: Path, options: ReadOptions, account: Account) -> Iterator[ImageSource]:
    """Give the image of each row in order, with all that the row says beside it.

    Unless bad images are skipped, files that do not exist are a ValueError before anything is
    given; for that the table is read twice.
    """
    table, columns = _opened(path, options, needed=("file", "frame"))
    if options.on_error == "raise":
        missing = _Missing(path)
        for row in table.rows():
            missing.look(columns.file(row), columns.written(row))
        missing.refuse()
    empty = True
    for row in table.rows():
        empty = False
        entry = columns.entry(row)
        account.met(entry.file)
        yield columns.image(row, entry)
    if empty:
        raise ValueError(f"{path} has no row below its header; give a row an image")


def read(
    path: Path, options: ReadOptions, account: Account, *, label_key: str = "labels"
) -> Records:
    """List the labelled images of a table.

    The label is the column ``label``, or the one that `label_key` names; without such a column, a
    ``mask`` tells it (see `nnmf_cuda.data.readers.masks`). Rows without a label are left out and
    counted, and so are repetitions of a row; two rows that say different things of one image are a
    ValueError, as are files that do not exist.
    """
    table, columns = _opened(path, options, needed=TABLE_COLUMNS, label_key=label_key)
    columns.check_labels()
    rows, entries, notes = _labelled(table, columns, options, account)
    if not rows:
        raise ValueError(f"{path} has no row with a label below its header; give a row an image")
    if columns.has("label"):
        values = [columns.cell(row, "label") for row in rows]
        names = {value: value for value in in_order(values)}
    else:
        rows, entries, values = _labels_of_masks(rows, entries, columns, options, account)
        names = dict(masks.NAMES)
        notes.append(f"Labels come from the masks in column {columns.names['mask']!r}")
    groups: dict[str, NDArray[Any]] = {
        name: np.array([columns.cell(row, name) for row in rows])
        for name in ("patient", "series")
        if columns.has(name)
    }
    if columns.has("fold"):
        groups["patient_fold"] = as_folds([columns.cell(row, "fold") for row in rows])
    if "patient" not in groups:
        by_path = parts_of(map(columns.written, rows), options.pattern)
        groups = {name: by_path[name] for name in by_path if name != "label"} | groups
    if "patient" not in groups and "series" not in groups:
        patients = columns.patients(entries)
        if patients is not None:
            groups["patient"] = patients
            notes.append("Patients are those that the DICOM files name")
    return Records(
        images=[columns.image(row, entry) for row, entry in zip(rows, entries, strict=True)],
        values=np.array(values),
        names=names,
        split=columns.splits(rows) if columns.has("split") else None,
        files=np.array([entry.name for entry in entries]),
        groups=groups,
        columns={
            name: np.array([row.cells[at] for row in rows]) for name, at in columns.others.items()
        },
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Entry:
    """What a row names: a file, one of its frames if it has several, and a name for both."""

    file: Path
    frame: int | None
    name: str


class _Columns:
    """Which column of a table is which of ours, and what they hold."""

    def __init__(
        self, table: Table, options: ReadOptions, *, needed: Sequence[str], label_key: str
    ) -> None:
        self._table, self._folder, self._files = table, table.path.parent, Files(options)
        asked = options.column_names
        if label_key != "labels":
            asked.setdefault("label", label_key)
        self.names = {ours: self._asked(ours, theirs) for ours, theirs in asked.items()}
        for ours in needed:
            if ours not in asked and (found := self._usual(ours)) is not None:
                self.names[ours] = found
        self._place = {name: at for at, name in enumerate(table.header)}
        if "file" not in self.names:
            raise ValueError(
                f"{table.path} has no column of files ({', '.join(_USUAL['file'])}); it has"
                f" {self._listed()}; name it with --columns file=NAME, or put it together from"
                " others, as in --columns 'file=images/{id}.png'"
            )
        known = {self.names[ours] for ours in needed if ours in self.names}
        self.others = {name: at for name, at in self._place.items() if name not in known}

    def _asked(self, ours: str, theirs: str) -> str:
        used = _fields(theirs) or [theirs]
        if unknown := [name for name in used if name not in self._table.header]:
            raise ValueError(
                f"{self._table.path} has no column {unknown[0]!r} (for {ours}); it has"
                f" {self._listed()}"
            )
        if _fields(theirs) and ours not in ("file", "mask"):
            raise ValueError(
                f"columns: {ours}={theirs} puts columns together, which only file and mask can"
            )
        try:
            theirs.format_map(dict.fromkeys(used, ""))
        except (ValueError, LookupError, AttributeError) as error:
            raise ValueError(f"columns: {ours}={theirs} is no pattern: {error}") from error
        return theirs

    def _usual(self, ours: str) -> str | None:
        usual = _USUAL[ours]
        found = {plain: name for name in self._table.header if (plain := _plain(name)) in usual}
        if usual[0] in found:
            return found[usual[0]]
        if len(found) > 1:
            raise ValueError(
                f"{self._table.path}: columns {', '.join(map(repr, found.values()))} may each be"
                f" the {ours}; choose one with --columns {ours}=NAME"
            )
        return next(iter(found.values()), None)

    def _listed(self) -> str:
        return ", ".join(map(repr, self._table.header))

    def has(self, ours: str) -> bool:
        """Tell whether the table has such a column."""
        return ours in self.names

    def check_labels(self) -> None:
        """Raise ValueError unless the table can say what class an image has."""
        if not (self.has("label") or self.has("mask")):
            raise ValueError(
                f"{self._table.path} has no column of labels ({', '.join(_USUAL['label'])}) nor"
                f" of masks; it has {self._listed()}; name it with --columns label=NAME"
            )

    def cell(self, row: Row, ours: str) -> str:
        """Return what a row has in one of our columns; only a label or a mask may be empty."""
        text = row.cells[self._place[self.names[ours]]].strip()
        if ours == "label" and text.casefold() in _UNKNOWN:
            return ""
        if not text and ours not in ("label", "mask", "frame"):
            raise ValueError(
                f"{self._table.path}, {row.place}: {self.names[ours]!r} is empty; every row needs"
                " one: fill it, or take the column away"
            )
        return text

    def path(self, row: Row, ours: str) -> str:
        """Return what a row names as its file or mask; "" where one is empty."""
        pattern = self.names[ours]
        if not _fields(pattern):
            text = self.cell(row, ours)
        else:
            cells = {name: row.cells[self._place[name]].strip() for name in _fields(pattern)}
            text = pattern.format_map(cells) if all(cells.values()) else ""
            if not text and ours == "file":
                raise ValueError(
                    f"{self._table.path}, {row.place}: a cell of {pattern!r} is empty; fill it"
                )
        if "\0" in text:
            raise ValueError(f"{self._table.path}, {row.place}: {text!r} is no path")
        # As Windows writes paths; elsewhere a name may hold the sign.
        here = text.replace("\\", "/")
        if here != text and (self._folder / here).exists():
            return text if (self._folder / text).exists() else here
        return text

    def written(self, row: Row) -> str:
        """Return a row's file as the table writes it."""
        return self.path(row, "file")

    def file(self, row: Row) -> Path:
        """Return a row's file."""
        return self._folder / self.written(row)

    def masks(self, row: Row) -> list[Path]:
        """Return a row's mask, in a list; none where it is empty."""
        text = self.path(row, "mask")
        return [self._folder / text] if text else []

    def entry(self, row: Row) -> _Entry:
        """Return what a row names."""
        text = self.cell(row, "frame") if self.has("frame") else ""
        written = self.written(row)
        if not text:
            return _Entry(self._folder / written, None, written)
        if not re.fullmatch(r"\d{1,9}(\.0)?", text):
            raise ValueError(
                f"{self._table.path}, {row.place}: frame {text!r} is no number; count from 0"
            )
        frame = int(text.removesuffix(".0"))
        return _Entry(self._folder / written, frame, f"{written}[{frame}]")

    def image(self, row: Row, entry: _Entry) -> LazyImage:
        """Return the image of a row, which takes the row's other columns with it."""
        name = entry.file if entry.frame is None else Path(f"{entry.file}[{entry.frame}]")
        beside = {name: row.cells[at] for name, at in self.others.items()}
        return LazyImage(name, self._files.image(entry.file, entry.frame, name), beside)

    def patients(self, entries: Sequence[_Entry]) -> NDArray[np.str_] | None:
        """Return the patients whom the files themselves name; None where not all do."""
        found = []
        for entry in entries:
            try:
                patient = self._files.patient(entry.file, entry.frame)
            except ValueError:  # which will be told when the image is asked for
                patient = "unreadable"
            if patient is None:
                return None
            found.append(patient)
        return np.array(found)

    def splits(self, rows: Sequence[Row]) -> NDArray[np.str_]:
        """Return to which split each row belongs."""
        found = [self.cell(row, "split") for row in rows]
        for row, name in zip(rows, found, strict=True):
            if name.lower() not in SPLIT_ALIASES:
                raise ValueError(
                    f"{self._table.path}, {row.place}: {self.names['split']!r} is {name!r}; give"
                    " train, valid and test"
                )
        return np.array([SPLIT_ALIASES[name.lower()] for name in found])

    def claims(self, row: Row) -> tuple[str, ...]:
        """Return what a row says of its image that this package uses."""
        ours = ("label", "patient", "series", "split", "fold", "mask")
        return tuple(
            self.path(row, "mask") if name == "mask" else self.cell(row, name)
            for name in ours
            if self.has(name)
        )


def _opened(
    path: Path, options: ReadOptions, *, needed: Sequence[str], label_key: str = "labels"
) -> tuple[Table, _Columns]:
    """Open a table and find the columns that are needed; all others are no concern."""
    asked = {name for pattern in options.column_names.values() for name in _fields(pattern)}
    asked.update(options.column_names.values(), *_USUAL.values())
    table = Table(path, asked)
    return table, _Columns(table, options, needed=needed, label_key=label_key)


def _labelled(
    table: Table, columns: _Columns, options: ReadOptions, account: Account
) -> tuple[list[Row], list[_Entry], list[str]]:
    """Return the rows to be used, what they name, and notes on those that are not used."""
    rows, entries = [], []
    seen: dict[tuple[str, int | None], Row] = {}
    missing, n_repeated, n_unlabelled = _Missing(table.path), 0, 0
    source = "label" if columns.has("label") else "mask"
    for row in table.rows():
        entry = columns.entry(row)
        account.met(entry.file)
        first = seen.setdefault((os.path.normpath(entry.file), entry.frame), row)
        if first is not row:
            if columns.claims(first) != columns.claims(row):
                raise ValueError(
                    f"{table.path}: {first.place} and {row.place} say different things of"
                    f" {entry.name!r}; keep one of them"
                )
            n_repeated += 1
            continue
        if not (columns.cell(row, "label") if source == "label" else columns.path(row, "mask")):
            n_unlabelled += 1
            continue
        if not missing.look(entry.file, entry.name) and options.on_error == "skip":
            account.skip(entry.file, "does not exist")
            continue
        rows.append(row)
        entries.append(entry)
    if options.on_error == "raise":
        missing.refuse()
    notes = [f"{n_repeated} rows that repeat another are left out"] if n_repeated else []
    if n_unlabelled:
        notes.append(f"{n_unlabelled} rows without a {source} are left out")
    return rows, entries, notes


def _labels_of_masks(
    rows: list[Row],
    entries: list[_Entry],
    columns: _Columns,
    options: ReadOptions,
    account: Account,
) -> tuple[list[Row], list[_Entry], list[str]]:
    """Return the rows whose mask can be read, what they name, and the values of `masks.NAMES`."""
    kept_rows, kept_entries, values = [], [], []
    of_rows = (columns.masks(row) for row in rows)
    for row, entry, label in zip(
        rows, entries, masks.labels(of_rows, options, account), strict=True
    ):
        if label is not None:
            kept_rows.append(row)
            kept_entries.append(entry)
            values.append(label)
    return kept_rows, kept_entries, values


class _Missing:
    """Files that a table names and that are not there: their number, and the first few."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0
        self._first: list[str] = []
        self._elsewhere = False

    def look(self, file: Path, written: str) -> bool:
        """Tell whether a file exists, and remember if not."""
        try:
            if file.exists():
                return True
        except OSError:  # such as a name that is too long
            pass
        self._count += 1
        if len(self._first) < 3:
            self._first.append(written)
            self._elsewhere = Path(written).exists()
        return False

    def refuse(self) -> None:
        """Raise ValueError if files are missing."""
        if not self._count:
            return
        hint = f"paths are relative to the table's folder, {self._path.parent}"
        if self._elsewhere:
            hint += ", not to the current folder: move the table"
        elif any("\\" in name for name in self._first):
            hint += ", with / between folders"
        elif not any(Path(name).suffix for name in self._first):
            hint += "; --columns 'file=FOLDER/{NAME}.png' puts them together from a column"
        more = self._count - len(self._first)
        names = ", ".join(map(repr, self._first)) + (f" and {more} more" if more else "")
        raise ValueError(
            f"{self._path} names {self._count} files that do not exist: {names}; {hint}; or leave"
            " them out with --on_error skip"
        )


def _fields(pattern: str) -> list[str]:
    """Return the columns that a pattern such as "images/{id}.png" is put together from."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(pattern) if name]
    except ValueError:  # a single brace: a column's own name
        return []


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()
