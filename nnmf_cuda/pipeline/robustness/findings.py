"""What an evaluation has measured, before it is put into words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnmf_cuda.attacks import SuiteResult
from nnmf_cuda.evaluation import Certificate
from nnmf_cuda.pipeline.robustness.efforts import Effort
from nnmf_cuda.pipeline.robustness.pixels import PixelAttack

__all__ = ["Findings"]


@dataclass(frozen=True)
class Findings:
    """What was measured; None where it was not run.

    Attributes
    ----------
    effort : Effort
        What was spent.
    evaluation_seed : int
        Of the decisions.
    suites : mapping of str to SuiteResult
        By model: "defended", "undefended", and where attacked the simpler defences and
        "adversarially trained".
    curves, gradients, planted, counts_at_zero : mapping or None
        See `nnmf_cuda.pipeline.robustness.curves` and `checks`.
    worst_points : mapping or None
        Rows of nine metrics, with their intervals, comparisons and calibration, on the worst point
        of every sample, as `metrics.json` holds them of the paper's protocol.
    fixed_noise, transfer_back : float or None
        Robust accuracy where the attacker knows the noise; of the undefended model under the
        defence's worst points.
    certificates : mapping of str to Certificate
    pixels : PixelAttack or None
    seconds : float
    n_calls, n_rows : int
        Calls of the defence and its surrogates by the suite, and rows that they were asked about.
    """

    effort: Effort
    evaluation_seed: int
    suites: Mapping[str, SuiteResult]
    curves: Mapping[str, Any] | None
    gradients: Mapping[str, Any] | None
    planted: Mapping[str, float] | None
    counts_at_zero: Mapping[str, float] | None
    worst_points: Mapping[str, Any] | None
    fixed_noise: float | None
    transfer_back: float | None
    certificates: Mapping[str, Certificate]
    pixels: PixelAttack | None
    seconds: float
    n_calls: int
    n_rows: int
