"""Attack runs on pixels, end to end, as `evaluate --preset thorough` does, and nothing else.

    python -m bench.pixels_record --data FILE RUN... > bench/results/pixels-DATA.json

Each RUN is a directory of `nnmf-cuda run` on FILE. The table on the standard error has mean and
standard deviation over the runs of one defence on one split.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from bench.robustness_record import as_text, read
from nnmf_cuda.evaluation.seeds import Purpose, seed_word
from nnmf_cuda.robustness import SavedRun
from nnmf_cuda.robustness.budgets import EVALUATION_BUDGETS
from nnmf_cuda.robustness.pixels import attack_pixels


def line_of(home: Path, data: str, preset: str) -> dict[str, Any]:
    """Return one run's line; raise ValueError for a run that no commit can make again."""
    environment = read(home / "environment.json")
    if not environment["commit"] or environment["uncommitted_changes"]:
        raise ValueError(f"{home} was made by a tree that is no commit: commit, and run it again")
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
        "commit": environment["commit"],
        "data_sha256": environment["data_sha256"],
    }


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each defence and split: accuracy at each radius, mean and deviation."""
    groups = defaultdict[tuple[str, str], list[list[float]]](list)
    for line in lines:
        settings, fold = line["defence"], line["test_fold"]
        defence = f"{settings['kind']}, {settings['method']}, {settings.get('network', 'cnn')}"
        accuracies = [*line["defended"], line["after_twice_the_steps"]]
        groups[defence, "published split" if fold is None else f"fold {fold}"].append(accuracies)
        if fold is not None:
            groups[defence, "all folds"].append(accuracies)
    rows = [
        (*name, len(runs), *map(_mean, zip(*runs, strict=True)))
        for name, runs in sorted(groups.items())
    ]
    radii = [f"{eps:g}/255" for eps in lines[0]["eps_255"]]
    return tabulate(rows, ("defence", "split", "runs", *radii, "twice the steps"))


def _mean(values: Sequence[float]) -> str:
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {spread:.3f}"


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
