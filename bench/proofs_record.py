"""Collect what `nnmf-cuda verify` has found in several runs into one record, and sum it up.

    python -m bench.proofs_record RUN... > bench/results/proofs-DATA.json

Each RUN is a directory of `nnmf-cuda run` with the verification.json of `nnmf-cuda verify --model
RUN`. The table on the standard error has mean and standard deviation over the runs of one defence
on one split; what docs/reading_the_numbers.md prints of several seeds is from there.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from bench.robustness_record import as_text, read

SHARES = (
    "ceiling",
    "clean_accuracy",
    "worst_case_accuracy",
    "proven_accuracy",
    "undecided_accuracy",
    "constant_answer_accuracy",
)
_SETTINGS = ("eps", "norm", "n")


def line_of(run: Path) -> dict[str, Any]:
    """Return one run's line; raise ValueError for a run that no commit can make again."""
    found, model = read(run / "verification.json"), read(run / "model" / "model.json")
    environment, timings = read(run / "environment.json"), read(run / "timings.json")
    if not environment["commit"] or environment["uncommitted_changes"]:
        raise ValueError(f"{run} was made by a tree that is no commit: commit, and run it again")
    info = model["info"]
    return {
        "defence": model["defence"],
        "n_features": model["n_features"],
        "seed": info["seed"],
        "split_by": info["data"]["split_by"],
        "test_fold": info["data"]["test_fold"],
        **{name: found[name] for name in (*_SETTINGS, *SHARES)},
        "n_boxes": sum(found["n_boxes"]),
        "seconds": sum(sum(of_samples) for of_samples in found["seconds"].values()),
        "training_seconds": next(
            (row["seconds"] for row in timings["rows"] if row["stage"] == "defence_training"), None
        ),
        "commit": environment["commit"],
        "data_sha256": environment["data_sha256"],
    }


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each defence and split, and one for the means of its folds."""
    groups = defaultdict[tuple[str, str], list[Mapping[str, Any]]](list)
    for line in lines:
        settings, fold = line["defence"], line["test_fold"]
        defence = f"{settings['kind']}, {settings['method']}, {settings.get('network', 'cnn')}"
        groups[defence, "published split" if fold is None else f"fold {fold}"].append(line)
        if fold is not None:
            groups[defence, "all folds"].append(line)
    rows = [
        (*name, len(group), *(_mean(group, share) for share in SHARES))
        for name, group in sorted(groups.items())
    ]
    titles = [share.removesuffix("_accuracy").replace("_", " ") for share in SHARES]
    return tabulate(rows, ("defence", "split", "runs", *titles))


def _mean(group: Sequence[Mapping[str, Any]], share: str) -> str:
    values = np.array([line[share] for line in group], dtype=float)
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.3f} ± {spread:.3f}"


def main() -> None:
    """Print the record, and on the standard error what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="directories of nnmf-cuda run")
    lines = [line_of(run) for run in parser.parse_args().runs]
    print(summary(lines), file=sys.stderr)
    print(as_text({"runs": lines}))


if __name__ == "__main__":
    main()
