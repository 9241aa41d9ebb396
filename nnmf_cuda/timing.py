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
    """Set the process's peak resident set back to its present size.

    Returns
    -------
    bool
        False where the system does not allow it (only Linux does, and some containers do not, or
        take the request and ignore it); `peak_rss_bytes` is then the peak since the process
        started.
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
    """Cost of one stage.

    Attributes
    ----------
    stage : str
        Name.
    seconds : float
    n_items : int
        Samples that it worked on; 0 where it counts none.
    peak_bytes : int
        Largest memory during the stage, see `StageTimer`.
    """

    stage: str
    seconds: float
    n_items: int
    peak_bytes: int


@dataclass(frozen=True)
class Timings:
    """Cost of the stages of a run.

    Attributes
    ----------
    device : str
        Where they ran.
    stages : tuple of StageRow
        In the order in which they ended.
    """

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


class _OpenStage:
    """What `StageTimer.stage` yields: set ``n_items`` where it is known only at the end."""

    def __init__(self, n_items: int) -> None:
        self.n_items = n_items


class StageTimer:
    """Measure stages of a run, one row a stage.

    Parameters
    ----------
    device : str or torch.device, default="cpu"
        Where the work runs. On CUDA the device is synchronised at the edges of each stage, and
        each stage is an NVTX range.

    Attributes
    ----------
    rows : list of StageRow
        One for each stage that ended, in order. A stage left by an exception has no row.

    Notes
    -----
    ``peak_bytes`` on CUDA is what torch's allocator held at most during the stage. On CPU it is
    the largest resident set of the whole process during the stage, interpreter and libraries
    included. It is the process's peak so far where the system cannot reset the peak.

    Examples
    --------
    >>> timer = StageTimer("cpu")
    >>> with timer.stage("cnn_training", n_items=1500):
    ...     pass
    >>> [row.stage for row in timer.timings().rows]
    ['cnn_training', 'total']
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.rows: list[StageRow] = []
        self._open: str | None = None

    @contextmanager
    def stage(self, name: str, *, n_items: int = 0) -> Iterator[_OpenStage]:
        """Measure the body of a ``with`` statement.

        Parameters
        ----------
        name : str
            Unique in this timer, and not ``"total"``.
        n_items : int, default=0
            How many samples the stage works on; the yielded object's ``n_items`` may be set
            instead.

        Raises
        ------
        ValueError
            If the name was used before or is ``"total"``.
        RuntimeError
            If another stage is open: their peaks and seconds would overlap.
        """
        if name == "total" or any(row.stage == name for row in self.rows):
            raise ValueError(f"stage={name!r} is taken; give each stage a name of its own")
        if self._open is not None:
            raise RuntimeError(f"stage {name!r} started inside stage {self._open!r}; end it first")
        self._open = name
        handle = _OpenStage(n_items)
        self._enter(name)
        start = time.perf_counter()
        try:
            yield handle
            self._synchronize()
            seconds = time.perf_counter() - start
        finally:
            self._open = None
            if self.device.type == "cuda":
                torch.cuda.nvtx.range_pop()
        self.rows.append(StageRow(name, seconds, int(handle.n_items), self._peak_bytes()))

    def timings(self) -> Timings:
        """Return the rows so far."""
        return Timings(str(self.device), tuple(self.rows))

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _enter(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.nvtx.range_push(name)
        else:
            reset_peak_rss()

    def _peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        return peak_rss_bytes()
