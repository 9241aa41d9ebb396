"""The two visits of bench/gpu_check.sh: what they run, in which order, and for how long.

Parts run in the order of what they are worth, each in processes of its own and with a limit of its
own, and none that fails or hangs takes another with it. Every result is a line of the visit's
journal as soon as it is known.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu_table import read_visit, table
from bench.journal import DEVICE_LOST, Journal

__all__ = [
    "VISITS",
    "Part",
    "Settings",
    "Visit",
    "main",
    "run_command",
    "run_experiment",
    "run_visit",
]

ROOT = Path(__file__).resolve().parents[1]
_RESERVE = 5
"""Seconds kept for the last table."""
_SHORTEST = 5
"""A part that has less time than this is not begun."""
_STARTS = 8
"""Processes of a part that goes on after what it has died of."""


@dataclass(frozen=True)
class Settings:
    """What the parts of a visit are told.

    Attributes
    ----------
    device : str
        "cuda", or "cpu" for a rehearsal, in which everything is tiny.
    journal, log : Path
        Files of the visit.
    run : str
        When it began.
    run_options : sequence of str
        For the experiment.
    """

    device: str
    journal: Path
    log: Path
    run: str = ""
    run_options: Sequence[str] = ()

    @property
    def on_cpu(self) -> bool:
        """Whether this is a rehearsal."""
        return self.device == "cpu"

    def beside(self, suffix: str) -> Path:
        """Return the path of another file of the visit, such as "-tests.jsonl"."""
        return self.journal.with_name(self.journal.stem + suffix)


Command = Callable[[Settings, int], list[str]]
"""Gives the command of a part from the settings and its limit in seconds."""


@dataclass(frozen=True)
class Part:
    """One part of a visit.

    Attributes
    ----------
    name : str
    limit : int
        Seconds, as far as the visit has them.
    command : callable
    needs : tuple of str
        Modules without which the part is left out.
    goes_on : bool
        Whether a new process goes on after what one has died of.
    essential : bool
        Whether nothing can follow where it fails.
    """

    name: str
    limit: int
    command: Command
    needs: tuple[str, ...] = ()
    goes_on: bool = False
    essential: bool = False


@dataclass(frozen=True)
class Visit:
    """The parts of a visit in their order, and seconds for all of them."""

    seconds: int
    parts: tuple[Part, ...]


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]


def _on_device(settings: Settings) -> list[str]:
    return ["--device", settings.device, *(["--smoke"] if settings.on_cpu else [])]


def _object(settings: Settings, limit: int) -> list[str]:
    return _module("bench.gpu_object", str(settings.journal), "--device", settings.device)


def _parity(settings: Settings, limit: int) -> list[str]:
    return _module("bench.parity", str(settings.journal), "--device", settings.device)


def _headlines(settings: Settings, limit: int) -> list[str]:
    run = ("--run", settings.run) if settings.run else ()
    return _module("bench.headlines", str(settings.journal), *_on_device(settings), *run)


def _sanitizer(settings: Settings, limit: int) -> list[str]:
    if settings.on_cpu:
        return _module("bench.sanitize", "--device", "cpu", "--most", "12")
    tools = ("--tools", "memcheck", "racecheck", "synccheck", "--most", "60")
    where = ("--journal", str(settings.journal), "--seconds", str(limit - 5))
    return _module("bench.sanitize", *tools, *where)


def _tests(settings: Settings, limit: int) -> list[str]:
    log = str(settings.beside("-tests.jsonl"))
    if settings.on_cpu:
        chosen = ("--workers", "1", "--select", "cpu and nnls", "--only", "tests/ops/test_cuda.py")
        return _module("bench.gpu_tests", log, "--marker", "not slow", *chosen)
    return _module("bench.gpu_tests", log)


def _call(function: str, **arguments: Any) -> list[str]:
    """Return a command that calls a function, such as "bench.kernels:run_kernel_benchmarks".

    It ends with 1 where a record among the results says "failed". Benchmarks are called like this
    because their command line needs packages that may not be there.
    """
    module, _, name = function.partition(":")
    code = (
        f"import sys; from {module} import {name}; found = {name}(**{arguments!r});"
        " sys.exit(any(r.get('status') == 'failed' for r in found) if type(found) is list else 0)"
    )
    return [sys.executable, "-c", code]


def _measure(function: str, **options: Any) -> Command:
    def command(settings: Settings, limit: int) -> list[str]:
        where = {"device": settings.device, "smoke": settings.on_cpu}
        return _call(function, **options, **where, json_path=str(settings.journal))

    return command


def _stages(settings: Settings, limit: int) -> list[str]:
    data = None if settings.on_cpu else _images()
    return _measure(_STAGE_BENCHMARK, repeats=2, data=data)(settings, limit)


def _images() -> str | None:
    folder = os.environ.get("NNMF_CUDA_DATA")
    return str(Path(folder) / "darabi.npz") if folder else None


def _experiment(settings: Settings, limit: int) -> list[str]:
    tiny = {"nnmf.max_iter": 5, "classifier.epochs": 2, "diffusion.epochs": 2}
    tiny |= {"attack.n_iter": 2, "attack.n_queries": 5, "n_predictions": 2}
    options = ["--preset", "paper", "--device", settings.device]
    if settings.on_cpu:
        options += [f"--{name}={value}" for name, value in tiny.items()]
    elif (images := _images()) is not None:
        options += ["--data", images]
    options += settings.run_options
    return _call("bench.gpu_check:run_experiment", journal=str(settings.journal), options=options)


def run_experiment(journal: str, options: list[str]) -> None:
    """Run the experiment, and keep its metrics and timings in the journal."""
    from nnmf_cuda.cli.main import main as command_line

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        code = command_line(["run", *options, "--out", str(out)])
        found = {
            name: json.loads((out / f"{name}.json").read_text("utf-8"))
            for name in ("metrics", "timings", "environment")
            if (out / f"{name}.json").exists()
        }
        Journal(journal).add("experiment", options=options, **found)
    sys.exit(code)


def _kernels(op: str) -> Command:
    kernels = "bench.kernels:run_kernel_benchmarks"
    return _measure(kernels, cases=[op], min_run_seconds=0.2)


_STAGE_BENCHMARK = "nnmf_cuda.benchmarks.stages:run_stage_benchmarks"
_EQUALITY = "bench.equality:run_equality_benchmarks"
_BREAK_EVEN = "bench.break_even:run_break_even_benchmarks"
_STAGES = ("pyautoattack", "matplotlib", "jinja2")
_EXPERIMENT = ("jsonargparse", "safetensors", *_STAGES)
VISITS: Mapping[str, Visit] = {
    "first": Visit(
        255,
        (
            Part("object", 170, _object, essential=True),
            Part("parity", 70, _parity, goes_on=True),
            Part("headlines", 110, _headlines, goes_on=True),
            Part("sanitizer", 120, _sanitizer),
        ),
    ),
    "second": Visit(
        400,
        (
            Part("object", 170, _object, essential=True),
            Part("tests", 120, _tests, needs=("pytest",)),
            Part("peers nnmf_mu", 60, _kernels("nnmf_mu")),
            Part("peers nnls", 20, _kernels("nnls")),
            Part("peers project", 20, _kernels("project")),
            Part("extract", 25, _kernels("extract"), needs=("PIL",)),
            Part("stages", 75, _stages, needs=_STAGES),
            Part("experiment", 60, _experiment, needs=_EXPERIMENT),
            Part("equality", 30, _measure(_EQUALITY), needs=("sklearn",)),
            Part("break_even", 30, _measure(_BREAK_EVEN, min_run_seconds=0.3)),
            Part("peers nnmf_divergence", 20, _kernels("nnmf_divergence")),
            Part("peers nnmf_hals", 20, _kernels("nnmf_hals")),
        ),
    ),
}

Run = Callable[[list[str], float, Path], int | None]
"""Runs a command for so many seconds, with its output appended to a file; None: out of time."""


def run_visit(
    visit: Visit,
    settings: Settings,
    *,
    seconds: float,
    run: Run,
    clock: Callable[[], float] = time.monotonic,
    is_here: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
) -> int:
    """Run the parts of a visit one after the other; 1 where one of them did not end well.

    Parameters
    ----------
    visit : Visit
    settings : Settings
    seconds : float
        For the whole visit, the last table included.
    run : callable
        What runs a command.
    clock : callable
        Seconds; differences of it count.
    is_here : callable
        Whether a module is installed.
    """
    journal, end, ended_well = Journal(settings.journal), clock() + seconds - _RESERVE, True
    for part in visit.parts:
        begin = clock()
        limit = int(min(part.limit, end - begin))
        missing = [name for name in part.needs if not is_here(name)]
        if missing:
            outcome = f"left out: no {', '.join(missing)}"
        elif limit < _SHORTEST:
            outcome = "no time left"
        else:
            journal.add("begin", part=part.name, limit=limit)
            outcome = _run_part(part, settings, begin + limit, run, clock)
        ended_well &= outcome == "ok" or bool(missing)
        spent = round(clock() - begin, 1)
        journal.add("part", part=part.name, outcome=outcome, seconds=spent, limit=limit)
        _write_table(settings)
        print(f"{part.name:24} {outcome:20} {spent:6.1f} s of {limit}", flush=True)
        if part.essential and outcome != "ok":
            break
    return int(not ended_well)


def _run_part(
    part: Part, settings: Settings, end: float, run: Run, clock: Callable[[], float]
) -> str:
    """Run one part, anew where it goes on after it has died; return how it ended."""
    worst = "ok"
    for _ in range(_STARTS if part.goes_on else 1):
        left = end - clock()
        if left < 1:
            return "out of time"
        code = run(part.command(settings, int(left)), left, settings.log)
        if code is None:
            return "out of time"
        worst = worst if code == 0 else f"failed ({code})"
        if code >= 0 and code != DEVICE_LOST:  # it came to its end
            return worst
    return worst


def _write_table(settings: Settings) -> None:
    """Write the table of what is known so far; a reader never sees half of it."""
    path = settings.journal.with_suffix(".txt")
    new = path.with_suffix(".new")
    new.write_text(table(read_visit(settings.journal)) + "\n", "utf-8")
    new.replace(path)


def run_command(command: list[str], seconds: float, log: Path) -> int | None:
    """Run a command in a group of its own, which ends with this process, or when time is up."""
    parent = os.getpid()

    def die_with_parent() -> None:
        with suppress(OSError, AttributeError):  # Linux alone has it
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    with log.open("a") as stream:
        stream.write(f"=== {' '.join(command[1:])}\n")
        stream.flush()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):  # what it has started, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a visit, or print the table of one."""
    parser = argparse.ArgumentParser(prog="bench/gpu_check.sh", description=__doc__.splitlines()[0])
    parser.add_argument("visit", choices=(*VISITS, "table"))
    parser.add_argument("results", nargs="?", type=Path, help="for table")
    parser.add_argument("--on-cpu", action="store_true", help="a rehearsal, tiny")
    options, run_options = parser.parse_known_args(arguments)
    if options.visit == "table":
        if options.results is None:
            parser.error("table needs the .jsonl file of a visit")
        print(table(read_visit(options.results)))
        return 0
    now = datetime.datetime.now(datetime.UTC)
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"gpu-check-{options.visit}-{now:%Y%m%dT%H%M%S}"
    settings = Settings(
        device="cpu" if options.on_cpu else "cuda",
        journal=folder / f"{name}.jsonl",
        log=folder / f"{name}.log",
        run=now.isoformat(timespec="seconds"),
        run_options=run_options,
    )
    os.environ["NNMF_CUDA_REQUIRE_EXT"] = "1"
    if options.on_cpu:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # minutes of a compiler, which are no rehearsal
        # Calls so small gain nothing by threads, and lose much where others use the machine.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    else:
        os.environ["NNMF_CUDA_REQUIRE_CUDA"] = "1"
    visit = VISITS[options.visit]
    seconds = float(os.environ.get("GPU_CHECK_SECONDS", visit.seconds))
    seconds -= float(os.environ.get("GPU_CHECK_SPENT", 0))  # by the script, before this
    Journal(settings.journal).add(
        "visit", visit=options.visit, run=settings.run, seconds=seconds, on_cpu=options.on_cpu
    )
    code = run_visit(visit, settings, seconds=seconds, run=run_command)
    print(f"\nrecorded in {settings.journal}")
    print(table(read_visit(settings.journal)))
    return code


if __name__ == "__main__":
    sys.exit(main())
