"""One DICOM file by its header: what it says that matters here, and where its pixels are.

A header is parsed once, by pydicom unless it is a plain one; `dicom_pixels` reads the frames.
"""

from __future__ import annotations

import math
import re
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from nnmf_cuda.data.readers.dicom_elements import (
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    MAGIC,
    PIXELS,
    PREAMBLE,
    VALUE_REPRESENTATIONS,
    ByteOrder,
    integer_of,
    numbers_of,
    read_elements,
    sequence_of,
    text_of,
)
from nnmf_cuda.data.reading import open_file

_EXPLICIT = "1.2.840.10008.1.2.1"
_DIRECTORY = "1.2.840.10008.1.3.10"
_NO_IMAGES = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "DOC", "FID")
"""Modalities whose files hold no image, or a mask or a dose for one."""

_MAX_PIXELS = 2**28
"""Of one frame: a damaged header asks for more than that sooner than a scanner does."""
_MAX_INFLATED = 2**31
"""Bytes that a deflated file may unpack to."""

_NAMES = (0x00100010, 0x00101001, 0x00101005)
"""PatientName, OtherPatientNames, PatientBirthName."""
_SECRETS = (
    *_NAMES,
    *(0x00100020, 0x00100030, 0x00101000, 0x00080050),
    *(0x00080020, 0x00080021, 0x00080022, 0x00080023),
)
"""Names; PatientID, -BirthDate, OtherPatientIDs, AccessionNumber; dates of study, series,
acquisition, content."""
_UNUSUAL = frozenset((0x00283000, 0x00283010, 0x52009229, 0x52009230))
"""Sequences that matter here: lookup tables of modality and VOI; shared and per frame groups."""
_WANTED = frozenset(
    (
        *_SECRETS,
        *(0x00080008, 0x00080016, 0x00080060),  # ImageType, SOPClassUID, Modality
        *(0x00100021, 0x0020000D, 0x0020000E),  # issuer of PatientID; UIDs of study and series
        *(0x00200013, 0x00200032, 0x00200037),  # InstanceNumber, position, orientation
        *(0x00280002, 0x00280004, 0x00280008),  # samples, photometric interpretation, frames
        *(0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280103),  # rows, columns, bits
        *(0x00280120, 0x00280121),  # padding
        *(0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056),  # window, rescaling
    )
)
_N_HEAD = 2**15
"""Bytes in which nearly every header ends; a longer one is left to pydicom."""


class Damaged(ValueError):
    """Why a file cannot be read, in words that hold nothing of its header's text."""


class NotDicom(ValueError):
    """A file that does not begin as DICOM does."""


class NotAnImage(ValueError):
    """A sound DICOM file that holds no image: a directory, a report, a contour."""


@dataclass(frozen=True)
class Transform:
    """How stored values of a frame become grey ones."""

    slope: float = 1.0
    intercept: float = 0.0
    windows: tuple[tuple[float, float], ...] = ()
    """(center, width), the first being what is shown."""
    function: str = "LINEAR"

    def limits(self) -> tuple[float, float] | None:
        """Return which of the modality's values are black and white; None if the file has none."""
        if not self.windows:
            return None
        center, width = self.windows[0]
        if self.function == "LINEAR":
            # PS3.3, C.11.2.1.2.1: the width counts values, as if these were integers.
            center, width = center - 0.5, width - 1.0
        low = center - width / 2
        # A width of one value is a threshold.
        return low, max(center + width / 2, math.nextafter(low, math.inf))


@dataclass(frozen=True)
class Place:
    """Where a frame lies in the patient, in mm."""

    position: tuple[float, ...]
    orientation: tuple[float, ...]

    def along_normal(self) -> float:
        """Return the position along the normal of the slice."""
        (a, b, c, d, e, f), (x, y, z) = self.orientation, self.position
        return (b * f - c * e) * x + (c * d - a * f) * y + (a * e - b * d) * z


@dataclass(frozen=True)
class Stored:
    """Where and how pixels lie in a file that is not compressed."""

    offset: int
    dtype: str
    shift: int
    """Bits above those that are used; what stands there is not the image's."""


@dataclass(frozen=True)
class DicomFile:
    """The header of a DICOM image, as far as it matters here."""

    path: Path
    patient: str
    """PatientID with its issuer, "" where there is none."""
    secrets: frozenset[str]
    """The patient's names, dates and numbers in lower case, which no output may show."""
    study: str
    series: str
    number: int
    """InstanceNumber; 0 where there is none."""
    localiser: bool
    shape: tuple[int, int]
    n_frames: int
    transforms: tuple[Transform, ...]
    """One for all frames, or one each."""
    places: tuple[Place | None, ...]
    """One for all frames, or one each."""
    inverted: bool
    eight_bits: bool
    colour: bool
    tables: bool
    """Whether lookup tables stand in the place of slope and window."""
    padding: tuple[float, float] | None
    """Stored values that stand for "outside of the image"."""
    stored: Stored | None

    def transform(self, frame: int) -> Transform:
        """Return how values of a frame become grey ones."""
        return self.transforms[frame if len(self.transforms) > 1 else 0]

    def place(self, frame: int) -> Place | None:
        """Return where a frame lies."""
        return self.places[frame if len(self.places) > 1 else 0]


def is_dicom(path: Path) -> bool:
    """Tell by its first bytes whether a file is DICOM, with or without a preamble; never raises."""
    try:
        with open_file(path) as file:
            return _begins_as_dicom(file.read(PREAMBLE + len(MAGIC)))
    except OSError:
        return False


def _begins_as_dicom(head: bytes) -> bool:
    if head[PREAMBLE:] == MAGIC:
        return True
    # Without a preamble: an element of group 2 or 8, little endian, comes first.
    group, element = head[:2], int.from_bytes(head[2:4], "little")
    if group not in (b"\x02\x00", b"\x08\x00") or element > 0x0100:
        return False
    if head[4:6] in VALUE_REPRESENTATIONS:
        return True
    length = int.from_bytes(head[4:8], "little")
    return 0 < length <= 64 and length % 2 == 0 and len(head) > 16


def read_header(path: Path) -> DicomFile:
    """Read what a file's header says.

    Raises
    ------
    NotDicom
        If it is none.
    NotAnImage
        If the file is sound, and holds no image.
    ValueError
        If it cannot be read.
    """
    import_pydicom()
    try:
        with open_file(path) as file:
            return _header(path, file)
    except (NotDicom, NotAnImage):
        raise
    except Exception as error:  # pydicom raises nearly anything for damaged files
        raise ValueError(f"cannot read DICOM file {str(path)!r}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Return on one line why a file cannot be read, without quoting it: it may name a patient."""
    if isinstance(error, Damaged):
        return str(error)
    strerror = getattr(error, "strerror", None)
    return strerror or f"it is damaged ({type(error).__name__})"


@cache
def import_pydicom() -> Any:
    """Return the library; ImportError with the remedy where it is missing."""
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(
            "reading DICOM needs pydicom: pip install 'nnmf-cuda[medical]'"
        ) from error
    # Its warnings show values, and these can be a patient's.
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    return pydicom


def _header(path: Path, file: IO[bytes]) -> DicomFile:
    pydicom = import_pydicom()
    head = file.read(_N_HEAD)
    if not _begins_as_dicom(head[: PREAMBLE + len(MAGIC)]):
        raise NotDicom(f"{str(path)!r} is no DICOM file")
    if DEFLATED.encode() in head[:4096]:
        _refuse_bomb(head, file)
    dataset: Any = read_elements(head, _WANTED, _UNUSUAL)
    if dataset is not None:
        file.seek(dataset.end)
    else:
        file.seek(0)
        dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True)
    modality = text_of(dataset, 0x00080060)
    syntax = transfer_syntax(dataset)
    if (
        text_of(dataset, 0x00080016) == _DIRECTORY
        or str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY
    ):
        raise NotAnImage("a directory of other files (DICOMDIR)")
    rows, columns = integer_of(dataset, 0x00280010), integer_of(dataset, 0x00280011)
    if modality in _NO_IMAGES:
        raise NotAnImage(f"no image ({modality})")
    if not rows or not columns:
        raise NotAnImage("no image (without rows and columns)")
    n_frames = int(numbers_of(dataset, 0x00280008, (1.0,))[0])
    samples = integer_of(dataset, 0x00280002, 1)
    allocated = integer_of(dataset, 0x00280100, 16)
    n_stored = integer_of(dataset, 0x00280101, allocated)
    size = path.stat().st_size
    if rows * columns > _MAX_PIXELS or not 0 < n_frames <= size:
        raise Damaged(
            f"its header says {n_frames} frames of {rows} x {columns} pixels, in {size} bytes"
        )
    photometric = text_of(dataset, 0x00280004) or "MONOCHROME2"
    signed = integer_of(dataset, 0x00280103) == 1
    colour = not photometric.startswith("MONOCHROME")
    tables = any(sequence_of(dataset, tag) for tag in (0x00283000, 0x00283010))
    stored = None
    if syntax in (IMPLICIT, _EXPLICIT, BIG_ENDIAN) and samples == 1 and not (colour or tables):
        file_dtype = _dtype(allocated, signed, syntax)
        if file_dtype is not None:
            offset = _pixel_offset(
                file,
                implicit=bool(dataset.is_implicit_VR),
                n_bytes=rows * columns * n_frames * (allocated // 8),
                big_endian=syntax == BIG_ENDIAN,
            )
            if offset is not None:
                stored = Stored(offset, file_dtype, max(0, allocated - n_stored))
    transforms, places = _frames(dataset, n_frames)
    return DicomFile(
        path=path,
        patient=_patient(dataset),
        secrets=_secrets(dataset),
        study=text_of(dataset, 0x0020000D),
        series=text_of(dataset, 0x0020000E),
        number=int(numbers_of(dataset, 0x00200013, (0.0,))[0]),
        localiser="LOCALIZER" in text_of(dataset, 0x00080008).upper().split("\\"),
        shape=(rows, columns),
        n_frames=n_frames,
        transforms=transforms,
        places=places,
        inverted=photometric == "MONOCHROME1",
        eight_bits=allocated == n_stored == 8 and not signed,
        colour=colour,
        tables=tables,
        padding=_padding(dataset, signed),
        stored=stored,
    )


def transfer_syntax(dataset: Any) -> str:
    """Return the transfer syntax; a file without one says by its form which it is in."""
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "") or "")
    if not syntax:
        syntax = IMPLICIT if dataset.is_implicit_VR else _EXPLICIT
        dataset.file_meta.TransferSyntaxUID = syntax
    return syntax


def _refuse_bomb(head: bytes, file: IO[bytes]) -> None:
    """Raise ValueError if a deflated file unpacks to more than a memory may hold."""
    start = PREAMBLE + len(MAGIC)
    file.seek(start + 12 + int.from_bytes(head[start + 8 : start + 12], "little"))
    inflated, inflate = 0, zlib.decompressobj(-zlib.MAX_WBITS)
    while inflated <= _MAX_INFLATED and (chunk := inflate.unconsumed_tail or file.read(2**16)):
        inflated += len(inflate.decompress(chunk, 2**24))
    if inflated > _MAX_INFLATED:
        raise Damaged(f"deflated, it holds more than {_MAX_INFLATED} bytes")


def _dtype(allocated: int, signed: bool, syntax: str) -> str | None:
    if allocated == 8:
        # Big endian files swap pairs of bytes: left to pydicom.
        return None if syntax == BIG_ENDIAN else "i1" if signed else "u1"
    if allocated not in (16, 32):
        return None
    return f"{'>' if syntax == BIG_ENDIAN else '<'}{'i' if signed else 'u'}{allocated // 8}"


def _pixel_offset(file: IO[bytes], *, implicit: bool, n_bytes: int, big_endian: bool) -> int | None:
    """Return where pixels begin, the header having been read up to them; None for float ones."""
    start = file.tell()
    element = file.read(12)
    order: ByteOrder = "big" if big_endian else "little"
    tag = int.from_bytes(element[:2], order) << 16 | int.from_bytes(element[2:4], order)
    if tag in PIXELS[:2]:
        return None
    if tag != 0x7FE00010:
        raise NotAnImage("no image (without pixels)")
    length = int.from_bytes(element[4:8] if implicit else element[8:12], order)
    offset = start + (8 if implicit else 12)
    there = min(length, file.seek(0, 2) - offset)
    if there < n_bytes:
        raise Damaged(f"it is cut short: {there} of {n_bytes} bytes of pixels; fetch it anew")
    return offset


def _patient(dataset: Any) -> str:
    patient, issuer = text_of(dataset, 0x00100020), text_of(dataset, 0x00100021)
    return f"{issuer}/{patient}" if patient and issuer else patient


def _secrets(dataset: Any) -> frozenset[str]:
    """Return every word of the header that may name a patient, in lower case."""
    words: set[str] = set()
    for tag in _SECRETS:
        text = text_of(dataset, tag).casefold()
        words |= {text, *text.split("\\")}
        if tag in _NAMES:
            words |= set(re.split(r"[\^=\\\s]+", text))
    return frozenset(words - {""})


def _padding(dataset: Any, signed: bool) -> tuple[float, float] | None:
    if 0x00280120 not in dataset:
        return None
    first = integer_of(dataset, 0x00280120, signed=signed)
    last = integer_of(dataset, 0x00280121, first, signed=signed)
    return min(first, last), max(first, last)


def _frames(dataset: Any, n_frames: int) -> tuple[tuple[Transform, ...], tuple[Place | None, ...]]:
    """Return the transforms and places of all frames: one of each, or as many as frames."""
    common = _of_group(dataset, Transform(), Place((), ()))
    for shared in sequence_of(dataset, 0x52009229):
        common = _of_group(shared, *common)
    groups = sequence_of(dataset, 0x52009230)
    found = [_of_group(group, *common) for group in groups] if len(groups) == n_frames else [common]
    return (
        tuple(transform for transform, _ in found),
        tuple(place if place.position and place.orientation else None for _, place in found),
    )


def _of_group(group: Any, transform: Transform, place: Place) -> tuple[Transform, Place]:
    """Return what a data set or a functional group of it says, or else what is known."""
    transform = _transform(group, transform)
    for tag in (0x00289145, 0x00289132):  # pixel value transformation, frame VOI LUT
        for item in sequence_of(group, tag):
            transform = _transform(item, transform)
    place = _place(group, place)
    for tag in (0x00209116, 0x00209113):  # plane orientation, plane position
        for item in sequence_of(group, tag):
            place = _place(item, place)
    return transform, place


def _transform(dataset: Any, known: Transform) -> Transform:
    slope = numbers_of(dataset, 0x00281053, (known.slope,))[0]
    function = text_of(dataset, 0x00281056).upper() or known.function
    least = 1.0 if function == "LINEAR" else math.ulp(0.0)
    centers, widths = numbers_of(dataset, 0x00281050), numbers_of(dataset, 0x00281051)
    windows = tuple(pair for pair in zip(centers, widths, strict=False) if pair[1] >= least)
    return Transform(
        slope=slope or 1.0,  # 0 would make every image black; some writers mean "none" by it
        intercept=numbers_of(dataset, 0x00281052, (known.intercept,))[0],
        windows=windows or known.windows,
        function=function,
    )


def _place(dataset: Any, known: Place) -> Place:
    position, orientation = numbers_of(dataset, 0x00200032), numbers_of(dataset, 0x00200037)
    return Place(
        position if len(position) == 3 else known.position,
        orientation if len(orientation) == 6 else known.orientation,
    )
