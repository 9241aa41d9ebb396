"""Seconds and peak memory of each stage of a run; imports nothing else of the package."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

PAPER_STAGES = (
    "nnmf_feature_extraction",
    "cnn_training",
    "denoiser_training",
    "autoattack_baseline",
    "autoattack_defended",
)
"""The stages whose seconds are summed into the row ``total``."""

_RESET_SLACK_KB = 16 * 1024  # what the process may give back between the reset and the reading


def reset_peak_rss() -> bool:
    """Set the process's peak resident set back to its present size; say whether that worked.

    Only Linux allows it, and some containers do not, or take the request and ignore it;
    `peak_rss_bytes` is then the peak since the process started.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    sizes = [re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmHWM", "VmRSS")]
    peak_kb, size_kb = (int(found[1]) if found else 0 for found in sizes)
    return peak_kb - size_kb < _RESET_SLACK_KB


def peak_rss_bytes() -> int:
    """Return the process's peak resident set in bytes since start or the last `reset_peak_rss`."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


@dataclass(frozen=True)
class StageRow:
    """Cost of one stage."""

    stage: str
    seconds: float
    n_items: int  # samples that it worked on; 0 where it counts none
    peak_bytes: int  # largest memory during the stage, see `StageTimer`


@dataclass(frozen=True)
class Timings:
    """Cost of the stages of a run, in the order in which they ended."""

    device: str
    stages: tuple[StageRow, ...]

    @property
    def total(self) -> StageRow:
        """The row ``total``: seconds summed over `PAPER_STAGES`, items and peak their largest.

        Other stages (reading images, writing reports) do not count.
        """
        rows = [row for row in self.stages if row.stage in PAPER_STAGES]
        return StageRow(
            "total",
            float(sum(row.seconds for row in rows)),
            max((row.n_items for row in rows), default=0),
            max((row.peak_bytes for row in rows), default=0),
        )

    @property
    def rows(self) -> tuple[StageRow, ...]:
        """The stages, then ``total``."""
        return (*self.stages, self.total)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``timings.json``."""
        return {"device": self.device, "rows": [asdict(row) for row in self.rows]}


@dataclass
class _OpenStage:
    """What `StageTimer.stage` yields: set ``n_items`` where it is known only at the end."""

    n_items: int


class StageTimer:
    """Measure stages of a run, one row a stage that ended; one left by an exception has none.

    On CUDA the device is synchronised at the edges of each stage, each is an NVTX range, and
    ``peak_bytes`` is what torch's allocator held at most during the stage. On CPU it is the largest
    resident set of the whole process during the stage, interpreter and libraries included, or,
    where the system cannot reset the peak, the process's peak so far.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.rows: list[StageRow] = []
        self._open: str | None = None

    @contextmanager
    def stage(self, name: str, *, n_items: int = 0) -> Iterator[_OpenStage]:
        """Measure the body of a ``with`` statement.

        The name is unique in this timer, and not ``"total"``. `n_items`, the samples that the stage
        works on, may be set on what is yielded instead. Raises RuntimeError if another stage is
        open: their peaks and seconds would overlap.
        """
        if name == "total" or any(row.stage == name for row in self.rows):
            raise ValueError(f"stage={name!r} is taken; give each stage a name of its own")
        if self._open is not None:
            raise RuntimeError(f"stage {name!r} started inside stage {self._open!r}; end it first")
        self._open = name
        handle, on_cuda = _OpenStage(n_items), self.device.type == "cuda"
        if on_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.nvtx.range_push(name)
        else:
            reset_peak_rss()
        start = time.perf_counter()
        try:
            yield handle
            if on_cuda:
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - start
        finally:
            self._open = None
            if on_cuda:
                torch.cuda.nvtx.range_pop()
        peak = torch.cuda.max_memory_allocated(self.device) if on_cuda else peak_rss_bytes()
        self.rows.append(StageRow(name, seconds, int(handle.n_items), int(peak)))

    def timings(self) -> Timings:
        """Return the rows so far."""
        return Timings(str(self.device), tuple(self.rows))
