"""Where a run writes: all or nothing, and never over another run by accident."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
"""What a run writes; `metrics.json` comes last, so that where it is, all is."""

SUMMARIES = ("summary.json", "summary.html")
"""What stands above several runs."""

_SPLITS = ("own_split", "fold_*")
_BELOW = ("seed_*", "preset_*", *_SPLITS, *(f"{split}/seed_*" for split in _SPLITS))
"""Where several runs stand below the directory of all."""

_SHOWN = 4
"""Of so many runs the names are listed."""


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


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

    Directories in `keep` keep their results; files that no run writes stay, with the directories
    that they are in.
    """
    for name in SUMMARIES:
        (out / name).unlink(missing_ok=True)
    for home in (*runs_below(out), out):
        if home in keep:
            continue
        for result in reversed(_results_in(home)):  # metrics.json first: it says that all is there
            if result.is_dir() and not result.is_symlink():
                shutil.rmtree(result)
            else:
                result.unlink()
        for directory in (home, home.parent):
            if out in directory.parents and not any(directory.iterdir()):
                directory.rmdir()


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
def results_directory(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary directory whose content moves to `out` when the block ends well.

    The temporary directory is made inside `out` at once, so that a place without room or the right
    to write is found before any work. After an exception nothing of it is left. Files in `out` that
    no run writes are not touched. Raises ValueError if `out` cannot be written, or holds results
    and `overwrite` is false.
    """
    check_free(out, overwrite=overwrite)
    existed = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=out))
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written ({error.strerror or error})") from error
    try:
        yield partial
        # Where metrics.json is, all of one run is: the old ones go first, the new one comes last.
        remove_runs(out)
        for name in RESULTS:
            if (partial / name).exists():
                os.replace(partial / name, out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not existed and not any(out.iterdir()):
            out.rmdir()
