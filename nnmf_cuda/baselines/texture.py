"""Numbers that describe a slice: fuzzy segments, grey-level co-occurrence, and statistics."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from nnmf_cuda.baselines.fuzzy_c_means import fuzzy_clusters

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Masks = NDArray[np.bool_]

PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "ASM")
"""Of co-occurrence, as scikit-image's `graycoprops` has them."""
STATISTICS = ("mean", "variance", "skewness", "kurtosis", "entropy")
SHAPE = ("area", "row", "column", "row_spread", "column_spread", "extent")

_ANGLES = (0, 45, 90, 135)
_CHUNK = 128  # images at once
_GREYS = np.arange(256) / 255
_KEPT = 8  # feature matrices that a process remembers
_SHELL = 0.1  # of the image: scalp and skull
_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = True  # neighbours in the same image of a stack, corners too


@dataclass(frozen=True)
class TextureOptions:
    """How images are described.

    Attributes
    ----------
    n_clusters : int
        Segments of fuzzy c-means on the grey values of each image.
    m : float
        Its softness.
    levels : int
        Grey levels of co-occurrence, equally wide, 2 to 255.
    distances : tuple of int
        In pixels, of co-occurring grey levels; each at 0, 45, 90 and 135 degrees.
    """

    n_clusters: int = 4
    m: float = 2.0
    levels: int = 32
    distances: tuple[int, ...] = (1, 3)

    def __post_init__(self) -> None:
        if self.n_clusters < 2:
            raise ValueError(f"n_clusters must be at least 2, got {self.n_clusters}")
        if not self.m > 1:
            raise ValueError(f"m must be above 1, got {self.m}")
        if not 2 <= self.levels <= 255:
            raise ValueError(f"levels must be in 2 to 255, got {self.levels}")
        if not self.distances or min(self.distances) < 1:
            raise ValueError(f"distances must be some numbers of pixels >= 1: {self.distances}")

    def names(self) -> list[str]:
        """Return the name of each feature, in their order."""
        texture = [
            f"{name} at {distance} px, {angle} deg"
            for name in PROPERTIES
            for distance in self.distances
            for angle in _ANGLES
        ]
        segments = range(1, self.n_clusters + 1)
        return [
            *(f"slice {name}" for name in (*STATISTICS, *texture)),
            *(f"segment {number} {name}" for name in ("grey", "share") for number in segments),
            *(f"region {name}" for name in (*SHAPE, *STATISTICS, *texture)),
        ]


@dataclass(frozen=True)
class Segments:
    """Images segmented by their grey values.

    Attributes
    ----------
    centers : ndarray of shape (n_images, n_clusters)
        Grey values of the segments in [0, 1], from dark to bright.
    shares : ndarray of shape (n_images, n_clusters)
        Of the pixels.
    region : ndarray of shape (n_images, height, width)
        The largest connected piece of the brightest segment inside the head: farther from what is
        dark around it than a tenth of the image, so that the scalp is left out; anywhere, where
        there is none. An opening by 3 by 3 pixels comes before, unless nothing is left by it. All
        False where no pixel is brightest, as in an image of one grey value.
    """

    centers: Floats
    shares: Floats
    region: Masks


def texture_features(
    images: Pixels, options: TextureOptions, *, remember: bool = False, progress: bool = False
) -> Floats:
    """Describe images by numbers.

    Parameters
    ----------
    images : ndarray of shape (n_images, height, width)
        uint8.
    options : TextureOptions
    remember : bool, default=False
        Whether this process keeps the result (the last 8 are kept), for others who ask for the
        same images and options. What is kept is always looked at.
    progress : bool, default=False
        Whether to show a bar, where stderr is a terminal.

    Returns
    -------
    ndarray of shape (n_images, n_features)
        As `options.names()` calls them: of the slice and of the bright region the statistics of
        grey values and the co-occurrence of grey levels (symmetric; of pairs within the region), of
        the segments grey value and share, of the region also place and shape, in shares of the
        image. Not to be modified.
    """
    key = _fingerprint(images, options)
    if key in _KNOWN:
        _KNOWN.move_to_end(key)
        return _KNOWN[key][0]
    started = time.perf_counter()
    bar = tqdm(total=len(images), desc="texture", unit="image", disable=None if progress else True)
    parts = []
    with bar:
        for start in range(0, len(images), _CHUNK):
            parts.append(_described(images[start : start + _CHUNK], options))
            bar.update(len(parts[-1]))
    features = np.concatenate(parts) if parts else np.empty((0, len(options.names())))
    features.flags.writeable = False
    if remember:
        _KNOWN[key] = features, time.perf_counter() - started
        while len(_KNOWN) > _KEPT:
            _KNOWN.popitem(last=False)
    return features


def seconds_spared(images: Pixels, options: TextureOptions) -> float:
    """Return how long the features took that this process remembers; 0 where it does not."""
    known = _KNOWN.get(_fingerprint(images, options))
    return 0.0 if known is None else known[1]


def segmented(images: Pixels, options: TextureOptions) -> Segments:
    """Segment each image (n_images, height, width) by fuzzy c-means of its grey values."""
    n_images, n_pixels = len(images), images[0].size
    counts = _histograms(images, np.ones(images.shape, dtype=bool))
    # Each image starts from centres that are spread over the grey values it has.
    low = (counts > 0).argmax(1)[:, None] / 255
    high = 1 - (counts[:, ::-1] > 0).argmax(1)[:, None] / 255
    middles = (np.arange(options.n_clusters) + 0.5) / options.n_clusters
    start = (low + middles * (high - low))[..., None]
    found = fuzzy_clusters(_GREYS[:, None], counts, start, m=options.m, tol=1e-2, max_iter=100)
    order = found.centers[..., 0].argsort(axis=1, kind="stable")
    centers = np.take_along_axis(found.centers[..., 0], order, axis=1)
    memberships = np.take_along_axis(found.memberships, order[:, None], axis=2)
    segment_of_grey = memberships.argmax(2)
    shares = np.stack(
        [(counts * (segment_of_grey == one)).sum(1) for one in range(options.n_clusters)], axis=1
    )
    segment = segment_of_grey[np.arange(n_images)[:, None, None], images]
    mask = segment == options.n_clusters - 1
    inner = mask & _inside(segment > 0)
    return Segments(centers, shares / n_pixels, _largest_piece(_or_where_empty(inner, mask)))


def _described(images: Pixels, options: TextureOptions) -> Floats:
    segments = segmented(images, options)
    everything = np.ones(images.shape, dtype=bool)
    levels = (images.astype(np.uint16) * options.levels // 256).astype(np.uint8)
    return np.concatenate(
        [
            _statistics(_histograms(images, everything)),
            _co_occurrence(levels, options),
            segments.centers,
            segments.shares,
            _shapes(segments.region),
            _statistics(_histograms(images, segments.region)),
            _co_occurrence(levels, options, segments.region),
        ],
        axis=1,
    )


def _histograms(images: Pixels, masks: Masks) -> Floats:
    """Return how often each image has each grey value within its mask, (n_images, 256)."""
    places = np.arange(len(images))[:, None, None] * 256 + images
    counts = np.bincount(places[masks], minlength=len(images) * 256)
    return counts.reshape(len(images), 256).astype(np.float64)


def _statistics(counts: Floats) -> Floats:
    """Return `STATISTICS` of histograms: moments of grey values, and bits; of nothing, zeros."""
    total = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(total, 1)
    mean = shares @ _GREYS
    away = _GREYS - mean[:, None]
    variance = (shares * away**2).sum(1)
    scale = np.where(variance > 0, variance, 1)
    skewness = (shares * away**3).sum(1) / scale**1.5
    kurtosis = np.where(variance > 0, (shares * away**4).sum(1) / scale**2 - 3, 0)
    entropy = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1)
    return np.stack([mean, variance, skewness, kurtosis, entropy], axis=1)


def _or_where_empty(masks: Masks, others: Masks) -> Masks:
    """Return the masks, or the other one where a mask is empty."""
    return np.where(masks.any((1, 2), keepdims=True), masks, others)


def _inside(bright: Masks) -> Masks:
    """Return what lies deeper in the head than `_SHELL`; the frame of an image is no surface."""
    pieces, n_pieces = ndimage.label(~bright, _IN_PLANE)
    around = np.zeros(n_pieces + 1, dtype=bool)
    for edge in (pieces[:, 0], pieces[:, -1], pieces[:, :, 0], pieces[:, :, -1]):
        around[edge] = True
    around[0] = False
    depth = max(round(_SHELL * min(bright.shape[1:])), 1)
    inside: Masks = ndimage.binary_erosion(
        ~around[pieces], _IN_PLANE, iterations=depth, border_value=1
    )
    return inside


def _largest_piece(masks: Masks) -> Masks:
    opened = _or_where_empty(ndimage.binary_opening(masks, _IN_PLANE), masks)
    pieces, n_pieces = ndimage.label(opened, _IN_PLANE)
    sizes = np.bincount(pieces.ravel(), minlength=n_pieces + 1)
    sizes[0] = 0
    # Of pieces of one size the one that comes first.
    largest = [
        int(numbers[sizes[numbers].argmax()]) if numbers.any() else -1
        for numbers in (np.unique(one) for one in pieces)
    ]
    region: Masks = pieces == np.array(largest)[:, None, None]
    return region


def _shapes(masks: Masks) -> Floats:
    """Return `SHAPE` of regions, in shares of the image; of an empty one, zeros."""
    area = masks.sum((1, 2))
    weight = np.maximum(area, 1)
    columns = [area / masks[0].size]
    centers, spreads, sides = [], [], []
    for axis in (1, 2):
        along = masks.sum(3 - axis)
        places = (np.arange(masks.shape[axis]) + 0.5) / masks.shape[axis]
        center = along @ places / weight
        square = (along * (places - center[:, None]) ** 2).sum(1) / weight
        centers.append(center)
        spreads.append(np.sqrt(square))
        there = along > 0
        sides.append(there.shape[1] - there.argmax(1) - there[:, ::-1].argmax(1))
    return np.stack([*columns, *centers, *spreads, area / (sides[0] * sides[1])], axis=1)


def _co_occurrence(levels: Pixels, options: TextureOptions, masks: Masks | None = None) -> Floats:
    """Return `PROPERTIES` of each image's levels, at each distance and angle; within masks."""
    try:
        from skimage.feature import graycomatrix, graycoprops
    except ImportError as error:
        raise ImportError(
            "texture features need scikit-image: pip install 'nnmf-cuda[baselines]'"
        ) from error
    n_levels = options.levels
    matrices = []
    for number, image in enumerate(levels):
        if masks is not None:
            # What lies outside is a level of its own, of which no pair counts.
            image = _within_box(image + 1, masks[number])
        matrices.append(
            graycomatrix(
                image,
                options.distances,
                np.deg2rad(_ANGLES),
                levels=n_levels + (masks is not None),
                symmetric=True,
            )
        )
    stack: NDArray[Any] = np.concatenate(matrices, axis=3)
    if masks is not None:
        stack = stack[1:, 1:]
    values = [graycoprops(stack, name) for name in PROPERTIES]
    n_images = len(levels)
    by_image = np.stack(values).reshape(
        len(PROPERTIES), len(options.distances), n_images, len(_ANGLES)
    )
    features: Floats = by_image.transpose(2, 0, 1, 3).reshape(n_images, -1)
    return features


def _within_box(image: Pixels, mask: Masks) -> Pixels:
    """Return the smallest rectangle that holds a mask, zero outside the mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros((1, 1), dtype=np.uint8)
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside: Pixels = np.where(mask[box], image[box], 0).astype(np.uint8)
    return inside


_KNOWN: OrderedDict[bytes, tuple[Floats, float]] = OrderedDict()
"""Features that this process remembers and the seconds that they took, by images and options; the
last used at the end."""


def _fingerprint(images: Pixels, options: TextureOptions) -> bytes:
    digest = hashlib.blake2b(np.ascontiguousarray(images).data, digest_size=16)
    digest.update(repr((images.shape, options)).encode())
    return digest.digest()
