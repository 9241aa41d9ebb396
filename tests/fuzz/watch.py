"""Runs a command whose input may be anything, and tells what it did wrong."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnmf_cuda.cli.main import main

LONGEST_S = 10.0
MEMORY = 6 * 2**30

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NO_FILES = {os.devnull, f"/proc/{os.getpid()}/clear_refs"}
_CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
}


@dataclass
class Watch:
    """What of the file system is changed outside a folder while it is on."""

    allowed: Path | None = None
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Take an event of Python's audit."""
        if self.allowed is None:
            return
        changes = event in _CHANGES
        if event == "open":
            changes = bool((args[2] or 0) & _WRITING)
        path = args[0] if args else None
        if event in ("os.remove", "os.rmdir") and args[1] != -1:
            return  # relative to an open folder, which was seen when it was opened
        if changes and isinstance(path, str | bytes | Path) and not self._is_allowed(path):
            self.seen.append(f"{event} {path!r}")

    def _is_allowed(self, path: str | bytes | Path) -> bool:
        assert self.allowed is not None
        real = os.path.realpath(os.fsdecode(path))
        return real in _NO_FILES or Path(real).is_relative_to(self.allowed)


WATCH = Watch()
sys.addaudithook(WATCH)


def _waited() -> float:
    """Return for how many seconds this thread was ready to run and had no processor."""
    try:
        said = Path("/proc/thread-self/schedstat").read_text()
    except OSError:  # a system that does not say
        return 0.0
    return int(said.split()[1]) / 1e9


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Let nothing fill the memory of the machine, and no case hang."""

    started, waited = time.monotonic(), _waited()

    def late(*_: object) -> None:
        # What others kept the processor for is no fault of the command.
        left = LONGEST_S - (time.monotonic() - started - (_waited() - waited))
        if left <= 0:
            raise AssertionError(f"took more than {LONGEST_S} s")
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.1))

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, late)
    faulthandler.dump_traceback_later(6 * LONGEST_S, exit=True)  # where no exception gets through
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, handler)


def problems_of(command: Sequence[str], out: Path) -> tuple[int | None, list[str]]:
    """Run a command whose input may be anything; return its code and what it did wrong."""
    stdout, stderr = io.StringIO(), io.StringIO()
    before = {path.name for path in out.parent.iterdir()}
    WATCH.allowed, WATCH.seen = out.parent.resolve(), []
    code: int | None = None
    problems = []
    try:
        with limits(), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main(list(command))
    except BaseException:
        problems.append(traceback.format_exc(limit=-6))
    finally:
        WATCH.allowed = None
    problems += [f"changed outside --out: {seen}" for seen in WATCH.seen]
    said = stderr.getvalue()
    if code not in (0, 2) and not problems:
        problems.append(f"exit {code}")
    errors = [line for line in said.splitlines() if line.startswith("nnmf-cuda: error: ")]
    if len(errors) != (code == 2) or (code == 2 and said.splitlines()[-1:] != errors):
        problems.append(f"not one line of error: {said[-600:]!r}")
    if "Traceback" in said or any(not line.strip() or "\x1b" in line for line in errors):
        problems.append(f"no message: {said[-600:]!r}")
    left = {path.name for path in out.parent.iterdir()} - before
    beside = (
        {out.name, f"{out.name}.files.txt", f"{out.name}.failed.txt", f"{out.name}.columns.csv"}
        if code == 0
        else set()
    )
    if left - beside:
        problems.append(f"left behind: {sorted(left - beside)}")
    if code == 0 and command[0] == "extract" and not out.exists():
        problems.append("nothing written")
    elif code == 0 and command[0] == "extract" and not np.isfinite(np.load(out)).all():
        problems.append("features that are no numbers")
    return code, problems
