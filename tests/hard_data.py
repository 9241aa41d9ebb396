"""Features made to be hard: unequal classes that overlap, two of them and three."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Split = tuple[NDArray[np.float32], NDArray[np.int64]]
SIZES = {"train": 700, "valid": 300, "test": 300}
_SPREAD, _APART = 0.09, 0.2


def overlapping(seed: int = 0) -> dict[str, Split]:
    """Two classes, 35 % positive, whose ceiling at Linf 0.10 is about 0.80.

    Unit vectors of eight features, as features of images are; a tenth of the samples is drawn
    without regard to its class.
    """
    rng = np.random.default_rng(seed)
    splits = {}
    for name, n in SIZES.items():
        y = (rng.random(n) < 0.35).astype(np.int64)
        shown = np.where(rng.random(n) < 0.1, rng.random(n) < 0.35, y)
        x = np.abs(rng.normal(0.25, _SPREAD, (n, 8)))
        x[:, :3] += _APART * shown[:, None]
        x[:, 3:6] += _APART * (1 - shown[:, None])
        splits[name] = _unit(x), y
    return splits


def three_classes(seed: int = 0) -> dict[str, Split]:
    """Three classes of unequal size, each with three features of nine; at 0.10 about 0.78."""
    rng = np.random.default_rng(seed)
    splits = {}
    for name, n in SIZES.items():
        y = rng.choice(3, n, p=[0.5, 0.3, 0.2])
        x = np.abs(rng.normal(0.25, _SPREAD, (n, 9)))
        for label in range(3):
            x[:, 3 * label : 3 * label + 3] += _APART * (y == label)[:, None]
        splits[name] = _unit(x), y.astype(np.int64)
    return splits


def _unit(x: NDArray[np.float64]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return unit
