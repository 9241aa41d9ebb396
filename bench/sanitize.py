"""Call every op once on small awkward shapes; under compute-sanitizer, if that is asked for.

Usage: python -m bench.sanitize [--device cuda] [--most N]      the calls, the most used ops first
       python -m bench.sanitize --tools memcheck racecheck ... --journal FILE [--seconds 90]
                                     the same, once under each tool, at once; a line of the journal
                                     for each tool, as soon as it ends
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

from bench.journal import Journal

__all__ = ["find_sanitizer", "outcome", "run_calls", "run_tools"]

FOUND = 99  # exit code of compute-sanitizer where it has found something
_ROOT = Path(__file__).resolve().parents[1]


def run_calls(device: str, most: int | None = None) -> int:
    """Call everything, and say what is not finite; the sanitizer says the rest."""
    from bench.op_calls import op_calls

    bad = []
    done = 0
    for call in islice(op_calls(), most):
        outputs = call.on(device)()
        if not all(output.cpu().isfinite().all() for output in outputs):
            bad.append(call.name)
        done += 1
        print(f"{done} {call.name}", flush=True)
    print(f"{done} calls, {len(bad)} with results that are not finite: {bad}")
    return int(bool(bad))


def find_sanitizer() -> str | None:
    """Return the path of compute-sanitizer, which need not be on PATH."""
    cuda = os.environ.get("CUDA_HOME", "")
    places = os.pathsep.join([os.environ.get("PATH", ""), f"{cuda}/bin", "/usr/local/cuda/bin"])
    return shutil.which("compute-sanitizer", path=places)


def run_tools(
    tools: list[str], journal: Journal, *, seconds: float, device: str, most: int | None = None
) -> list[dict[str, object]]:
    """Run the calls under each tool, all at once; what came of a tool is a line of the journal.

    What a tool prints lies beside the journal from the start, in a file of its own.
    """
    sanitizer = find_sanitizer()
    if sanitizer is None:
        reason = "compute-sanitizer is not here"
        found = [{"tool": t, "outcome": "skipped", "calls": 0, "message": reason} for t in tools]
        for line in found:
            journal.add("sanitizer", **line)
        return found
    # Each tensor has memory of its own, so that one byte too far is seen.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    running: dict[str, subprocess.Popen[bytes]] = {}
    outputs = {tool: journal.path.with_name(f"{journal.path.stem}-{tool}.txt") for tool in tools}
    for tool in tools:
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
        command += [sys.executable, "-m", "bench.sanitize", "--device", device]
        command += [] if most is None else ["--most", str(most)]
        with outputs[tool].open("w") as output:
            running[tool] = subprocess.Popen(
                command,
                cwd=_ROOT,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
    end = time.monotonic() + seconds
    found = []
    while running:
        late = time.monotonic() >= end
        for tool, process in list(running.items()):
            code = process.poll()
            if code is None and not late:
                continue
            if code is None:
                os.killpg(process.pid, signal.SIGKILL)  # the program under the tool as well
                process.wait()
            del running[tool]
            found.append(outcome(tool, code, outputs[tool].read_text(errors="replace")))
            journal.add("sanitizer", **found[-1])
        time.sleep(0.1)
    return found


def outcome(tool: str, code: int | None, text: str) -> dict[str, object]:
    """Return how a tool ended, with its own summary and how many calls it saw."""
    summary = re.findall(r"={3,}\s*((?:ERROR|RACECHECK) SUMMARY:.*)", text)
    n_calls = len(re.findall(r"^\d+ (?!calls)", text, re.MULTILINE))
    ended = {0: "passed", FOUND: "failed", None: "did not end"}.get(code, "broken")
    # A tool that names errors has found some, however it ended.
    if any(not re.search(r"SUMMARY: 0 (?:errors|hazards)", line) for line in summary):
        ended = "failed"
    last = (summary or text.strip().splitlines() or [""])[-1]
    return {"tool": tool, "outcome": ended, "calls": n_calls, "message": last[:300]}


def main() -> int:
    """Call everything, under tools where some are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--most", type=int, help="calls; all by default")
    parser.add_argument("--tools", nargs="+")
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--seconds", type=float, default=90)
    options = parser.parse_args()
    if not options.tools:
        return run_calls(options.device, options.most)
    if options.journal is None:
        parser.error("--tools needs --journal")
    found = run_tools(
        options.tools,
        Journal(options.journal),
        seconds=options.seconds,
        device=options.device,
        most=options.most,
    )
    for line in found:
        print(line)
    return int(any(line["outcome"] not in ("passed", "skipped") for line in found))


if __name__ == "__main__":
    sys.exit(main())
