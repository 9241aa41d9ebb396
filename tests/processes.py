"""Processes of tests, forked so that none has to import torch again."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

TRIALS = int(os.environ.get("NNMF_CUDA_TRIALS", "3"))
"""How often what hangs on chance is tried; `nox -s fuzz` tries it often."""


def fork(work: Callable[[], int], *, said: Path, start: float = 0.0) -> int:
    """Start a process that does the work at a moment of `time.monotonic`; return its id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(stream), "w") for stream in (1, 2))
        torch.set_num_threads(1)  # a team of threads does not survive a fork
        while time.monotonic() < start:
            pass
        try:
            code = work()
        except SystemExit as end:
            code = int(end.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def exit_code(process: int) -> int:
    """Wait for a process; return its exit code, or less than 0 for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def at_once(works: Sequence[Callable[[], int]], folder: Path) -> list[tuple[int, str]]:
    """Do all works at the same time, a process each; return exit codes and what was said."""
    start = time.monotonic() + 0.05
    files = [folder / f"said-{number}.txt" for number in range(len(works))]
    pairs = zip(works, files, strict=True)
    processes = [fork(work, said=said, start=start) for work, said in pairs]
    codes = [exit_code(process) for process in processes]
    return [(code, said.read_text()) for code, said in zip(codes, files, strict=True)]


def killed_after(work: Callable[[], int], seconds: float, folder: Path) -> int:
    """Start a process and kill it after some time; return its exit code."""
    process = fork(work, said=folder / "said.txt")
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return exit_code(process)
