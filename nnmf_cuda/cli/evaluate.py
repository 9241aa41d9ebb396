"""The command `nnmf-cuda evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from nnmf_cuda.cli.options import add_device, say

__all__ = ["audit_parser", "evaluate_parser", "run_audit", "run_evaluate"]


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
    from nnmf_cuda.report.robustness_table import summary_table
    from nnmf_cuda.robustness import SavedRun, evaluate_robustness

    home, device = Path(arguments.model), resolve_device(arguments.device)
    present = home / "robustness.json"
    if present.exists():
        _replaces(present, arguments.overwrite)
    run, images = SavedRun.load(home, device=device), None
    if arguments.data is not None or run.model.info.synthetic:
        images = run.test_images(arguments.data)
    result = evaluate_robustness(run, preset=arguments.preset, images=images, say=say)
    written = result.write(home, named=home)
    print(summary_table(result.report))
    print("\n" + "\n".join(f"{name}: {path}" for name, path in written.items()))
    if (home / "report.html").exists():
        print("report.html in the same directory still shows what the run itself has found")


def _replaces(present: Path, overwrite: bool) -> None:
    """Raise where results must not be replaced; else say what goes."""
    if not overwrite:
        raise ValueError(f"{present} exists: give --overwrite to replace it")
    earlier = json.loads(present.read_text(encoding="utf-8")).get("preset", "unknown")
    say(f"{present}, an evaluation of preset {earlier}, will be replaced")


# The command `nnmf-cuda audit`.


def audit_parser() -> ArgumentParser:
    """Return the parser of `audit`."""
    parser = ArgumentParser(
        description="Look for images that stand on both sides of a split: equal ones, near ones,"
        " and what the nearest training image alone would answer."
    )
    parser.add_argument(
        "--data", type=str | None, default=None, help="as for run; default: the synthetic phantom"
    )
    parser.add_argument("--classes", type=str | None, default=None, help="as for run")
    parser.add_argument("--label_key", type=str, default="labels", help="as for run")
    parser.add_argument(
        "--split_by",
        type=Literal["split", "patient_fold", "patient", "series", "random"] | None,
        default=None,
        help="as for run",
    )
    parser.add_argument("--test_fold", type=int | str | None, default=None, help="as for run")
    parser.add_argument("--seed", type=int, default=0, help="of a split that is made here")
    parser.add_argument(
        "--resolution", type=int, default=32, help="side of the grid of block means, 2 or more"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.95, help="correlation above which images are near"
    )
    parser.add_argument(
        "--json", type=str | None, default=None, help="also write JSON to this file"
    )
    return parser


def run_audit(arguments: Namespace, _: ArgumentParser) -> None:
    """Audit a data set."""
    import json

    from nnmf_cuda.data import audit_dataset, load_dataset
    from nnmf_cuda.data.leakage import check_audit
    from nnmf_cuda.pipeline.run_directory import write_text

    check_audit(resolution=arguments.resolution, threshold=arguments.threshold)
    target = None if arguments.json is None else Path(arguments.json)
    if target is not None and (target.is_dir() or not target.parent.is_dir()):
        raise ValueError(f"--json {target}: give a file in a folder that exists")
    dataset = load_dataset(
        arguments.data,
        classes=arguments.classes,
        label_key=arguments.label_key,
        split_by=arguments.split_by,
        test_fold=arguments.test_fold,
        seed=arguments.seed,
        progress=True,
    )
    audit = audit_dataset(dataset, resolution=arguments.resolution, threshold=arguments.threshold)
    print(f"{dataset.source}: {len(dataset.images)} images\n{audit.text()}", flush=True)
    if target is not None:
        write_text(target, json.dumps(audit.as_dict(), indent=2) + "\n")
