"""The record of `python -m bench ranks`: what was measured, and the constants that follow from it.

Constants are fitted to parts that are timed alone: an update of many rows and of few, and sums over
2 to 4 ranks. Whole iterations of fits are then predicted from these, and no constant from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from bench.ranks_model import (
    Cost,
    Fit,
    Machine,
    Network,
    Parts,
    cost_of,
    sum_of,
)

__all__ = ["IterationTime", "Rate", "Record", "SumTime", "crowd_of"]


_LEAST_S = 1e-6
"""What takes less is not told from nothing."""


@dataclass(frozen=True)
class Rate:
    """What one rank of one thread takes for an iteration without an exchange, in CPU time.

    Attributes
    ----------
    n_samples, n_features, n_components : int
    entry_ns : float
        For each entry of X beyond those of a few rows.
    record_share : float
        What the divergence takes of that.
    H_ms : float
        Whatever rows there are.
    busy : float
        How many times as long it took: 1 where no other work takes the cores.
    """

    n_samples: int
    n_features: int
    n_components: int
    entry_ns: float
    record_share: float
    H_ms: float
    busy: float


@dataclass(frozen=True)
class SumTime:
    """What `Ranks.totals` takes for so many numbers."""

    ranks: int
    numbers: int
    ms: float


@dataclass(frozen=True)
class IterationTime:
    """What an iteration of a fit took, a tenth of a record included."""

    n_samples: int
    n_features: int
    n_components: int
    ranks: int
    threads: int
    ms: float
    p25: float
    p75: float

    @property
    def fit(self) -> Fit:
        """What was fitted."""
        return Fit(self.n_samples, self.n_features, self.n_components)


@dataclass(frozen=True)
class Record:
    """All that was measured in a run.

    Attributes
    ----------
    machine : mapping
        As `bench.ranks.machine` tells it.
    rates, sums, iterations : sequence
    relative_times : sequence of float
        Of one update, again and again, by two ranks at once that do not wait for each other: as
        multiples of its median.
    update_ms : float
        That median.
    W_times, H_times : float
        As `bench.ranks_model.Parts` has them.
    operations : int
        Of torch, in an iteration of a rank.
    """

    machine: Mapping[str, Any]
    rates: Sequence[Rate]
    sums: Sequence[SumTime]
    iterations: Sequence[IterationTime]
    relative_times: Sequence[float]
    update_ms: float
    W_times: float
    H_times: float
    operations: int

    @classmethod
    def read(cls, path: Path) -> Record:
        """Return the record of a file; raise ValueError where it is none."""
        try:
            values = json.loads(path.read_text("utf-8"))
            rows = {"rates": Rate, "sums": SumTime, "iterations": IterationTime}
            made = {name: [of(**row) for row in values[name]] for name, of in rows.items()}
            return cls(**{**values, **made})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no record of the ranks ({error}): python -m bench ranks writes one"
            ) from error

    def text(self) -> str:
        """Return JSON with a line for each measurement."""
        parts = []
        for name, value in asdict(self).items():
            if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
                lines = ",\n".join(f"  {json.dumps(_short(one))}" for one in value)
                parts.append(f' "{name}": [\n{lines}\n ]')
            else:
                parts.append(f' "{name}": {json.dumps(_short(value))}')
        return "{\n" + ",\n".join(parts) + "\n}\n"

    @property
    def cores(self) -> int:
        """Of the machine."""
        return int(self.machine["cpu_count"])

    @property
    def parts(self) -> Parts:
        """What of W and H a rank has at a time."""
        return Parts(self.W_times, self.H_times)

    def network(self) -> Network:
        """Return what the exchange takes here, of times that sums took.

        Ranks that share a core share what it sends, too.
        """
        exchanges = [sum_of(one.numbers, one.ranks) for one in self.sums]
        crowds = [crowd_of(one.ranks, 1, self.cores) for one in self.sums]
        terms = np.array([[e.steps, e.messages, e.received_bytes] for e in exchanges], float)
        seconds = np.array([one.ms / 1e3 for one in self.sums])
        step, message, byte = _fitted(terms * np.array(crowds)[:, None], seconds)
        return Network("loopback", "gloo", 0.0, step, message, 1 / byte if byte > 0 else np.inf)

    def H_constants(self) -> tuple[float, float]:
        """Return the seconds of an iteration that hang on H: in all, and for each number of it."""
        terms = np.array([[1.0, rate.n_components * rate.n_features] for rate in self.rates])
        fixed, number = _fitted(terms, np.array([rate.H_ms / 1e3 for rate in self.rates]))
        return fixed, number

    def rate(self, fit: Fit) -> Rate:
        """Return the rate that was measured for components and features; ValueError for others."""
        for rate in self.rates:
            if (rate.n_features, rate.n_components) == (fit.n_features, fit.n_components):
                return rate
        raise ValueError(f"no rate was measured for {fit}")

    def here(self, fit: Fit, ranks: int, threads: int) -> Machine:
        """Return this machine as one of `ranks` processes has it: its threads divide X.

        As busy as it was; what sums took is that already.
        """
        rate, (fixed, number) = self.rate(fit), self.H_constants()
        return Machine(
            "here",
            rate.busy * rate.entry_ns / 1e9 / threads,
            rate.record_share,
            rate.busy * fixed,
            rate.busy * number,
            crowd_of(ranks, threads, self.cores),
        )

    def predicted(self, one: IterationTime) -> Cost:
        """Return what the model says of an iteration that was measured."""
        machine = self.here(one.fit, one.ranks, one.threads)
        return cost_of(one.fit, one.ranks, machine, self.network())


def crowd_of(ranks: int, threads: int, cores: int) -> float:
    """Return how many ranks share what one would have, where they have more threads than cores."""
    return max(1.0, ranks * threads / cores)


def _fitted(terms: NDArray[np.float64], seconds: NDArray[np.float64]) -> tuple[float, ...]:
    """Return factors of the terms, none below 0, of least squared relative error."""
    scale = terms.max(0)
    scale[scale == 0] = 1.0
    weights = 1 / np.maximum(seconds, _LEAST_S)
    found, _ = nnls(terms / scale * weights[:, None], seconds * weights)
    return tuple(float(value) for value in found / scale)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_short(one) for one in value]
    return value
