"""The twenty points: what each says of what was measured, and what it warns of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nnmf_cuda.attacks import Budget, GradientReport
from nnmf_cuda.data.leakage import Neighbours
from nnmf_cuda.evaluation.ceiling import ceiling
from nnmf_cuda.evaluation.headline import ContradictionError
from nnmf_cuda.evaluation.robustness import NOT_RUN, Curve, PixelCurve, RobustnessReport, State
from nnmf_cuda.robustness import EvaluationBudget, SavedRun, evaluate_robustness
from nnmf_cuda.robustness.budgets import PixelBudget
from nnmf_cuda.robustness.diagnostics import GradientCheck, KnownWeakness, Measurements
from nnmf_cuda.robustness.points import report_of
from nnmf_cuda.robustness.verification import Status, Verification

TINY = EvaluationBudget(
    suite=Budget(n_iter=2, n_restarts=1, eot_iter=2, surrogate_draws=4, pgd_iter=2, n_queries=5),
    curve_iter=2,
    attack_eps=(0.0, 1.0),
    n_iter=(1, 2),
    n_restarts=(1, 2),
    eot_iter=(1, 2),
    pixels=PixelBudget(eps_255=(8.0,), n_iter=2),
    n_estimation=50,
)
Evaluated = tuple[SavedRun, Measurements]


@pytest.fixture(scope="module")
def evaluated(small_run: tuple[Path, str], small_npz: Path) -> Evaluated:
    run = SavedRun.load(small_run[0])
    result = evaluate_robustness(run, budget=TINY, images=run.test_images(str(small_npz)))
    return run, result.measured


def curve(setting: str, *robust_accuracy: float) -> Curve:
    return Curve(setting, range(1, len(robust_accuracy) + 1), robust_accuracy)


def adaptive(measured: Measurements, **changes: Any) -> Measurements:
    assert measured.adaptive is not None
    return replace(measured, adaptive=replace(measured.adaptive, **changes))


@pytest.fixture
def sound(evaluated: Evaluated) -> Evaluated:
    """An evaluation that nothing speaks against."""
    run, measured = evaluated
    assert measured.adaptive is not None
    assert measured.pixels is not None
    assert run.audit is not None
    curves = replace(
        measured.adaptive.curves,
        eps=curve("attack_eps", 0.9, 0.0),
        steps=curve("n_iter", 0.5, 0.5),
        restarts=curve("n_restarts", 0.5, 0.5),
        draws=curve("eot_iter", 0.5, 0.5),
    )
    measured = adaptive(
        measured,
        curves=curves,
        gradients=GradientCheck(GradientReport(1.0, 0.0), 1e-6, 1e-5),
        known_weakness=KnownWeakness(64, {"Square": 0.5}, 1.0, 1.0),
    )
    flat = PixelCurve([0.9, 0.5], [0.0, 0.1], after_twice_the_steps=0.5)
    pixels = replace(measured.pixels, undefended=flat, defended=flat)
    test = replace(run.audit.splits["test"], near_share=0.0, nearest_accuracy=0.5, identical=0)
    audit = replace(run.audit, splits={"test": test})
    return replace(run, audit=audit), replace(measured, pixels=pixels)


def test_every_point_has_a_sentence_and_a_judgement(sound: Evaluated) -> None:
    report = report_of(*sound, preset="standard")
    assert [point.number for point in report.points] == list(range(1, 21))
    assert all(point.sentence.endswith(".") for point in report.points)
    states = {point.number: point.state for point in report.points}
    assert {states[i] for i in (2, 6, 7, 8, 9, 15, 18)} == {State.GOOD}
    assert {states[i] for i in (1, 3, 4, 5, 11, 12, 13, 19, 20)} == {State.PLAIN}
    assert report.warnings == []
    assert report.is_random
    figures = {point.number: point.figure for point in report.points}
    assert (figures[6], figures[7], figures[9], figures[15]) == ("1e-06", "0.500", "0.000", "1.000")


def test_points_and_line_know_the_ceiling(sound: Evaluated) -> None:
    run, measured = sound
    report = report_of(run, measured, preset="standard")
    x, y = run.test
    found = ceiling(x, y, run.threat.attack_eps, run.threat.norm)
    assert report.headline.ceiling == found.accuracy
    assert report.points[13].value["ceiling of any classifier"] == found.as_dict()
    assert report.headline.attacked == report.defence.worst_case_accuracy
    assert report.headline.proven == report.certificates["denoised"].at_attack_eps
    assert report.headline.undecided is None
    # At this radius any two points meet, and the attacks, made for a smaller one, look weak.
    everything = replace(run, attack=replace(run.attack, attack_eps=0.5))
    weak = report_of(everything, measured, preset="standard")
    assert weak.headline.ceiling == weak.verdict.constant
    assert any("more than any classifier can have" in warning for warning in weak.warnings)


def verification(proven: NDArray[np.bool_]) -> Verification:
    n = len(proven)
    return Verification(
        status=np.where(proven, str(Status.PROVEN), str(Status.UNDECIDED)),
        lower_bound=np.where(proven, 1.0, -1.0),
        rounding=np.full(n, 1e-5),
        counterexample=np.full((n, 3), np.nan),
        n_boxes=np.ones(n, np.int64),
        seconds={"attack": np.zeros(n), "bounds": np.ones(n), "search": np.zeros(n)},
        eps=0.1,
        norm="Linf",
    )


def test_a_proof_against_an_attack_stops(sound: Evaluated) -> None:
    run, measured = sound
    broken = measured.suites["defended"].robust_share.numpy() < 1
    assert 0 < broken.sum() < len(broken)
    proven = ~broken
    proven[np.flatnonzero(proven)[0]] = False
    honest = replace(measured, verification=verification(proven))
    report = report_of(run, honest, preset="standard")
    assert report.headline.proven == proven.mean()
    assert report.headline.undecided == pytest.approx(report.headline.attacked - proven.mean())
    point = report.points[18]
    assert point.value["branch and bound"]["proven_accuracy"] == proven.mean()
    assert "denoised" in point.value
    assert point.state is State.BAD  # something is undecided
    lying = replace(measured, verification=verification(np.ones_like(broken)))
    with pytest.raises(ContradictionError, match=f"test sample {np.flatnonzero(broken)[0]}[:,]"):
        report_of(run, lying, preset="standard")


def changed(
    change: Callable[[Measurements], Measurements],
) -> Callable[[Evaluated], Evaluated]:
    return lambda evaluated: (evaluated[0], change(evaluated[1]))


def with_curve(**curves: Curve) -> Callable[[Evaluated], Evaluated]:
    def change(measured: Measurements) -> Measurements:
        assert measured.adaptive is not None
        return adaptive(measured, curves=replace(measured.adaptive.curves, **curves))

    return changed(change)


def with_adaptive(**changes: Any) -> Callable[[Evaluated], Evaluated]:
    return changed(lambda measured: adaptive(measured, **changes))


def near(near_share: float, parted_by: str | None = None) -> Callable[[Evaluated], Evaluated]:
    def change(evaluated: Evaluated) -> Evaluated:
        run, measured = evaluated
        assert run.audit is not None
        test = Neighbours(215, near_share, 0.5, 0.5, 0, 0, parted_by)
        return replace(run, audit=replace(run.audit, splits={"test": test})), measured

    return change


@pytest.mark.parametrize(
    ("change", "number", "sentence"),
    [
        (
            with_curve(draws=curve("eot_iter", 0.5, 0.4)),
            7,
            "not converged in draws averaged: robust accuracy goes from 0.5000 to 0.4000",
        ),
        (with_curve(steps=curve("n_iter", 0.5, 0.4)), 8, "not converged in steps"),
        (with_curve(restarts=curve("n_restarts", 0.5, 0.4)), 8, "not converged in restarts"),
        (with_curve(eps=curve("attack_eps", 0.9, 0.1)), 9, "leaves 0.1000"),
        (
            with_adaptive(known_weakness=KnownWeakness(64, {}, 1.0, 0.5)),
            15,
            "50.0% were found by all attacks together",
        ),
        (
            with_adaptive(known_weakness=KnownWeakness(64, {}, 0.4, 1.0)),
            15,
            "40.0% were found by gradient attacks together",
        ),
        (
            with_adaptive(known_weakness=KnownWeakness(0, {}, None, None)),
            15,
            "No weakness could be planted",
        ),
        (
            with_adaptive(gradients=GradientCheck(GradientReport(1.0, 0.2), 0.0, 0.0)),
            6,
            "20.0% of the samples",
        ),
        (
            with_adaptive(gradients=GradientCheck(GradientReport(1.0, 0.0), 0.5, 0.5)),
            6,
            "differ from finite differences",
        ),
        (near(0.237), 18, "23.7% of the test images"),
    ],
)
def test_warnings_name_what_speaks_against_the_figures(
    sound: Evaluated, change: Callable[[Evaluated], Evaluated], number: int, sentence: str
) -> None:
    report = report_of(*change(sound), preset="standard")
    (warning,) = report.warnings
    assert sentence in warning
    assert report.points[number - 1].warnings == (warning,)
    assert report.points[number - 1].state is State.BAD


def test_near_images_of_other_patients_are_no_warning(sound: Evaluated) -> None:
    assert report_of(*near(0.237, "patient")(sound), preset="standard").warnings == []


def test_pixels_that_have_not_converged_are_two_warnings(sound: Evaluated) -> None:
    run, measured = sound
    assert measured.pixels is not None
    falling = PixelCurve([0.9, 0.5], [0.0, 0.1], after_twice_the_steps=0.4)
    pixels = replace(measured.pixels, undefended=falling, defended=falling)
    report = report_of(run, replace(measured, pixels=pixels), preset="standard")
    assert [w[: w.index(" has")] for w in report.warnings] == [
        f"The attack on pixels of the {name} chain" for name in ("undefended", "defended")
    ]


def test_a_stronger_black_box_shows_masked_gradients(sound: Evaluated) -> None:
    run, measured = sound
    outcomes = [
        replace(o, right=torch.full_like(o.right, not o.attack.kind.is_black_box))
        for o in measured.suites["defended"].outcomes
    ]
    suite = replace(measured.suites["defended"], outcomes=outcomes)
    suites = {**measured.suites, "defended": suite}
    report = report_of(run, replace(measured, suites=suites), preset="standard")
    assert report.points[9].state is State.BAD
    assert "gradients are masked" in report.points[9].warnings[0]


def not_run_inside(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(not_run_inside, value.values()))
    return int(value == NOT_RUN)


def assert_all_named(report: RobustnessReport) -> None:
    for point in report.points:
        if point.state is not State.NOT_RUN:
            assert not_run_inside(point.value) == len(point.missing), point.name


def test_what_was_not_run_is_named(sound: Evaluated) -> None:
    run, measured = sound
    whole = report_of(run, measured, preset="standard")
    assert whole.not_run == []
    assert_all_named(whole)
    only = replace(measured, pixels=None, adaptive=None)
    report = report_of(run, only, preset="paper")
    assert "6 Gradient" in report.not_run
    assert "1 Threat model: pixel space (give --data)" in report.not_run
    assert "5 Success counted four ways: at eps 0, flags" in report.not_run
    assert_all_named(report)
    assert not report.is_worst_case
    three = replace(run, model=replace(run.model, label_names=("a", "b", "c")))
    assert_all_named(report_of(three, only, preset="paper"))


def test_a_point_that_does_not_apply_says_why(sound: Evaluated) -> None:
    run, measured = sound
    measured = with_adaptive(fixed_noise=None)((run, measured))[1]
    point = report_of(run, measured, preset="standard").points[11]
    assert point.sentence == "Does not apply: the defence has no noise."
    assert point.state is State.PLAIN
    assert point.value == {"note": "the defence has no noise"}
