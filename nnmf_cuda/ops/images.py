"""Grey images to another size: `resize_grey`."""

from __future__ import annotations

import torch
from torch import Tensor

from nnmf_cuda.ops._schema import (
    LIBRARY,
    raise_in_backward,
    require_count,
    require_dims,
    require_dtype,
    require_tensor,
    serving,
)

__all__ = ["resize_grey"]


def resize_grey(images: Tensor, *, height: int, width: int) -> Tensor:
    """Bring grey images to another size, byte by byte as Pillow's ``BILINEAR``, rows first.

    Parameters
    ----------
    images : Tensor of shape (n_images, rows, columns)
        uint8. Not modified.
    height, width : int
        Sides of the result.

    Returns
    -------
    Tensor of shape (n_images, height, width)
        uint8, on the device of `images`, without gradient.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or an image has no pixels.

    Notes
    -----
    A pixel of the result is the mean of those below a triangle around it that is two pixels of the
    result wide, or two of the image where that has fewer (antialiasing). Weights are whole numbers
    of 22 bits, and the sums of rows are rounded to bytes before those of columns: the same on
    every device, bit by bit. Pillow from 13 on does so too, but for images that lose more than
    twice as many rows as columns, where it begins with the columns. A kernel serves it on the CPU,
    on the threads of torch.

    Examples
    --------
    >>> resize_grey(torch.full((1, 4, 6), 7, dtype=torch.uint8), height=2, width=2)
    tensor([[[7, 7],
             [7, 7]]], dtype=torch.uint8)
    """
    require_tensor("images", images)
    require_dtype("images", images, (torch.uint8,))
    require_dims("images", images, (3,))
    if 0 in images.shape[1:]:
        raise ValueError(f"images must have pixels, got shape {tuple(images.shape)}")
    require_count("height", height, low=1)
    require_count("width", width, low=1)
    resized: Tensor = serving("resize_grey", images)(images, height=height, width=width)
    return resized


@torch.library.register_fake("nnmf_cuda::resize_grey", lib=LIBRARY)
def _(images: Tensor, *, height: int, width: int) -> Tensor:
    return images.new_empty((len(images), height, width))


raise_in_backward("resize_grey", "its images are bytes")
