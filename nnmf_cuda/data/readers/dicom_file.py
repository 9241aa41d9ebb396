"""One DICOM file: what its header says that matters here, and its frames as grey values.

Stored values become the modality's (rescale slope and intercept, or a lookup table), these become
grey by a window (PS3.3, C.11.1 and C.11.2), and MONOCHROME1, whose lowest value is white, is
inverted. A header is parsed once, by pydicom unless it is a plain one. Pixels that are not
compressed are then read from their place in the file, all others by pydicom and its plugins.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.decoding import resize_images
from nnmf_cuda.data.readers.dicom_elements import (
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    MAGIC,
    PIXELS,
    PREAMBLE,
    VALUE_REPRESENTATIONS,
    read_elements,
)
from nnmf_cuda.data.reading import Window, open_file, to_unit_range

INSTALL = "pip install 'nnmf-cuda[medical]'"
PLUGINS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"

_EXPLICIT = "1.2.840.10008.1.2.1"
ByteOrder = Literal["little", "big"]

_DIRECTORY = "1.2.840.10008.1.3.10"
_NO_IMAGES = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "DOC", "FID")
"""Modalities whose files hold no image, or a mask or a dose for one."""

_MAX_PIXELS = 2**28
"""Of one frame: a damaged header asks for more than that sooner than a scanner does."""
_MAX_INFLATED = 2**31
"""Bytes that a deflated file may unpack to."""

_SECRETS = (0x00100010, 0x00100020, 0x00100030, 0x00101000, 0x00080050) + (
    *(0x00080020, 0x00080021, 0x00080022, 0x00080023),
)
"""PatientName, -ID, -BirthDate, OtherPatientIDs, AccessionNumber; dates of study, series,
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
    _pydicom()
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
def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(f"reading DICOM needs pydicom: {INSTALL}") from error
    # Its warnings show values, and these can be a patient's.
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    return pydicom


def _header(path: Path, file: IO[bytes]) -> DicomFile:
    pydicom = _pydicom()
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
    modality = _text(dataset, 0x00080060)
    syntax = _syntax(dataset)
    if (
        _text(dataset, 0x00080016) == _DIRECTORY
        or str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY
    ):
        raise NotAnImage("a directory of other files (DICOMDIR)")
    rows, columns = _integer(dataset, 0x00280010), _integer(dataset, 0x00280011)
    if modality in _NO_IMAGES:
        raise NotAnImage(f"no image ({modality})")
    if not rows or not columns:
        raise NotAnImage("no image (without rows and columns)")
    n_frames = int(_numbers(dataset, 0x00280008, (1.0,))[0])
    samples = _integer(dataset, 0x00280002, 1)
    allocated = _integer(dataset, 0x00280100, 16)
    n_stored = _integer(dataset, 0x00280101, allocated)
    size = path.stat().st_size
    if rows * columns > _MAX_PIXELS or not 0 < n_frames <= size:
        raise Damaged(
            f"its header says {n_frames} frames of {rows} x {columns} pixels, in {size} bytes"
        )
    photometric = _text(dataset, 0x00280004) or "MONOCHROME2"
    signed = _integer(dataset, 0x00280103) == 1
    colour = not photometric.startswith("MONOCHROME")
    tables = any(_sequence(dataset, tag) for tag in (0x00283000, 0x00283010))
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
        study=_text(dataset, 0x0020000D),
        series=_text(dataset, 0x0020000E),
        number=int(_numbers(dataset, 0x00200013, (0.0,))[0]),
        localiser="LOCALIZER" in _text(dataset, 0x00080008).upper().split("\\"),
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


def _syntax(dataset: Any) -> str:
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


def _raw(dataset: Any, tag: int) -> Any:
    """Return an element as it stands in the file, which costs a tenth of pydicom's conversion."""
    try:
        return dataset.get_item(tag)
    except KeyError:
        return None


def _text(dataset: Any, tag: int) -> str:
    """Return an element as text, several values divided by a backslash."""
    item = _raw(dataset, tag)
    if item is None or item.value is None:
        return ""
    value = item.value
    if isinstance(value, bytes):
        if value.isascii() and b"\x1b" not in value:
            return value.decode("ascii").strip("\0 ")
        value = dataset[tag].value  # in the character set that the file names
    if isinstance(value, str) or not isinstance(value, Sequence):
        return str(value).strip("\0 ")
    return "\\".join(str(one) for one in value).strip("\0 ")


def _numbers(dataset: Any, tag: int, default: tuple[float, ...] = ()) -> tuple[float, ...]:
    """Return an element of decimal text as numbers; the default where it holds none."""
    text = _text(dataset, tag)
    try:
        # Some writers take the decimal comma of their country.
        found = tuple(float(part.replace(",", ".")) for part in text.split("\\") if part.strip())
    except ValueError:
        return default
    return found if found and all(map(math.isfinite, found)) else default


def _integer(dataset: Any, tag: int, default: int = 0, *, signed: bool = False) -> int:
    """Return a binary element of 16 bits."""
    item = _raw(dataset, tag)
    if item is None or item.value is None or item.value == b"":
        return default
    if not isinstance(item.value, bytes):
        value = item.value
        return int(value[0] if hasattr(value, "__len__") else value)
    order: ByteOrder = "little" if item.is_little_endian else "big"
    return int.from_bytes(item.value[:2], order, signed=signed)


def _sequence(dataset: Any, tag: int) -> Any:
    return dataset[tag].value if tag in dataset else ()


def _patient(dataset: Any) -> str:
    patient, issuer = _text(dataset, 0x00100020), _text(dataset, 0x00100021)
    return f"{issuer}/{patient}" if patient and issuer else patient


def _secrets(dataset: Any) -> frozenset[str]:
    """Return every word of the header that may name a patient, in lower case."""
    words: set[str] = set()
    for tag in _SECRETS:
        text = _text(dataset, tag).casefold()
        words.add(text)
        if tag == _SECRETS[0]:
            words |= set(text.replace("^", " ").replace("=", " ").split())
        else:
            words |= set(text.split("\\"))
    return frozenset(words - {""})


def _padding(dataset: Any, signed: bool) -> tuple[float, float] | None:
    if 0x00280120 not in dataset:
        return None
    first = _integer(dataset, 0x00280120, signed=signed)
    last = _integer(dataset, 0x00280121, first, signed=signed)
    return min(first, last), max(first, last)


def _frames(dataset: Any, n_frames: int) -> tuple[tuple[Transform, ...], tuple[Place | None, ...]]:
    """Return the transforms and places of all frames: one of each, or as many as frames."""
    common = _of_group(dataset, Transform(), Place((), ()))
    for shared in _sequence(dataset, 0x52009229):
        common = _of_group(shared, *common)
    groups = _sequence(dataset, 0x52009230)
    found = [_of_group(group, *common) for group in groups] if len(groups) == n_frames else [common]
    return (
        tuple(transform for transform, _ in found),
        tuple(place if place.position and place.orientation else None for _, place in found),
    )


def _of_group(group: Any, transform: Transform, place: Place) -> tuple[Transform, Place]:
    """Return what a data set or a functional group of it says, or else what is known."""
    transform = _transform(group, transform)
    for tag in (0x00289145, 0x00289132):  # pixel value transformation, frame VOI LUT
        for item in _sequence(group, tag):
            transform = _transform(item, transform)
    place = _place(group, place)
    for tag in (0x00209116, 0x00209113):  # plane orientation, plane position
        for item in _sequence(group, tag):
            place = _place(item, place)
    return transform, place


def _transform(dataset: Any, known: Transform) -> Transform:
    slope = _numbers(dataset, 0x00281053, (known.slope,))[0]
    function = _text(dataset, 0x00281056).upper() or known.function
    least = 1.0 if function == "LINEAR" else math.ulp(0.0)
    centers, widths = _numbers(dataset, 0x00281050), _numbers(dataset, 0x00281051)
    windows = tuple(pair for pair in zip(centers, widths, strict=False) if pair[1] >= least)
    return Transform(
        slope=slope or 1.0,  # 0 would make every image black; some writers mean "none" by it
        intercept=_numbers(dataset, 0x00281052, (known.intercept,))[0],
        windows=windows or known.windows,
        function=function,
    )


def _place(dataset: Any, known: Place) -> Place:
    position, orientation = _numbers(dataset, 0x00200032), _numbers(dataset, 0x00200037)
    return Place(
        position if len(position) == 3 else known.position,
        orientation if len(orientation) == 6 else known.orientation,
    )


class Pixels(NamedTuple):
    """A frame before it is grey: the modality's values (height, width).

    Colours are (height, width, 3), uint8.
    """

    values: NDArray[Any]
    outside: NDArray[np.bool_] | None
    """Which pixels only fill the frame up."""
    dataset: Any
    """The whole file, where it had to be parsed anew."""


def read_frame(file: DicomFile, frame: int) -> Pixels:
    """Read a frame; errors do not name the file."""
    dataset: Any = None
    if file.stored is not None:
        stored = _read_stored(file, file.stored, frame)
    else:
        dataset, stored = _decompressed(file, frame)
    if file.colour:
        return Pixels(_eight_bit_colours(stored, dataset), None, dataset)
    outside = None
    if file.padding is not None:
        low, high = file.padding
        outside = (stored >= low) & (stored <= high)
        if not outside.any():
            outside = None
    transform = file.transform(frame)
    if file.tables and _sequence(dataset, 0x00283000):
        from pydicom.pixels.processing import apply_modality_lut

        return Pixels(apply_modality_lut(stored, dataset), outside, dataset)
    if transform.slope == 1.0 and transform.intercept == 0.0:
        return Pixels(stored, outside, dataset)
    rescaled = stored.astype(np.float32)
    rescaled *= np.float32(transform.slope)
    rescaled += np.float32(transform.intercept)
    return Pixels(rescaled, outside, dataset)


def _read_stored(file: DicomFile, stored: Stored, frame: int) -> NDArray[Any]:
    dtype = np.dtype(stored.dtype)
    rows, columns = file.shape
    n_pixels = rows * columns
    with file.path.open("rb") as opened:
        opened.seek(stored.offset + frame * n_pixels * dtype.itemsize)
        content = opened.read(n_pixels * dtype.itemsize)
    if len(content) < n_pixels * dtype.itemsize:
        raise Damaged("it is cut short; fetch it anew")
    pixels = np.frombuffer(content, dtype).astype(dtype.newbyteorder("="), copy=False)
    if stored.shift:
        # Also extends the sign of fewer bits than are allocated.
        pixels = (pixels << stored.shift) >> stored.shift
    return pixels.reshape(rows, columns)


def _decompressed(file: DicomFile, frame: int) -> tuple[Any, NDArray[Any]]:
    """Return the data set, and the stored values of a frame, by pydicom and its plugins."""
    pydicom = _pydicom()
    from pydicom.pixels.utils import pixel_array

    dataset = pydicom.dcmread(file.path, force=True)
    syntax = _syntax(dataset)
    if not any(tag in dataset for tag in PIXELS):
        raise Damaged("it has no pixels")
    decoder = pydicom.pixels.get_decoder(syntax)
    if not decoder.is_available:
        raise Damaged(
            f"its compression, {pydicom.uid.UID(syntax).name}, needs a plugin of pydicom: {PLUGINS}"
        )
    try:
        pixels: NDArray[Any] = pixel_array(dataset, index=frame)
    except RuntimeError as error:
        # Every plugin that is there has failed: for 12-bit JPEG others may do it.
        raise Damaged(
            f"its pixels ({pydicom.uid.UID(syntax).name}) cannot be decoded: it is damaged, or "
            f"needs another plugin of pydicom: {PLUGINS}"
        ) from error
    return dataset, pixels


def _eight_bit_colours(pixels: NDArray[Any], dataset: Any) -> NDArray[np.uint8]:
    if pixels.ndim == 2:  # a palette's indices
        from pydicom.pixels.processing import apply_color_lut

        pixels = apply_color_lut(pixels, dataset)[..., :3]
    if pixels.dtype != np.uint8:
        bits = _integer(dataset, 0x00280101, 8) if "RGB" in _text(dataset, 0x00280004) else 0
        shift = (bits or 8 * pixels.dtype.itemsize) - 8
        pixels = (pixels >> shift).astype(np.uint8)
    return np.ascontiguousarray(pixels)


DEFAULT_WINDOW = Window(1.0, 99.0, percentiles=True)
"""Of grey values for which the file has no window."""

Percentiles = Callable[[float, float], tuple[float, float]]
"""From two percentiles to two values, of all that an image is compared with."""


def grey_of(
    file: DicomFile,
    frame: int,
    image_shape: tuple[int, int],
    *,
    window: Window | None,
    percentiles: Percentiles,
) -> NDArray[Any]:
    """Return a frame as grey values of one shape.

    Parameters
    ----------
    file : DicomFile
        From `read_header`.
    frame : int
        Counted from 0.
    image_shape : tuple of int
        Height and width of the result.
    window : Window, optional
        Which of the modality's values become black and white. By default those of the file's
        first window or lookup table; without one, 8 bits are taken as they are, and others from
        their 1st to their 99th percentile. Colours are not changed by it.
    percentiles : callable
        Computes percentiles where they are asked for.

    Returns
    -------
    ndarray of shape image_shape
        uint8 for colours and for 8 bits as they are; otherwise float32 in [0, 1].
    """
    pixels = read_frame(file, frame)
    if file.colour:
        return _resized(pixels.values, image_shape)
    transform = file.transform(frame)
    as_it_is = window is None and file.eight_bits and pixels.values.dtype == np.uint8
    if as_it_is and not (transform.windows or file.tables):
        grey: NDArray[Any] = 255 - pixels.values if file.inverted else pixels.values
    else:
        grey = _windowed(file, transform, pixels, window, percentiles)
        if file.inverted:
            grey = np.float32(1) - grey
    if pixels.outside is not None:
        grey = np.where(pixels.outside, grey.dtype.type(0), grey)
    return _resized(grey, image_shape)


def _resized(pixels: NDArray[Any], image_shape: tuple[int, int]) -> NDArray[Any]:
    resized: NDArray[Any] = resize_images(pixels[None], image_shape)[0]
    return resized


def _windowed(
    file: DicomFile,
    transform: Transform,
    pixels: Pixels,
    window: Window | None,
    percentiles: Percentiles,
) -> NDArray[np.float32]:
    """Return grey values in [0, 1], before any inversion."""
    values = pixels.values
    if window is None and file.tables and (tables := _sequence(pixels.dataset, 0x00283010)):
        from pydicom.pixels.processing import apply_voi

        n_bits = int(tables[0].LUTDescriptor[2])
        shown = apply_voi(np.rint(values).astype(np.int64), pixels.dataset)
        return to_unit_range(shown, (0.0, float(2**n_bits - 1)))
    if window is None and transform.windows and transform.function == "SIGMOID":
        center, width = transform.windows[0]
        with np.errstate(over="ignore"):
            sigmoid = 1 / (1 + np.exp(-4 * (values.astype(np.float32) - center) / width))
        grey: NDArray[np.float32] = sigmoid.astype(np.float32)
        return grey
    limits = transform.limits() if window is None else None
    if limits is None:
        chosen = window or DEFAULT_WINDOW
        limits = (
            percentiles(chosen.low, chosen.high)
            if chosen.percentiles
            else (chosen.low, chosen.high)
        )
    return to_unit_range(values, limits)
