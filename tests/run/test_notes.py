from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from nnmf_cuda.attacks import AttackResult
from nnmf_cuda.data import ImageDataset
from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES, EvaluatedRows, Metrics
from nnmf_cuda.pipeline.collapse import Attempt
from nnmf_cuda.pipeline.config import PRESETS, DiffusionConfig, ExperimentConfig
from nnmf_cuda.pipeline.radius import Prospects
from nnmf_cuda.run.metrics import AttackRecord
from nnmf_cuda.run.notes import notes_of, warnings_of

LABELS = np.array([0, 1] * 10)


def rows(robust: float) -> EvaluatedRows:
    row = Metrics(**dict.fromkeys(METRIC_NAMES, robust), n=len(LABELS))
    table = dict.fromkeys(ROW_NAMES, row)
    return EvaluatedRows(table, {}, {}, LABELS, 1)


def dataset(**groups: np.ndarray) -> ImageDataset:
    return ImageDataset(
        images=np.zeros((8, 4, 4), dtype=np.uint8),
        labels=np.arange(8) % 2,
        label_names=("a", "b"),
        split=np.array(["train"] * 4 + ["valid"] * 2 + ["test"] * 2),
        groups=groups,
        files=np.array(list("abcdefgh")),
        source="here",
    )


def three_classes() -> ImageDataset:
    return replace(
        dataset(),
        labels=np.array([0, 1, 2, 0, 1, 0, 1, 2]),
        label_names=("a", "b", "c"),
        split=np.array(["train"] * 3 + ["valid"] * 2 + ["test"] * 3),
    )


def notes(
    data: ImageDataset,
    robust: float = 0.9,
    config: ExperimentConfig | None = None,
    warning: str = "careful",
) -> str:
    config = config or PRESETS["paper"]
    points = torch.zeros(20, 3)
    result = AttackResult(
        *(points, torch.ones(20, dtype=torch.bool), 0.5, {"square": 0.25}, {"square": 1.0}),
        *([warning], "(N, M, 1, 1)", 0.1, 1.0, 0.0, 0, "autoattack"),
    )
    record = AttackRecord(config.attack, result, 0.5, 0.5, 0.5, 3, None)
    return "\n".join(notes_of(data, config, rows(robust), {"defended": record}))


def test_notes_say_how_the_split_parts_groups() -> None:
    series = np.array([1, 1, 2, 2, 3, 3, 2, 4])
    assert "training image of the same group: 50.0% by series" in notes(dataset(series=series))
    assert "no patient or series is known, so only near and equal images" in notes(dataset())
    folds = np.array([1, 1, 2, 2, 3, 3, 4, 4])
    assert "0.0% by patient_fold." in notes(dataset(patient_fold=folds))
    shared = notes(dataset(series=series, patient_fold=np.array([1, 2] * 4)))
    assert "same group: 50.0% by series." in shared
    drawn = notes(replace(dataset(), synthetic=True))
    assert "every synthetic image is drawn for itself" in drawn
    assert "series" not in drawn


PROSPECTS = Prospects(
    attack_eps=0.1,
    norm="Linf",
    decided_by="as given",
    ceilings={"train": 0.9, "valid": 0.9, "test": 0.8},
    constants={"train": 0.5, "valid": 0.5, "test": 0.5},
    linear_clean=0.8,
    linear_proven=0.5,
    worth_having=0.0437,
)


def test_warnings_compare_with_the_constant_answer_by_interval() -> None:
    def warnings(robust: float) -> str:
        return "\n".join(warnings_of(rows(robust), PROSPECTS, ()))

    constant = "always naming the most frequent class (0.5000)"
    assert f"is worse than {constant}" in warnings(0.1)
    assert f"cannot be told from {constant}" in warnings(0.6)  # 12 of 20
    assert warnings(0.9) == ""
    assert "0.387-0.781 by Wilson, images taken as independent" in warnings(0.6)
    assert "at eps 0.043 a linear classifier is proven to gain 0.05" in warnings(0.6)


def test_warnings_tell_of_trainings_that_collapsed() -> None:
    first = Attempt(0.1, None, 0.0, 0.5, collapsed=True)
    again = Attempt(0.1, "balanced", 0.5, 0.8, collapsed=False)
    (warning,) = warnings_of(rows(0.9), PROSPECTS, (first, again))
    assert "ended in one answer for every sample, and was tried again, until it did not" in warning
    assert "class weights balanced" in warning
    (warning,) = warnings_of(rows(0.9), PROSPECTS, (first, first))
    assert "always with that end" in warning
    assert warnings_of(rows(0.9), PROSPECTS, (again,)) == []


def test_notes_name_settings_other_than_the_papers() -> None:
    assert "Settings other than" not in notes(dataset())
    changed = replace(PRESETS["paper"], diffusion=DiffusionConfig(n_draws=64), n_predictions=1)
    expected = "the paper's preset: diffusion.n_draws=64, n_predictions=1."
    assert expected in notes(dataset(), config=changed)


def test_notes_keep_the_attacks_own_warnings() -> None:
    text = notes(dataset())
    assert "AutoAttack on the defended model: careful" in text
    assert "3 of 20 points are returned unchanged" in text
    assert "on the changed ones none" in text


RANDOM = (
    'it seems to be a randomized defense! Please use version="rand". See flags_doc.md for details.'
)


def test_notes_give_no_advice_that_two_classes_cannot_follow() -> None:
    two = notes(dataset(), warning=RANDOM)
    assert "it seems to be a randomized defense! Its version for random models cannot run" in two
    assert "Please use" not in two
    assert RANDOM in notes(three_classes(), warning=RANDOM)
    assert "cannot run" not in notes(dataset())


def test_notes_say_what_three_classes_average() -> None:
    macro = "Precision, recall and F1 are macro means: the plain means over the 3 classes."
    assert macro in notes(three_classes())
    assert "macro" not in notes(dataset())
