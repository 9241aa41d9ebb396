"""The command `nnmf-cuda`: thin, and loads what a subcommand needs only when it runs."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from jsonargparse import Namespace, set_parsing_settings

from nnmf_cuda._version import __version__
from nnmf_cuda.cli.bench import add_bench_commands, bench
from nnmf_cuda.cli.cnmf import cnmf, cnmf_parser
from nnmf_cuda.cli.compare import Compare, compare, compare_parser
from nnmf_cuda.cli.data import SETS, Data, data
from nnmf_cuda.cli.evaluate import Audit, Evaluate, audit, audit_parser, evaluate
from nnmf_cuda.cli.export import Export, export
from nnmf_cuda.cli.images import IMAGES, Extract, Predict, extract, predict
from nnmf_cuda.cli.launched import MayTell, answer_with_others
from nnmf_cuda.cli.options import (
    OptionParser,
    built,
    one_line,
    parser_of,
    say,
    show_in_any_encoding,
)
from nnmf_cuda.cli.run import asked_presets, run, run_of, run_parser
from nnmf_cuda.cli.verify import Verify, verify
from nnmf_cuda.distributed.crew import ALONE, Crew
from nnmf_cuda.distributed.launched import is_launched
from nnmf_cuda.pipeline.config import PRESETS, DataConfig

_ABOUT = """\
NNMF features of images, a light classifier, a diffusion defence in feature space, and how much of
it an attack leaves standing. Compiled kernels serve the heavy steps. Not a medical device.
"""

_USER_ERRORS = (ArgumentError, ValueError, TypeError, OSError, ImportError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show versions, devices and what serves each op."""

    json: bool = False
    """Print JSON."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 with one line on stderr.

    Without `argv` it is that of the process, which may be one of several that `torchrun` has
    started: then they do the command together.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    _stop_as_exception()
    show_in_any_encoding()
    if argv is None and is_launched(os.environ):
        return answer_with_others(partial(_answer, sys.argv[1:]))
    return _answer(list(sys.argv[1:] if argv is None else argv), ALONE, lambda: True)


def _answer(argv: list[str], crew: Crew, may_tell: MayTell) -> int:
    """Do what is asked for and return the exit code; tell what is wrong where that may be told."""
    try:
        _call(argv, crew)
        if sys.stdout is not None:  # None where the standard output is closed
            sys.stdout.flush()  # or what cannot be written would be lost without a word
    except KeyboardInterrupt:
        if may_tell():
            say("nnmf-cuda: interrupted")
        return 130
    except BrokenPipeError:
        _leave_stdout()
        return 0 if crew.size == 1 else 1  # the others are not done
    except _USER_ERRORS as error:
        if os.environ.get("NNMF_CUDA_DEBUG") == "1":
            raise
        if may_tell():
            say(f"nnmf-cuda: error: {one_line(error)}")
        _leave_stdout_if_full()
        return 2
    return 0


def _stop_as_exception() -> None:
    """End by an exception where the process is told to, so that a run leaves no half of itself."""
    if threading.current_thread() is not threading.main_thread():
        return  # which alone may say what signals do
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def _leave_stdout() -> None:
    """Let what is left in the standard output's buffer go nowhere when the process ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        return  # it is closed, or no file


def _leave_stdout_if_full() -> None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _leave_stdout()


def _call(argv: list[str], crew: Crew) -> None:
    """Read the arguments, and call the command that they name."""
    if argv[:1] == ["run"]:
        # Read once for each preset, which stands last: the other options start from it.
        asked = asked_presets(argv[1:])
        read = [_read([*argv, f"--preset={preset}"], preset=preset) for preset in asked]
        run([run_of(values) for _, values in read], crew)
        return
    command, values = _read(argv)
    match command:
        case "extract":
            extract(built(Extract, values), crew)
        case "evaluate":
            evaluate(built(Evaluate, values), crew)
        case "verify":
            verify(built(Verify, values), crew)
        case _ if crew.leads:  # the others wait
            if crew.size > 1 and command not in ("data", "info"):
                say(f"{command} is not divided: rank 0 does it alone")
            _call_undivided(command, values)


def _call_undivided(command: str, values: Namespace) -> None:
    """Call a command that one process does."""
    match command:
        case "predict":
            predict(built(Predict, values))
        case "audit":
            audit(built(Audit, values), built(DataConfig, values, path=values.data))
        case "compare":
            compare(built(Compare, values), built(DataConfig, values, path=values.data))
        case "export":
            export(built(Export, values))
        case "data":
            data(built(Data, values))
        case "cnmf":
            cnmf(values)
        case "bench":
            bench(values)
        case "info":
            info(built(Info, values))


def _read(argv: list[str], *, preset: str = "paper") -> tuple[str, Namespace]:
    """Return the command that is asked for and its arguments, checked and complete."""
    parser = OptionParser(prog="nnmf-cuda", description=_ABOUT, version=__version__)
    commands = parser.add_subcommands(title="commands", metavar="COMMAND")
    for name, (about, make) in _commands(preset).items():
        # What makes the options of a command takes longer than many a command does.
        made = make() if name in argv else OptionParser()
        commands.add_subcommand(name, made, help=about)
        if name == "bench" and name in argv:
            add_bench_commands(made)
    arguments = parser.parse_args(argv)
    command: str = arguments.subcommand
    return command, parser.instantiate(arguments)[command]


def _commands(preset: str) -> dict[str, tuple[str, Callable[[], OptionParser]]]:
    """Return what each command is for, and what makes its parser."""
    return {
        "run": (
            "the whole experiment, with tables and a report",
            lambda: run_parser(PRESETS[preset]),
        ),
        "extract": (
            "images to NNMF features",
            lambda: parser_of(Extract, "extract", positional=IMAGES),
        ),
        "predict": (
            "images to class probabilities",
            lambda: parser_of(Predict, "predict", positional=IMAGES),
        ),
        "audit": ("leakage between splits", audit_parser),
        "evaluate": ("how robust a saved model is", lambda: parser_of(Evaluate, "evaluate")),
        "compare": ("systems side by side, attacked in pixels", compare_parser),
        "verify": ("proofs of robustness, sample by sample", lambda: parser_of(Verify, "verify")),
        "export": (
            "a network and samples for other verifiers",
            lambda: parser_of(Export, "export"),
        ),
        "data": (
            "download the paper's images",
            lambda: parser_of(Data, "data", positional=SETS),
        ),
        "cnmf": ("consensus NMF of counts, on the files of cNMF", cnmf_parser),
        "info": (
            "versions, devices, what serves each op",
            lambda: parser_of(Info, "info"),
        ),
        "bench": (
            "speed against plain torch",
            lambda: OptionParser(description="Measure this package against plain torch."),
        ),
    }


def info(options: Info) -> None:
    """Show versions, devices and what serves each op."""
    from nnmf_cuda import show_config

    config = show_config()
    if options.json:
        print(json.dumps(config, indent=2))
        return
    for name, version in config["versions"].items():
        print(f"{name:<22}{version or 'none'}")
    print(f"{'threads':<22}{config['threads']}")
    print(f"{'devices':<22}{', '.join(config['devices'])}")
    print(f"{'instruction set':<22}{config['cpu_isa'] or 'none: the extension is not built'}")
    for name, value in config["extension"].items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{'built: ' + name:<34}{shown}")
    print(f"\n{'op':<26}{'cpu':<14}cuda")
    for op, served in config["ops"].items():
        print(f"{op:<26}{served['cpu']:<14}{served['cuda']}")
