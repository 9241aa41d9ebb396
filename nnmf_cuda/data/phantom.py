"""A built-in set of drawn, MRI-like images, so that everything runs without data.

Nothing here was measured on anybody. Each image is an axial slice through a simple head: scalp,
skull, brain with cortex, ventricles and falx, at a level between skull base and vertex, turned and
shifted a little, under smooth shading and Rician noise. It holds one lesion of one of two kinds,
modelled on what contrast-enhanced T1 slices show of meningioma and pituitary tumours (compact,
bright, at the skull base or the edge) and of glioma (large, irregular, deep, with a bright rim and
a dark core). Levels and places of the two kinds overlap.

All shapes are polynomials cut off at 0 and 1, so that machines agree to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.dataset import SPLITS, ImageDataset
from nnmf_cuda.data.decoding import IMAGE_SHAPE

Floats = NDArray[Any]  # float32 throughout

LABEL_NAMES = ("synthetic compact lesion", "synthetic ring lesion")
N_SAMPLES = (700, 150, 200)
CHUNK = 64  # images drawn at once: bounds the memory of the intermediate pictures
N_HARMONICS = 3  # of a lesion's outline, from the second on


def phantom(
    n_samples: tuple[int, int, int] = N_SAMPLES,
    seed: int = 0,
    *,
    image_shape: tuple[int, int] = IMAGE_SHAPE,
) -> ImageDataset:
    """Draw a synthetic two-class data set: uint8 images with ``synthetic=True``.

    Parameters
    ----------
    n_samples : tuple of int, default=(700, 150, 200)
        Training, validation and test images, each at least 2; half of each (rounded up for the
        first class) hold either kind of lesion.
    seed : int, default=0
        The same seed gives the same images.
    image_shape : tuple of int, default=(128, 128)
        Height and width, in pixels.

    Raises
    ------
    ValueError
        If a number of images is below 2, or the images are below 16 pixels high or wide.
    """
    if len(n_samples) != len(SPLITS) or min(n_samples) < 2:
        raise ValueError(f"n_samples={n_samples}: give three numbers (train, valid, test) of >= 2")
    if min(image_shape) < 16:
        raise ValueError(f"image_shape={image_shape}: give at least 16 x 16 pixels")
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = np.concatenate([rng.permutation(np.arange(n) % 2) for n in n_samples]).astype(np.int64)
    plan = _draw_plan(labels, rng)
    chunks = [
        _draw_images(plan.rows(slice(begin, begin + CHUNK)), image_shape, rng)
        for begin in range(0, len(labels), CHUNK)
    ]
    return ImageDataset(
        images=np.concatenate(chunks),
        labels=labels,
        label_names=LABEL_NAMES,
        split=np.repeat(np.array(SPLITS), n_samples),
        groups={},
        files=np.array([f"phantom-{seed}-{index:05d}" for index in range(len(labels))]),
        source="phantom",
        synthetic=True,
        notes=(
            f"SYNTHETIC: {len(labels)} images drawn by a program (phantom, seed {seed}); they show "
            "nobody, and no figure made from them says anything about real tumours",
        ),
    )


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is to be seen in each image: arrays of shape (n, 1, 1) unless said.

    Lengths are in half sides of the picture; x to the right, y down, from the head's centre.
    """

    is_ring: Floats
    level: Floats  # 0 skull base .. 1 vertex
    angle: Floats  # sine of the head's turn
    shift: Floats  # (n, 2, 1, 1) x, y
    size: Floats  # (n, 2, 1, 1) half width, half height of the head
    ventricle: Floats  # scale of the ventricles
    lesion_at: Floats  # (n, 2, 1, 1) x, y
    lesion_radius: Floats
    lesion_stretch: Floats  # width over height
    lesion_brightness: Floats
    outline: Floats  # (n, 2, N_HARMONICS, 1, 1) cosine and sine parts of the outline
    noise: Floats  # standard deviation

    def rows(self, rows: slice) -> _Plan:
        return _Plan(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


def _draw_plan(labels: NDArray[np.int64], rng: np.random.Generator) -> _Plan:
    n = len(labels)
    ring = labels == 1

    def between(low: float, high: float, *shape: int) -> NDArray[np.float64]:
        return rng.uniform(low, high, size=(n, *shape))

    side = np.where(rng.random(n) < 0.5, -1.0, 1.0)
    # A compact lesion lies at the skull base in the midline, or else against the skull.
    at_base = rng.random(n) < 0.5
    edge_x, edge_y = side * between(0.42, 0.58), between(-0.5, 0.45)
    compact_x = np.where(at_base, between(-0.1, 0.1), edge_x)
    compact_y = np.where(at_base, between(-0.25, 0.1), edge_y)
    ring_x, ring_y = side * between(0.12, 0.45), between(-0.45, 0.45)
    level = np.where(ring, 0.6, 0.4) + 0.19 * rng.standard_normal(n)
    plan = {
        "is_ring": ring,
        "level": np.clip(level, 0.0, 1.0),
        "angle": between(-0.08, 0.08),
        "shift": between(-0.02, 0.02, 2),
        "size": np.array([0.72, 0.90]) * between(0.96, 1.03, 2),
        "ventricle": between(0.7, 1.35),
        "lesion_at": np.stack(
            [np.where(ring, ring_x, compact_x), np.where(ring, ring_y, compact_y)], axis=1
        ),
        "lesion_radius": np.where(ring, between(0.24, 0.42), between(0.18, 0.30)),
        "lesion_stretch": between(0.8, 1.25),
        "lesion_brightness": between(0.75, 1.0),
        "outline": rng.standard_normal((n, 2, N_HARMONICS))
        * np.where(ring, 0.13, 0.03)[:, None, None]
        / np.arange(1, N_HARMONICS + 1),
        "noise": between(0.01, 0.03),
    }
    wide = {name: v.astype(np.float32)[..., None, None] for name, v in plan.items()}
    return _Plan(**wide)


def _draw_images(
    plan: _Plan, image_shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.uint8]:
    n = len(plan.level)
    x, y = _head_coordinates(plan, image_shape)
    texture = _smooth_noise(n, image_shape, 24, rng)
    head, brain = _draw_head(plan, x, y, texture)
    picture = _add_lesion(plan, head, brain, x, y, texture)
    picture *= 1.0 + 0.12 * _smooth_noise(n, image_shape, 4, rng)  # uneven coil sensitivity
    noise = rng.standard_normal((2, *picture.shape), dtype=np.float32) * plan.noise
    magnitude = np.sqrt((picture + noise[0]) ** 2 + noise[1] ** 2)
    grey: NDArray[np.uint8] = np.clip(magnitude * 215.0 + 0.5, 0.0, 255.0).astype(np.uint8)
    return grey


def _head_coordinates(plan: _Plan, image_shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Return x and y of every pixel in the turned and shifted head, (n, height, width) each."""
    height, width = image_shape
    column = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, None, :]
    row = np.linspace(-1.0, 1.0, height, dtype=np.float32)[None, :, None]
    column, row = column - plan.shift[:, 0], row - plan.shift[:, 1]
    sine, cosine = plan.angle, np.sqrt(1.0 - plan.angle**2)
    return cosine * column + sine * row, cosine * row - sine * column


def _draw_head(plan: _Plan, x: Floats, y: Floats, texture: Floats) -> tuple[Floats, Floats]:
    """Return the head without lesion, and where its brain is (0 .. 1)."""
    radius = np.sqrt((x / plan.size[:, 0]) ** 2 + (y / plan.size[:, 1]) ** 2)
    upper = _ramp(plan.level, 0.25, 0.65)  # how much of this slice lies above the base
    inner = 0.86 - 0.03 * texture * (1.0 - upper)
    brain = _inside(radius, inner, 0.04)
    scalp = _inside(radius, 1.0, 0.03) * (1.0 - _inside(radius, 0.95, 0.03))
    skull = _inside(radius, 0.95, 0.03) * (1.0 - brain)

    cortex = 1.0 - _inside(radius + 0.10 * texture, 0.72, 0.12)
    tissue = 0.50 - 0.12 * cortex + 0.04 * texture
    outer = 1.0 - _ellipse(x, y, 0.0, 0.0, 0.3, 0.35, 0.3)
    falx = upper * outer * _inside(np.abs(x), 0.012, 0.02)
    tissue = tissue + 0.22 * falx
    tissue = _mix(tissue, 0.14, upper * _ventricles(plan, x, y))
    tissue = _skull_base(tissue, x, y, 1.0 - upper)
    return 0.62 * scalp + 0.08 * skull + brain * tissue, brain


def _ventricles(plan: _Plan, x: Floats, y: Floats) -> Floats:
    """Two horns a side, apart in front and behind, together in the middle."""
    across, scale = np.abs(x), plan.ventricle
    front = _ellipse(across - 0.35 * np.abs(y), y, 0.035, -0.17, 0.055 * scale, 0.20, 0.3)
    back = _ellipse(across - 0.45 * y, y, 0.03, 0.22, 0.06 * scale, 0.22, 0.3)
    return np.maximum(front, back)


def _skull_base(tissue: Floats, x: Floats, y: Floats, weight: Floats) -> Floats:
    """Add air cells and orbits in front, petrous bone, and cisterns around the brain stem."""
    across = np.abs(x)
    air = _ellipse(x, y, 0.0, -0.48, 0.17, 0.20, 0.3)
    orbit = _ellipse(across, y, 0.30, -0.52, 0.14, 0.12, 0.4)
    bone = _ellipse(across + 0.5 * y, y, 0.47, 0.16, 0.20, 0.06, 0.5)
    stem = _ellipse(x, y, 0.0, 0.09, 0.13, 0.12, 0.3)
    cistern = np.clip(_ellipse(x, y, 0.0, 0.06, 0.22, 0.18, 0.3) - stem, 0.0, 1.0)
    # Partly transparent: at full contrast the level alone would tell the classes apart.
    tissue = _mix(tissue, 0.05, 0.5 * weight * air)
    tissue = _mix(tissue, 0.70, 0.5 * weight * orbit)
    tissue = _mix(tissue, 0.08, 0.5 * weight * bone)
    return _mix(tissue, 0.16, 0.6 * weight * cistern)


def _add_lesion(
    plan: _Plan, head: Floats, brain: Floats, x: Floats, y: Floats, texture: Floats
) -> Floats:
    dx = (x - plan.lesion_at[:, 0]) / plan.lesion_stretch
    dy = (y - plan.lesion_at[:, 1]) * plan.lesion_stretch
    distance = np.sqrt(dx**2 + dy**2) + 1e-6
    cosine, sine = dx / distance, dy / distance
    # c, s: cosine and sine of 2, 3, ... times the angle around the lesion (addition theorem)
    c, s = cosine, sine
    wobble = np.zeros_like(distance)
    for harmonic in range(N_HARMONICS):
        c, s = c * cosine - s * sine, s * cosine + c * sine
        wobble += c * plan.outline[:, 0, harmonic] + s * plan.outline[:, 1, harmonic]
    # 1 on the outline
    radius = distance / (plan.lesion_radius * np.clip(1.0 + wobble, 0.6, 1.5))
    swelling = plan.is_ring * (1.0 - _ramp(radius, 0.8, 1.9))
    picture = _mix(head, 0.26, 0.8 * brain * swelling)
    solid = brain * _inside(radius, 1.0, 0.15)
    core = plan.is_ring * _inside(radius + 0.1 * texture, 0.66, 0.2)
    lesion = _mix(plan.lesion_brightness + 0.05 * texture, 0.22, core)
    return _mix(picture, lesion, solid)


def _smooth_noise(
    n: int, image_shape: tuple[int, int], knots: int, rng: np.random.Generator
) -> Floats:
    """Return normal noise at `knots` x `knots` points, interpolated linearly between them."""
    values = rng.standard_normal((n, knots, knots), dtype=np.float32)
    rows, columns = (_hats(size, knots) for size in image_shape)
    noise: Floats = np.matmul(rows, np.matmul(values, columns.T))
    return noise


def _hats(size: int, knots: int) -> Floats:
    """Return the (size, knots) matrix of linear interpolation."""
    at = np.linspace(0.0, knots - 1.0, size, dtype=np.float32)[:, None]
    weights: Floats = np.clip(1.0 - np.abs(at - np.arange(knots, dtype=np.float32)), 0.0, 1.0)
    return weights


def _ramp(values: Floats, low: float, high: float) -> Floats:
    """Rise from 0 at `low` to 1 at `high`, smoothly."""
    share: Floats = np.clip((values - low) / (high - low), 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def _inside(radius: Floats, edge: Any, softness: float) -> Floats:
    """Fall from 1 to 0 where `radius` passes `edge`, over a width of `softness`."""
    inside: Floats = np.clip((edge - radius) / softness + 0.5, 0.0, 1.0)
    return inside


def _ellipse(
    x: Floats, y: Floats, x0: float, y0: float, half_width: Any, half_height: float, softness: float
) -> Floats:
    radius = np.sqrt(((x - x0) / half_width) ** 2 + ((y - y0) / half_height) ** 2)
    return _inside(radius, 1.0, softness)


def _mix(below: Floats, above: Floats | float, weight: Floats) -> Floats:
    """Paint `above` over `below` with opacity `weight`."""
    return below + weight * (above - below)
