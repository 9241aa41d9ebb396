"""The command `nnmf-cuda evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from nnmf_cuda._cli_options import add_device, say

__all__ = ["evaluate_parser", "run_evaluate"]


def evaluate_parser() -> ArgumentParser:
    """Return the parser of `evaluate`."""
    parser = ArgumentParser(
        description="Say how robust a saved model is: adaptive attacks, and the worst case over all"
        " of them for every sample, beside the paper's protocol and the constant answer. Writes"
        " robustness.json, with twenty points that an honest evaluation answers, robustness.npz"
        " with the attacked features, and robustness.html into the run's directory."
    )
    parser.add_argument(
        "--model", type=str, required=True, help="the --out directory of `nnmf-cuda run`"
    )
    parser.add_argument(
        "--preset",
        choices=("paper", "standard", "thorough"),
        default="standard",
        help="paper counts again what the run's attack found; standard takes minutes, thorough"
        " several times as long",
    )
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="the run's images, for the attack on pixels, which is not run without them (but for"
        " the built-in phantom); the other data options are the run's own",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation")
    add_device(parser)
    return parser


def run_evaluate(arguments: Namespace, _: ArgumentParser) -> None:
    """Evaluate a saved run."""
    from nnmf_cuda.pipeline.environment import resolve_device
    from nnmf_cuda.pipeline.robustness import Subject, evaluate_robustness
    from nnmf_cuda.pipeline.robustness.results import test_images, write_results
    from nnmf_cuda.report.robustness_table import summary_table

    home, device = Path(arguments.model), resolve_device(arguments.device)
    present = home / "robustness.json"
    if present.exists():
        _replaces(present, arguments.overwrite)
    subject = Subject.of_run(home, device=device)
    images: Any = None
    if arguments.data is not None or subject.model.info.get("synthetic"):
        images = test_images(home, arguments.data, subject)
    result = evaluate_robustness(
        subject,
        preset=arguments.preset,
        images=images,
        say=say,
    )
    written = write_results(home, result, named=home)
    print(summary_table(result.content))
    print("\n" + "\n".join(f"{name}: {path}" for name, path in written.items()))
    if (home / "report.html").exists():
        print("report.html in the same directory still shows what the run itself has found")


def _replaces(present: Path, overwrite: bool) -> None:
    """Raise where results must not be replaced; else say what goes."""
    if not overwrite:
        raise ValueError(f"{present} exists: give --overwrite to replace it")
    earlier = json.loads(present.read_text(encoding="utf-8")).get("preset", "unknown")
    say(f"{present}, an evaluation of preset {earlier}, will be replaced")
