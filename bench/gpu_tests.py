"""Run the tests that need a GPU, so that neither a crash nor a hang loses what others have found.

Usage: python -m bench.gpu_tests LOG [--marker needs_cuda] [--workers N] [--only FILE ...]
                                     [--select WORDS] [--each 60]

LOG is a report log: a line of JSON for each test, as soon as it has ended. pytest-xdist starts a
new worker where one dies, pytest-timeout ends what hangs, pytest-reportlog writes the log; this
module is the plugin that ends a worker whose device is lost. Where one of the three is not
installed, pytest does without it: this says so, and what it prints is the log.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.journal import DEVICE_LOST, device_answers

__all__ = ["Outcomes", "count_tests", "command_of_tests", "test_files"]

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = {"xdist": "pytest-xdist", "pytest_timeout": "pytest-timeout"}
PLUGINS |= {"pytest_reportlog": "pytest-reportlog"}
FIRST = ("tests/ops/test_cuda.py", "tests/ops/test_devices.py", "tests/ops")
THREADS = 2
"""Of each worker."""
_NEEDS_CUDA = re.compile(r"needs_cuda|DEVICES")
_ENDS = "PASSED|FAILED|ERROR|SKIPPED"
_VERBOSE = re.compile(
    rf"(?:\[gw\d+\].*? )?(?:(?P<a>{_ENDS}) (?P<b>\S+::\S+)|(?P<c>\S+::\S+) (?P<d>{_ENDS}))"
)


def test_files(root: Path) -> list[str]:
    """Return the files with tests for CUDA, the most valuable first."""
    found = [
        path.relative_to(root).as_posix()
        for path in sorted((root / "tests").rglob("test_*.py"))
        if _NEEDS_CUDA.search(path.read_text("utf-8"))
    ]

    def rank(file: str) -> int:
        return next((i for i, start in enumerate(FIRST) if file.startswith(start)), len(FIRST))

    return sorted(found, key=rank)


def missing_plugins() -> list[str]:
    """Return the names of the plugins that are not installed."""
    return [name for module, name in PLUGINS.items() if importlib.util.find_spec(module) is None]


def command_of_tests(
    log: Path, files: list[str], *, marker: str, workers: int, each: float, select: str | None
) -> list[str]:
    """Return the command, with what the plugins that are here take."""
    missing = missing_plugins()
    command = [sys.executable, "-m", "pytest", "-v", "-m", marker, "-p", "no:cacheprovider"]
    command += ["-k", select] if select else []
    if "pytest-xdist" not in missing:
        command += ["-p", "bench.gpu_tests", "-n", str(workers), "--dist", "worksteal"]
        command += ["--max-worker-restart", "30"]
    if "pytest-timeout" not in missing:
        # By a thread, which ends the process: a test that waits for the device heeds no signal.
        command += ["--timeout", f"{each:g}", "--timeout-method", "thread"]
    if "pytest-reportlog" not in missing:
        command += ["--report-log", str(log)]
    return [*command, *files]


def pytest_runtest_logfinish(nodeid: str) -> None:
    """End a worker whose device is lost: the next one gets it anew."""
    if os.environ.get("PYTEST_XDIST_WORKER") and not device_answers():
        os._exit(DEVICE_LOST)


@dataclass(frozen=True)
class Outcomes:
    """How tests ended.

    Attributes
    ----------
    counts : dict of str to int
        By outcome: "passed", "failed", "skipped".
    failures : list of dict
        ``test`` and ``message`` of each that failed, or took its worker with it.
    """

    counts: dict[str, int]
    failures: list[dict[str, str]]

    def __str__(self) -> str:
        order = ("passed", "failed", "skipped")
        shown = [f"{self.counts[name]} {name}" for name in order if name in self.counts]
        return ", ".join(shown) or "none ran"


def count_tests(log: Path) -> Outcomes:
    """Return how the tests ended, from a report log or from what ``pytest -v`` has printed.

    A last line that was cut off is left out.
    """
    outcomes: dict[str, tuple[str, str]] = {}
    for line in log.read_text("utf-8", errors="replace").splitlines() if log.exists() else ():
        for test, outcome, message in _reported(line):
            if outcomes.get(test, ("passed", ""))[0] != "failed":
                outcomes[test] = (outcome, message)
    counts = dict(Counter(outcome for outcome, _ in outcomes.values()))
    bad = [{"test": t, "message": m} for t, (outcome, m) in outcomes.items() if outcome == "failed"]
    return Outcomes(counts, bad)


def _reported(line: str) -> Iterator[tuple[str, str, str]]:
    """Give test, outcome and message that a line tells of, if it does."""
    if not line.startswith("{"):
        if found := _VERBOSE.match(line):
            outcome = (found["a"] or found["d"]).lower().replace("error", "failed")
            yield found["b"] or found["c"], outcome, ""
        return
    try:
        report: dict[str, Any] = json.loads(line)
    except ValueError:
        return
    if report.get("$report_type") not in ("TestReport", "CollectReport"):
        return
    # A test counts by its call, and by its setup and teardown where they did not pass.
    if report["outcome"] == "passed" and report.get("when") != "call":
        return
    yield report["nodeid"], report["outcome"], _message(report.get("longrepr"))


def _message(longrepr: Any) -> str:
    if isinstance(longrepr, dict):
        crash = longrepr.get("reprcrash") or {}
        return str(crash.get("message", "")).partition("\n")[0][:300]
    text = str(longrepr[-1] if isinstance(longrepr, list) else longrepr or "")
    return (text.strip().splitlines() or [""])[-1][:300]


def main() -> int:
    """Run the tests and say in words how they ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--marker", default="needs_cuda")
    workers = max(1, min(8, (os.cpu_count() or 1) // THREADS))
    parser.add_argument("--workers", type=int, default=workers)
    parser.add_argument("--each", type=float, default=60, help="seconds for one test")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--select", default=None, help="as pytest's -k")
    options = parser.parse_args()
    missing = missing_plugins()
    if missing:
        print(f"without {', '.join(missing)}: not installed here", flush=True)
    log: Path = options.log.resolve()
    log.parent.mkdir(parents=True, exist_ok=True)
    command = command_of_tests(
        log,
        options.only or test_files(ROOT),
        marker=options.marker,
        workers=options.workers,
        each=options.each,
        select=options.select,
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(THREADS)),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    if "pytest-reportlog" in missing:
        with log.open("w") as stream:
            code = subprocess.run(command, cwd=ROOT, env=environment, stdout=stream).returncode
    else:
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    outcomes = count_tests(log)
    print(outcomes)
    for failure in outcomes.failures:
        print(f"FAILED {failure['test']}: {failure['message']}")
    return code


if __name__ == "__main__":
    sys.exit(main())
