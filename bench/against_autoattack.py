"""Compare the adaptive suite and AutoAttack's pieces, sample by sample.

    python bench/against_autoattack.py RUN... > bench/results/against-autoattack-DATA.json

Each RUN is a directory of `nnmf-cuda run`, whose undefended classifier is attacked as it was
trained. On the features of the first RUN the cross-entropy is then made to saturate, in two ways:
by classifiers that are trained until the training split is fitted, watched by nothing else, and by
multiplying the logits of the run's classifier, which changes no decision and so no robust accuracy.
The suite is not told what AutoAttack has found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks import run_autoattack, run_suite
from nnmf_cuda.robustness import SavedRun
from nnmf_cuda.training import train_classifier

FACTORS = (30.0, 1000.0)
SEEDS = range(5)
OVERFIT: dict[str, Any] = {"epochs": 1000, "lr": 1e-2, "ema_decay": 0.0}


class Scaled(nn.Module):
    """A classifier whose logits are multiplied by a factor."""

    def __init__(self, classifier: nn.Module, factor: float) -> None:
        super().__init__()
        self.classifier, self.factor = classifier, factor

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, n_classes) of features (n, n_features)."""
        logits: Tensor = self.factor * self.classifier(x)
        return logits


def overfitted(run: SavedRun, seed: int) -> nn.Module:
    """Train a classifier of the run's size, whose best epoch is chosen on the training split."""
    x, y = run.x["train"], run.y["train"]
    n_classes = len(run.model.label_names)
    return train_classifier(x, y, x, y, n_classes=n_classes, seed=seed, **OVERFIT).model.eval()


def line_of(run: SavedRun, model: nn.Module, **what: Any) -> dict[str, Any]:
    """Attack a model in both ways; `what` says which one it is."""
    x, y = run.test
    bounds: dict[str, Any] = {"attack_eps": run.attack.attack_eps, "norm": run.attack.norm}
    theirs = run_autoattack(model, x, y, attacks=("apgd-ce", "square"), seed=0, **bounds)
    suite = run_suite(model, x, y, seed=0, **bounds)
    broken, broken_by_suite = ~theirs.robust_flags, ~suite.robust[0]
    return {
        **what,
        "zero_gradient_share": theirs.zero_gradient_share,
        "autoattack": theirs.accuracy_after,
        "suite": {o.name: o.accuracies["majority"] for o in suite.outcomes},
        "worst_case_accuracy": suite.worst_case_accuracy,
        "broken_by_autoattack_alone": int((broken & ~broken_by_suite).sum()),
        "broken_by_the_suite_alone": int((broken_by_suite & ~broken).sum()),
    }


def data_of(home: Path, run: SavedRun) -> dict[str, Any]:
    """Say which features these are."""
    environment = json.loads((home / "environment.json").read_text(encoding="utf-8"))
    info = run.model.info
    return {
        "split_by": info.data.split_by,
        "test_fold": info.data.test_fold,
        "n_features": run.model.classifier.n_features,
        "seed": run.seed,
        "data_sha256": environment["data_sha256"],
        "commit": environment["commit"],
    }


def record_of(homes: Sequence[Path]) -> dict[str, Any]:
    """Return the record of all runs."""
    runs = [SavedRun.load(home) for home in homes]
    first = runs[0]
    plain = first.model.classifier.eval()
    return {
        "threads": torch.get_num_threads(),
        "as_trained": [
            line_of(run, run.model.classifier.eval(), **data_of(home, run))
            for home, run in zip(homes, runs, strict=True)
        ],
        "overfitted": [
            line_of(first, overfitted(first, seed), seed=seed, **OVERFIT) for seed in SEEDS
        ],
        "scaled": [line_of(first, Scaled(plain, f).eval(), factor=f) for f in FACTORS],
    }


if __name__ == "__main__":
    print(json.dumps(record_of([Path(argument) for argument in sys.argv[1:]]), indent=1))
