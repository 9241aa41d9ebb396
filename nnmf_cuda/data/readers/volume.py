"""NIfTI volumes: slices along an axis of the patient as grey values, and masks of them.

Voxels are turned by the file's affine to run to the patient's right, to the front and up (RAS); a
slice is then shown as radiologists look at it: axial ones with the front at the top and the
patient's right at the left, coronal ones with the head at the top, sagittal ones with the face to
the left.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.decoding import resize_images
from nnmf_cuda.data.images import LazyImage
from nnmf_cuda.data.reading import DEFAULT_WINDOW, Axis, ReadOptions, Window, to_unit_range

SUFFIXES = (".nii", ".nii.gz")

_AXES: dict[Axis, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
_N_IN_MEMORY = 3
"""Volumes that are kept, as their slices are asked for one after the other by several threads."""
_N_SAMPLED = 2**19
"""Voxels from which percentiles are computed, evenly spread over the volume."""
_MAX_BYTES = 2**33
"""Of one volume: a damaged header asks for more than that sooner than a scanner does."""
_MOST_PACKED = 1100
"""Bytes that gzip makes of one at best, and a little more."""
_OBLIQUE = 0.95
"""Cosine between a voxel's axis and the patient's, below which a volume is called oblique."""


def is_nifti(path: Path) -> bool:
    """Tell by its name whether a file is NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def stem_of(path: Path) -> str:
    """Return a file's name without the suffix, of which .nii.gz has two."""
    lower = path.name.lower()
    return path.name[: -next(len(s) for s in (".nii.gz", ".nii") if lower.endswith(s))]


@dataclass(eq=False)
class Volume:
    """A volume by its header; voxels are read when a slice is asked for.

    Attributes
    ----------
    path : Path
        The file.
    name : Path
        What messages call it.
    shape : tuple of int
        Voxels to the right, to the front and up.
    n_volumes : int
        More than 1 for a file of four or more dimensions, of which the first volume is read.
    oblique : bool
        Whether slices are tilted by more than 18 degrees against the patient's axes.
    affine : ndarray of shape (4, 4), or None
        As in the file; None where the file has none that can be used.
    """

    path: Path
    name: Path
    shape: tuple[int, int, int]
    n_volumes: int
    oblique: bool
    affine: NDArray[np.float64] | None
    orientation: NDArray[np.float64]
    slope: float
    intercept: float
    _image: Any
    _loading: Lock = field(default_factory=Lock)
    _lock: Lock = field(default_factory=Lock)
    _limits: dict[tuple[float, float], tuple[float, float]] = field(default_factory=dict)

    def n_slices(self, axis: Axis) -> int:
        """Return how many slices there are along an axis."""
        return self.shape[_AXES[axis]]

    def stored(self, axis: Axis, index: int) -> NDArray[Any]:
        """Return a slice (rows, columns) of the stored values, to be shown as the module says."""
        return _shown(_voxels(self), axis, index)

    def grey(
        self, axis: Axis, index: int, image_shape: tuple[int, int], window: Window | None
    ) -> NDArray[Any]:
        """Return a slice as grey values: float32 in [0, 1], or uint8 of colours.

        Voxels that are no number (NaN) become black.
        """
        stored = self.stored(axis, index)
        if stored.dtype.fields:
            channels = [stored[name] for name in "RGB"]
            grey: NDArray[Any] = np.stack(channels, axis=-1)
        else:
            limits = self._limits_of(window or DEFAULT_WINDOW)
            values = stored.astype(np.float32)
            if (self.slope, self.intercept) != (1.0, 0.0):
                values = values * np.float32(self.slope) + np.float32(self.intercept)
            if stored.dtype.kind == "f" and not np.isfinite(values).all():
                values = np.nan_to_num(values, nan=limits[0], posinf=limits[1], neginf=limits[0])
            grey = to_unit_range(values, limits)
        resized: NDArray[Any] = resize_images(grey[None], image_shape)[0]
        return resized

    def _limits_of(self, window: Window) -> tuple[float, float]:
        if not window.percentiles:
            return window.low, window.high
        key = (window.low, window.high)
        voxels = _voxels(self)
        with self._lock:
            if key not in self._limits:
                self._limits[key] = self._percentiles(voxels, key)
            return self._limits[key]

    def _percentiles(
        self, voxels: NDArray[Any], percents: tuple[float, float]
    ) -> tuple[float, float]:
        flat = voxels.ravel(order="K")
        # An odd step does not stay in some columns of a volume whose sides are even.
        values = flat[:: max(1, flat.size // _N_SAMPLED) | 1]
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        if not values.size:
            return 0.0, 0.0
        if self.slope < 0:
            percents = (100 - percents[0], 100 - percents[1])
        low, high = np.percentile(values, percents)
        if low == high:  # nearly all is background
            low, high = values.min(), values.max()
            if self.slope < 0:
                low, high = high, low
        return float(low) * self.slope + self.intercept, float(high) * self.slope + self.intercept


def open_volume(path: Path, name: Path | None = None) -> Volume:
    """Read a volume's header.

    Raises
    ------
    ValueError
        If it cannot be read, or is no volume of grey values or colours.
    """
    nibabel = _nibabel()
    name = path if name is None else name
    try:
        with _silenced(nibabel.imageglobals.logger):
            return _open(nibabel, path, name)
    except Exception as error:  # nibabel raises nearly anything for damaged files
        raise _unreadable(name, error) from error


@contextmanager
def _silenced(log: logging.Logger) -> Iterator[None]:
    """Keep what nibabel says of headers that it mends out of a command's own lines."""
    with _log_lock:
        before = log.level
        log.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            log.setLevel(before)


def _open(nibabel: Any, path: Path, name: Path) -> Volume:
    size = path.stat().st_size
    packed = path.name.lower().endswith(".gz")
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    if size and packed != is_packed:
        raise ValueError(
            f"it is {'' if is_packed else 'not '}packed by gzip, against its name; rename it to end"
            f" in {'.nii.gz' if is_packed else '.nii'}"
        )
    image = nibabel.load(path)
    dtype = np.dtype(image.header.get_data_dtype())
    colours = dtype.fields is not None
    if dtype.kind == "c" or (colours and not {"R", "G", "B"} <= set(dtype.fields or ())):
        raise ValueError(f"its voxels are {dtype}; save their magnitude as floats")
    sides = tuple(int(side) for side in image.shape)
    n_volumes = prod(sides[3:])
    sides = (*sides, 1, 1, 1)[:3]
    n_bytes = prod(sides) * dtype.itemsize
    if min(sides) < 1 or n_volumes < 1:
        raise ValueError(f"its shape is {tuple(image.shape)}: there is no voxel")
    most = size * _MOST_PACKED if packed else size - image.dataobj.offset
    if n_bytes > _MAX_BYTES or n_bytes * n_volumes > most:
        raise ValueError(
            f"its header says {' x '.join(map(str, image.shape))} voxels, in {size} bytes; "
            "it is damaged or cut short"
        )
    affine, orientation, oblique = _orientation(nibabel, image)
    # Of several volumes nibabel takes one out and scales it; a single one is kept as it is stored.
    several = n_volumes > 1
    slope, intercept = (1.0, 0.0) if several else (image.dataobj.slope, image.dataobj.inter)
    return Volume(
        path=path,
        name=name,
        shape=_turned(sides, orientation),
        n_volumes=n_volumes,
        oblique=oblique,
        affine=affine,
        orientation=orientation,
        slope=float(slope),
        intercept=float(intercept),
        _image=image,
    )


def _unreadable(name: Path, error: BaseException) -> ValueError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return ValueError(f"cannot read volume {str(name)!r}: {reason or type(error).__name__}")


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(
            "reading NIfTI needs nibabel: pip install 'nnmf-cuda[medical]'"
        ) from error
    return nibabel


def _orientation(
    nibabel: Any, image: Any
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64], bool]:
    """Return the affine, the axes' order and signs towards RAS, and whether they are oblique."""
    as_stored = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    affine = image.affine
    said = image.header.get("qform_code", 1) or image.header.get("sform_code", 1)
    if affine is None or not said or not np.isfinite(affine).all():
        return None, as_stored, False
    if abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        return None, as_stored, False
    orientation = nibabel.orientations.io_orientation(affine)
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    oblique = bool((np.abs(columns).max(axis=0) < _OBLIQUE).any())
    return np.asarray(affine, np.float64), np.asarray(orientation, np.float64), oblique


def _turned(sides: Sequence[int], orientation: NDArray[np.float64]) -> tuple[int, int, int]:
    turned = [0, 0, 0]
    for side, axis in zip(sides, orientation[:, 0], strict=True):
        turned[int(axis)] = side
    return turned[0], turned[1], turned[2]


_in_memory: OrderedDict[Volume, NDArray[Any]] = OrderedDict()
_memory_lock = Lock()
_log_lock = Lock()


def _voxels(volume: Volume) -> NDArray[Any]:
    """Return the stored values in RAS order; the last volumes that were asked for are kept."""
    with volume._loading:
        with _memory_lock:
            found = _in_memory.get(volume)
            if found is not None:
                _in_memory.move_to_end(volume)
                return found
        turned = _turn(_stored(volume), volume.orientation)
        with _memory_lock:
            _in_memory[volume] = turned
            while len(_in_memory) > _N_IN_MEMORY:
                _in_memory.popitem(last=False)
        return turned


def _stored(volume: Volume) -> NDArray[Any]:
    """Return the stored values in the file's own order of axes."""
    proxy = volume._image.dataobj
    try:
        if volume.n_volumes > 1:
            stored = np.asanyarray(proxy[(..., *(0,) * (len(proxy.shape) - 3))])
        else:
            stored = proxy.get_unscaled()
    except Exception as error:  # as in `open_volume`
        raise _unreadable(volume.name, error) from error
    solid: NDArray[Any] = stored.reshape((*stored.shape, 1, 1, 1)[:3], order="A")
    return solid


def _turn(voxels: NDArray[Any], orientation: NDArray[np.float64]) -> NDArray[Any]:
    turned: NDArray[Any] = _nibabel().orientations.apply_orientation(voxels, orientation)
    return turned


def _shown(voxels: NDArray[Any], axis: Axis, index: int) -> NDArray[Any]:
    """Return a slice of voxels in RAS order, turned as radiologists look at it."""
    if axis == "axial":
        return voxels[::-1, ::-1, index].T
    if axis == "coronal":
        return voxels[::-1, index, ::-1].T
    return voxels[index, ::-1, ::-1].T


def slices(
    volume: Volume, options: ReadOptions, columns: dict[str, str] | None = None
) -> list[LazyImage]:
    """Return the slices of a volume along the chosen axis as images; see `Volume.grey`."""
    window = options.grey_window

    def image(index: int) -> LazyImage:
        def read(image_shape: tuple[int, int]) -> NDArray[Any]:
            return volume.grey(options.axis, index, image_shape, window)

        name = volume.name.with_name(f"{volume.name.name}[{index}]")
        return LazyImage(name, read, columns or {})

    return [image(index) for index in range(volume.n_slices(options.axis))]


def shares_in_masks(
    volume: Volume, masks: Sequence[Volume], axis: Axis
) -> tuple[NDArray[np.float64], str]:
    """Return for each slice the share of its pixels that is in one of the masks.

    Parameters
    ----------
    volume, masks : Volume
        A volume and its masks, of equal shapes. Every value above 0 is in a mask.
    axis : str
        Along which slices lie.

    Returns
    -------
    shares : ndarray of shape (n_slices,)
        In [0, 1].
    note : str
        What was assumed where affines disagree; "" otherwise.

    Raises
    ------
    ValueError
        If a mask cannot be read, or has another shape.
    """
    note = ""
    union = np.zeros(volume.shape, np.bool_)
    for mask in masks:
        stored = _stored(mask)
        if stored.dtype.fields:
            raise ValueError(f"mask {str(mask.name)!r} holds colours; give one of whole numbers")
        orientation = mask.orientation
        if not _same_place(volume, mask):
            note = "Affines of masks and volumes differ; their voxels were matched one by one"
            # Written without an affine, or by a program that drops it: voxel lies on voxel.
            if _unplaced(mask) or _unplaced(volume):
                orientation = volume.orientation
        inside = _turn(stored * mask.slope + mask.intercept > 0, orientation)
        if inside.shape != volume.shape:
            raise ValueError(
                f"mask {str(mask.name)!r} has {_by(inside.shape)} voxels, its volume "
                f"{str(volume.name)!r} {_by(volume.shape)}; resample the mask to the volume"
            )
        union |= inside
    others = tuple(n for n in range(3) if n != _AXES[axis])
    return union.mean(axis=others), note


def _same_place(volume: Volume, mask: Volume) -> bool:
    if volume.affine is None or mask.affine is None:
        return False
    return bool(np.allclose(volume.affine, mask.affine, atol=1e-2, rtol=1e-3))


def _unplaced(volume: Volume) -> bool:
    """Tell whether a volume's affine says nothing."""
    return volume.affine is None or np.array_equal(volume.affine, np.eye(4))


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
