"""How much an evaluation spends: the presets of `nnmf-cuda evaluate`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from nnmf_cuda.attacks import BUDGETS, Budget

LIGHT = Budget(
    n_iter=40, n_restarts=1, n_cheap_restarts=5, eot_iter=8, surrogate_draws=32, pgd_iter=40,
    n_queries=100,
)  # fmt: skip
"""For what stands beside the defence that is asked about: simpler defences, a planted copy."""


@dataclass(frozen=True)
class PixelBudget:
    """How much the attack on pixels spends: APGD on the margin in Linf balls of ascending radii.

    At each radius, in 1/255 of the range, it also climbs on from the points of the radius before. A
    purifying defence is climbed through `surrogate_draws` draws.
    """

    eps_255: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    n_iter: int = 40
    n_restarts: int = 1
    surrogate_draws: int = 64


@dataclass(frozen=True)
class EvaluationBudget:
    """How much an evaluation spends.

    Attributes
    ----------
    suite : Budget or None
        Of the adaptive suite; None leaves out all but the paper's protocol and pixels.
    curve_iter : int
        Steps of the attacks behind curves.
    attack_eps, n_iter, n_restarts, eot_iter : tuple
        Points of the curves.
    pixels : PixelBudget
        Of the attack on pixels.
    n_estimation : int
        Draws a sample of a certificate.
    verify_seconds, verify_total_seconds : float
        Of the search for a proof, for each sample of a defence without noise, and for all together;
        None verifies nothing.
    """

    suite: Budget | None = None
    curve_iter: int = 50
    attack_eps: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    n_iter: tuple[int, ...] = (25, 50, 100, 200)
    n_restarts: tuple[int, ...] = (1, 2, 5)
    eot_iter: tuple[int, ...] = (1, 8, 20, 64)
    pixels: PixelBudget = field(default_factory=PixelBudget)
    n_estimation: int = 10_000
    verify_seconds: float | None = None
    verify_total_seconds: float = math.inf


EVALUATION_BUDGETS: Mapping[str, EvaluationBudget] = {
    "paper": EvaluationBudget(),
    "quick": EvaluationBudget(
        suite=LIGHT,
        curve_iter=20,
        attack_eps=(0.0, 0.05, 0.1, 0.2, 1.0),
        n_iter=(10, 20, 40),
        n_restarts=(1, 2),
        eot_iter=(1, 8),
        pixels=PixelBudget(eps_255=(2.0, 8.0), n_iter=15),
        n_estimation=1_000,
        verify_seconds=1.0,
        verify_total_seconds=10.0,
    ),
    "standard": EvaluationBudget(
        suite=BUDGETS["standard"], verify_seconds=10.0, verify_total_seconds=120.0
    ),
    "thorough": EvaluationBudget(
        suite=BUDGETS["thorough"],
        curve_iter=100,
        n_iter=(50, 100, 200, 500),
        n_restarts=(1, 5, 20),
        pixels=PixelBudget(n_iter=200, n_restarts=3, surrogate_draws=128),
        n_estimation=100_000,
        verify_seconds=60.0,
    ),
}
"""By preset. `paper` counts again what the run's own attack has found; `quick` is a first look."""
