"""The launches of a call, from csrc's own launch code: which kernels, how many blocks, what cut.

The code is compiled as host code with a launch that is written down instead of made
(``bench/launch_plan``): grids, template arguments and the cut of the work into warps are never
typed in by hand. A C++ compiler is needed, no GPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Launch", "Plan", "build_planner", "plan_of"]

_HERE = Path(__file__).parent / "launch_plan"
_HARNESS = Path(__file__).resolve().parents[1] / "tests" / "cuda_on_cpu"
_CSRC = Path(__file__).resolve().parents[1] / "csrc"


@dataclass(frozen=True)
class Launch:
    """One launch.

    Attributes
    ----------
    symbol : str
        The kernel's mangled name.
    blocks, threads : int
        Blocks, and threads of each.
    shared_bytes : int
        That it asks for.
    overlaps : bool
        Whether its blocks may start before the kernel before has ended.
    """

    symbol: str
    blocks: int
    threads: int
    shared_bytes: int
    overlaps: bool = False


@dataclass(frozen=True)
class Plan:
    """The launches of a call in order, and what of its cut it tells, such as "W_splits"."""

    launches: tuple[Launch, ...]
    notes: Mapping[str, int]


def build_planner(folder: Path) -> Path:
    """Compile the planner into a folder; return the executable.

    Raises
    ------
    ValueError
        If there is no C++ compiler, or it reports an error.
    """
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise ValueError(f"the launches are found with a C++ compiler, and {compiler} is not here")
    flags = ("-std=c++20", "-O0", "-w", f"-I{_HERE}", f"-I{_CSRC}", f"-I{_HARNESS}")
    objects = []
    for source in sorted(_HERE.glob("*.cpp")):
        objects.append(folder / f"{source.stem}.o")
        _run([compiler, *flags, "-c", str(source), "-o", str(objects[-1])])
    program = folder / "plan"
    # What kernels call is nowhere: none of them runs.
    link = ("-rdynamic", "-ldl", "-Wl,--unresolved-symbols=ignore-all", "-o", str(program))
    _run([compiler, *map(str, objects), *link])
    return program


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    given = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=given)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        errors = [line for line in said if "error" in line] or said[-1:]
        raise ValueError(f"{' '.join(command[:1])} failed: {' '.join(errors)[:400]}")
    return done.stdout


def plan_of(
    planner: Path,
    call: str,
    sizes: Mapping[str, int],
    *,
    environment: Mapping[str, str] | None = None,
) -> Plan:
    """Return the launches of a call, such as "nnmf_mu float32", as the environment chooses them."""
    words = [f"{name}={value}" for name, value in sizes.items()]
    lines = _run([str(planner), call, *words], environment)
    launches, notes = [], {}
    for words in map(str.split, lines.splitlines()):
        if words[0] == "=":
            notes[words[1]] = int(words[2])
        else:
            blocks, threads, shared_bytes, overlaps = map(int, words[1:])
            launches.append(Launch(words[0], blocks, threads, shared_bytes, bool(overlaps)))
    return Plan(tuple(launches), notes)
