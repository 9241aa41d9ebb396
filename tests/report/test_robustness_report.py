"""The evaluation's page, its figures and the terminal's summary."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES, EvaluatedRows, Metrics
from nnmf_cuda.evaluation.robustness import (
    About,
    PixelAttack,
    PixelCurve,
    PixelExamples,
    PixelProof,
    Rounds,
    State,
    WorstPoints,
)
from nnmf_cuda.report.details import details
from nnmf_cuda.report.robustness import robustness_page, robustness_parts, tiles
from nnmf_cuda.report.robustness_figures import (
    Panel,
    certificate_figure,
    curves_figure,
    perturbations_figure,
)
from nnmf_cuda.report.robustness_table import summary_table


def examples(n: int) -> PixelExamples:
    clean = np.full((n, 8, 8), 0.5)
    return PixelExamples(clean, clean + 4 / 255, ["Tumor → Normal", "b"][:n])


PIXELS = PixelAttack(
    eps_255=[0.0, 2.0, 8.0],
    undefended=PixelCurve([0.9, 0.6, 0.2093], [0.0, 0.0, 0.1], 0.2093),
    defended=PixelCurve([0.87, 0.8, 0.6698], [0.0, 0.0, 0.1], 0.6601),
    examples=examples(0),
)


def _text(html):
    without_style = re.sub(r"<style>.*?</style>", " ", str(html), flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", without_style)))


def _metrics(value: float) -> Metrics:
    return Metrics(**dict.fromkeys(METRIC_NAMES, value), n=9)


@pytest.fixture
def complete(evaluation, uncertainty):
    """An evaluation with all that may be left out."""
    rows = {name: _metrics(i / 8) for i, name in enumerate(ROW_NAMES)}
    return replace(
        evaluation,
        verdict=replace(evaluation.verdict, drawn="series"),
        rounds=Rounds(5, 0.004, 0.5011, 0.5122),
        pixels=PIXELS,
        worst_points=WorstPoints(
            EvaluatedRows(rows, {}, {}, np.zeros(9, np.int64), 20), uncertainty
        ),
        about=About(
            source="scans.npz", synthetic=True, preset="thorough", date="2026-11-28", threads=2
        ),
    )


def test_page_names_what_it_is_about(complete, evaluation):
    text = _text(robustness_page(complete, home="runs/one"))
    for words in (
        *("Data: scans.npz", "Run: runs/one", "Preset: thorough", "Date: 2026-11-28", "Threads: 2"),
        *("Synthetic data.", "over whole slice series", "mean of 5 such rounds"),
    ):
        assert words in text, words
    assert "Synthetic data." not in _text(robustness_page(evaluation))


def test_warnings_stand_directly_under_the_verdict(complete):
    assert complete.warnings == ["The test images are near."]
    after = re.escape(complete.verdict.sentence) + r" (! )?The test images are near."
    assert re.search(after, _text(robustness_page(complete)))
    assert re.search(after, " ".join(summary_table(complete).split()))


def test_worst_points_stand_beside_the_papers_protocol(complete, evaluation):
    paper = {name: _metrics(0.4321) for name in ROW_NAMES}
    text = _text(robustness_parts(complete, rows=paper)["robustness"])
    assert "Robust_Defended 0.3750" in text
    assert text.count("the paper's protocol 0.4321") == 2
    assert "Defended against Baseline, robust: accuracy +0.500" in text
    assert "points of highest loss" not in _text(robustness_page(evaluation))


def test_pixels_are_a_table(complete, evaluation):
    text = _text(robustness_page(complete))
    assert "right at eps, in 1/255 0 2 8 undefended 0.9000 0.6000 0.2093" in text
    assert "defended, twice the steps at the largest eps 0.6601" in text
    assert "nnmf-cuda evaluate --data" in _text(robustness_page(evaluation))


def test_what_is_certified_in_pixels_stands_beside_what_attacks_leave(complete):
    proof = PixelProof([0.81, 0.4, 0.0125], 2.25)
    text = _text(robustness_page(replace(complete, pixels=replace(PIXELS, certified=proof))))
    assert "certified 0.8100 0.4000 0.0125" in text
    assert "median certified radius 2.25/255" in text
    assert "0.6698, certified" not in summary_table(complete)
    shown = summary_table(replace(complete, pixels=replace(PIXELS, certified=proof)))
    assert "defended 0.6698, certified 0.0125" in " ".join(shown.split())


def test_page_shows_perturbed_images(complete):
    pages = (
        robustness_page(replace(complete, pixels=replace(PIXELS, examples=examples(n))))
        for n in (0, 2)
    )
    assert [page.count("data:image/png") for page in pages] == [2, 3]  # curves and certificates


def test_only_the_papers_protocol_is_no_worst_case(evaluation):
    verdict = replace(evaluation.verdict, is_worst_case=False)
    report = replace(evaluation, verdict=verdict, others={}, curves=None)
    assert tiles(report)[0].title == "the paper's protocol only, no worst case"
    for text in (_text(robustness_page(report)), summary_table(report)):
        assert "Only the paper's protocol was counted" in text
        assert "is no worst case" in " ".join(text.split())
        assert "worst case over all" not in text
        assert evaluation.verdict.sentence not in text


def test_a_defence_that_is_the_adversarially_trained_one(quiet_evaluation):
    note = "The adversarially trained classifier is the defence itself."
    assert note in _text(robustness_page(quiet_evaluation))
    table = summary_table(quiet_evaluation)
    assert note in table
    assert not any("adversarially" in tile.title for tile in tiles(quiet_evaluation))
    assert table.splitlines()[0].split() == ["attack", "on", "the", "defence", "right", "s"]
    assert "majority" not in table
    assert re.search(r"noise known to the attacker +the defence has no noise", table)


def test_terminal_summary(complete, evaluation):
    clean, paper, last = evaluation.defence.attacks
    long = replace(last, name="a very long name of an attack, 12345 queries, EOT 20, twice")
    defence = replace(evaluation.defence, attacks=[clean, paper, long])
    lines = summary_table(replace(evaluation, defence=defence)).splitlines()
    assert lines[0].split()[-4:] == ["majority", "all", "20", "s"]
    assert lines[3].startswith("a very long name of an attack, 12345 queries, EOT 20, twice  0.60")
    text = "\n".join(lines)
    assert re.search(r"pixels +not run \(give --data\)", text)
    assert re.search(r"noise known to the attacker +0\.4837", text)
    assert re.search(r"certified at 0\.1 +denoised 0\.1209", text)
    assert "13 Attacks on the purifier, 1 Threat model: pixel space (give --data)" in text
    assert re.search(
        r"pixels, 8/255 +undefended 0\.2093, defended 0\.6698", summary_table(complete)
    )


def test_points_open_where_there_is_more_to_see(evaluation):
    html = robustness_parts(evaluation)["points"]
    assert html.count("<details") == 19
    assert html.count('class="dot good"') == 1 + 1  # the legend's too
    assert html.count('class="dot bad"') == 1 + 1
    assert "&lt;it seems&gt;" in html
    assert "11 Another, 11 0.110 What point 11 says." in _text(html)
    assert "13 Attacks on the purifier Not run." in _text(html)
    assert [p.state for p in evaluation.points].count(State.NOT_RUN) == 1


def test_the_content_is_json(complete):
    content = json.loads(json.dumps(complete.as_dict()))
    assert content["points"][12] == {
        "id": 13,
        "name": "Attacks on the purifier",
        "value": "not run",
    }
    assert content["worst_case_interval_by"] == "series"
    assert content["others"]["undefended"]["worst_case_accuracy"] == 0.0186
    assert content["worst_points"]["rows"]["Robust_Defended"]["accuracy"] == 0.375


def test_details_set_records_as_tables():
    records = {"x": {"a_b": 0.507, "c": [0.1, 0.25]}, "y": {"a_b": 1.0}}
    html = details(records)
    assert html.count("<table") == 1
    assert _text(html).split() == ["x", "y", "a", "b", "0.5070", "1", "c", "0.1–0.25", "–"]
    curve = details({"n_iter": [1, 2, 3], "robust_accuracy": [0.5, 0.25, 0.0], "converged": True})
    assert _text(curve).split()[:4] == ["steps", "1", "2", "3"]
    assert "flat at its end yes" in _text(curve)


def test_curves_figure_has_two_rows_and_the_constant_answer():
    panel = Panel("Size", "eps", [0.0, 0.1, 1.0], {"defended": [0.9, 0.5, 0.0]}, mark=0.1)
    panels = [panel, *(replace(panel, title=title, mark=None) for title in "ABCD")]
    figure = curves_figure(panels, constant=0.55, attack="APGD on the margin")
    assert figure.get_suptitle() == "APGD on the margin"
    shown = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title(loc="left") for axes in shown] == [p.title for p in panels]
    assert len({round(axes.get_position().y0, 1) for axes in shown}) == 2
    assert [len(axes.lines) for axes in shown] == [3, 2, 2, 2, 2]
    assert all(axes.lines[1].get_ydata()[0] == 0.55 for axes in shown)


def test_certificate_figure_marks_the_attack(evaluation):
    certificates = {name: found.certificate for name, found in evaluation.certificates.items()}
    axes = certificate_figure(certificates, attack_eps=0.1, norm="Linf").axes[0]
    assert len(axes.lines[0].get_xdata()) == 21
    assert axes.lines[1].get_xdata()[0] == pytest.approx(0.1 * np.sqrt(15))


def test_perturbations_figure_has_titles_and_a_scale():
    figure = perturbations_figure(examples(2), eps_255=8.0)
    assert figure.axes[0].get_title() == "Tumor → Normal"
    assert [image for axes in figure.axes for image in axes.images][2].get_clim() == (-8, 8)
    assert figure.axes[-1].get_ylabel() == "change, 1/255"
