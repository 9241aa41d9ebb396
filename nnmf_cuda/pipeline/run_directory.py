"""Where a run writes: all or nothing, and never over another run by accident."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnmf_cuda.pipeline.places import Place, remove_below, remove_if_empty

RESULTS = (
    "model",
    "figures",
    "adversarial.npz",
    "features.npz",
    "robustness.json",
    "robustness.npz",
    "robustness.html",
    "verification.json",
    "verification.npz",
    "verification.jsonl",
    "config.yaml",
    "environment.json",
    "curve.json",
    "curve.svg",
    "report.html",
    "timings.json",
    "metrics.json",
)
"""What a run writes; `metrics.json` comes last: where it is, all is."""

EVALUATED = (
    "figures",
    "robustness.json",
    "robustness.npz",
    "robustness.html",
    "report.html",
    "timings.json",
    "metrics.json",
)
"""What of that the evaluation of a run that is there writes, anew where it was."""

SUMMARIES = ("summary.json", "summary.html")
"""What stands above several runs."""

_SPLITS = ("own_split", "fold_*")
_BELOW = ("seed_*", "preset_*", *_SPLITS, *(f"{split}/seed_*" for split in _SPLITS))
"""Where several runs stand below the directory of all."""

_SHOWN = 4
"""Of so many runs the names are listed."""


class NotWritten(ValueError):
    """What a run has found could not be written, or not all of it; `tables` says what it is."""

    def __init__(self, message: str, tables: str) -> None:
        super().__init__(message)
        self.tables = tables


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of one of a run's files."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def runs_below(out: Path) -> list[Path]:
    """Return the directories below `out` with results of one of several runs, in order."""
    found = {home for pattern in _BELOW for home in out.glob(pattern) if _results_in(home)}
    return sorted(found)


def remove_runs(out: Path, *, keep: Collection[Path] = ()) -> None:
    """Remove the results of earlier runs in `out` and below it, and what summarised them.

    Directories in `keep` keep their results, and so do those that another process writes; files
    that no run writes stay, with the directories that they are in.
    """
    for name in _earlier(out, keep=keep):
        remove_below(out, name)


def _earlier(out: Path, *, keep: Collection[Path] = ()) -> list[str]:
    """Return the names of what `remove_runs` removes: of each run the sign that all is there first.

    They are relative to `out`.
    """
    below = [home for home in runs_below(out) if not Place(home).is_held()]
    results = [
        result
        for home in (*below, out)
        if home not in keep
        for result in reversed(_results_in(home))
    ]
    return [*SUMMARIES, *(str(result.relative_to(out)) for result in results)]


def _results_in(home: Path) -> list[Path]:
    return [home / name for name in RESULTS if (home / name).exists()]


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raise ValueError if `out` cannot become a run's directory."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give a directory")
    present = [name for name in (*RESULTS, *SUMMARIES) if (out / name).exists()]
    below = [str(home.relative_to(out)) for home in runs_below(out)]
    more = f"and {len(below) - _SHOWN} more runs"
    present += below if len(below) <= _SHOWN else [*below[:_SHOWN], more]
    if present and not overwrite:
        resume = ", or --resume to keep its finished runs" if below else ""
        raise ValueError(
            f"--out {out} already holds a run ({', '.join(present)}): give another directory, or"
            f" --overwrite to replace it{resume}"
        )


@contextmanager
def held_directory(out: Path, *, overwrite: bool) -> Iterator[Place]:
    """Hold `out` for a run, whose results come into it by `staged_results`.

    Raises ValueError if `out` cannot be written, is held by another process, or holds results and
    `overwrite` is false.
    """
    with Place(out).held(f"--out {out}") as place:
        check_free(out, overwrite=overwrite)  # now that no other run can end there
        sweep_below(out)
        yield place


@contextmanager
def staged_results(place: Place) -> Iterator[Path]:
    """Yield a temporary directory whose content moves to a held place when the block ends well.

    It is made inside the place at once, so that one without room or the right to write is found
    before any work. Results of earlier runs go when the new ones come. After an exception nothing
    of it is left. Files that no run writes are not touched.
    """
    with place.staged(RESULTS, replaces=lambda: _earlier(place.home)) as partial:
        yield partial


@contextmanager
def results_directory(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Hold `out` and yield a temporary directory of its results, as the two functions above say."""
    with held_directory(out, overwrite=overwrite) as place, staged_results(place) as partial:
        yield partial


def sweep_below(out: Path) -> None:
    """Remove what runs below `out` have left that were killed; finish those that were whole."""
    for pattern in _BELOW:
        for home in out.glob(pattern):
            if home.is_dir() and any(home.glob(".*")) and not Place(home).is_held():
                with Place(home).held(f"--out {home}"):
                    pass
                remove_if_empty(home)
