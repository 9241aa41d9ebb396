"""What is known of every sample after `verify`, and the record from which it goes on."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.distributed.crew import ALONE, Crew

BRANCH_AND_BOUND = "branch and bound"
"""What proves the answers of a defence without noise, and an attack where it finds a point."""

PHASES = ("attack", "bounds", "search")
"""Where time goes: points are tried, all balls are bounded at once, and some are cut up."""


class Status(StrEnum):
    """What is known of a sample."""

    PROVEN = "proven"
    BROKEN = "broken"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Verification:
    """What is known of every sample.

    Attributes
    ----------
    status : array of shape (n,)
        A `Status` of each.
    lower_bound : array of shape (n,)
        Nowhere in the ball is the margin of the label over the next class less, in exact
        arithmetic. Of a broken sample what was known when the point was found.
    rounding : array of shape (n,)
        By how much the margin of the network that answers can differ from that: a sample is proven
        where the margin is larger everywhere.
    counterexample : array of shape (n, n_features)
        The point that breaks a sample, exactly within ball and box; NaN where there is none.
    n_boxes : array of shape (n,)
        Boxes that were bounded.
    seconds : mapping of str to array of shape (n,)
        Of each of `PHASES`; what was done for many samples at once is shared out evenly.
    eps : float or list of float
    norm : str
    """

    status: NDArray[np.str_]
    lower_bound: NDArray[np.float64]
    rounding: NDArray[np.float64]
    counterexample: NDArray[np.float64]
    n_boxes: NDArray[np.int64]
    seconds: Mapping[str, NDArray[np.float64]]
    eps: float | list[float]
    norm: str

    @property
    def proven(self) -> NDArray[np.bool_]:
        """Which samples (n,) no point of the ball breaks."""
        return np.asarray(self.status == Status.PROVEN)

    @property
    def broken(self) -> NDArray[np.bool_]:
        """Which samples (n,) a known point breaks, their own features among them."""
        return np.asarray(self.status == Status.BROKEN)

    @property
    def undecided(self) -> NDArray[np.bool_]:
        """Which samples (n,) are neither."""
        return np.asarray(self.status == Status.UNDECIDED)

    @property
    def proven_accuracy(self) -> float:
        """Share of samples that are proven."""
        return float(self.proven.mean())

    @property
    def undecided_accuracy(self) -> float:
        """Share of samples that are undecided."""
        return float(self.undecided.mean())

    def as_dict(self) -> dict[str, Any]:
        """Return all of it but the points as JSON has it."""
        return {
            "eps": self.eps,
            "norm": self.norm,
            "n": len(self.status),
            "proven_accuracy": self.proven_accuracy,
            "undecided_accuracy": self.undecided_accuracy,
            "broken_share": float(self.broken.mean()),
            "status": self.status.tolist(),
            "lower_bound": [v if math.isfinite(v) else None for v in self.lower_bound.tolist()],
            "rounding": [v if math.isfinite(v) else None for v in self.rounding.tolist()],
            "n_boxes": self.n_boxes.tolist(),
            "seconds": {name: values.tolist() for name, values in self.seconds.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write all of it as .npz."""
        arrays: dict[str, Any] = {f"seconds_{name}": v for name, v in self.seconds.items()}
        np.savez(
            path,
            status=self.status,
            lower_bound=self.lower_bound,
            rounding=self.rounding,
            counterexample=self.counterexample,
            n_boxes=self.n_boxes,
            eps=np.asarray(self.eps),
            norm=np.asarray(self.norm),
            **arrays,
        )


class Journal:
    """A file with a line for each sample that is done; the first line says of which task.

    Of a `crew` rank 0 writes it. Where work is divided, each process has a file of its own beside
    it, until all are united; rank 0 also takes in those that an earlier start has left, whatever
    its number of processes was.
    """

    def __init__(
        self, path: Path, key: str, n_samples: int, n_features: int, *, crew: Crew = ALONE
    ) -> None:
        self.path, self._crew, self._divided = path, crew, False
        self._own = _part(path, crew.rank)
        self._head = json.dumps({"nnmf-cuda": "verification", "of": key})

        def known() -> dict[int, dict[str, Any]]:
            entries = _entries(path, self._head, n_samples, n_features)
            for part in sorted(path.parent.glob(f"{glob.escape(path.name)}.rank-*")):
                found = _entries(part, self._head, n_samples, n_features)
                for entry in found:
                    self.note(entry)
                entries += found
                part.unlink()
            return {entry["sample"]: entry for entry in entries}

        self.known = crew.first(known)

    def note(self, entry: dict[str, Any]) -> None:
        """Add the line of a sample."""
        if self._divided or self._crew.leads:
            path = self._own if self._divided else self.path
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def divide(self) -> None:
        """Let each process note what it finds in a file of its own, where there are several."""
        self._divided = self._crew.size > 1
        if self._divided:
            self._own.write_text(self._head + "\n", encoding="utf-8")

    def unite(self, found: Sequence[dict[str, Any]]) -> None:
        """Note what all have found since, in this order, and remove the files in which it was."""
        if not self._divided:
            return
        self._divided = False
        for entry in found:
            self.note(entry)
        self._crew.gathered(None)  # now that it is noted
        self._own.unlink(missing_ok=True)


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.rank-{rank}")


def _entries(path: Path, head: str, n_samples: int, n_features: int) -> list[dict[str, Any]]:
    """Return what a record of this task has; one that is not there is begun."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    if not lines or lines == [b""]:
        path.write_text(head + "\n", encoding="utf-8")
        return []
    if lines[0].decode("utf-8", "replace") != head:
        raise ValueError(
            f"{path} is the record of another verification (another model, eps, norm, box,"
            " samples or version), or of none: give another file to resume, or remove it"
        )
    # What was cut short while it was written is done again.
    entries, whole = [], lines[:-1]
    for number, line in enumerate(whole[1:], 2):
        try:
            entry = json.loads(line)
            _check_entry(entry, n_samples, n_features)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"line {number} of {path} is not one that verify has written"
                f" ({type(error).__name__}: {error}): remove that line, and its sample is done"
                " again"
            ) from error
        entries.append(entry)
    with path.open("r+b") as file:
        file.truncate(sum(len(line) + 1 for line in whole))
    return entries


def _check_entry(entry: Any, n_samples: int, n_features: int) -> None:
    """Raise ValueError, KeyError or TypeError unless a line is of one of the samples, and whole."""
    row, status, point = entry["sample"], Status(entry["status"]), entry["counterexample"]
    if type(row) is not int or not 0 <= row < n_samples:
        raise ValueError(f"sample must be within 0..{n_samples - 1}, got {row!r}")
    if (point is not None) != (status is Status.BROKEN):
        raise ValueError(f"counterexample must be there if broken, and only then; status {status}")
    if point is not None and len([float(value) for value in point]) != n_features:
        raise ValueError(f"counterexample must have {n_features} numbers, got {len(point)}")
    bounds = [entry[name] for name in ("lower_bound", "rounding") if entry[name] is not None]
    for value in (*bounds, entry["n_boxes"], *(entry["seconds"][phase] for phase in PHASES)):
        if math.isnan(value):
            raise ValueError("NaN is no bound, and no count")
