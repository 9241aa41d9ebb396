"""Where a run writes: all or nothing, and never over another run by accident."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["RESULTS", "SUMMARIES", "check_free", "results_directory", "write_text"]

RESULTS = (
    "model",
    "figures",
    "adversarial.npz",
    "features.npz",
    "robustness.json",
    "robustness.npz",
    "robustness.html",
    "config.yaml",
    "environment.json",
    "report.html",
    "timings.json",
    "metrics.json",
)
"""What a run writes; `metrics.json` comes last, so that where it is, all is."""

SUMMARIES = ("summary.json", "summary.html")
"""What stands above several runs."""


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raise ValueError if `out` cannot become a run's directory."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give a directory")
    present = [name for name in (*RESULTS, *SUMMARIES) if (out / name).exists()]
    if present and not overwrite:
        raise ValueError(
            f"--out {out} already holds a run ({', '.join(present)}): give another directory, or"
            " --overwrite to replace it"
        )


@contextmanager
def results_directory(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary directory whose content moves to `out` when the block ends well.

    The temporary directory is made inside `out` at once, so that a place without room or the right
    to write is found before any work. After an exception nothing of it is left. Files in `out`
    that no run writes are not touched.

    Raises
    ------
    ValueError
        If `out` is a file, cannot be written, or holds results and `overwrite` is false.
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
        for name in ("metrics.json", *SUMMARIES):
            (out / name).unlink(missing_ok=True)
        for name in RESULTS:
            if (partial / name).exists():
                _replace(partial / name, out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not existed and not any(out.iterdir()):
            out.rmdir()


def _replace(source: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        old = source.with_name(source.name + ".old")
        os.replace(target, old)
    os.replace(source, target)
