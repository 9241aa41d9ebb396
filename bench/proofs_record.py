"""Collect what `nnmf-cuda verify` has found in several runs into one record, and sum it up.

    python -m bench.proofs_record RUN... > bench/results/proofs-DATA.json

Each RUN is a directory of `nnmf-cuda run` with the verification.json of `nnmf-cuda verify --model
RUN`. The table on the standard error has mean and standard deviation over the runs of one defence
on one split; what docs/reading_the_numbers.md prints of several seeds is from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.runs import Line, as_text, by_defence_and_split, made_by, mean_and_deviation, read

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
    timings, made = read(run / "timings.json"), made_by(run)
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
        **made,
    }


def summary(lines: Sequence[Line]) -> str:
    """Return a row for each defence and split, and one for the means of its folds."""
    rows = [
        (
            *name,
            len(group),
            *(mean_and_deviation([run[share] for run in group]) for share in SHARES),
        )
        for name, group in by_defence_and_split(lines)
    ]
    titles = [share.removesuffix("_accuracy").replace("_", " ") for share in SHARES]
    return tabulate(rows, ("defence", "split", "runs", *titles))


def main() -> None:
    """Print the record, and on the standard error what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="directories of nnmf-cuda run")
    lines = [line_of(run) for run in parser.parse_args().runs]
    print(summary(lines), file=sys.stderr)
    print(as_text({"runs": lines}))


if __name__ == "__main__":
    main()
