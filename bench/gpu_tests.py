"""Run the tests that need a GPU so that neither a crash nor a hang loses what others have found.

Each file of tests has a process of its own, several at once. One that dies is started anew and goes
on after the test that it died of (see gpu_test_log.py).

Usage: gpu_tests.py LOG_FOLDER [--seconds 150] [--jobs 5] [--marker needs_cuda] [--only FILE ...]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDS_CUDA = re.compile(r"needs_cuda|DEVICES")
FIRST = ("tests/ops/test_cuda.py", "tests/ops/test_devices.py", "tests/ops")
STARTS = 8
"""A file of tests may take its process with it this often, less one."""
THREADS = 3
"""Of each process, of which several run at once."""
ENDED = {0, 1, 5}
"""pytest's exit codes where it came to its end: all passed, some failed, none was left."""


def test_files(root: Path) -> list[str]:
    """Return the files with tests for CUDA, the most valuable first."""
    found = [
        path.relative_to(root).as_posix()
        for path in sorted((root / "tests").rglob("test_*.py"))
        if NEEDS_CUDA.search(path.read_text("utf-8"))
    ]

    def rank(file: str) -> int:
        return next((i for i, start in enumerate(FIRST) if file.startswith(start)), len(FIRST))

    return sorted(found, key=rank)


def run_file(file: str, folder: Path, *, marker: str, end: float, extra: list[str]) -> bool:
    """Run one file's tests, again as long as its process dies; say whether it came to its end."""
    name = file.replace("/", "_").removesuffix(".py")
    log, output = folder / f"{name}.jsonl", folder / f"{name}.txt"
    environment = {
        **os.environ,
        "GPU_TEST_LOG": str(log),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(THREADS)),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-m", marker, "-p", "no:cacheprovider"]
    command += ["-p", "gpu_test_log", *extra, file]
    for _ in range(STARTS):
        left = end - time.monotonic()
        if left <= 0:
            return False
        started = count(log)
        with output.open("a") as stream:
            try:
                code = subprocess.run(
                    command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, timeout=left
                ).returncode
            except subprocess.TimeoutExpired:
                return False
        if code in ENDED:
            return True
        if count(log) == started:  # it cannot even begin
            return False
    return False


def count(log: Path) -> int:
    """Return how many lines a log has."""
    return len(log.read_text("utf-8").splitlines()) if log.exists() else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("PART_SECONDS", 150)))
    jobs = max(1, min(5, (os.cpu_count() or 1) // THREADS))
    parser.add_argument("--jobs", type=int, default=jobs)
    parser.add_argument("--marker", default="needs_cuda")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--select", default=None, help="as pytest's -k")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds - 3
    files = options.only or test_files(ROOT)
    extra = ["-k", options.select] if options.select else []

    def run(file: str) -> bool:
        return run_file(file, options.folder, marker=options.marker, end=end, extra=extra)

    with ThreadPoolExecutor(options.jobs) as pool:
        ended = list(pool.map(run, files))
    for file, well in zip(files, ended, strict=True):
        if not well:
            print(f"did not come to its end: {file}")
    from gpu_record import count_tests, tests_line

    counts = count_tests(options.folder)
    print(tests_line(counts))
    for failure in counts["failures"]:
        print(f"FAILED {failure['test']}: {failure['outcome']}: {failure['message']}")
    return 0 if all(ended) and not counts["failures"] else 1


if __name__ == "__main__":
    sys.exit(main())
