"""Whether the stage benchmark's paths found the same: only then are their seconds compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nnmf_cuda import ops
from nnmf_cuda.benchmarks.records import Record

if TYPE_CHECKING:
    from nnmf_cuda.pipeline.config import ExperimentConfig
    from nnmf_cuda.pipeline.stages import StageOutputs

__all__ = [
    "COMPARED",
    "QualityError",
    "attack_by_both",
    "metric_differences",
    "require_equal_attacks",
    "require_equal_metrics",
]

COMPARED = ("accuracy", "f1", "mcc", "balanced_accuracy", "roc_auc", "brier")
"""Metrics that have to agree. Precision and recall trade places where a threshold moves, and F1
holds both; log loss has no bound."""

_ALLOWED = {"Clean": 0.05, "Robust": 0.1}
"""How far a metric in [0, 1] may be apart: on clean images, from the order in which sums are formed
while training; on attacked ones, also from an attack that took another way."""
_RANGE = {"mcc": 2.0}
"""How long the range of a metric is, where it is not [0, 1]."""


class QualityError(ValueError):
    """Raised where paths differ in what they find: their seconds are then not to be compared."""


class MetricRows(Protocol):
    """The four metric rows of a run, and the spread over predictions of those that have one."""

    @property
    def rows(self) -> Mapping[str, Mapping[str, float]]: ...

    @property
    def spread(self) -> Mapping[str, Mapping[str, float]]: ...


def metric_differences(runs: Mapping[str, Sequence[MetricRows]]) -> Record:
    """Return by row and metric how far all runs of all paths are apart.

    Parameters
    ----------
    runs : mapping of str to sequence
        The runs of each path.

    Returns
    -------
    dict
        ``largest_difference``, of every metric; ``allowed``, of those in `COMPARED`.
    """
    every = [run for found in runs.values() for run in found]
    differences: Record = {}
    for row, metrics in every[0].rows.items():
        values = {name: [run.rows[row][name] for run in every] for name in metrics if name != "n"}
        differences[row] = {name: float(np.ptp(found)) for name, found in values.items()}
    allowed = {row: {name: _allowed(every, row, name) for name in COMPARED} for row in differences}
    return {"largest_difference": differences, "allowed": allowed}


def _allowed(every: Sequence[MetricRows], row: str, metric: str) -> float:
    condition = row.partition("_")[0]
    allowed = _ALLOWED[condition] * _RANGE.get(metric, 1.0)
    if condition == "Clean":
        return allowed
    return max([allowed, *(run.spread[row][metric] for run in every if row in run.spread)])


def require_equal_metrics(runs: Mapping[str, Sequence[MetricRows]]) -> None:
    """Raise `QualityError` where a metric of a row is further apart than is allowed."""
    found = metric_differences(runs)
    texts = []
    for row, allowed in found["allowed"].items():
        for metric, limit in allowed.items():
            # Not (a > b), so that NaN fails too; 0.9 - 0.85 is above 0.05.
            if not found["largest_difference"][row][metric] <= limit + 1e-9:
                texts.append(_values(runs, row, metric) + f" (may differ by {limit:.3f})")
    if texts:
        raise QualityError(
            "the paths differ in what they found, so that their seconds are not compared, nor"
            f" recorded: {' | '.join(texts)}"
        )


def _values(runs: Mapping[str, Sequence[MetricRows]], row: str, metric: str) -> str:
    of_paths = [
        f"{name} {', '.join(f'{run.rows[row][metric]:.4f}' for run in of_path)}"
        for name, of_path in runs.items()
        if of_path
    ]
    return f"{row} {metric} {'; '.join(of_paths)}"


def attack_by_both(outputs: StageOutputs, config: ExperimentConfig) -> Record:
    """Attack the models of a run of this package once more, on the reference path, and compare.

    Networks that were trained on two paths differ by rounding, and so do the points of attacks on
    them. Here both attacks have the same model, samples, seed and noise.

    Parameters
    ----------
    outputs : StageOutputs
        Of a run of this package.
    config : ExperimentConfig
        That of the run.

    Returns
    -------
    dict
        By model ("baseline", "defended") what `nnmf_cuda.attacks.compare_attacks` returns, and of
        both attacks ``accuracy_after`` and ``seconds``, by path ("ours", "reference") and attack.
    """
    from nnmf_cuda.attacks import compare_attacks
    from nnmf_cuda.pipeline.stages import attack_model

    found = {}
    for name, model in outputs.targets.items():
        with ops.reference_path():
            plain = attack_model(model, outputs.features, config)
        both = {"ours": outputs.attacks[name], "reference": plain}
        found[name] = {
            **asdict(compare_attacks(*both.values())),
            "accuracy_after": {path: result.accuracy_after for path, result in both.items()},
            "seconds": {path: result.seconds for path, result in both.items()},
        }
    return found


def require_equal_attacks(attacks: Mapping[str, Record]) -> None:
    """Raise `QualityError` where attacks on one model disagree on more samples than is allowed.

    Parameters
    ----------
    attacks : mapping of str to dict
        By device what `attack_by_both` returns.
    """
    texts = [
        f"{device} {model} {compared['differing_decisions']:.4f}"
        for device, models in attacks.items()
        for model, compared in models.items()
        if not compared["differing_decisions"] <= _ALLOWED["Robust"]
    ]
    if texts:
        raise QualityError(
            "attacks on one model, by this package and by its reference, decide differently on"
            f" more than {_ALLOWED['Robust']} of the samples, so that their seconds are not"
            f" compared, nor recorded: {' | '.join(texts)}"
        )
