"""The command `nnmf-cuda`: thin, and loads what a subcommand needs only when it runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from nnmf_cuda._version import __version__
from nnmf_cuda.cli.bench import add_bench_commands, run_bench
from nnmf_cuda.cli.evaluate import audit_parser, evaluate_parser, run_audit, run_evaluate
from nnmf_cuda.cli.options import add_device, say
from nnmf_cuda.cli.run import asked_preset, run_command, run_parser
from nnmf_cuda.pipeline.config import PRESETS

__all__ = ["main"]


_ABOUT = """\
NNMF features of images, a light classifier, a diffusion defence in feature space, and how much of
it an attack leaves standing. Compiled kernels serve the heavy steps. Not a medical device.
"""

_USER_ERRORS = (ValueError, TypeError, OSError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 with one line on stderr."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    argv = list(sys.argv[1:] if argv is None else argv)
    preset = "paper"
    if argv[:1] == ["run"]:
        try:
            preset = asked_preset(argv[1:])
        except ValueError as error:
            print(f"nnmf-cuda: error: {error}", file=sys.stderr)
            return 2
        argv.append(f"--preset={preset}")  # wherever it was given, the parser reads it last
    parser, runs = _parsers(preset)
    arguments = parser.parse_args(argv)
    chosen = arguments.subcommand
    # As an exception, so that a run that is told to stop leaves no half of itself behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        _COMMANDS[chosen](arguments[chosen], runs)
    except KeyboardInterrupt:
        print("nnmf-cuda: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _USER_ERRORS as error:
        if os.environ.get("NNMF_CUDA_DEBUG") == "1":
            raise
        print(f"nnmf-cuda: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parsers(preset: str) -> tuple[ArgumentParser, ArgumentParser]:
    """Return the parser of the command, and that of `run`, which writes `config.yaml`."""
    parser = ArgumentParser(prog="nnmf-cuda", description=_ABOUT, version=__version__)
    commands = parser.add_subcommands(title="commands", metavar="COMMAND")
    runs = run_parser(PRESETS[preset])
    commands.add_subcommand("run", runs, help="the whole experiment, with tables and a report")
    commands.add_subcommand("extract", _extract_parser(), help="images to NNMF features")
    commands.add_subcommand("predict", _predict_parser(), help="images to class probabilities")
    commands.add_subcommand("audit", audit_parser(), help="leakage between splits")
    commands.add_subcommand("evaluate", evaluate_parser(), help="how robust a saved model is")
    bench = ArgumentParser(description="Measure speed and memory, or draw what was measured.")
    commands.add_subcommand("bench", bench, help="speed against reference and peers")
    add_bench_commands(bench)
    commands.add_subcommand("info", _info_parser(), help="versions, devices, what serves each op")
    return parser, runs


def _extract_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Write the NNMF features of image files. Columns are the raw NNLS"
        " coefficients, one a component."
    )
    _add_images_and_model(parser)
    parser.add_argument(
        "--out", type=str, required=True, help="features.npy (streamed), .npz or .parquet"
    )
    parser.add_argument(
        "--normalize",
        action="store_true",
        help="write the classifier's features instead: selected and L2-normalised",
    )
    parser.add_argument(
        "--on_error",
        type=Literal["raise", "skip"],
        default="raise",
        help="skip leaves unreadable images out and lists them in OUT.failed.txt",
    )
    parser.add_argument("--batch_size", type=int, default=256, help="images at once")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    return parser


def _predict_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Print class probabilities of image files as CSV, by the defended model. Every"
        " image gets the noise of --seed, so answers repeat; the robustness of a run was measured"
        " with fresh noise and does not describe noise that an attacker knows. Not a medical"
        " device."
    )
    _add_images_and_model(parser)
    parser.add_argument(
        "--undefended",
        action="store_true",
        help="ask the classifier alone, without purification",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the defence's noise")
    parser.add_argument("--batch_size", type=int, default=256, help="images at once")
    return parser


def _info_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Show versions, devices and what serves each op.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_images_and_model(parser: ArgumentParser) -> None:
    parser.add_argument(
        "images", type=str, nargs="+", help="image files, or folders that are searched for them"
    )
    parser.add_argument(
        "--model", type=str, required=True, help="the --out directory of `nnmf-cuda run`"
    )
    add_device(parser)


def _extract(arguments: Namespace, _: ArgumentParser) -> None:
    from nnmf_cuda.data import iter_images
    from nnmf_cuda.pipeline.artifacts import load_model
    from nnmf_cuda.pipeline.environment import resolve_device
    from nnmf_cuda.pipeline.extract import extract_to_file

    model = load_model(arguments.model, device=resolve_device(arguments.device))
    n_written, n_failed = extract_to_file(
        iter_images(arguments.images),
        model.extractor,
        Path(arguments.out),
        normalize=arguments.normalize,
        on_error=arguments.on_error,
        batch_size=arguments.batch_size,
        overwrite=arguments.overwrite,
        progress=True,
    )
    print(f"{n_written} images: {arguments.out}")
    if n_failed:
        say(f"{n_failed} images could not be read: {arguments.out}.failed.txt")


def _predict(arguments: Namespace, _: ArgumentParser) -> None:
    import csv

    import torch

    from nnmf_cuda.data import iter_image_batches, iter_images
    from nnmf_cuda.pipeline.artifacts import load_model
    from nnmf_cuda.pipeline.environment import resolve_device
    from nnmf_cuda.pipeline.extract import computed_batches

    model = load_model(arguments.model, device=resolve_device(arguments.device))
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["file", "label", *(f"p({name})" for name in model.label_names)])
    batches = iter_image_batches(
        iter_images(arguments.images),
        batch_size=arguments.batch_size,
        image_shape=model.image_shape,
        progress=True,
    )
    for batch, probabilities in computed_batches(
        batches,
        model.answerer(defended=not arguments.undefended, seed=arguments.seed),
        device=model.device,
        n_columns=len(model.label_names),
        dtype=torch.float64,
    ):
        for file, row in zip(batch.files, probabilities, strict=True):
            label = model.label_names[int(row.argmax())]
            table.writerow([file, label, *(f"{p:.6f}" for p in row)])
    if model.info.synthetic:
        say("this model was trained on synthetic images: its answers mean nothing on real ones")


def _info(arguments: Namespace, _: ArgumentParser) -> None:
    import json

    from nnmf_cuda import show_config

    config = show_config()
    if arguments.json:
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


_COMMANDS: dict[str, Any] = {
    "run": run_command,
    "extract": _extract,
    "predict": _predict,
    "audit": run_audit,
    "bench": run_bench,
    "evaluate": run_evaluate,
    "info": _info,
}
