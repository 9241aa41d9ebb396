"""What the machine code of the CUDA kernels is made of: instructions by class, loop by loop.

Usage: python -m bench.machine_code sm_90 OBJECT...        a line for each kernel and loop

The objects are those of a build (``build/temp*/csrc/*/cuda/*.o``) or the extension itself; they are
taken apart by cuobjdump and nvdisasm of the CUDA toolkit. A loop is what lies between a branch
backwards and where it goes; what loops inside it hold is theirs alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.ptxas_table import demangle, short_name

__all__ = [
    "PIPES",
    "Code",
    "Kernel",
    "Loop",
    "find_tool",
    "pipe_of",
    "read_kernels",
    "read_listing",
]

MULTIPLY_ADDS: Mapping[str, float] = {"FFMA": 32, "FFMA2": 64, "DFMA": 32, "HMMA": 1024}
"""Multiplications with addition that a warp's instruction does; HMMA as m16n8k8."""

PIPES: Mapping[str, tuple[str, ...]] = {
    "fma": ("FFMA", "FADD", "FMUL", "IMAD", "HFMA2", "HADD2", "HMUL2", "FFMA2", "IDP"),
    "xu": ("MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO", "BREV", "I2I"),
    "fp64": ("DFMA", "DADD", "DMUL", "DSETP"),
    "tensor": ("HMMA", "IMMA", "DMMA", "QMMA", "OMMA"),
    "memory": (
        *("LDS", "STS", "LDSM", "STSM", "LDG", "STG", "LD", "ST", "LDL", "STL", "LDGSTS", "LDTM"),
        *("SHFL", "ATOM", "ATOMG", "ATOMS", "RED", "MATCH", "CCTL", "UBLKCP", "LDGDEPBAR"),
    ),
    "control": (
        *("BRA", "BRX", "BSSY", "BSYNC", "BREAK", "CALL", "RET", "EXIT", "NOP", "WARPSYNC", "BAR"),
        *("DEPBAR", "ERRBAR", "MEMBAR", "YIELD", "NANOSLEEP", "ACQBULK", "LDC", "LDCU", "S2R"),
        *("S2UR", "R2UR", "CS2R", "B2R", "R2B", "PREEXIT", "SYNCS", "BMOV"),
    ),
}
"""Which unit of a scheduler works on an instruction; whatever is nowhere here is "alu", and what
begins with U (the uniform datapath) is "control": it takes an issue slot alone."""

_FUNCTION = re.compile(r"Function : (\S+)")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_PREDICATE = re.compile(r"^@!?U?P[T0-9]+\s+")
_CALL = re.compile(r"^CALL\b.*?\b0x([0-9a-f]+)")
_REGISTER = re.compile(r"\bR(\d+)")
_BRANCH = re.compile(r"^BRA\b.*?\b0x([0-9a-f]+)")


def pipe_of(opcode: str) -> str:
    """Return which unit works on an instruction, from its name without modifiers."""
    for pipe, opcodes in PIPES.items():
        if opcode in opcodes:
            return pipe
    return "control" if opcode.startswith("U") else "alu"


@dataclass(frozen=True)
class Code:
    """Instructions that are executed together.

    Attributes
    ----------
    opcodes : mapping of str to float
        How many there are, by name without modifiers, such as "FFMA".
    """

    opcodes: Mapping[str, float] = field(default_factory=dict)

    @property
    def slots(self) -> float:
        """Issue slots: every instruction takes one."""
        return sum(self.opcodes.values())

    @property
    def multiply_adds(self) -> float:
        """Multiplications with addition, of all lanes of a warp."""
        return sum(self.opcodes.get(name, 0) * n for name, n in MULTIPLY_ADDS.items())

    def pipes(self) -> dict[str, float]:
        """Return the number of instructions by `PIPES`."""
        found: Counter[str] = Counter()
        for opcode, n in self.opcodes.items():
            found[pipe_of(opcode)] += n  # type: ignore[assignment]
        return dict(found)

    def __add__(self, other: Code) -> Code:
        return Code(
            {
                name: self.opcodes.get(name, 0) + other.opcodes.get(name, 0)
                for name in {**self.opcodes, **other.opcodes}
            }
        )

    def __mul__(self, times: float) -> Code:
        return Code({name: n * times for name, n in self.opcodes.items()})


@dataclass(frozen=True)
class Loop:
    """A loop.

    Attributes
    ----------
    begin, end : int
        Addresses of its first and last instruction.
    own : Code
        Its body without the loops in it. Of alternatives in it only one may be executed.
    inner : tuple of Loop
        Those right in it.
    copied_bytes : int
        The most that a lane's copy to shared memory in its own body moves: 16, 8, 4, or 0.
    """

    begin: int
    end: int
    own: Code
    inner: tuple[Loop, ...]
    copied_bytes: int = 0

    def all(self) -> Iterator[Loop]:
        """Give this loop and all loops in it."""
        yield self
        for loop in self.inner:
            yield from loop.all()


@dataclass(frozen=True)
class Kernel:
    """The machine code of a kernel.

    Attributes
    ----------
    symbol : str
        Mangled name.
    architecture : str
        Such as "sm_90".
    own : Code
        What is in no loop. Functions that the kernel calls, for what is rare, are not counted.
    loops : tuple of Loop
        The outermost.
    registers : int
        Of a thread, from the highest that an instruction names.
    """

    symbol: str
    architecture: str
    own: Code
    loops: tuple[Loop, ...]
    registers: int = 0

    def all_loops(self) -> list[Loop]:
        """Return all loops, whichever they lie in."""
        return [inner for loop in self.loops for inner in loop.all()]

    def hot_loop(self) -> Loop | None:
        """Return the loop without loops in it that multiplies and adds most; None: none does.

        What stands around loops may have more of that, but in alternatives of which one is taken.
        """
        loops = [loop for loop in self.all_loops() if loop.own.multiply_adds > 0]
        innermost = [loop for loop in loops if not loop.inner]
        return max(innermost or loops, key=lambda loop: loop.own.multiply_adds, default=None)

    def around(self, loop: Loop) -> Loop | None:
        """Return the loop in which a loop lies; None where it is outermost."""
        return next((outer for outer in self.all_loops() if loop in outer.inner), None)


def read_listing(text: str, architecture: str) -> dict[str, Kernel]:
    """Return the kernels of what `cuobjdump -sass` has printed, by mangled name."""
    bodies: dict[str, list[tuple[int, str]]] = {}
    body: list[tuple[int, str]] = []
    for line in text.splitlines():
        if function := _FUNCTION.search(line):
            body = bodies.setdefault(function[1], [])
        elif instruction := _INSTRUCTION.match(line):
            body.append((int(instruction[1], 16), instruction[2]))
    return {
        name: _kernel(name, architecture, instructions) for name, instructions in bodies.items()
    }


def _kernel(symbol: str, architecture: str, body: Sequence[tuple[int, str]]) -> Kernel:
    named = [int(number) for _, text in body for number in _REGISTER.findall(text)]
    # What is called stands behind the kernel: divisions of large numbers, which hardly ever are.
    calls = [_CALL.match(_PREDICATE.sub("", text)) for _, text in body]
    called = min((int(call[1], 16) for call in calls if call), default=None)
    if called is not None:
        body = [(at, text) for at, text in body if at < called]
    spans: dict[int, int] = {}
    for at, text in body:
        branch = _BRANCH.match(_PREDICATE.sub("", text))
        if branch and (to := int(branch[1], 16)) < at:
            spans[to] = max(at, spans.get(to, 0))
    # A branch from one loop into another that began before makes both one.
    loops = sorted(spans.items(), key=lambda span: (span[0], -span[1]))
    nested: list[tuple[int, int]] = []
    for begin, end in loops:
        for outer_begin, outer_end in nested:
            if outer_begin < begin <= outer_end < end:
                end = outer_end
        nested.append((begin, end))

    def build(spans: list[tuple[int, int]], begin: int, end: int) -> tuple[Code, list[Loop], int]:
        inside, at = [], begin
        outermost = []
        for span in spans:
            if span[0] >= at and span[1] <= end:
                outermost.append(span)
                at = span[1] + 1
        for first, last in outermost:
            rest = [s for s in spans if first <= s[0] and s[1] <= last and s != (first, last)]
            own, inner, copies = build(rest, first, last)
            inside.append(Loop(first, last, own, tuple(inner), copies))
        opcodes: Counter[str] = Counter()
        copies = 0
        for address, text in body:
            if begin <= address <= end and not any(f <= address <= z for f, z in outermost):
                name = _PREDICATE.sub("", text).split()[0]
                opcodes[name.split(".")[0]] += 1
                if name.startswith("LDGSTS"):
                    copies = max(copies, 16 if ".128" in name else 8 if ".64" in name else 4)
        return Code(dict(opcodes)), inside, copies

    last = body[-1][0] if body else 0
    own, inside, _ = build(nested, 0, last)
    # What stands behind the last instruction only fills up: a branch to itself, and nothing else.
    own = Code({name: n for name, n in own.opcodes.items() if name != "NOP"})
    return Kernel(symbol, architecture, own, tuple(inside), max(named, default=-1) + 1)


def find_tool(name: str) -> str:
    """Return the path of a tool of the CUDA toolkit.

    Raises
    ------
    ValueError
        If it is neither on PATH nor in the toolkit.
    """
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), f"{home}/bin"]))
    if found is None:
        raise ValueError(
            f"{name} is not on PATH; it comes with the CUDA toolkit, or as the Python package"
            f" nvidia-cuda-{name}"
        )
    return found


def read_kernels(objects: Iterable[Path], architecture: str) -> dict[str, Kernel]:
    """Return all kernels of objects that were built for an architecture, by mangled name."""
    tool = find_tool("cuobjdump")
    kernels: dict[str, Kernel] = {}
    nvdisasm = str(Path(find_tool("nvdisasm")).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([nvdisasm, os.environ.get("PATH", "")])}
    for path in objects:
        command = [tool, "-arch", architecture, "-sass", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise ValueError(f"cuobjdump cannot read {path}: {done.stderr.strip()[:200]}")
        kernels |= read_listing(done.stdout, architecture)
    return kernels


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the loops of all kernels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architecture", help="such as sm_90")
    parser.add_argument("objects", nargs="+", type=Path)
    parser.add_argument("--only", default="", help="kernels with this in their names")
    options = parser.parse_args(arguments)
    kernels = read_kernels(options.objects, options.architecture)
    names = [short_name(name) for name in demangle(list(kernels))]
    for name, kernel in sorted(zip(names, kernels.values(), strict=True)):
        if options.only not in name:
            continue
        print(f"{name}: {kernel.own.slots:g} in no loop")
        for loop in kernel.all_loops():
            most = sorted(loop.own.opcodes.items(), key=lambda item: -item[1])[:8]
            inner = f", {len(loop.inner)} in it" if loop.inner else ""
            print(
                f"  {loop.begin:#x}-{loop.end:#x}: {loop.own.slots:g}{inner}:"
                f" {', '.join(f'{n:g} {opcode}' for opcode, n in most)}"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
