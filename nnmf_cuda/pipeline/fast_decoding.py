"""What ``decode="fast"`` changes: the same images decoded both ways, as pixels and as features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnmf_cuda.data import ImageSource, ReadOptions, iter_image_batches

N_COMPARED = 32


def fast_decoding_note(
    sources: Callable[[ReadOptions], Iterable[ImageSource]],
    reading: ReadOptions,
    coefficients: Callable[[Tensor], Tensor],
    *,
    image_shape: tuple[int, int],
    device: torch.device,
) -> str:
    """Tell in a sentence how far the first images and their features are from exact ones.

    Parameters
    ----------
    sources : callable
        From how images are read to the images, in the same order each time.
    reading : ReadOptions
        As in the command, ``decode="fast"``.
    coefficients : callable
        From images (n, height, width) on `device` to features (n, n_columns).

    Returns
    -------
    str
        Of the first `N_COMPARED` images: mean and largest difference of grey values, and of
        features as a share of their length.
    """
    fast = _first(sources, reading, image_shape)
    exact = _first(sources, replace(reading, decode="exact"), image_shape)
    if not len(fast) or fast.shape != exact.shape or fast.dtype != exact.dtype:
        return "--decode fast: none of the first images can be compared with exact ones"
    if (fast == exact).all():
        return f"--decode fast: the first {len(fast)} images are the same as exactly decoded ones"
    scale = 1.0 if fast.dtype == np.uint8 else 255.0
    pixels = scale * np.abs(fast.astype(np.float64) - exact.astype(np.float64))
    with torch.no_grad():
        found, want = (
            coefficients(torch.from_numpy(images).to(device)).double() for images in (fast, exact)
        )
    length = want.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    share = 100 * (found - want).norm(dim=1) / length
    return (
        f"--decode fast: grey values of the first {len(fast)} images differ from exactly decoded"
        f" ones by {pixels.mean():.2f} of 255 on average and {pixels.max():.0f} at most, their"
        f" features by {share.mean():.2g} % of their length and {share.max():.2g} % at most"
    )


def _first(
    sources: Callable[[ReadOptions], Iterable[ImageSource]],
    reading: ReadOptions,
    image_shape: tuple[int, int],
) -> NDArray[np.generic]:
    """Return the first images, without those that cannot be read and after a change of dtype."""
    batches = iter_image_batches(
        islice(sources(reading), N_COMPARED),
        batch_size=N_COMPARED,
        image_shape=image_shape,
        reading=reading,
        on_error="skip",
    )
    images: NDArray[np.generic] = next(batches).images
    return images
