"""Compare how far pixels can move the features of an undefended classifier with the feature attack.

    python bench/pixel_reach.py --data FILE RUN... > bench/results/pixel-reach-DATA.json

Each RUN is a directory of `nnmf-cuda run` on FILE. All test images are attacked at 8/255, with the
steps and starts of `evaluate` and with many more, so that what holds is no matter of effort.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnmf_cuda.attacks import vector_apgd
from nnmf_cuda.models.features import ImageChain
from nnmf_cuda.robustness import SavedRun

EPS_255 = 8.0
BUDGETS = ({"n_iter": 40, "n_restarts": 1}, {"n_iter": 150, "n_restarts": 2})


def line_of(home: Path, data: str) -> dict[str, Any]:
    """Return one run's line."""
    run = SavedRun.load(home)
    environment = json.loads((home / "environment.json").read_text(encoding="utf-8"))
    images, info = run.test_images(data), run.model.info
    x, y = run.test
    moves = run.paper["baseline"].points - x
    return {
        "split_by": info.data.split_by,
        "test_fold": info.data.test_fold,
        "seed": run.seed,
        "data_sha256": environment["data_sha256"],
        "commit": environment["commit"],
        "eps_255": EPS_255,
        "by_pixels": [{**budget, **reach_of(run, images, y, budget)} for budget in BUDGETS],
        "by_features": lengths(moves[(moves != 0).any(1)]),
    }


def reach_of(run: SavedRun, images: Tensor, y: Tensor, budget: dict[str, int]) -> dict[str, float]:
    """Attack the undefended chain on pixels; say who holds and how far features moved."""
    chain = ImageChain(run.model.extractor, run.model.classifier).eval()
    points = vector_apgd(
        chain,
        images,
        y,
        attack_eps=EPS_255 / 255,
        seed=run.seed,
        n_iter=budget["n_iter"],
        n_restarts=budget["n_restarts"],
    )
    with torch.no_grad():
        right = [chain(rows).argmax(1) == y for rows in (images, points)]
        moves = chain.extractor(points) - chain.extractor(images)
    return {"robust_accuracy": float((right[0] & right[1]).double().mean()), **lengths(moves)}


def lengths(moves: Tensor) -> dict[str, float]:
    """Return the mean lengths of moves (n, n_features)."""
    return {
        "mean_linf": float(moves.abs().amax(1).double().mean()),
        "mean_l2": float(moves.norm(dim=1).double().mean()),
    }


def main() -> None:
    """Print the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="the runs' images")
    parser.add_argument("runs", nargs="+", type=Path, help="directories of nnmf-cuda run")
    arguments = parser.parse_args()
    lines = [line_of(home, arguments.data) for home in arguments.runs]
    print(json.dumps({"threads": torch.get_num_threads(), "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
