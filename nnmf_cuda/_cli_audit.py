"""The command `nnmf-cuda audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

__all__ = ["audit_parser", "run_audit"]


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
