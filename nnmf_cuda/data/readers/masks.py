"""Labels from masks: an image is positive if enough of its mask is not black."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.reading import Account, ReadFailure, ReadOptions, reason

if TYPE_CHECKING:
    from PIL.Image import Image

NAMES = {"negative": "negative", "positive": "positive"}
"""The classes that masks tell apart, in label order."""

_HALF = 128
"""From where a grey value of a JPEG is in the mask: lossy, it has others than 0 around an edge."""


def is_positive(masks: Sequence[Path], mask_area: float) -> bool:
    """Tell whether more than a share of an image's pixels is in one of its masks.

    Parameters
    ----------
    masks : sequence of paths
        The masks of one image. In a mask is what is not black; in a JPEG what is at least half
        white, since it is lossy. Transparency is not looked at.
    mask_area : float
        The share, in [0, 1); 0 asks for one pixel.

    Raises
    ------
    ValueError
        If a mask cannot be read, or masks of one image differ in size.
    """
    union: NDArray[np.bool_] | None = None
    for path in masks:
        inside = _read_mask(path)
        if union is not None and union.shape != inside.shape:
            raise ValueError(
                f"mask {str(path)!r} has {inside.shape[0]} x {inside.shape[1]} pixels, another of"
                f" the same image {union.shape[0]} x {union.shape[1]}; give masks of one size"
            )
        union = inside if union is None else union | inside
    assert union is not None
    return bool(union.mean() > mask_area)


def labels(
    masks: Iterable[Sequence[Path]], options: ReadOptions, account: Account
) -> Iterator[str | None]:
    """Give the class of each image, a key of `NAMES`, by its masks, in order.

    A mask that cannot be read is a ValueError, or None and told to the account where bad images
    are skipped.
    """

    def one(paths: Sequence[Path]) -> bool | ReadFailure:
        try:
            return is_positive(paths, options.mask_area)
        except ValueError as error:
            return ReadFailure(paths[0], str(error))

    # Four at a time: decoding leaves the interpreter to others.
    with ThreadPoolExecutor(4, thread_name_prefix="mask") as pool:
        for found in pool.map(one, masks):
            if not isinstance(found, ReadFailure):
                yield "positive" if found else "negative"
            elif options.on_error == "skip":
                account.skip(found.file, found.message)
                yield None
            else:
                pool.shutdown(cancel_futures=True)
                raise ValueError(found.message)


def _read_mask(path: Path) -> NDArray[np.bool_]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return inside_of(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read mask {str(path)!r}: {reason(error)}") from error


def inside_of(image: Image) -> NDArray[np.bool_]:
    """Return which pixels (height, width) of an open Pillow image are in the mask that it is."""
    lossy = image.format in ("JPEG", "MPO")
    if image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"):
        image = image.convert("RGB")
    values: NDArray[Any] = np.asarray(image)
    if values.ndim == 3:
        values = values.max(axis=2)
    inside: NDArray[np.bool_] = values >= _HALF if lossy else values > 0
    return inside
