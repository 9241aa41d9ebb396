"""Directories of `nnmf-cuda run` as lines of a record, and several of them summed up."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Line = Mapping[str, Any]
"""One run in a record, with its "defence" and "test_fold" among other things."""


def read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def made_by(run: Path) -> dict[str, Any]:
    """Return commit and data of a run; raise ValueError for one that no commit can make again."""
    environment = read(run / "environment.json")
    if not environment["commit"] or environment["uncommitted_changes"]:
        raise ValueError(f"{run} was made by a tree that is no commit: commit, and run it again")
    return {name: environment[name] for name in ("commit", "data_sha256")}


def as_text(record: Mapping[str, Sequence[Any]]) -> str:
    """Return JSON with a line for each run and trial, so that a change of one shows as one."""
    parts = [
        f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, lines)) + "\n]"
        for name, lines in record.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}"


def by_defence_and_split(lines: Sequence[Line]) -> list[tuple[tuple[str, str], list[Line]]]:
    """Group runs by defence and split, those of folds also as "all folds"; in order."""
    groups = defaultdict[tuple[str, str], list[Line]](list)
    for line in lines:
        settings, fold = line["defence"], line["test_fold"]
        defence = f"{settings['kind']}, {settings['method']}, {settings.get('network', 'cnn')}"
        groups[defence, "published split" if fold is None else f"fold {fold}"].append(line)
        if fold is not None:
            groups[defence, "all folds"].append(line)
    return sorted(groups.items())


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return "mean ± standard deviation"; that of one value is 0."""
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {spread:.3f}"
