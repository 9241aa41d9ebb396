"""The page and the tables of a comparison, from figures that are made up here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from nnmf_cuda.evaluation import METRIC_NAMES, Interval
from nnmf_cuda.evaluation.compared import (
    GRADIENTS,
    Compared,
    Measured,
    RandomLabels,
    RobustCurve,
    Subject,
    SystemFacts,
)
from nnmf_cuda.report.comparison import (
    comparison_page,
    comparison_text,
    main_header,
    main_rows,
    random_labels_text,
)
from nnmf_cuda.report.tables import NONE

SPLIT = "own split"


def subject(n_classes: int = 2) -> Subject:
    return Subject(
        source="images.npz",
        synthetic=False,
        label_names=tuple(f"kind {label}" for label in range(n_classes)),
        image_shape=(8, 8),
        data_sha256={SPLIT: "abc"},
        spending={"n_iter": 5},
        smoke=False,
        device="cpu",
        device_name="",
        threads=1,
        date="2026-01-01",
        version="0",
        commit="",
        uncommitted_changes=False,
    )


def measured(
    system: str = "mine",
    seed: int = 0,
    *,
    accuracy: float = 0.9,
    certified: tuple[float, float] | None = None,
    radius_255: float | None = None,
) -> Measured:
    share = Interval(accuracy, accuracy - 0.05, accuracy + 0.05)
    return Measured(
        system=system,
        split=SPLIT,
        seed=seed,
        n_train=20,
        n_test=10,
        constant=0.5,
        metrics=dict.fromkeys(METRIC_NAMES, share),
        clustered_by="patient",
        robust=RobustCurve(
            eps_255=(0.0, 8.0),
            accuracy=(share, Interval(0.4, 0.3, 0.5)),
            broken_by={"APGD margin": (0, 5)},
            how=GRADIENTS,
            n=10,
            certified=certified,
            certified_radius_255=radius_255,
        ),
        n_parameters=7,
        fit_seconds=1.0,
        inference_ms=0.5,
        attack_seconds=2.0,
    )


def compared(runs: Sequence[Measured], *, n_classes: int = 2) -> Compared:
    names = dict.fromkeys(run.system for run in runs)
    facts = [SystemFacts(name, f"the {name}", "A. Author 2020") for name in names]
    return Compared(subject(n_classes), facts, runs, [], [], [])


@pytest.mark.parametrize(("n_classes", "ran"), [(2, False), (3, True)])
def test_the_page_names_the_third_loss_where_it_ran(n_classes: int, ran: bool) -> None:
    page = " ".join(comparison_page(compared([measured()], n_classes=n_classes)).split())
    assert "APGD on margin and cross-entropy" in page
    assert ("and on the difference of logits ratio" in page) == ran


def control(system: str, labels_by: str, split_by: str, low: float) -> RandomLabels:
    return RandomLabels(system, labels_by, split_by, 1, Interval(low + 0.1, low, low + 0.2), 0.5, 0)


def test_controls_above_chance_are_named() -> None:
    at_chance = control("nearest", "image", "image", 0.4)
    patients = [
        control("nearest", "patient", "image", 0.8),
        control("nearest", "patient", "patient", 0.5),
        control("cnn", "patient", "the given split", 0.51),
    ]
    named = "nearest (patient, image); cnn (patient, the given split)."
    whole = f"Above chance by the whole interval, as one in forty is by luck: {named}"
    for found, said, unsaid in (
        ([at_chance, *patients], whole, "not looked for"),
        ([at_chance, patients[1]], "No interval lies above chance.", "not looked for"),
        ([at_chance], "No interval lies above chance. Leakage was not looked for: no", "luck"),
    ):
        page = comparison_page(replace(compared([measured()]), random_labels=found))
        for text in (random_labels_text(found), page):
            assert said in " ".join(text.split())
            assert unsaid not in text
    assert "above chance" not in comparison_page(compared([measured()]))


def proofs(*found: tuple[float, float] | None) -> list[Measured]:
    return [
        measured(
            seed=seed,
            certified=None if one is None else (one[0], 0.0),
            radius_255=None if one is None else one[1],
        )
        for seed, one in enumerate(found)
    ]


def test_a_proof_is_the_mean_over_seeds() -> None:
    for runs, said in (
        (proofs((0.8, 1.25)), "0.80 to 1.25/255"),
        (proofs((0.8, 1.0), (0.6, 2.0), (0.7, 3.0)), "0.70 ± 0.10 to 2.00 ± 1.00/255"),
        (proofs(None, (0.6, 2.0)), "0.60 to 2.00/255"),
        (proofs(None, None), NONE),
    ):
        found = compared(runs)
        (row,) = main_rows(found, SPLIT)
        assert row.cells[main_header(found).index("proof")] == said


def test_what_is_of_the_first_seed_alone_is_said() -> None:
    one = [measured(accuracy=0.9)]
    several = [*one, measured(seed=1, accuracy=0.6)]
    for runs, is_said in ((one, False), (several, True)):
        found = compared(runs)
        (row,) = main_rows(found, SPLIT)
        assert row.cells[main_header(found).index("95 %")] == "0.85–0.95"
        for text in (comparison_text(found), comparison_page(found)):
            flat = " ".join(text.split())
            assert ("intervals of the first seed over whole patients" in flat) == is_said
            assert ("intervals over whole patients" in flat) != is_said
        page = comparison_page(found)
        assert ("Of the first seed alone are the 95 % intervals" in page) == is_said
