"""Damaged files of every kind end with exit 0, or 2 and one line, and nothing is left behind.

A few of each in the suite; `nox -s fuzz` tries as many as NNMF_CUDA_FUZZ says.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import docstring_parser
import pytest

from tests.fuzz.mutation import damage, damage_file, resign
from tests.fuzz.samples import NEEDED, SOURCES
from tests.fuzz.watch import problems_of
from tests.saved_runs import SMALL

SEED = os.environ.get("NNMF_CUDA_FUZZ_SEED", "1")
CASES = int(os.environ.get("NNMF_CUDA_FUZZ", "6"))
STOPPED = "the fuzzer needs no training"


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run stop when it has read its settings and images: that is what is tried here."""

    def stop(*_: object, **__: object) -> None:
        raise ValueError(STOPPED)

    monkeypatch.setattr("nnmf_cuda.run.experiment.run_stages", stop)
    # Parsers are built anew for each command, and most of that goes into their help.
    parse = functools.cache(docstring_parser.parse_from_object)
    monkeypatch.setattr(docstring_parser, "parse_from_object", parse)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("NNMF_CUDA_DEBUG", raising=False)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("samples")


def sample(kind: str, samples: Path) -> tuple[Path, Path]:
    """Return a folder with the good source of a kind, and the source below it."""
    if kind in NEEDED and importlib.util.find_spec(NEEDED[kind]) is None:
        pytest.skip(f"{kind} needs {NEEDED[kind]}")
    home = samples / kind
    home.mkdir()
    return home, SOURCES[kind](home)


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
    (samples / "images").mkdir()
    images, home = SOURCES["png"](samples / "images"), samples / "model"
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
