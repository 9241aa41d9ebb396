"""Decoding: a file's bytes to grey values of one size.

Eight-bit images become grey by Pillow's ``convert("L")``, then
``resize((width, height), BILINEAR)``. Of a JPEG only the luma is decoded, which is those grey
values already (see `read_image`). Files with more than eight bits need a window.
"""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.reading import (
    DEFAULT_READING,
    Decode,
    ReadOptions,
    open_file,
    reason,
    to_unit_range,
)

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SHAPE = (128, 128)

_BLOCK = 64  # images that are resized at a time
_JPEG = b"\xff\xd8\xff"
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a tag of TIFF, and its value where high values are dark


def read_image(
    path: str | Path,
    *,
    image_shape: tuple[int, int] = IMAGE_SHAPE,
    reading: ReadOptions = DEFAULT_READING,
) -> NDArray[Any]:
    """Read one image file as grey values (height, width).

    Parameters
    ----------
    path : path
        Any format that Pillow reads: grey, RGB, palette, or with transparency, which is dropped.
        Of several frames the first is read; an EXIF orientation is not applied.
    image_shape : tuple of int, default=(128, 128)
        Height and width of the result, in pixels.
    reading : ReadOptions, optional
        Its ``window`` says which grey values of a file with more than 8 bits become black and
        white; images of eight bits are not changed by it. ``decode="fast"`` decodes a JPEG at a
        half or a quarter of its size, where that is no smaller than `image_shape`: grey values
        differ a little.

    Returns
    -------
    ndarray of shape image_shape
        uint8, or float32 in [0, 1] from a file with more than 8 bits.

    Raises
    ------
    ValueError
        If the file cannot be read, is cut short or would fill the memory, or holds 16-bit, 32-bit
        or floating grey values and there is no window: which of them are black and white is not in
        the file, and Pillow's own conversion would clip them at 255.

    Notes
    -----
    The luma of a JPEG is what ``convert("L")`` makes of its colours, bit by bit, wherever none of
    them had to be clipped; always in a grey picture, whatever the file's mode. In strongly
    saturated pixels it is the value that the file holds, and ``convert("L")`` would compute some
    grey levels more or less from the clipped colours. JPEGs without luma (CMYK, RGB) are converted.
    """
    try:
        with open_file(Path(path)) as file:
            return _decoded(file, image_shape, reading)
    except Exception as error:  # decoders raise nearly anything for damaged files
        raise ValueError(f"cannot read image {str(path)!r}: {reason(error)}") from error


def decode_image(
    content: bytes,
    *,
    name: str | Path,
    image_shape: tuple[int, int] = IMAGE_SHAPE,
    reading: ReadOptions = DEFAULT_READING,
) -> NDArray[Any]:
    """Do as `read_image` with a file's content, such as an archive's member.

    Errors call it `name`.
    """
    try:
        return _decoded(BytesIO(content), image_shape, reading)
    except Exception as error:  # as above
        raise ValueError(f"cannot read image {str(name)!r}: {reason(error)}") from error


def _decoded(file: IO[bytes], image_shape: tuple[int, int], reading: ReadOptions) -> NDArray[Any]:
    import PIL
    from PIL import Image as pillow

    if file.read(len(_JPEG)) == _JPEG:
        file.seek(0)
        content = file.read()
        grey = _luma_by_simplejpeg(content, image_shape, reading.decode)
        if grey is None:
            grey = _luma_by_pillow(content, image_shape, reading.decode)
        if grey is not None:
            resized: NDArray[Any] = resize_images(grey[None], image_shape)[0]
            return resized
    file.seek(0)
    try:
        image = pillow.open(file)
    except PIL.UnidentifiedImageError:  # whose text would name the open file
        raise ValueError("cannot identify image file") from None
    with image:
        return to_grey(image, image_shape, reading)


@cache
def _simplejpeg() -> ModuleType | None:
    """Return the library that decodes luma faster than Pillow, where it is installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    module: ModuleType = simplejpeg
    return module


def _luma_by_simplejpeg(
    content: bytes, image_shape: tuple[int, int], decode: Decode
) -> NDArray[np.uint8] | None:
    """Decode a whole JPEG's luma; None without the library and for any file that is not plain."""
    from PIL import Image as pillow

    library = _simplejpeg()
    if library is None:
        return None
    try:
        height, width, colours, _ = library.decode_jpeg_header(content)
        largest = pillow.MAX_IMAGE_PIXELS
        if colours not in ("YCbCr", "Gray") or (largest and height * width > largest):
            return None
        reduced = {}
        if (scale := _scale((width, height), image_shape, decode)) > 1:
            reduced = {
                "min_height": -(-height // scale),
                "min_width": -(-width // scale),
                "min_factor": scale,
            }
        # What is only worth a warning to the library is an error here: Pillow has the last word.
        pixels: NDArray[np.uint8] = library.decode_jpeg(content, "GRAY", **reduced)
    except Exception:  # it may raise what it likes: Pillow names the fault
        return None
    return pixels[:, :, 0]


def _luma_by_pillow(
    content: bytes, image_shape: tuple[int, int], decode: Decode
) -> NDArray[np.uint8] | None:
    """Decode a whole JPEG's luma; None for a file that has none, or that fails."""
    from PIL import Image as pillow

    try:
        with pillow.open(BytesIO(content)) as image:
            if image.mode not in ("L", "RGB") or _holds_rgb(image):
                return None
            scale = _scale(image.size, image_shape, decode)
            width, height = image.size
            if image.draft("L", (width // scale, height // scale)) is None:
                return None
            return np.asarray(image)
    except Exception:  # a format without this short cut, or a fault, which the long way will name
        return None


def _holds_rgb(image: Image) -> bool:
    """Tell whether a JPEG's components are red, green and blue, by the rules of libjpeg."""
    if "jfif" in image.info:
        return False
    identities = tuple(layer[0] for layer in getattr(image, "layer", ()))
    return image.info.get("adobe_transform") == 0 or identities == (ord("R"), ord("G"), ord("B"))


def _scale(size: tuple[int, int], image_shape: tuple[int, int], decode: Decode) -> int:
    """Return 4, 2 or 1: by how much a JPEG may be reduced while it is decoded."""
    if decode == "exact":
        return 1
    sides = list(zip(size, image_shape[::-1], strict=True))
    fitting = (s for s in (4, 2) if all(-(-side // s) >= wanted for side, wanted in sides))
    return next(fitting, 1)


def to_grey(
    image: Image, image_shape: tuple[int, int], reading: ReadOptions = DEFAULT_READING
) -> NDArray[Any]:
    """Convert an open Pillow image to grey values of shape `image_shape`.

    uint8, or float32 in [0, 1] for more than 8 bits, which need a window.
    """
    if not image.mode.startswith(("I", "F")):
        grey: NDArray[Any] = resize_images(np.array(image.convert("L"))[None], image_shape)[0]
        return grey
    window = reading.grey_window
    if window is None:
        raise ValueError(
            f"holds grey values of more than 8 bits (mode {image.mode}); say which become black "
            "and white: --window LOW:HIGH, or p1:p99 for percentiles"
        )
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("holds grey values that are infinite or not a number; replace them")
    scaled = to_unit_range(values, window.limits(values))
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = 1 - scaled  # Pillow does that for 8 bits only
    resized: NDArray[Any] = resize_images(scaled[None], image_shape)[0]
    return resized


def resize_images(images: NDArray[Any], image_shape: tuple[int, int]) -> NDArray[Any]:
    """Bring a stack of images to one colour and one size, as `read_image` does for files.

    Parameters
    ----------
    images : ndarray of shape (n, height, width) or (n, height, width, 3)
        uint8; without colours also floating in [0, 1].
    image_shape : tuple of int
        Height and width of the result.

    Returns
    -------
    ndarray of shape (n, *image_shape)
        uint8, or float32 for floats. Not a copy where nothing is to be done.
    """
    if images.dtype != np.uint8:
        images = images.astype(np.float32, copy=False)
    if images.shape[1:] == image_shape:
        return images
    from PIL import Image

    height, width = image_shape
    if _kernel_serves(images, image_shape) and len(images) <= _BLOCK:
        import torch

        from nnmf_cuda import ops

        # A copy of arrays that must not be written, such as memory maps: torch takes none.
        pixels = torch.from_numpy(np.require(images, requirements="W"))
        return ops.resize_grey(pixels, height=height, width=width).numpy()
    resized = np.empty((len(images), height, width), dtype=images.dtype)
    if _kernel_serves(images, image_shape):
        for start in range(0, len(images), _BLOCK):
            block = images[start : start + _BLOCK]
            resized[start : start + _BLOCK] = resize_images(block, image_shape)
        return resized
    for row, image in zip(resized, images, strict=True):
        if image.ndim == 3:
            grey = np.array(Image.fromarray(image).convert("L"))
            row[:] = resize_images(grey[None], image_shape)[0]
            continue
        row[:] = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        if images.dtype != np.uint8:
            np.clip(row, 0.0, 1.0, out=row)  # rounding may pass 1 by an ulp
    return resized


def _kernel_serves(images: NDArray[Any], image_shape: tuple[int, int]) -> bool:
    """Tell whether a kernel of ours has Pillow's bytes, and is faster: see `ops.resize_grey`."""
    if images.dtype != np.uint8 or images.ndim != 3:
        return False
    (height, width), (new_height, new_width) = images.shape[1:], image_shape
    from nnmf_cuda import _extension

    rows_first = height - new_height <= 2 * (width - new_width) or height <= new_height
    return rows_first and _extension.cpu_isa() in ("avx2", "avx512")
