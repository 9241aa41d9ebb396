"""The page and the tables of a comparison, from figures that are made up here."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nnmf_cuda.evaluation import METRIC_NAMES, Interval
from nnmf_cuda.evaluation.compared import (
    GRADIENTS,
    Compared,
    Measured,
    RobustCurve,
    Subject,
    SystemFacts,
)
from nnmf_cuda.report.comparison import comparison_page

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
