"""What a run has measured: the content of `metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.attacks import AttackResult
from nnmf_cuda.data import LeakageAudit
from nnmf_cuda.evaluation import EvaluatedRows, Uncertainty
from nnmf_cuda.pipeline.collapse import Attempt
from nnmf_cuda.pipeline.config import AttackConfig
from nnmf_cuda.pipeline.defences import NoiseLevel
from nnmf_cuda.pipeline.features import SelectionTrial
from nnmf_cuda.pipeline.radius import Prospects


@dataclass(frozen=True)
class AttackRecord:
    """One attack of the paper's protocol, its success counted in every way."""

    config: AttackConfig
    result: AttackResult
    fresh_accuracy: float  # share of right answers among fresh predictions on the attacked features
    majority_accuracy: float  # share of samples that more than half of them name rightly
    all_right_accuracy: float  # share of samples that all of them name rightly
    n_unchanged: int  # samples that the attack returned as they were
    fresh_accuracy_on_changed: float | None  # among the others; None where there are none

    @classmethod
    def count(
        cls,
        config: AttackConfig,
        result: AttackResult,
        x_clean: NDArray[np.float32],
        labels: NDArray[np.int64],
        probabilities: NDArray[np.float64],
    ) -> AttackRecord:
        """Count an attack's success, before which the features were `x_clean` (n, n_features).

        `probabilities` (n_predictions, n, n_classes) are fresh predictions on the attacked
        features.
        """
        right = probabilities.argmax(2) == labels  # (n_predictions, n)
        changed = (result.x_adv.cpu().numpy() != x_clean).any(1)
        return cls(
            config=config,
            result=result,
            fresh_accuracy=float(right.mean()),
            majority_accuracy=float((right.mean(0) > 0.5).mean()),
            all_right_accuracy=float(right.all(0).mean()),
            n_unchanged=int((~changed).sum()),
            fresh_accuracy_on_changed=float(right[:, changed].mean()) if changed.any() else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return settings and counts, for JSON."""
        result = self.result
        return {
            **asdict(self.config),
            "box": [0.0, 1.0],
            "layout": result.layout,
            "package": result.package,
            "clean_accuracy": result.clean_accuracy,
            "accuracy_after": result.accuracy_after,
            "fresh_accuracy": self.fresh_accuracy,
            "majority_accuracy": self.majority_accuracy,
            "all_right_accuracy": self.all_right_accuracy,
            "n_unchanged": self.n_unchanged,
            "fresh_accuracy_on_changed": self.fresh_accuracy_on_changed,
            "max_perturbation": result.max_perturbation,
            "n_clamped": result.n_clamped,
            "grad_norm_mean": result.grad_norm_mean,
            "zero_gradient_share": result.zero_gradient_share,
            "warnings": result.warnings,
        }


@dataclass(frozen=True)
class RunMetrics:
    """Everything that a run has measured but its times."""

    rows: EvaluatedRows
    uncertainty: Uncertainty
    attacks: Mapping[str, AttackRecord]  # by model: "baseline" and "defended"
    audit: LeakageAudit
    prospects: Prospects  # what could be had at the radius, before training
    selection_trials: tuple[SelectionTrial, ...]  # numbers of components that validation compared
    noise_levels: tuple[NoiseLevel, ...]  # timesteps among which validation chose
    attempts: tuple[Attempt, ...]  # trainings of the defence's classifier
    warnings: tuple[str, ...]  # what a reader must know first: where nothing is gained
    notes: tuple[str, ...]  # what a reader must know beside the rows
    not_run: tuple[str, ...]  # what the paper's protocol leaves out; empty with an evaluation

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `metrics.json`."""
        return {
            **self.rows.as_dict(notes=self.notes),
            **self.uncertainty.as_dict(),
            "attacks": {name: record.as_dict() for name, record in self.attacks.items()},
            "audit": self.audit.as_dict(),
            "prospects": self.prospects.as_dict(),
            "training_attempts": [asdict(attempt) for attempt in self.attempts],
            "warnings": list(self.warnings),
            "selection_trials": [asdict(trial) for trial in self.selection_trials],
            "noise_levels": [asdict(level) for level in self.noise_levels],
            "not_run": list(self.not_run),
        }
