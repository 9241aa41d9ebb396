"""What was written down before anything was measured on a GPU: predictions, and what would do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "GRAPH",
    "TARGETS",
    "Prediction",
    "Target",
    "predictions",
    "predictions_table",
    "problem_key",
]

GRAPH = "ours, CUDA graph"
"""The implementation that replays a captured call."""
_RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Prediction:
    """A time that was found without a GPU.

    Attributes
    ----------
    problem : str
        As `problem_key` gives it.
    impl : str
        Of ours, such as "ours, two rows a lane".
    ms, low_ms, high_ms : float
        Milliseconds on the device, of an iteration where a call has several: as expected, and the
        least and the most that the assumptions allow.
    host_ms : float
        Of the host, for the same.
    binds : str
        What most of it is spent on: one of `bench.time_model.BOUNDS`.
    by_bound_ms : mapping of str to float
    calls : float
        Ops that the host calls for it.
    kernels : list of dict
        As of `bench.time_model.KernelWork`.
    """

    problem: str
    impl: str
    ms: float
    low_ms: float
    high_ms: float
    host_ms: float
    binds: str
    by_bound_ms: Mapping[str, float]
    calls: float
    kernels: Sequence[Mapping[str, Any]]


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


def predictions(device: str = "h200", folder: Path = _RESULTS) -> list[Prediction]:
    """Return the predictions for a device; see `python -m bench predict`."""
    path = folder / f"predictions-{device}.json"
    rows = json.loads(path.read_text("utf-8"))["predictions"]
    return [Prediction(**row) for row in rows]


def predictions_table() -> str:
    """Return the table of docs/gpu.md: what each headline should take, and what that hangs on."""
    on_b200 = {(one.problem, one.impl): one for one in predictions("b200")}
    lines = [
        "| headline | H200 | at least to at most | limited by | host | B200 |",
        "|---|---|---|---|---|---|",
    ]
    for one in predictions("h200"):
        name = one.problem if one.impl == "ours" else f"{one.problem}: {one.impl}"
        span = f"{_time(one.low_ms)} to {_time(one.high_ms)}"
        other = on_b200[one.problem, one.impl]
        lines.append(
            f"| {name} | {_time(one.ms)} | {span} | {one.binds} | {_time(one.host_ms)}"
            f" | {_time(other.ms)} |"
        )
    return "\n".join(lines)


def _time(ms: float) -> str:
    return f"{1e3 * ms:.0f} us" if ms < 0.9995 else f"{ms:.3g} ms"
