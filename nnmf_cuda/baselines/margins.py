"""Probabilities of what answers with margins alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax


def probabilities_of_margins(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax of margins, (n, n_classes).

    A margin (n,) of two classes counts for the second and against the first by half of it each, so
    that the most probable class is always the one that the margins name. The probabilities order
    samples as the margins do and are not calibrated: they say nothing of how often they are right.
    """
    if margins.ndim == 1:
        margins = np.stack([-margins / 2, margins / 2], axis=1)
    probabilities: NDArray[np.float64] = softmax(margins, axis=1)
    return probabilities
