"""Attack runs on pixels, end to end, as `evaluate --preset thorough` does, and nothing else.

    python -m bench.pixels_record --data FILE RUN... > bench/results/pixels-DATA.json

Each RUN is a directory of `nnmf-cuda run` on FILE. The table on the standard error has mean and
standard deviation over the runs of one defence on one split.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.runs import Line, as_text, by_defence_and_split, made_by, mean_and_deviation, read
from nnmf_cuda.evaluation.seeds import Purpose, seed_word
from nnmf_cuda.robustness import SavedRun
from nnmf_cuda.robustness.budgets import EVALUATION_BUDGETS
from nnmf_cuda.robustness.pixels import attack_pixels


def line_of(home: Path, data: str, preset: str) -> dict[str, Any]:
    """Return one run's line; raise ValueError for a run that no commit can make again."""
    made = made_by(home)
    run, started = SavedRun.load(home), time.perf_counter()
    info, (_, y) = run.model.info, run.test
    found = attack_pixels(
        run.model,
        run.test_images(data),
        y,
        budget=EVALUATION_BUDGETS[preset].pixels,
        seed=run.seed,
        evaluation_seed=seed_word(run.seed, Purpose.DECISIONS),
    )
    return {
        "defence": read(home / "model" / "model.json")["defence"],
        "n_features": run.test[0].shape[1],
        "seed": run.seed,
        "split_by": info.data.split_by,
        "test_fold": info.data.test_fold,
        "preset": preset,
        "eps_255": found.eps_255,
        "undefended": found.undefended.robust_accuracy,
        "defended": found.defended.robust_accuracy,
        "after_twice_the_steps": found.defended.after_twice_the_steps,
        "seconds": time.perf_counter() - started,
        **made,
    }


def summary(lines: Sequence[Line]) -> str:
    """Return a row for each defence and split: accuracy at each radius, mean and deviation."""
    rows = []
    for name, runs in by_defence_and_split(lines):
        accuracies = [[*run["defended"], run["after_twice_the_steps"]] for run in runs]
        columns = map(mean_and_deviation, zip(*accuracies, strict=True))
        rows.append((*name, len(runs), *columns))
    radii = [f"{eps:g}/255" for eps in lines[0]["eps_255"]]
    return tabulate(rows, ("defence", "split", "runs", *radii, "twice the steps"))


def main() -> None:
    """Print the record, and on the standard error what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="directories of nnmf-cuda run")
    parser.add_argument("--data", required=True, help="the images of the runs")
    parser.add_argument("--preset", default="thorough", choices=sorted(EVALUATION_BUDGETS))
    asked = parser.parse_args()
    lines = [line_of(run, asked.data, asked.preset) for run in asked.runs]
    print(summary(lines), file=sys.stderr)
    print(as_text({"runs": lines}))


if __name__ == "__main__":
    main()
