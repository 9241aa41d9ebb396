"""Prediction beside measurement, and which single assumption would explain what differs.

Each assumption of `bench.time_model` is changed alone, all headlines are computed again from the
work that the predictions hold, and what is left of the differences is compared. Where no single
change leaves less than half of them, none is blamed: a count is wrong then, or several things are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from bench.predictions import Prediction
from bench.time_model import DEVICES, EXPECTED, Assumptions, KernelWork, time_of

__all__ = ["Compared", "Suspect", "compare", "suspects"]

_FACTORS = [2 ** (step / 8) for step in range(-16, 17) if step != 0]
"""By which an assumption is changed: from a quarter to four times."""
_EXPLAINS = 0.5
"""What may be left of the differences, as root mean squares of logarithms."""
_NOISE = 0.1
"""Differences that are not worth an explanation, likewise: 10 %."""


@dataclass(frozen=True)
class Compared:
    """A prediction and what was measured, in milliseconds.

    Attributes
    ----------
    predicted : Prediction
    ms : float
    """

    predicted: Prediction
    ms: float

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.ms / self.predicted.ms

    @property
    def within(self) -> bool:
        """Whether it lies between the least and the most that was predicted."""
        return self.predicted.low_ms <= self.ms <= self.predicted.high_ms


@dataclass(frozen=True)
class Suspect:
    """An assumption whose change explains the measurements.

    Attributes
    ----------
    name : str
        A field of `Assumptions`.
    assumed, found : float
        Its value in the predictions, and the one that fits best.
    left : float
        Root mean square of what the logarithms of measured over predicted still differ by.
    before : float
        The same without the change.
    """

    name: str
    assumed: float
    found: float
    left: float
    before: float

    @property
    def explains(self) -> bool:
        """Whether little is left to explain."""
        return self.left <= _EXPLAINS * self.before


def compare(
    predicted: Sequence[Prediction], measured: Mapping[tuple[str, str], float]
) -> list[Compared]:
    """Return the predictions of which something was measured, by problem and implementation."""
    return [
        Compared(one, measured[one.problem, one.impl])
        for one in predicted
        if (one.problem, one.impl) in measured
    ]


def suspects(compared: Sequence[Compared], device: str) -> list[Suspect]:
    """Return the assumptions by what a change of each leaves unexplained, the best first.

    Empty where there are fewer than three measurements, or they are as predicted.
    """
    before = _spread(compared, device, EXPECTED[device])
    if len(compared) < 3 or before <= _NOISE:
        return []
    found = []
    for field in fields(Assumptions):
        if field.name.startswith("host_"):  # measured times are those of the device
            continue
        assumed = getattr(EXPECTED[device], field.name)
        tried = [
            (_spread(compared, device, replace(EXPECTED[device], **{field.name: value})), value)
            for value in (assumed * factor for factor in _FACTORS)
        ]
        left, value = min(tried)
        found.append(Suspect(field.name, assumed, value, left, before))
    return sorted(found, key=lambda suspect: suspect.left)


def _spread(compared: Sequence[Compared], device: str, assumed: Assumptions) -> float:
    if not compared:
        return 0.0
    squares = []
    for one in compared:
        work = [KernelWork.from_json(kernel) for kernel in one.predicted.kernels]
        ms = time_of(work, DEVICES[device], assumed, calls=one.predicted.calls).ms
        squares.append(math.log(one.ms / ms) ** 2)
    return math.sqrt(sum(squares) / len(squares))
