"""Seeds of what a run draws, apart from each other."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What is drawn; stages that train or attack take the run's seed as it is."""

    EVALUATION = 1
    """Noise of the rows of `metrics.json`."""
    RESAMPLING = 2
    """Bootstrap."""
    DECISIONS = 3
    """Noise of the decisions by which attacks are measured: no attack may have seen it."""
    WORST_POINTS = 4
    """Noise of the rows on the worst points, which were chosen by the decisions."""


def seed_word(seed: int, purpose: Purpose) -> int:
    """Return a seed of 32 bits; torch's generator on the CPU reads no more."""
    return int(np.random.SeedSequence([seed, int(purpose)]).generate_state(1)[0])
