"""Registers, shared memory and spills of every CUDA kernel; exit 1 where a hot kernel spills.

Usage: ptxas_table.py LOG --sources csrc --architectures sm_80 sm_90

LOG is what nvcc has printed with -Xptxas -v. A kernel that keeps part of its registers or arrays in
local memory (a spill, or a stack frame) goes to memory in its innermost loop, which no test of
results shows. **Hot** is every kernel that works in float32, whatever X is, with up to 32
components: all kernels but those with float64 among their template arguments and those that COLD
names. The others are listed too, and may spill.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Kernels in float32 that may spill all the same, and why.
COLD = {
    r"prepare_defence_kernel<": "sines in float64; runs once a call",
    r"half_step_kernel<Tiling<.*, 32, \d+, true>, ": "more than 32 components",
    r"crown_bounds_kernel<": "float64 throughout, whatever its types are called",
    r"(one_row_kernel|one_row_backward_kernel|wide_subtract_kernel)\b": (
        "calls functions, which have stack frames; more than 256 variables"
    ),
}

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
PROPERTIES = re.compile(r"Function properties for (\w+)")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
CUMULATIVE = re.compile(r"(\d+) bytes cumulative stack size")
SHARED = re.compile(r"(\d+) bytes smem")
DEFINITION = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(")


@dataclass(frozen=True)
class Kernel:
    """What ptxas says about one kernel on one architecture; memory in bytes."""

    name: str  # without namespaces and arguments
    architecture: str
    registers: int
    shared: int  # that the kernel declares; what the launch asks for comes on top
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def spills(self) -> bool:
        """Whether it uses local memory at all."""
        return self.stack > 0 or self.spill_stores > 0 or self.spill_loads > 0

    @property
    def cold(self) -> str | None:
        """Why it may use local memory; None: it may not."""
        if "double" in re.findall(r"\w+", self.name):
            return "float64"
        return next((why for pattern, why in COLD.items() if re.match(pattern, self.name)), None)


def demangle(names: Sequence[str]) -> list[str]:
    """Return the C++ names behind mangled ones, by c++filt."""
    result = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return result.stdout.split("\n")[: len(names)]


def short_name(demangled: str) -> str:
    """Return a kernel's name and template arguments, without return type and namespaces.

    >>> short_name("void a::sum<(a::Loss)1, unsigned char>(unsigned char const*, int)")
    'sum<Loss 1, uint8>'
    """
    depth = 0
    for end, character in enumerate(demangled):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0 and not demangled.startswith("(anonymous", end):
            break
    else:
        end = len(demangled)
    name = demangled[:end].removeprefix("void ")
    name = re.sub(r"(?:\(anonymous namespace\)|\w+)::", "", name)
    name = re.sub(r"\((\w+)\)(\d+)", r"\1 \2", name)
    return name.replace("unsigned char", "uint8").replace("> >", ">>")


def parse(log: str) -> list[Kernel]:
    """Return every kernel of the log, as often as there are architectures.

    What the functions that a kernel calls keep on the stack is in its cumulative stack size; their
    own lines stand anywhere.
    """
    found: list[tuple[str, str, dict[str, int]]] = []
    function = ""
    for line in log.splitlines():
        if entry := ENTRY.search(line):
            found.append((entry[1], entry[2], {}))
        if properties := PROPERTIES.search(line):
            function = properties[1]
        if not found:
            continue
        name, _, values = found[-1]
        if (stack := STACK.search(line)) and function == name:
            keys = ("stack", "stores", "loads")
            values |= dict(zip(keys, map(int, stack.groups()), strict=True))
        if used := USED.search(line):
            shared, cumulative = SHARED.search(line), CUMULATIVE.search(line)
            values["registers"] = int(used[1])
            values["shared"] = int(shared[1]) if shared else 0
            if cumulative:
                values["stack"] = max(values.get("stack", 0), int(cumulative[1]))
    names = demangle([mangled for mangled, _, _ in found])
    kernels = []
    for name, (_, architecture, values) in zip(names, found, strict=True):
        told = ("registers", "shared", "stack", "stores", "loads")
        if not values.keys() >= set(told):
            raise SystemExit(f"the log does not tell all about {name}")
        numbers = (values[key] for key in told)
        kernels.append(Kernel(short_name(name), architecture, *numbers))
    return kernels


def kernels_of_sources(folder: Path) -> set[str]:
    """Return the name of every kernel that the sources define."""
    files = [*folder.rglob("*.cuh"), *folder.rglob("*.cu")]
    return {name for path in files for name in DEFINITION.findall(path.read_text())}


def find_gaps(kernels: Iterable[Kernel], architectures: Iterable[str], sources: Path) -> list[str]:
    """Return what the log should tell of and does not: part of the build has not run."""
    kernels = list(kernels)
    gaps = []
    of_architecture = {
        name: {kernel.name for kernel in kernels if kernel.architecture == name}
        for name in architectures
    }
    everything = {kernel.name for kernel in kernels}
    for architecture, names in of_architecture.items():
        gaps += [f"{name} is missing for {architecture}" for name in sorted(everything - names)]
    built = {name.split("<")[0] for name in everything}
    missing = kernels_of_sources(sources) - built
    return gaps + [f"{name} was not compiled" for name in sorted(missing)]


def table(kernels: Iterable[Kernel]) -> str:
    """Return a line for each kernel and architecture, those that spill last."""
    lines = ["       arch   regs shared stack stores loads  kernel"]
    for kernel in sorted(kernels, key=lambda k: (k.spills, k.name, k.architecture)):
        state = "" if not kernel.spills else "cold" if kernel.cold else "SPILLS"
        why = f"  ({kernel.cold})" if kernel.spills and kernel.cold else ""
        lines.append(
            f"{state:6} {kernel.architecture:6} {kernel.registers:4} {kernel.shared:6}"
            f" {kernel.stack:5} {kernel.spill_stores:6} {kernel.spill_loads:5}  {kernel.name}{why}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--architectures", nargs="+", required=True, metavar="sm_XY")
    options = parser.parse_args(arguments)
    kernels = sorted(set(parse(options.log.read_text())), key=lambda kernel: kernel.name)
    print(table(kernels))
    cold = sum(kernel.spills and kernel.cold is not None for kernel in kernels)
    hot = sum(kernel.spills and kernel.cold is None for kernel in kernels)
    gaps = find_gaps(kernels, options.architectures, options.sources)
    print(
        f"{len(kernels)} kernels for {' '.join(options.architectures)}:"
        f" {hot} hot ones use local memory, and {cold} that may"
    )
    for gap in gaps:
        print(f"incomplete: {gap}")
    return 1 if hot or gaps or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
