"""What a reader must know beside the table: how the attack went, and what was not asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from nnmf_cuda.data import ImageDataset
from nnmf_cuda.evaluation import EvaluatedRows, majority_class_accuracy, wilson_interval
from nnmf_cuda.pipeline.collapse import Attempt
from nnmf_cuda.pipeline.config import PRESETS, ExperimentConfig
from nnmf_cuda.pipeline.radius import Prospects
from nnmf_cuda.run.metrics import AttackRecord

NOT_RUN = (
    "Averaging the attack's gradient over more noise (EOT beyond the K draws of one call), and"
    " surrogates with more draws.",
    "Margin losses, FAB, a Square that touches every feature and averages its loss over noise.",
    "Curves against eps, steps, restarts and draws; an unbounded attack, which must succeed.",
    "Fixed noise that the attacker knows; transfer between the two models; an attack on the"
    " purifier's output; gradients compared with finite differences during the attack.",
    "The points of highest loss for every sample: AutoAttack keeps the clean position of samples on"
    " which no single call of the model went wrong.",
    "Plain noise without the denoiser, a linear denoiser, and an adversarially trained network, to"
    " compare the defence with.",
    "An attack on pixels: the adversary here moves features, not images.",
    "A certificate; an external test set.",
)
"""What the paper's protocol leaves out, most of which `nnmf-cuda evaluate` runs; the report lists
it."""

_GROUPS = ("patient", "series", "patient_fold")
"""Groups of a data set, the most telling first."""

_ADVICE = re.compile(r"\s*Please use version=\S+(\s*See \S+ for details\.)?")


def notes_of(
    dataset: ImageDataset,
    config: ExperimentConfig,
    rows: EvaluatedRows,
    attacks: Mapping[str, AttackRecord],
) -> list[str]:
    """Return the sentences that belong beside the table, for `metrics.json` and the report."""
    notes = [*dataset.notes, _split_note(dataset)]
    if dataset.synthetic:
        notes.insert(0, "The images are synthetic: these numbers say nothing about patients.")
    different = _different_settings(config)
    if different:
        notes.append(f"Settings other than the paper's preset: {', '.join(different)}.")
    for name, record in attacks.items():
        last = list(record.result.accuracy_after.values())[-1]
        on_changed = record.fresh_accuracy_on_changed
        notes.append(
            f"Attack on the {name} model: {record.n_unchanged} of {len(rows.labels)} points are"
            f" returned unchanged; AutoAttack's own count is {last:.4f}, fresh predictions on all"
            f" points {record.fresh_accuracy:.4f}, on the changed ones"
            f" {'none' if on_changed is None else f'{on_changed:.4f}'}."
        )
        notes += [
            f"AutoAttack on the {name} model: {_followable(text, dataset.n_classes)}"
            for text in record.result.warnings
        ]
    if dataset.n_classes > 2:
        notes.append(
            f"Precision, recall and F1 are macro means: the plain means over the"
            f" {dataset.n_classes} classes."
        )
    return notes


def _followable(warning: str, n_classes: int) -> str:
    """Return a warning of AutoAttack without advice that two classes do not allow."""
    if n_classes > 2 or _ADVICE.search(warning) is None:
        return warning
    return (
        f"{_ADVICE.sub('', warning).strip()} Its version for random models cannot run here: the"
        " DLR loss in it needs three classes."
    )


def warnings_of(
    rows: EvaluatedRows, prospects: Prospects, attempts: Sequence[Attempt]
) -> list[str]:
    """Return what a reader must know first: collapsed trainings, and where nothing is gained."""
    warnings = []
    if any(attempt.collapsed for attempt in attempts):
        tried = "; ".join(attempt.sentence for attempt in attempts)
        all_did = all(attempt.collapsed for attempt in attempts)
        kept = "always with that end" if all_did else "until it did not"
        warnings.append(
            "Training of the defence ended in one answer for every sample, and was tried again,"
            f" {kept}: {tried}."
        )
    constant, n = majority_class_accuracy(rows.labels), len(rows.labels)
    robust = rows.rows["Robust_Defended"].accuracy
    low, high = wilson_interval(robust * n, n)
    if low > constant:
        return warnings
    verdict = "is worse than" if high < constant else "cannot be told from"
    warnings.append(
        f"Robust_Defended ({robust:.4f}, 95 % interval {low:.3f}-{high:.3f} by Wilson, images taken"
        f" as independent) {verdict} always naming the most frequent class ({constant:.4f}):"
        f" {prospects.way_out}."
    )
    return warnings


def _split_note(dataset: ImageDataset) -> str:
    """Say how many test images have a neighbour in the training split, where that is known."""
    if dataset.synthetic:
        return "Split: every synthetic image is drawn for itself; no patient has several."
    train, test = dataset.split == "train", dataset.split == "test"
    shares = {
        name: float(np.isin(dataset.groups[name][test], dataset.groups[name][train]).mean())
        for name in _GROUPS
        if name in dataset.groups
    }
    # A fold holds many patients: to share one says nothing, unless the split is made of folds.
    if shares.get("patient_fold", 0) > 0:
        del shares["patient_fold"]
    if not shares:
        return (
            "Split: no patient or series is known, so only near and equal images can tell whether"
            " one stands on both sides."
        )
    listed = ", ".join(f"{share:.1%} by {name}" for name, share in shares.items())
    return f"Split: test images with a training image of the same group: {listed}."


def _different_settings(config: ExperimentConfig) -> list[str]:
    config, paper = config.decided(), PRESETS["paper"].decided()
    different = []
    for part in ("nnmf", "selection", "classifier", "diffusion", "defence", "attack"):
        papers = vars(getattr(paper, part))
        different += [
            f"{part}.{name}={value}"
            for name, value in vars(getattr(config, part)).items()
            if value != papers[name]
        ]
    if config.n_predictions != paper.n_predictions:
        different.append(f"n_predictions={config.n_predictions}")
    return different
