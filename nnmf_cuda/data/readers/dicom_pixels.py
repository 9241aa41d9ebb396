"""The frames of a DICOM file as grey values.

Stored values become the modality's (rescale slope and intercept, or a lookup table), these become
grey by a window (PS3.3, C.11.1 and C.11.2), and MONOCHROME1, whose lowest value is white, is
inverted. Pixels that are not compressed are read from their place in the file, all others by
pydicom and its plugins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.decoding import resize_images
from nnmf_cuda.data.readers.dicom_elements import PIXELS, integer_of, sequence_of, text_of
from nnmf_cuda.data.readers.dicom_file import (
    Damaged,
    DicomFile,
    Stored,
    Transform,
    import_pydicom,
    transfer_syntax,
)
from nnmf_cuda.data.reading import DEFAULT_WINDOW, Window, to_unit_range

_PLUGINS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"

Percentiles = Callable[[float, float], tuple[float, float]]
"""From two percentiles to two values, of all that an image is compared with."""


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
    if file.tables and sequence_of(dataset, 0x00283000):
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
    pydicom = import_pydicom()
    from pydicom.pixels.utils import pixel_array

    dataset = pydicom.dcmread(file.path, force=True)
    syntax = transfer_syntax(dataset)
    if not any(tag in dataset for tag in PIXELS):
        raise Damaged("it has no pixels")
    decoder = pydicom.pixels.get_decoder(syntax)
    if not decoder.is_available:
        raise Damaged(
            f"its compression, {pydicom.uid.UID(syntax).name}, needs a plugin of pydicom:"
            f" {_PLUGINS}"
        )
    try:
        pixels: NDArray[Any] = pixel_array(dataset, index=frame)
    except RuntimeError as error:
        # Every plugin that is there has failed: for 12-bit JPEG others may do it.
        raise Damaged(
            f"its pixels ({pydicom.uid.UID(syntax).name}) cannot be decoded: it is damaged, or "
            f"needs another plugin of pydicom: {_PLUGINS}"
        ) from error
    return dataset, pixels


def _eight_bit_colours(pixels: NDArray[Any], dataset: Any) -> NDArray[np.uint8]:
    if pixels.ndim == 2:  # a palette's indices
        from pydicom.pixels.processing import apply_color_lut

        pixels = apply_color_lut(pixels, dataset)[..., :3]
    if pixels.dtype != np.uint8:
        bits = integer_of(dataset, 0x00280101, 8) if "RGB" in text_of(dataset, 0x00280004) else 0
        shift = (bits or 8 * pixels.dtype.itemsize) - 8
        pixels = (pixels >> shift).astype(np.uint8)
    return np.ascontiguousarray(pixels)


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
    if window is None and file.tables and (tables := sequence_of(pixels.dataset, 0x00283010)):
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
