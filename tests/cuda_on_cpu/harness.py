"""Compile CUDA kernels as host code and run them on tensors; see cuda_on_cpu.h and call.h."""

from __future__ import annotations

import functools
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
COMPILER = os.environ.get("CXX", "c++")
# Of undefined behaviour what kernels can do; the rest would double the time to compile them.
UNDEFINED = "alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero,bool,enum"
CHECKS = f"address,{UNDEFINED}"
FLAGS = ("-std=c++20", "-O1", "-g1")
MACHINE = ("block", "shared_memory", "call")  # what runs the kernels
SEEDS = (0, 1, 2)  # of the order in which threads run
BARRIER = re.compile(
    r"(?:__syncthreads|__syncwarp|wait_for_copies<[^>]*>|wait_for_kernel_before)\([^;]*\);"
)
DTYPES = (torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64)  # as in call.h


class KernelError(RuntimeError):
    """The kernels broke a rule: what the harness or a sanitizer says about it."""


class BuildError(Exception):
    """There are no kernels to run: a mutant that cannot be built was not caught by any test."""


@dataclass(frozen=True)
class Mutation:
    """A change of one source text that a test of the tests makes.

    `file` is relative to the folder of the sources. The text `old` must occur; its `occurrence`
    counts from 0. `together`: mutations that one executable has all of, to be switched on one at a
    time; see `share_a_build`.
    """

    file: str
    old: str
    new: str
    occurrence: int = 0
    together: tuple[Mutation, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.file}: {self.old} -> {self.new or 'nothing'} ({self.occurrence})"

    @property
    def checks(self) -> str:
        """What sanitizers look for in its kernels: all of it would double the time to build them.

        Where a barrier is missing, no index is wrong: values are.
        """
        return "" if BARRIER.fullmatch(self.old) else "address,bounds"

    def apply(self, text: str, switch: str = "") -> str:
        """Return `text` with the occurrence replaced, if need be where `switch` is true alone."""
        parts = text.split(self.old)
        if len(parts) <= self.occurrence + 1:
            raise BuildError(
                f"{self.file} has {len(parts) - 1} times {self.old!r}, not {self.occurrence + 1}"
            )
        at = self.occurrence + 1
        new = self.switched(switch) if switch else self.new
        return f"{self.old.join(parts[:at])}{new}{self.old.join(parts[at:])}"

    def switched(self, switch: str) -> str | None:
        """Return `new` where the C++ expression `switch` is true, else `old`; None: it cannot be.

        Barriers can be switched, and comparisons of whole numbers: a <= b is a < 1 + b.
        """
        if BARRIER.fullmatch(self.old) and self.new == ";":
            return f"({switch} ? void() : void({self.old[:-1]}));"
        alike = os.path.commonprefix([self.old, self.new])
        old, new = self.old[len(alike) :], self.new[len(alike) :]
        if not alike.endswith(("<", ">")) or "=" not in (old[:1], new[:1]):
            return None
        gains = new == "=" + old
        if not gains and old != "=" + new:
            return None
        sign = "" if alike.endswith("<") == gains else "-"
        rest = old if gains else new
        return f"{alike}{'' if gains else '='} {sign}({switch} ? 1 : 0) +{rest}"


def share_a_build(mutations: Iterable[Mutation]) -> list[Mutation]:
    """Return the mutations, those that can be switched for one executable that has all of them."""
    mutations = list(mutations)
    groups: dict[str, list[Mutation]] = {}
    for mutation in mutations:
        if mutation.switched("") is not None:
            groups.setdefault(mutation.checks, []).append(mutation)
    return [
        replace(mutation, together=tuple(group)) if mutation in group else mutation
        for mutation in mutations
        for group in [groups.get(mutation.checks, [])]
    ]


def none_of(mutations: Sequence[Mutation]) -> Mutation:
    """Return what builds the executable that mutations share, and switches none of them on."""
    (together,) = {mutation.together for mutation in mutations if mutation.together}
    return Mutation("none of those that share a build", "", "", together=together)


def without_each_barrier(*files: str) -> list[Mutation]:
    """Return a mutation for every barrier and wait in `files` of csrc that takes it away."""
    mutations = []
    for file in files:
        path = CSRC / file
        text = path.read_text() if path.exists() else ""
        found = BARRIER.findall(text)
        # An occurrence is counted as Mutation counts it, among all that contain the text.
        counts = dict.fromkeys(found, 0)
        for old in found:
            mutations.append(Mutation(file, old, ";", counts[old]))
            counts[old] += 1
    return share_a_build(mutations)


@functools.cache
def sanitizer_flags(checks: str = CHECKS) -> tuple[str, ...]:
    """Return the flags for some of CHECKS, none where AddressSanitizer's library is missing."""
    if not checks:
        return ()
    flags = (f"-fsanitize={checks}", "-fno-sanitize-recover=all")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program")
        Path(folder, "main.cpp").write_text("int main() { return 0; }")
        command = [COMPILER, *flags, "-o", program, Path(folder, "main.cpp")]
        built = subprocess.run(command, capture_output=True, check=False).returncode == 0
        if built and subprocess.run([program], capture_output=True, check=False).returncode == 0:
            return flags
    if os.environ.get("NNMF_CUDA_REQUIRE_SANITIZERS") == "1":
        pytest.fail(f"{COMPILER} has no AddressSanitizer")
    return ()


def require_sanitizers() -> None:
    """Skip a test that needs AddressSanitizer where it is missing."""
    if not sanitizer_flags():
        pytest.skip(f"{COMPILER} has no AddressSanitizer: indices are not checked")


class Builder:
    """Builds executables from the .cpp files of this folder, each once."""

    def __init__(self, folder: Path) -> None:
        if shutil.which(COMPILER) is None or not CSRC.is_dir():
            pytest.skip("needs a C++ compiler and the source tree")
        self._folder = folder
        self._machine: dict[tuple[tuple[str, ...], str], list[Path]] = {}
        self._built: dict[tuple[object, ...], Path] = {}

    def __call__(self, source: str, *defines: str, mutation: Mutation | None = None) -> Path:
        """Build the calls in `source`, from a changed copy where one is asked for.

        A mutation's file is looked for in this folder, then in csrc.
        """
        if mutation is None:
            return self._build(source, defines, (), CHECKS)
        if not mutation.together:
            return self._build(source, defines, (mutation,), mutation.checks)
        checks = mutation.together[0].checks
        shared = self._build(source, defines, mutation.together, checks, switched=True)
        if mutation not in mutation.together:
            return shared
        number = mutation.together.index(mutation) + 1
        target = shared.with_name(f"{shared.name}-{number}")
        target.write_text(f'#!/bin/sh\nCUDA_ON_CPU_MUTATION={number} exec "{shared}"\n')
        target.chmod(0o755)
        return target

    def _build(
        self,
        source: str,
        defines: tuple[str, ...],
        mutations: tuple[Mutation, ...],
        checks: str,
        *,
        switched: bool = False,
    ) -> Path:
        key = (source, defines, mutations, switched)
        if key not in self._built:
            target = self._folder / f"kernels{len(self._built)}"
            here, csrc = self._sources(target, mutations, switched)
            includes = (f"-I{here}", f"-I{csrc}")
            kernels = target.with_suffix(".o")
            self._compile("-c", here / source, "-o", kernels, *defines, *includes, checks=checks)
            checks = checks and CHECKS
            machine = self._objects_of_machine(*defines, checks=checks)
            self._compile(kernels, *machine, "-o", target, checks=checks)
            self._built[key] = target
        return self._built[key]

    def _sources(
        self, target: Path, mutations: tuple[Mutation, ...], switched: bool
    ) -> tuple[Path, Path]:
        if not mutations:
            return HERE, CSRC
        here, csrc = target.with_suffix(".tests"), target.with_suffix(".csrc")
        for folder in (here, csrc):
            shutil.rmtree(folder, ignore_errors=True)  # of a mutant that could not be built
        shutil.copytree(HERE, here, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        shutil.copytree(CSRC, csrc)
        # Backwards: what is replaced no longer counts as an occurrence.
        for number, mutation in reversed([*enumerate(mutations, 1)]):
            file = here / mutation.file
            if not file.exists():
                file = csrc / mutation.file
            switch = f"cuda_on_cpu::mutation == {number}" if switched else ""
            file.write_text(mutation.apply(file.read_text(), switch))
        return here, csrc

    def _objects_of_machine(self, *defines: str, checks: str) -> list[Path]:
        """Return what runs the kernels, compiled."""
        defines = tuple(define for define in defines if define.startswith("-DCUDA_ON_CPU"))
        key = (defines, checks)
        if key not in self._machine:
            folder = self._folder / f"machine{len(self._machine)}"
            folder.mkdir()
            self._machine[key] = [folder / f"{name}.o" for name in MACHINE]
            for path in self._machine[key]:
                source = HERE / f"{path.stem}.cpp"
                self._compile("-c", source, "-o", path, *defines, checks=checks)
        return self._machine[key]

    def _compile(self, *arguments: str | Path, checks: str) -> None:
        command = [COMPILER, *FLAGS, *sanitizer_flags(checks), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(result.stderr)


def run_kernels(
    executable: Path,
    call: str,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, float],
    *,
    seeds: Sequence[int] = SEEDS,
    timeout: float = 300,
) -> dict[str, Tensor]:
    """Run `call` of an executable, once for each seed, and return the tensors that it gives.

    Every order of the threads must give the same bits. A tensor lies as far from a multiple of 16
    bytes in the executable as it does here.
    """
    problem = b"".join((_text(call), *_numbers(numbers), *_tensors(tensors)))
    stream = _integers(len(seeds)) + b"".join(_integers(seed) + problem for seed in seeds)
    # What leaks at the end of a short run does not matter, and looking for it needs ptrace.
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    environment = {**os.environ, **options}
    try:
        result = subprocess.run(
            [executable],
            input=stream,
            capture_output=True,
            check=False,
            env=environment,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{call} does not end within {timeout} seconds") from error
    if result.returncode != 0:
        raise KernelError(f"exit {result.returncode}: {result.stderr.decode(errors='replace')}")
    answers = list(_answers(result.stdout, len(seeds)))
    for seed, answer in zip(seeds, answers, strict=True):
        for name, tensor in answer.items():
            same = torch.equal(_bytes(tensor), _bytes(answers[0][name]))
            if not same:
                raise KernelError(f"{name} differs between the orders {seeds[0]} and {seed}")
    return answers[0]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)  # NaN equals NaN


def _integers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def _text(text: str) -> bytes:
    return _integers(len(text)) + text.encode()


def _numbers(numbers: Mapping[str, float]) -> Iterator[bytes]:
    yield _integers(len(numbers))
    for name, value in numbers.items():
        yield _text(name) + struct.pack("<d", value)


def _tensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    yield _integers(len(tensors))
    for name, tensor in tensors.items():
        assert tensor.is_contiguous(), name
        yield _text(name)
        yield _integers(DTYPES.index(tensor.dtype), tensor.data_ptr() % 16)
        yield _integers(tensor.dim(), *tensor.shape)
        yield tensor.numpy().tobytes()


def _answers(stream: bytes, count: int) -> Iterator[dict[str, Tensor]]:
    at = 0

    def integer() -> int:
        nonlocal at
        at += 8
        return int.from_bytes(stream[at - 8 : at], "little", signed=True)

    for _ in range(count):
        answer: dict[str, Tensor] = {}
        for _ in range(integer()):
            length = integer()
            name, at = stream[at : at + length].decode(), at + length
            dtype = DTYPES[integer()]
            shape = [integer() for _ in range(integer())]
            tensor = torch.empty(shape, dtype=dtype)
            size = tensor.numel() * tensor.element_size()
            if size > 0:
                tensor = torch.frombuffer(bytearray(stream[at : at + size]), dtype=dtype)
            answer[name], at = tensor.reshape(shape), at + size
        yield answer
    assert at == len(stream)
