"""Reader for DICOM: files with or without a suffix, and folders of them.

Whether a file is DICOM is told by its content. Patients, series and the order of slices come from
the headers; classes from folders, as for images, or from a pattern. No name, date or number of a
patient reaches a result unless it is asked for: ids are hashed, and so is what repeats them in
names of files and folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.images import ImageSource, LazyImage, failing_image, is_image, walk_files
from nnmf_cuda.data.readers.base import Records, classes_of, parts_of, refuse_label_key, splits_of
from nnmf_cuda.data.readers.dicom_file import (
    DicomFile,
    NotAnImage,
    NotDicom,
    is_dicom,
    read_header,
    reason_of,
)
from nnmf_cuda.data.readers.dicom_names import NamesNearby, hashed, masked_path
from nnmf_cuda.data.readers.dicom_pixels import grey_of, read_frame
from nnmf_cuda.data.reading import Account, ReadFailure, ReadOptions

_N_SNIFFED = 64
"""Files of a folder that are looked at to tell what it holds."""
_N_SAMPLED = 32
"""Frames of a series from which its percentiles are computed, evenly spread."""
_PIXELS_SAMPLED = 2**16
"""Of each."""


HEEDS = frozenset({"keep_ids", "patient_from", "window"})


def recognises(path: Path) -> bool:
    """Tell a file by its content, and a folder by that of its first files."""
    if path.is_file():
        return is_dicom(path)
    if any(is_dicom(path / name) for name in ("DICOMDIR", "dicomdir")):
        return True  # as of a CD, whose viewer and previews may come first
    n_dicom = n_other = 0
    try:
        for file in islice(walk_files(path), _N_SNIFFED):
            if is_image(file):
                n_other += 1
            elif is_dicom(file):
                n_dicom += 1
    except ValueError:  # a folder that cannot be read, which is told by who reads it
        return False
    return n_dicom > n_other


def images(path: Path, options: ReadOptions, account: Account) -> Iterator[ImageSource]:
    """Give every frame, series by series in the order of slices.

    The headers of all files are in memory, and no pixels. A file that cannot be read is given as
    an image that raises; localisers are left out, unless the path is one of them.
    """
    root, frames, unreadable, source_notes = _scan(path, options, account)
    if not frames and not unreadable:
        raise ValueError(f"no DICOM images in {str(path)!r}; {_why_none(account)}")
    yield from (failing_image(failure.file, failure.message) for failure in unreadable)
    with _names_hidden(frames, root, options):
        patients, notes = _patients(frames, options, root)
    # Many files given by name are as many sources, which have the same to say.
    account.notes += [n for n in (*source_notes, *notes) if n not in account.notes]
    for frame, patient in zip(frames, patients, strict=True):
        columns = {"patient": patient} if patient else {}
        columns["series"] = _shown(frame.file.series, options) if frame.file.series else ""
        yield frame.image(options, root, columns)


def read(
    path: Path, options: ReadOptions, account: Account, *, label_key: str = "labels"
) -> Records:
    """List the frames of class folders, ``root/class/...`` or ``root/split/class/...``.

    With ``patient_from`` the class is what its {label} takes from a path, and the patient what
    {patient} does.
    """
    refuse_label_key(path, label_key)
    root, frames, unreadable, source_notes = _scan(path, options, account)
    if unreadable:
        if options.on_error == "raise":
            more = len(unreadable) - 1
            raise ValueError(unreadable[0].message + (f"; and {more} more files" if more else ""))
        for failure in unreadable:
            account.skip(failure.file, "unreadable")
    if not frames:
        raise ValueError(f"no DICOM images in {str(path)!r}; {_why_none(account)}")
    below = [frame.file.path.relative_to(root) for frame in frames]
    with _names_hidden(frames, root, options):
        labels = classes_of(below, root, options)
        patients, notes = _patients(frames, options, root)
    if options.pattern is None:
        _refuse_patients_as_classes(root, labels, patients, frames)
    groups: dict[str, NDArray[Any]] = {}
    if len(set(patients)) > 1:
        groups["patient"] = np.array(patients)
    series = [_shown(frame.file.series or str(frame.file.path.parent), options) for frame in frames]
    groups["series"] = np.array(series)
    return Records(
        images=[frame.image(options, root) for frame in frames],
        values=np.array(labels),
        names={name: name for name in sorted(set(labels))},
        split=splits_of(below),
        files=np.array([_name(frame, root, options).as_posix() for frame in frames]),
        groups=groups,
        notes=(*source_notes, *notes),
    )


def lazy(path: Path, options: ReadOptions, *, frame: int | None = None) -> LazyImage | None:
    """Return a DICOM file as an image, for readers that name files; None if it is no DICOM.

    Percentiles are its own, not those of its series. A file of several frames asks for one of
    them, counted from 0. What cannot be read is a ValueError.
    """
    if not is_dicom(path):
        return None
    try:
        header = read_header(path)
    except NotAnImage as error:
        raise ValueError(f"{str(path)!r} is DICOM, but {error}; leave it out") from error
    if frame is None and header.n_frames > 1:
        raise ValueError(
            f"{str(path)!r} holds {header.n_frames} frames; name one of them, 0 to "
            f"{header.n_frames - 1}"
        )
    if not 0 <= (frame or 0) < header.n_frames:
        raise ValueError(f"{str(path)!r} has no frame {frame}; it holds {header.n_frames}")
    entry = _Frame(header, frame or 0, _Series())
    entry.series.frames.append(entry)
    patient = _patients([entry], options, path.parent)[0][0]
    columns = {"patient": patient} if patient else {}
    return entry.image(options, path.parent, columns)


@dataclass(eq=False)
class _Series:
    """The frames that are compared with each other, and percentiles of their values."""

    frames: list[_Frame] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)
    known: dict[tuple[float, float], tuple[float, float]] = field(default_factory=dict)

    def percentiles(self, low: float, high: float) -> tuple[float, float]:
        """Return two percentiles of some frames, evenly spread, each image's filling left out."""
        with self.lock:
            if (low, high) not in self.known:
                step = -(-len(self.frames) // _N_SAMPLED)
                values = np.concatenate([frame.sample() for frame in self.frames[::step]])
                found = np.percentile(values, (low, high)) if values.size else (0.0, 0.0)
                self.known[low, high] = float(found[0]), float(found[1])
            return self.known[low, high]


@dataclass(frozen=True, eq=False)
class _Frame:
    """One frame of a file."""

    file: DicomFile
    number: int
    series: _Series

    def sample(self) -> NDArray[np.float32]:
        """Return some finite values; none of a frame that cannot be read, which is told later."""
        try:
            pixels = read_frame(self.file, self.number)
        except Exception:
            return np.empty(0, np.float32)
        values = pixels.values
        if pixels.outside is not None:
            values = values[~pixels.outside]
        flat = values.ravel()
        some = flat[:: -(-flat.size // _PIXELS_SAMPLED) or 1].astype(np.float32)
        return some[np.isfinite(some)]

    def image(
        self, options: ReadOptions, root: Path, columns: dict[str, str] | None = None
    ) -> LazyImage:
        """Return what decodes the frame; its name is without secrets, above the root too."""
        above = root if options.keep_ids else masked_path(root, self.file.secrets)
        name = above / _name(self, root, options)

        def read(image_shape: tuple[int, int]) -> NDArray[Any]:
            try:
                return grey_of(
                    self.file,
                    self.number,
                    image_shape,
                    window=options.grey_window,
                    percentiles=self.series.percentiles,
                )
            except Exception as error:  # decoders raise nearly anything for damaged files
                raise ValueError(
                    f"cannot read DICOM file {str(name)!r}: {reason_of(error)}"
                ) from error

        return LazyImage(name, read, columns or {}, found_at=self.file.path)


class _Scan(NamedTuple):
    """What a source holds, by its headers."""

    root: Path
    """Below it names begin."""
    frames: list[_Frame]
    """Series by series, in the order of slices."""
    unreadable: list[ReadFailure]
    notes: list[str]


def _scan(path: Path, options: ReadOptions, account: Account) -> _Scan:
    """Read all headers of a source."""
    alone = path.is_file()
    root = path.parent if alone else path
    files: Iterable[Path] = [path] if alone else walk_files(path, account)
    headers: list[DicomFile] = []
    unreadable: list[ReadFailure] = []
    n_before = len(account.skipped)
    for file in files:
        try:
            status = file.stat()
            headers.append(_header(file, status.st_mtime_ns, status.st_size))
        except NotDicom:
            account.skip(file, "no DICOM file")
        except NotAnImage as error:
            if alone and "DICOMDIR" in str(error):
                return _scan(root, options, account)
            account.skip(file, str(error))
        except OSError as error:
            message = f"cannot read DICOM file {str(file)!r}: {reason_of(error)}"
            unreadable.append(ReadFailure(file, message))
        except ValueError as error:
            unreadable.append(ReadFailure(file, str(error)))
    if alone:
        account.met(path)
    frames: list[_Frame] = []
    n_windows = 0
    for members in _by_series(headers).values():
        kept = members if alone else _without_localisers(members, account)
        series = _Series()
        entries = [_Frame(file, n, series) for file in kept for n in range(file.n_frames)]
        series.frames += sorted(entries, key=_order(entries))
        frames += series.frames
        n_windows += sum(any(len(t.windows) > 1 for t in file.transforms) for file in kept)
    if not options.keep_ids:
        near = NamesNearby({header.path: header.secrets for header in headers}, root)
        account.skipped[n_before:] = [
            ReadFailure(near.masked(file), why) for file, why in account.skipped[n_before:]
        ]
        unreadable = [_without_secrets(failure, near) for failure in unreadable]
    notes = []
    if n_windows and options.window is None:
        notes.append(
            f"{n_windows} DICOM files have several windows; the first is taken (--window chooses "
            "another)"
        )
    return _Scan(root, frames, unreadable, notes)


def _without_secrets(failure: ReadFailure, near: NamesNearby) -> ReadFailure:
    """Return a failure whose file is named without what its neighbours say of patients."""
    file, message = failure
    shown = near.masked(file)
    if shown == file:
        return failure
    message = message.replace(repr(str(file)), repr(str(shown)))
    return ReadFailure(shown, f"{message} (--keep_ids shows its whole name)")


@contextmanager
def _names_hidden(frames: Sequence[_Frame], root: Path, options: ReadOptions) -> Iterator[None]:
    """Have errors that quote paths show no more of them than results do."""
    try:
        yield
    except ValueError as error:
        if options.keep_ids:
            raise
        message = str(error)
        for file in {frame.file.path: frame.file for frame in frames}.values():
            below = file.path.relative_to(root)
            shown = masked_path(below, file.secrets)
            message = message.replace(repr(below.as_posix()), repr(shown.as_posix()))
        raise ValueError(message) from None


@lru_cache(maxsize=2**16)
def _header(path: Path, mtime_ns: int, size: int) -> DicomFile:
    """Read a header; a source is asked for its first image before it is read as a whole."""
    return read_header(path)


def _why_none(account: Account) -> str:
    reasons = Counter(reason for _, reason in account.skipped)
    found = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(3))
    return f"there are {found}" if found else "the folder is empty"


def _by_series(headers: Iterable[DicomFile]) -> dict[tuple[str, str], list[DicomFile]]:
    """Return the files of each series; without a series, of each folder."""
    found: dict[tuple[str, str], list[DicomFile]] = {}
    for file in headers:
        key = ("series", file.series) if file.series else ("folder", str(file.path.parent))
        found.setdefault(key, []).append(file)
    return found


def _without_localisers(files: list[DicomFile], account: Account) -> list[DicomFile]:
    """Leave out what lies across a series: localisers, and single slices of other orientations."""

    def orientation(file: DicomFile) -> tuple[float, ...]:
        place = file.place(0)
        return () if place is None else tuple(round(x, 1) + 0.0 for x in place.orientation)

    common, n_common = Counter(orientation(file) for file in files).most_common(1)[0]
    kept = []
    for file in files:
        if file.localiser:
            account.skip(file.path, "localiser")
        elif n_common > len(files) / 2 and orientation(file) != common:
            account.skip(file.path, "of another orientation than its series")
        else:
            kept.append(file)
    return kept


def _order(frames: Sequence[_Frame]) -> Any:
    """Return the key that sorts the frames of a series: by position, if all have one."""
    places = {id(frame): frame.file.place(frame.number) for frame in frames}

    def key(frame: _Frame) -> tuple[float, int, int]:
        place = places[id(frame)]
        where = round(place.along_normal(), 3) if by_position and place else 0.0
        return where, frame.file.number, frame.number

    by_position = all(place is not None for place in places.values())
    return key


def _shown(identity: str, options: ReadOptions) -> str:
    """Return an id as it is or, unless that was asked for, 12 digits of its SHA-256."""
    return identity if options.keep_ids else hashed(identity)


def _patients(
    frames: Sequence[_Frame], options: ReadOptions, root: Path
) -> tuple[list[str], list[str]]:
    """Return the patient of each frame, "" where unknown, and notes on it."""
    if options.takes("patient"):
        below = (frame.file.path.relative_to(root) for frame in frames)
        found = parts_of(below, options.pattern)["patient"].tolist()
        return [_shown(patient, options) for patient in found], _hashed_note(options)
    patients = [frame.file.patient for frame in frames]
    notes = []
    n_missing = sum(not patient for patient in patients)
    studies = [
        frame.file.study or frame.file.series or str(frame.file.path.parent) for frame in frames
    ]
    if len(set(patients)) == 1 and len(set(studies)) > 1:
        notes.append(
            "All DICOM images have "
            + ("no PatientID" if n_missing else "one PatientID")
            + "; their studies are taken for patients"
        )
        patients = studies
    elif n_missing:
        notes.append(
            f"{n_missing} DICOM images have no PatientID; their study is taken for a patient"
        )
        patients = [p or study for p, study in zip(patients, studies, strict=True)]
    return [_shown(p, options) if p else "" for p in patients], notes + _hashed_note(options)


def _hashed_note(options: ReadOptions) -> list[str]:
    if options.keep_ids:
        return []
    return [
        "Patients and series of DICOM files are named by 12 digits of the SHA-256 of their ids "
        "(--keep_ids shows them as they are)"
    ]


def _name(frame: _Frame, root: Path, options: ReadOptions) -> Path:
    """Return a frame's name below the root, without what its header says of the patient."""
    below = frame.file.path.relative_to(root)
    if not options.keep_ids:
        below = masked_path(below, frame.file.secrets)
    if frame.file.n_frames > 1:
        below = below.with_name(f"{below.name}[{frame.number}]")
    return below


def _refuse_patients_as_classes(
    root: Path, labels: Sequence[str], patients: Sequence[str], frames: Sequence[_Frame]
) -> None:
    """Raise ValueError if folders are those of patients or series, not of classes."""
    series = [frame.file.series for frame in frames]
    for kind, members in (("patient", patients), ("series", series)):
        pairs = set(zip(labels, members, strict=True))
        n_labels = len(set(labels))
        if n_labels > 2 and all(members) and len(pairs) == n_labels == len(set(members)):
            raise ValueError(
                f"{root}: each of its {n_labels} folders holds one {kind}, so they are no classes; "
                "where their folders have the class, give --patient_from "
                "'{patient}/{label}/{name}'; else name files with their labels in a CSV (columns "
                "file and label), sort them into root/class/, or, if the folders are classes, say "
                "so: --patient_from '{label}/{name}'"
            )
