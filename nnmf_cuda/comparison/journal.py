"""What a comparison has done so far, on disk: a line a result, and the systems that are trained."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nnmf_cuda.baselines import ImageClassifier
from nnmf_cuda.comparison.measure import Finished
from nnmf_cuda.evaluation.compared import Failed, Measured, RandomLabels, Transfer

JOURNAL, WORK = "compare.jsonl", "compare.work"

Line = Measured | Failed | Transfer | RandomLabels
_Kind = TypeVar("_Kind", Measured, Failed, Transfer, RandomLabels)

_READ: Mapping[str, Callable[[Mapping[str, Any]], Line]] = {
    "measured": Measured.from_dict,
    "failed": lambda content: Failed(**content),
    "transfer": Transfer.from_dict,
    "random_labels": RandomLabels.from_dict,
}
_KINDS = {Measured: "measured", Failed: "failed", Transfer: "transfer"}


class Journal:
    """A file of JSON lines, whose first says of which comparison; and a folder beside it.

    The folder has, until all is done, each trained system (pickled) and the points that were found
    against it. What is pickled runs code when it is read: a journal of another's making is not to
    be gone on with.

    Parameters
    ----------
    home : Path
        The folder of the results, held by this process.
    key : mapping
        What must be the same for a comparison to be gone on with, as JSON.

    Raises
    ------
    ValueError
        If the file is of another comparison, or a line is none of ours.
    """

    def __init__(self, home: Path, key: Mapping[str, Any]) -> None:
        self.path, self.work = home / JOURNAL, home / WORK
        self.lines: list[Line] = []
        head = json.loads(json.dumps({"nnmf-cuda": "comparison", **key}))
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        if not lines or lines == [b""]:
            self.path.write_text(json.dumps(head) + "\n", encoding="utf-8")
            return
        self._check_head(lines[0], head)
        whole = lines[:-1]  # what was cut short while it was written is done again
        for number, line in enumerate(whole[1:], 2):
            try:
                content = json.loads(line)
                self.lines.append(_READ[content.pop("kind")](content))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"line {number} of {self.path} is not one that compare has written"
                    f" ({type(error).__name__}: {error}): remove that line, and it is done again"
                ) from error
        with self.path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in whole))

    def _check_head(self, line: bytes, head: Mapping[str, Any]) -> None:
        try:
            there = json.loads(line)
            names = {name for name in {**there, **head} if there.get(name) != head.get(name)}
        except (ValueError, TypeError, AttributeError):
            names = {"nnmf-cuda"}
        if names:
            raise ValueError(
                f"{self.path} is the record of a comparison with another {', '.join(sorted(names))}"
                " (or of none): give the options of the first time to go on, --overwrite to begin"
                " anew, or another --out"
            )

    def note(self, line: Line) -> None:
        """Add a result, and have it on disk."""
        self.lines.append(line)
        kind = _KINDS.get(type(line), "random_labels")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **asdict(line)}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def of(self, kind: type[_Kind]) -> list[_Kind]:
        """Return the results of a kind, in the order in which they came."""
        return [line for line in self.lines if isinstance(line, kind)]

    def save(self, finished: Finished, estimator: ImageClassifier) -> None:
        """Keep a trained system and its points, and note its result."""
        measured = finished.measured
        self.work.mkdir(exist_ok=True)
        file = self._file(measured.system, measured.split, measured.seed)
        arrays: dict[str, Any] = {f"points_{k}": found for k, found in finished.points.items()}
        partial = self.work / "partial.npz"
        np.savez(partial, held=finished.held, **arrays)
        os.replace(partial, file.with_suffix(".npz"))
        partial = self.work / "partial.pkl"
        partial.write_bytes(pickle.dumps(estimator))
        os.replace(partial, file.with_suffix(".pkl"))
        self.note(measured)

    def finished(self, measured: Measured) -> Finished | None:
        """Return a result with its points; None where they or the system are not there."""
        file = self._file(measured.system, measured.split, measured.seed)
        if not (file.with_suffix(".npz").exists() and file.with_suffix(".pkl").exists()):
            return None
        with np.load(file.with_suffix(".npz")) as arrays:
            points = {
                name.removeprefix("points_"): arrays[name]
                for name in arrays.files
                if name.startswith("points_")
            }
            return Finished(measured, arrays["held"], points)

    def load(self, system: str, split: str, seed: int) -> ImageClassifier:
        """Return a trained system."""
        file = self._file(system, split, seed).with_suffix(".pkl")
        estimator: ImageClassifier = pickle.loads(file.read_bytes())
        return estimator

    def clear(self) -> None:
        """Remove the systems and points: all is done."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _file(self, system: str, split: str, seed: int) -> Path:
        plain = re.sub(r"[^A-Za-z0-9-]", lambda m: f"_{ord(m[0]):x}_", f"{split}-{seed}-{system}")
        return self.work / f"{plain}.any"
