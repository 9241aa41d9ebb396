"""Compare the paper's protocol and the adaptive suite where the cross-entropy saturates.

    python bench/saturation.py RUN > bench/results/saturation-DATA.json

RUN is a directory of `nnmf-cuda run`. The logits of its undefended classifier are multiplied by
growing factors, which changes no decision, so no robust accuracy either, but lets the gradient of
the cross-entropy die out. The suite is not told what the protocol has found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nnmf_cuda.attacks import run_autoattack, run_suite
from nnmf_cuda.pipeline.robustness import Subject

FACTORS = (1.0, 30.0, 1000.0)


class Scaled(nn.Module):
    """A classifier whose logits are multiplied by a factor."""

    def __init__(self, classifier: nn.Module, factor: float) -> None:
        super().__init__()
        self.classifier, self.factor = classifier, factor

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, n_classes) of features (n, n_features)."""
        logits: Tensor = self.factor * self.classifier(x)
        return logits


def line_of(subject: Subject, factor: float) -> dict[str, Any]:
    """Attack the scaled classifier in both ways."""
    x, y = subject.test
    model = Scaled(subject.model.classifier, factor).eval()
    bounds: dict[str, Any] = {"attack_eps": subject.attack_eps, "norm": subject.norm}
    paper = run_autoattack(model, x, y, attacks=("apgd-ce", "square"), seed=0, **bounds)
    suite = run_suite(model, x, y, seed=0, **bounds)
    broken, broken_by_suite = ~paper.robust_flags, ~suite.robust
    return {
        "factor": factor,
        "zero_gradient_share": paper.zero_gradient_share,
        "paper_protocol": paper.accuracy_after,
        "suite": {o.name: o.accuracies["majority"] for o in suite.outcomes},
        "worst_case_accuracy": suite.worst_case_accuracy,
        "broken_by_the_protocol_alone": int((broken & ~broken_by_suite).sum()),
        "broken_by_the_suite_alone": int((broken_by_suite & ~broken).sum()),
    }


if __name__ == "__main__":
    home = Path(sys.argv[1])
    found = Subject.of_run(home)
    environment = json.loads((home / "environment.json").read_text(encoding="utf-8"))
    record = {
        "split_by": found.model.info["data"]["split_by"],
        "test_fold": found.model.info["data"]["test_fold"],
        "data_sha256": environment["data_sha256"],
        "lines": [line_of(found, factor) for factor in FACTORS],
    }
    print(json.dumps(record, indent=1))
