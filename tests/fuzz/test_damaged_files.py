"""Damaged files of every kind end with exit 0, or 2 and one line, and nothing is left behind.

A few of each in the suite; `nox -s fuzz` tries as many as NNMF_CUDA_FUZZ says.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import io
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnmf_cuda.cli.main import main
from tests.fuzz.mutation import damage, damage_file, resign
from tests.fuzz.samples import NEEDED, SOURCES
from tests.saved_runs import SMALL

SEED = os.environ.get("NNMF_CUDA_FUZZ_SEED", "1")
CASES = int(os.environ.get("NNMF_CUDA_FUZZ", "6"))
LONGEST_S = 10.0
MEMORY = 6 * 2**30
STOPPED = "the fuzzer needs no training"

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
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
        if changes and isinstance(path, str | bytes | Path) and not self._is_allowed(path):
            self.seen.append(f"{event} {path!r}")

    def _is_allowed(self, path: str | bytes | Path) -> bool:
        assert self.allowed is not None
        real = os.path.realpath(os.fsdecode(path))
        return real == os.devnull or Path(real).is_relative_to(self.allowed)


WATCH = Watch()
sys.addaudithook(WATCH)


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Let nothing fill the memory of the machine, and no case hang."""

    def late(*_: object) -> None:
        raise AssertionError(f"took more than {LONGEST_S} s")

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
    beside = {out.name, f"{out.name}.files.txt", f"{out.name}.failed.txt"} if code == 0 else set()
    if left - beside:
        problems.append(f"left behind: {sorted(left - beside)}")
    if code == 0 and out.suffix == ".npy" and not np.isfinite(np.load(out)).all():
        problems.append("features that are no numbers")
    return code, problems


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run stop when it has read its settings and images: that is what is tried here."""

    def stop(*_: object, **__: object) -> None:
        raise ValueError(STOPPED)

    monkeypatch.setattr("nnmf_cuda.run.experiment.run_stages", stop)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("NNMF_CUDA_DEBUG", raising=False)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("samples")


def sample(kind: str, samples: Path) -> tuple[Path, Path]:
    """Return the folder with the good source of a kind, and the source below it."""
    if kind in NEEDED and importlib.util.find_spec(NEEDED[kind]) is None:
        pytest.skip(f"{kind} needs {NEEDED[kind]}")
    home = samples / kind
    if not home.exists():
        home.mkdir()
        SOURCES[kind](home)
    return home, home / SOURCES_BELOW.setdefault(kind, _source_below(kind, home))


SOURCES_BELOW: dict[str, Path] = {}


def _source_below(kind: str, home: Path) -> Path:
    again = home.parent / f"again-{kind}"
    again.mkdir()
    return SOURCES[kind](again).relative_to(again)


def commands(rng: random.Random, source: Path, model: Path, out: Path) -> list[str]:
    """Return one of the commands that read images."""
    skip = ["--on_error=skip"] if rng.random() < 0.4 else []
    window = ["--window=p1:p99"] if rng.random() < 0.7 else []
    match rng.randrange(4):
        case 0:
            return ["predict", str(source), f"--model={model}", *skip, *window]
        case 1:
            command = ["extract", str(source), f"--model={model}", f"--out={out}.npy"]
            return [*command, *skip, *window, "--batch_size=5"]
        case 2:
            return ["audit", f"--data={source}", "--resolution=8", *window]
        case _:
            split = ["--split_by=random"] if rng.random() < 0.5 else []
            return ["run", f"--data={source}", f"--out={out}", *SMALL, *split, *skip, *window]


def fuzz(kind: str, try_one: Any) -> None:
    """Try all cases of a kind, and tell of all that ended badly."""
    codes: Counter[int | None] = Counter()
    bad = []
    started = time.monotonic()
    for number in range(CASES):
        rng = random.Random(f"{SEED}:{kind}:{number}")
        did, command, code, problems = try_one(rng, number)
        codes[code] += 1
        if problems:
            bad.append(f"case {number} ({did}): {' '.join(command)}\n  " + "\n  ".join(problems))
    seconds = time.monotonic() - started
    print(f"{kind}: {CASES} cases, {dict(codes)}, {len(bad)} bad, {seconds:.0f} s")
    assert not bad, f"{len(bad)} of {CASES}:\n" + "\n".join(bad[:25])


def fresh(folder: Path, home: Path) -> Path:
    """Return a new copy of a source, with nothing left of the one before."""
    for path in (folder / "in", folder / "out"):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(home, folder / "in", symlinks=True)
    (folder / "out").mkdir()
    return folder / "in"


@pytest.mark.parametrize("kind", SOURCES)
def test_images(kind: str, samples: Path, small_run: tuple[Path, str], tmp_path: Path) -> None:
    home, source = sample(kind, samples)
    below = source.relative_to(home)

    def try_one(rng: random.Random, number: int) -> tuple[str, list[str], int | None, list[str]]:
        copy = fresh(tmp_path, home)
        did = damage(rng, copy) if number else "nothing"
        command = commands(rng, copy / below, small_run[0], tmp_path / "out" / "of")
        out = tmp_path / "out" / ("of.npy" if command[0] == "extract" else "of")
        return did, command, *problems_of(command, out)

    fuzz(kind, try_one)


def test_configs(small_run: tuple[Path, str], tmp_path: Path) -> None:
    def try_one(rng: random.Random, number: int) -> tuple[str, list[str], int | None, list[str]]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").mkdir()
        path = tmp_path / "config.yaml"
        shutil.copy(small_run[0] / "config.yaml", path)
        did = damage_file(rng, path) if number else "nothing"
        out = tmp_path / "out" / "of"
        command = ["run", f"--config={path}", f"--out={out}"]
        return did, command, *problems_of(command, out)

    fuzz("yaml", try_one)


def test_models(small_run: tuple[Path, str], samples: Path, tmp_path: Path) -> None:
    images = sample("png", samples)[1]
    home = samples / "model"
    shutil.copytree(small_run[0] / "model", home / "run" / "model")

    def try_one(rng: random.Random, number: int) -> tuple[str, list[str], int | None, list[str]]:
        copy = fresh(tmp_path, home)
        did = damage(rng, copy) if number else "nothing"
        if rng.random() < 0.8:
            with contextlib.suppress(OSError):
                resign(copy)
        out = tmp_path / "out" / "of.npy"
        command = ["predict", str(images), f"--model={copy / 'run'}"]
        if rng.random() < 0.5:
            command = ["extract", *command[1:], f"--out={out}"]
        return did, command, *problems_of(command, out)

    fuzz("model", try_one)
