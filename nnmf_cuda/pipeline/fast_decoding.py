"""What ``decode="fast"`` changes: the same images decoded both ways, as pixels and as features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from nnmf_cuda.data import ReadOptions, iter_image_batches, iter_images
from nnmf_cuda.models.features import FeatureExtractor

N_COMPARED = 32


def fast_decoding_note(
    paths: str | Sequence[str], reading: ReadOptions, extractor: FeatureExtractor
) -> str:
    """Tell in a sentence how far the first images and their features are from exact ones.

    Parameters
    ----------
    paths : str or sequence of str
        Where images are, as `nnmf_cuda.data.iter_images` takes it.
    reading : ReadOptions
        As in the command, ``decode="fast"``.
    extractor : FeatureExtractor
        Of whose coefficients the difference is told.

    Returns
    -------
    str
        Of the first `N_COMPARED` images: mean and largest difference of grey values, and of
        features as a share of their length.
    """
    fast = _first(paths, reading, extractor.image_shape)
    exact = _first(paths, replace(reading, decode="exact"), extractor.image_shape)
    if not len(fast) or fast.shape != exact.shape or fast.dtype != exact.dtype:
        return "--decode fast: none of the first images can be compared with exact ones"
    if (fast == exact).all():
        return f"--decode fast: the first {len(fast)} images are the same as exactly decoded ones"
    scale = 1.0 if fast.dtype == np.uint8 else 255.0
    pixels = scale * np.abs(fast.astype(np.float64) - exact.astype(np.float64))
    device = extractor.components.device
    with torch.no_grad():
        found, want = (
            extractor.coefficients(torch.from_numpy(images).to(device)).double()
            for images in (fast, exact)
        )
    length = want.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    share = 100 * (found - want).norm(dim=1) / length
    return (
        f"--decode fast: grey values of the first {len(fast)} images differ from exactly decoded"
        f" ones by {pixels.mean():.2f} of 255 on average and {pixels.max():.0f} at most, their"
        f" features by {share.mean():.2g} % of their length and {share.max():.2g} % at most"
    )


def _first(
    paths: str | Sequence[str], reading: ReadOptions, image_shape: tuple[int, int]
) -> NDArray[np.generic]:
    """Return the first images, without those that cannot be read and after a change of dtype."""
    batches = iter_image_batches(
        islice(iter_images(paths, reading=reading), N_COMPARED),
        batch_size=N_COMPARED,
        image_shape=image_shape,
        reading=reading,
        on_error="skip",
    )
    images: NDArray[np.generic] = next(batches).images
    return images
