"""The paper's four rows: clean and attacked, the classifier alone and the defended model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from nnmf_cuda.evaluation.inference import device_of, predict_probabilities
from nnmf_cuda.evaluation.metrics import (
    METRIC_NAMES,
    check_labels,
    classification_metrics,
    majority_class_accuracy,
)

__all__ = [
    "ROW_NAMES",
    "EvaluatedRows",
    "evaluate_rows",
]

ROW_NAMES = ("Clean_Baseline", "Clean_Defended", "Robust_Baseline", "Robust_Defended")
"""Rows of the paper's table, in its order."""


@dataclass(frozen=True)
class EvaluatedRows:
    """What `evaluate_rows` found.

    Attributes
    ----------
    rows : dict of str to dict
        For each of `ROW_NAMES` the nine metrics and ``n``. A defended row is the mean over
        ``n_predictions`` predictions of each metric.
    spread : dict of str to dict
        For each defended row the standard deviation (ddof 1) of each metric over those
        predictions: how much one prediction's figures move with the noise. It says nothing about
        the uncertainty that comes from the number of samples.
    probabilities : dict of str to array of shape (n_predictions, n_samples, n_classes)
        Softmax probabilities behind each row; one prediction for the baseline.
    labels : array of shape (n_samples,)
        True classes.
    n_predictions : int
        Predictions behind each defended row.
    """

    rows: dict[str, dict[str, float]]
    spread: dict[str, dict[str, float]]
    probabilities: dict[str, NDArray[np.float64]]
    labels: NDArray[np.int64]
    n_predictions: int

    def as_dict(self, *, notes: Sequence[str] = ()) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        return {
            "rows": self.rows,
            "spread": self.spread,
            "n_predictions": self.n_predictions,
            "majority_class_accuracy": majority_class_accuracy(self.labels),
            "notes": list(notes),
        }


def _mean_and_spread(
    labels: NDArray[np.int64], draws: Sequence[NDArray[np.float64]]
) -> tuple[dict[str, float], dict[str, float]]:
    table = [classification_metrics(labels, p) for p in draws]
    values = {name: np.array([row[name] for row in table]) for name in METRIC_NAMES}
    mean = {name: float(value.mean()) for name, value in values.items()}
    ddof = 1 if len(table) > 1 else 0
    spread = {name: float(value.std(ddof=ddof)) for name, value in values.items()}
    return {**mean, "n": len(labels)}, spread


def evaluate_rows(
    baseline: nn.Module,
    defended: nn.Module,
    x_clean: ArrayLike | Tensor,
    x_adv_baseline: ArrayLike | Tensor,
    x_adv_defended: ArrayLike | Tensor,
    labels: ArrayLike,
    *,
    seed: int,
    n_predictions: int = 20,
    batch_size: int = 1024,
    random: bool = True,
) -> EvaluatedRows:
    """Evaluate both models on clean and on attacked features.

    The paper prints one prediction for each defended row. Here both defended rows (clean and
    attacked) are the mean of each metric over ``n_predictions`` predictions with noise of their
    own, unknown to the attack; the standard deviation stands in ``spread``. The Robust rows are
    fresh predictions on the attacked features, not the attack's own success flags.

    Parameters
    ----------
    baseline : nn.Module
        ``baseline(x)`` gives logits.
    defended : nn.Module
        ``defended(x, generator=generator)`` gives logits; draws its noise from the generator.
    x_clean, x_adv_baseline, x_adv_defended : array-like or Tensor (n_samples, n_features)
        Clean features, and those returned by the attack on each model.
    labels : array-like of int, shape (n_samples,)
        True classes.
    seed : int
        Of the generator from which all defended predictions draw.
    n_predictions : int, default=20
        Predictions for each defended row.
    batch_size : int, default=1024
        Rows a call.
    random : bool, default=True
        False for a defence without noise: called as ``defended(x)``, and once is enough.

    Raises
    ------
    ValueError
        If lengths disagree, ``n_predictions < 1``, or a class has no sample.
    """
    y = check_labels(labels)
    if n_predictions < 1:
        raise ValueError(f"n_predictions={n_predictions}; need at least 1")
    if not random:
        n_predictions = 1
    inputs = {
        "x_clean": x_clean,
        "x_adv_baseline": x_adv_baseline,
        "x_adv_defended": x_adv_defended,
    }
    for name, value in inputs.items():
        shape = tuple(value.shape) if isinstance(value, Tensor) else np.shape(value)
        if len(shape) != 2 or shape[0] != len(y):
            raise ValueError(f"{name} has shape {shape}; labels asks for ({len(y)}, n_features)")
    generator = torch.Generator(device_of(defended)).manual_seed(seed) if random else None
    rows, spread, probabilities = {}, {}, {}
    for name in ROW_NAMES:
        condition, _, model = name.partition("_")
        if model == "Baseline":
            x = x_clean if condition == "Clean" else x_adv_baseline
            draws = [predict_probabilities(baseline, x, batch_size=batch_size)]
        else:
            x = x_clean if condition == "Clean" else x_adv_defended
            draws = [
                predict_probabilities(defended, x, batch_size=batch_size, generator=generator)
                for _ in range(n_predictions)
            ]
        probabilities[name] = np.stack(draws)
        rows[name], deviation = _mean_and_spread(y, draws)
        if model == "Defended":
            spread[name] = deviation
    return EvaluatedRows(rows, spread, probabilities, y, n_predictions)
