"""Pixels by the gigabyte in a file, and processes whose memory is looked at while they run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SIDE", "Watched", "forget_pages", "status_of", "watch", "write_images"]

SIDE = 64
"""Height and width of the images."""

ROOT = Path(__file__).parents[1]

_BLOCK = 2048  # images that are made at once
_LOOK_EVERY = 0.02  # seconds
_PARTS = 8  # that images are mixed of


def write_images(path: Path, n: int) -> None:
    """Write `n` images (n, SIDE, SIDE) uint8 to an .npy: mixed parts, half of them dark.

    They are made and written block by block, no two blocks alike.
    """
    rng = np.random.default_rng(0)
    parts = rng.gamma(0.3, size=(_PARTS, SIDE * SIDE))
    pixels = rng.gamma(0.5, size=(_BLOCK, _PARTS)) @ parts + rng.gamma(0.1, size=(_BLOCK, 1))
    pixels = (40 * pixels * (rng.random(pixels.shape) < 0.5)).clip(0, 247).astype(np.uint8)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, SIDE, SIDE)}
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, n, _BLOCK):
            block = pixels[rng.permutation(_BLOCK)][: n - first]
            block += rng.integers(1, 8, size=(len(block), 1), dtype=np.uint8)
            block.tofile(file)


def forget_pages(path: Path) -> None:
    """Have what the system holds of a file in memory let go: those who read it next bring it in."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True)
class Watched:
    """What a process printed last, and the most memory it had, in bytes."""

    found: dict[str, Any]
    resident: int  # VmHWM: what was in memory at once, pages of mapped files with it
    own: int  # the largest RssAnon that was seen: the process's own pages


def watch(
    command: Sequence[str], *, timeout_s: float, started: Callable[[int], None] | None = None
) -> Watched:
    """Run ``python -m COMMAND``, of the checkout, and look at its memory fifty times a second.

    `started` is given its id at once. It prints JSON in its last line. Raises RuntimeError where it
    fails or takes longer.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    resident = own = 0
    try:
        if started is not None:
            started(process.pid)
        end = time.monotonic() + timeout_s
        while process.poll() is None:
            if time.monotonic() > end:
                raise RuntimeError(f"took more than {timeout_s:.0f} s")
            status = status_of(process.pid)
            resident = max(resident, status.get("VmHWM", 0))
            own = max(own, status.get("RssAnon", 0))
            time.sleep(_LOOK_EVERY)
        said, errors = process.communicate()
    finally:
        process.kill()
    if process.returncode != 0:
        last = (errors.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"exit code {process.returncode}: {last}")
    return Watched(json.loads(said.splitlines()[-1]), resident, own)


def status_of(pid: int | str = "self") -> dict[str, int]:
    """Return a process's memory in bytes, VmHWM, VmRSS, RssFile, ...; {} where it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {name: int(kib) * 1024 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}
