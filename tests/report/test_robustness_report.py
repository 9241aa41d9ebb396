"""The evaluation's page, its twenty points, its figures and the terminal's summary."""

from __future__ import annotations

import copy
import re
from html import unescape

import numpy as np
import pytest

from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES
from nnmf_cuda.report.details import details
from nnmf_cuda.report.robustness import (
    describe_points,
    not_run_parts,
    robustness_page,
    robustness_parts,
    tiles,
)
from nnmf_cuda.report.robustness_figures import (
    certificate_figure,
    curves_figure,
    perturbations_figure,
)
from nnmf_cuda.report.robustness_table import summary_table

PIXELS = {
    "eps_255": [0.0, 2.0, 8.0],
    "undefended": {"robust_accuracy": [0.9, 0.6, 0.2093], "mean_largest_feature_move": [0, 0, 0.1]},
    "defended": {
        "robust_accuracy": [0.87, 0.8, 0.6698],
        "mean_largest_feature_move": [0, 0, 0.1],
        "after_twice_the_steps": 0.6601,
    },
}


def _text(html):
    without_style = re.sub(r"<style>.*?</style>", " ", str(html), flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", without_style)))


@pytest.fixture
def complete(evaluation, uncertainty):
    """An evaluation with every optional key."""
    evaluation = copy.deepcopy(evaluation)
    evaluation["points"][0]["value"]["pixel_space"] = PIXELS
    rows = {
        name: {**dict.fromkeys(METRIC_NAMES, i / 8), "n": 9} for i, name in enumerate(ROW_NAMES)
    }
    return {
        **evaluation,
        "worst_case_rounds": {"n": 5, "std": 0.004, "low": 0.5011, "high": 0.5122},
        "worst_case_interval_by": "series",
        "warnings": ["The curve against steps is not flat."],
        "worst_points": {
            "rows": rows,
            "calibration": uncertainty.as_dict()["calibration"],
            "comparisons": uncertainty.as_dict()["comparisons"],
        },
        "about": {
            "source": "scans.npz",
            "synthetic": True,
            "preset": "thorough",
            "date": "2026-11-28",
            "threads": 2,
        },
    }


def test_page_names_what_it_is_about(complete, evaluation):
    text = _text(robustness_page(complete, home="runs/one"))
    for words in (
        *("Data: scans.npz", "Run: runs/one", "Preset: thorough", "Date: 2026-11-28", "Threads: 2"),
        *("Synthetic data.", "over whole slice series", "mean of 5 such rounds"),
    ):
        assert words in text, words
    assert "Synthetic data." not in _text(robustness_page(evaluation))


def test_warnings_stand_directly_under_the_verdict(complete):
    after = re.escape(complete["verdict"]) + r" (! )?" + re.escape(complete["warnings"][0])
    assert re.search(after, _text(robustness_page(complete)))
    assert re.search(after, " ".join(summary_table(complete).split()))


def test_worst_points_stand_beside_the_papers_protocol(complete, evaluation):
    paper = {name: dict.fromkeys(METRIC_NAMES, 0.4321) for name in ROW_NAMES}
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


def test_only_the_papers_protocol_is_no_worst_case(evaluation):
    content = {**evaluation, "preset": "paper", "others": {}, "attacks": evaluation["attacks"][:2]}
    assert [tile.title for tile in tiles(content)][0] == "the paper's protocol only, no worst case"
    for text in (_text(robustness_page(content)), summary_table(content)):
        assert "the paper's protocol only, no worst case" in text
        assert "worst case over all" not in text
        assert content["verdict"] not in text


def test_a_defence_that_is_the_adversarially_trained_one(quiet_evaluation):
    note = "The adversarially trained classifier is the defence itself."
    assert note in _text(robustness_page(quiet_evaluation))
    table = summary_table(quiet_evaluation)
    assert note in table
    assert not any("adversarially" in tile.title for tile in tiles(quiet_evaluation))
    assert table.splitlines()[0].split() == ["attack", "on", "the", "defence", "right", "s"]
    assert "majority" not in table


def test_terminal_summary(complete, evaluation):
    evaluation["attacks"][2]["name"] = "a very long name of an attack, 12345 queries, EOT 20, twice"
    lines = summary_table(evaluation).splitlines()
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


def test_parts_that_were_not_run_are_found_at_any_depth():
    points = [
        {"id": 1, "name": "One", "value": {"a": 1, "b_c": {"d": "not run", "e": "run"}}},
        {"id": 2, "name": "Two", "value": "not run"},
    ]
    content = {"points": points, "threat_model": {"noise": "none"}}
    assert not_run_parts(content) == ["2 Two", "1 One: b c, d"]
    points.append({"id": 6, "name": "Gradient", "value": {"bpda_identity": "not run"}})
    assert not_run_parts(content) == ["2 Two", "1 One: b c, d"]  # it has no purifier
    content["threat_model"]["noise"] = "fresh"
    assert not_run_parts(content)[-1] == "6 Gradient: bpda identity"


def test_every_point_has_a_sentence_and_a_judgement(evaluation):
    points = describe_points(evaluation)
    states = {point.number: point.state for point in points}
    assert states[2] == states[6] == states[7] == states[9] == states[10] == "good"
    assert states[8] == states[14] == states[15] == states[16] == states[17] == states[18] == "bad"
    assert states[13] == "none"
    assert all(point.sentence.endswith(".") for point in points)
    figures = {point.number: point.figure for point in points}
    assert (figures[5], figures[12], figures[19]) == ("0.572", "0.484", "12.1 %")
    assert "The majority of single draws is certified." in points[18].sentence


def test_points_are_no_dump(evaluation):
    html = robustness_parts(evaluation)["points"]
    text = _text(html)
    assert html.count("<details") == 19
    assert "a.jpg" not in text
    assert "linf_equivalent" not in text
    assert "eps_in_feature_ranges" not in text
    assert "15 values, 0.1 to 0.1" in text
    assert "&lt;it seems&gt;" in html
    assert "{" not in text
    assert "nnmf-cuda 0.1.0, torch 2.13" in text
    assert "other none" in text


def test_points_of_a_defence_without_noise(quiet_evaluation):
    points = {point.number: point for point in describe_points(quiet_evaluation)}
    assert points[12].sentence == "Does not apply: the defence has no noise."
    assert points[12].state == "plain"


def test_a_point_of_unknown_content_is_shown_all_the_same(evaluation):
    evaluation["points"][14]["value"] = {"broken": "text"}
    evaluation["points"][17]["value"] = {"something": [1, 2, 3]}
    text = _text(robustness_page(evaluation))
    assert "something 1, 2, 3" in text


def test_details_set_records_as_tables():
    records = {"x": {"a_b": 0.507, "c": [0.1, 0.25]}, "y": {"a_b": 1.0}}
    html = details(records)
    assert html.count("<table") == 1
    assert _text(html).split() == ["x", "y", "a", "b", "0.5070", "1", "c", "0.1–0.25", "–"]
    curve = details({"n_iter": [1, 2, 3], "robust_accuracy": [0.5, 0.25, 0.0], "converged": True})
    assert _text(curve).split()[:4] == ["steps", "1", "2", "3"]
    assert "flat at its end yes" in _text(curve)


def test_curves_figure_has_two_rows_and_the_constant_answer():
    curve = {"x": [0.0, 0.1, 1.0], "xlabel": "eps", "lines": {"defended": [0.9, 0.5, 0.0]}}
    panels = {"Size": {**curve, "mark": 0.1}, "A": curve, "B": curve, "C": curve, "D": curve}
    figure = curves_figure(panels, constant=0.55, attack="APGD on the margin")
    assert figure.get_suptitle() == "APGD on the margin"
    shown = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title(loc="left") for axes in shown] == list(panels)
    assert len({round(axes.get_position().y0, 1) for axes in shown}) == 2
    assert [len(axes.lines) for axes in shown] == [3, 2, 2, 2, 2]
    assert all(axes.lines[1].get_ydata()[0] == 0.55 for axes in shown)


def test_certificate_figure_marks_the_attack(evaluation):
    certificates = evaluation["points"][18]["value"]
    axes = certificate_figure(certificates, attack_eps=0.1, norm="Linf").axes[0]
    assert len(axes.lines[0].get_xdata()) == 21
    assert axes.lines[1].get_xdata()[0] == pytest.approx(0.1 * np.sqrt(15))


def test_perturbations_figure_has_titles_and_a_scale():
    clean = np.full((2, 8, 8), 0.5)
    examples = {"clean": clean, "attacked": clean + 4 / 255, "titles": ["Tumor -> Normal", "b"]}
    figure = perturbations_figure({**examples, "eps_255": 8.0})
    assert figure.axes[0].get_title() == "Tumor → Normal"
    assert [image for axes in figure.axes for image in axes.images][2].get_clim() == (-8, 8)
    assert figure.axes[-1].get_ylabel() == "change, 1/255"
