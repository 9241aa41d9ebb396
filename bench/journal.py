"""The file of JSON lines that a check on a GPU writes, and its process, which may die at any call.

Every line is on disk before anything else happens. What is about to be tried is written first: a
process that is started anew goes on after what the one before has died of.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["DEVICE_LOST", "Journal", "device_answers", "read_lines"]

Record = dict[str, Any]
DEVICE_LOST = 70
"""Exit code of a process whose device answers no more; another one may have better luck."""


class Journal:
    """Lines of one check.

    Parameters
    ----------
    path : path
        Appended to; other processes may do so meanwhile.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def add(self, kind: str, **fields: Any) -> None:
        """Append a line, and have it on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **fields}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def tried(self, part: str) -> set[str]:
        """Return what a part has begun, in this process or another."""
        lines = read_lines([self.path])
        return {r["what"] for r in lines if r.get("kind") == "trying" and r["part"] == part}

    @contextmanager
    def trying(self, part: str, what: str, *, seconds: int) -> Iterator[None]:
        """Say what is about to be tried; it ends the process if it takes longer than `seconds`."""
        self.add("trying", part=part, what=what)
        signal.alarm(seconds)  # without a handler, it kills: also where the device hangs
        try:
            yield
        finally:
            signal.alarm(0)


def device_answers() -> bool:
    """Say whether CUDA still works in this process: an illegal access ends that for good."""
    import torch

    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def read_lines(paths: Iterable[Path]) -> list[Record]:
    """Return the objects of files of JSON lines; a last line that was cut off is left out."""
    found = []
    for path in paths:
        for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                found.append(record)
    return found
