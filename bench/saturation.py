"""Compare the paper's protocol and the adaptive suite where the cross-entropy saturates.

    python bench/saturation.py RUN > bench/results/saturation-DATA.json

RUN is a directory of `nnmf-cuda run`, whose features are used. The cross-entropy saturates in two
ways: in classifiers that were trained until the training split is fitted, watched by nothing else,
and in the run's undefended classifier with its logits multiplied by growing factors, which changes
no decision and so no robust accuracy. The suite is not told what the protocol has found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nnmf_cuda.attacks import run_autoattack, run_suite
from nnmf_cuda.pipeline.robustness import Subject
from nnmf_cuda.training import train_classifier

FACTORS = (1.0, 30.0, 1000.0)
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


def overfitted(subject: Subject, seed: int) -> nn.Module:
    """Train a classifier of the run's size, whose best epoch is chosen on the training split."""
    x, y = subject.x["train"], subject.y["train"]
    n_classes = len(subject.model.label_names)
    return train_classifier(x, y, x, y, n_classes=n_classes, seed=seed, **OVERFIT).model.eval()


def line_of(subject: Subject, model: nn.Module, **what: float) -> dict[str, Any]:
    """Attack a model in both ways; `what` says which one it is."""
    x, y = subject.test
    bounds: dict[str, Any] = {"attack_eps": subject.attack_eps, "norm": subject.norm}
    paper = run_autoattack(model, x, y, attacks=("apgd-ce", "square"), seed=0, **bounds)
    suite = run_suite(model, x, y, seed=0, **bounds)
    broken, broken_by_suite = ~paper.robust_flags, ~suite.robust[0]
    return {
        **what,
        "zero_gradient_share": paper.zero_gradient_share,
        "paper_protocol": paper.accuracy_after,
        "suite": {o.name: o.accuracies["majority"] for o in suite.outcomes},
        "worst_case_accuracy": suite.worst_case_accuracy,
        "broken_by_the_protocol_alone": int((broken & ~broken_by_suite).sum()),
        "broken_by_the_suite_alone": int((broken_by_suite & ~broken).sum()),
    }


def record_of(home: Path) -> dict[str, Any]:
    """Return the record of one run."""
    subject = Subject.of_run(home)
    environment = json.loads((home / "environment.json").read_text(encoding="utf-8"))
    plain = subject.model.classifier.eval()
    return {
        "split_by": subject.model.info["data"]["split_by"],
        "test_fold": subject.model.info["data"]["test_fold"],
        "data_sha256": environment["data_sha256"],
        "overfitted": [
            line_of(subject, overfitted(subject, seed), seed=seed, **OVERFIT) for seed in SEEDS
        ],
        "scaled": [line_of(subject, Scaled(plain, f).eval(), factor=f) for f in FACTORS],
    }


if __name__ == "__main__":
    print(json.dumps(record_of(Path(sys.argv[1])), indent=1))
