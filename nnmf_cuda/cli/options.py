"""Options of a command from the fields of its dataclass, and what all commands have in common."""

from __future__ import annotations

import codecs
import contextlib
import inspect
import io
import re
import sys
from argparse import ArgumentError
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, Namespace

from nnmf_cuda.data.names import harmless
from nnmf_cuda.data.reading import ReadOptions

Built = TypeVar("Built")


@dataclass(frozen=True, kw_only=True)
class DeviceOption:
    """Of every command that computes."""

    device: str = "auto"
    """Where to compute: auto (CUDA where there is one), cpu or cuda."""


class OptionParser(ArgumentParser):
    """A parser whose options of type bool are flags, and which raises what it does not accept."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(exit_on_error=False, **settings)
        # What is no option although it begins with a minus: numbers, as argparse has it, and a
        # window such as -160:240.
        self._negative_number_matcher = re.compile(r"^-(\d+|\d*\.\d+)(:\S+)?$")

    def add_argument(self, *names: str, **settings: Any) -> Any:
        """Add an option; one of type bool is on where it is given, and takes no value."""
        if settings.get("type") is bool:
            del settings["type"]
            settings["action"] = "store_true"
        return super().add_argument(*names, **settings)


def parser_of(
    options: type,
    name: str,
    *,
    positional: tuple[str, str] | None = None,
    reads_config: bool = False,
) -> OptionParser:
    """Return the parser of a command, whose description and options are those of a dataclass.

    What stands below its fields is their help. `positional` is the field of which one or more are
    given without a flag, and its help; with `reads_config` options can stand in a file, which
    --config names.
    """
    usage, skip = f"nnmf-cuda {name} [options]", set[str | int]()
    if positional is not None:
        usage, skip = f"{usage} {positional[0].upper()}...", {positional[0]}
    description = " ".join((inspect.getdoc(options) or "").split())
    parser = OptionParser(description=description, usage=usage)
    if positional is not None:
        field, text = positional
        parser.add_argument(field, type=str, nargs="+", metavar=field.upper(), help=text)
    if reads_config:
        parser.add_argument(
            "--config", action="config", help="YAML file with any of these options."
        )
    common = [kind for kind in (ReadOptions, DeviceOption) if issubclass(options, kind)]
    skip |= {field.name for kind in common for field in fields(kind)}
    parser.add_class_arguments(options, as_group=False, skip=skip)
    for kind in common:  # last, as what is common stands below what is the command's own
        parser.add_class_arguments(kind, as_group=False)
    return parser


def built(kind: type[Built], values: Namespace, **others: Any) -> Built:
    """Return a dataclass of the values that were parsed for its fields, and of others."""
    names = {field.name for field in fields(kind)} - set(others)  # type: ignore[arg-type]
    return kind(**{name: values[name] for name in names}, **others)


def one_line(error: Exception) -> str:
    """Return what is wrong in one line, with options as they are typed."""
    text = harmless(" ".join(str(error).split())) or _NAMELESS.get(type(error), repr(error))
    text = re.sub(*_NO_GROUP, text)
    if not isinstance(error, ArgumentError):
        return text
    for found, said in _PLAIN.items():
        text = re.sub(found, said, text)
    return f"{text} (--help lists what there is)"


_PLAIN = {
    r'Parser key "(.+?)": ': r"--\1: ",
    r": Expected an? (\S.*?)\. Got value: (.*)$": r" must be \1; got \2",
    r": Does not .* Subtypes: \[(.*)\] Errors: .* Given value: (.*)$": r" must be \1; got \2",
    r": Not of type \w+: (\S+) does not conform to restriction v(\W+)(.*)$": (
        r" must be \2 \3; got \1"
    ),
    r"Subcommand '\w+' does not accept option '(\S+)'": r"there is no option \1",
    r"typing\.Literal\[(.*?)\]": r"one of \1",
    r"<class 'NoneType'>": "null",
    r"<class 'tuple'>": "a list such as '[1,2]'",
    r"<class '(\w+)'>": r"\1",
    r"\b(extract|predict|evaluate|verify|export)\.": "",
}
"""What jsonargparse says, and the same for whoever types the command."""


_NO_GROUP = (
    r"^functools\.partial\(.*\) argument after \*\* must be a mapping, not (\w+)$",
    r"a group of settings, as nnmf is, must be a mapping such as '{max_iter: 10}'; got a value of"
    r" type \1",
)
"""The same of what is given in place of a group."""

_NAMELESS: dict[type[Exception], str] = {
    MemoryError: "out of memory: give fewer or smaller images, or more memory",
}
"""Errors that say nothing."""


def say(line: str) -> None:
    """Print a line about what is going on, apart from the results."""
    with contextlib.suppress(OSError):  # the results count, and they go elsewhere
        print(harmless(line), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print results at once: they count whatever becomes of the files that are written after."""
    print(harmless(text), flush=True)


def show_in_any_encoding() -> None:
    """Let characters that a terminal does not have be replaced, and not end the command."""
    codecs.register_error("nnmf_cuda.shown", _shown)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="nnmf_cuda.shown")


def _shown(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = "".join(_ASCII.get(c, c) for c in text)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end


_ASCII = {"–": "-", "—": "-", "±": "+-", "×": "x", "≤": "<=", "≥": ">=", "…": "...", "’": "'"}
"""What tables hold beyond ASCII; of names the escapes are shown, which tell them apart."""
