"""What was written down before anything was measured on a GPU: predictions, and what would do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GRAPH", "TARGETS", "Prediction", "Target", "predictions", "problem_key"]

GRAPH = "ours, CUDA graph"
"""The implementation that replays a captured call."""
_H200 = Path(__file__).parent / "results" / "predictions-h200.json"


@dataclass(frozen=True)
class Prediction:
    """A time that a reading of the source has given.

    Attributes
    ----------
    problem : str
        As `problem_key` gives it.
    low_ms, high_ms : float
        Milliseconds on the device, of an iteration where a call has several.
    """

    problem: str
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Target:
    """What would count as a success.

    Attributes
    ----------
    problem : str
        As `problem_key` gives it.
    most_ms : float, optional
        Milliseconds of an iteration, or of a call where there are none.
    least_speed : float, optional
        How many times as fast as the reference on the same device.
    """

    problem: str
    most_ms: float | None = None
    least_speed: float | None = None

    def is_met(self, ms: float | None, speed: float | None) -> bool | None:
        """Say whether it is met; None where what was measured does not tell."""
        if ms is None:
            return None
        too_slow = self.most_ms is not None and ms > self.most_ms
        if self.least_speed is None:
            return not too_slow
        if speed is None:
            return False if too_slow else None
        return not too_slow and speed >= self.least_speed


TARGETS = (
    Target("nnmf_mu paper float32", most_ms=0.120, least_speed=5.0),
    Target("nnmf_mu problems float32", most_ms=1.4),
    Target("nnls many rows float32", least_speed=20.0),
    Target("defended_logits_gradient paper float32", least_speed=5.0),
    Target("defended_logits_gradient draws float32", least_speed=5.0),
)


def problem_key(op: str, size: str, dtype: str) -> str:
    """Return the name of a problem in tables of a check, such as "nnmf_mu paper float32"."""
    return f"{op} {size} {dtype}"


def predictions(path: Path = _H200) -> dict[str, Prediction]:
    """Return the predictions for an H200, by problem."""
    rows = json.loads(path.read_text("utf-8"))["predictions"]
    return {row["problem"]: Prediction(**row) for row in rows}
