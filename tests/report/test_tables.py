"""Plain-text tables."""

from __future__ import annotations

import re

import pytest

from nnmf_cuda.evaluation import PAPER_METRICS, PAPER_TIMINGS, ROW_NAMES
from nnmf_cuda.report import metrics_table, timings_table


@pytest.fixture
def rows():
    return {name: {**values, "n": 215} for name, values in PAPER_METRICS.items()}


def test_metrics_table_holds_ours_the_papers_and_the_constant_answer(rows):
    rows["Clean_Baseline"]["accuracy"] = 0.8701
    spread = {"Robust_Defended": dict.fromkeys(PAPER_METRICS["Robust_Defended"], 0.0123)}
    text = metrics_table(
        rows, majority_class_accuracy=118 / 215, paper=True, spread=spread, n_predictions=20
    )
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["accuracy", "precision"]
    body = lines[2 : 2 + 10]
    assert [line.split()[0] for line in body] == [
        *("Clean_Baseline", "paper", "Clean_Defended", "paper"),
        *("Robust_Baseline", "paper", "Robust_Defended", "noise", "paper", "Constant"),
    ]
    assert body[0].split()[1] == "0.8701"
    assert body[1].split()[1] == "0.8605"
    assert body[4].split()[1:6] == ["0.0047", "0.0000", "0.0000", "0.0000", "-0.9906"]
    assert body[7].split()[2:] == ["±0.0123"] * 9
    assert body[9].split()[2] == "0.5488"
    assert len({len(line) for line in body[:9]}) == 1  # columns line up
    notes = " ".join(text.split())
    assert "Robust_Defended is 4.6 percentage points above it" in notes
    rows["Robust_Defended"]["accuracy"] = 0.5
    below = metrics_table(rows, majority_class_accuracy=0.6)
    assert "10.0 percentage points below it" in " ".join(below.split())
    assert "mean of each metric over 20 predictions" in notes
    assert "Robust_Defended 0.529-0.659" in notes  # Wilson, 0.5953 of 215


def test_metrics_table_without_the_papers_figures(rows):
    text = metrics_table(rows, majority_class_accuracy=0.5, paper=False)
    assert not re.search(r"^ +paper ", text, re.MULTILINE)
    assert "The data are not the paper's" in " ".join(text.split())
    assert all(name in text for name in ROW_NAMES)


def test_metrics_table_with_intervals(rows, uncertainty):
    spread = {"Robust_Defended": dict.fromkeys(PAPER_METRICS["Robust_Defended"], 0.0123)}
    text = metrics_table(
        rows, majority_class_accuracy=0.5, paper=False, spread=spread, uncertainty=uncertainty
    )
    body = text.splitlines()[2:12]
    assert [line.split()[0] for line in body] == [
        *("Clean_Baseline", "95", "Clean_Defended", "95", "Robust_Baseline", "95"),
        *("Robust_Defended", "95", "noise", "Constant"),
    ]
    assert body[3].split() == ["95", "%", "interval", *["0.20–0.30"] * 9]
    assert max(map(len, text.splitlines())) <= 120
    notes = " ".join(text.split())
    assert "2000 resamples of whole slice series (152), as patients are not known." in notes
    assert "too narrow" not in notes
    clean = "Defended against Baseline, clean: accuracy -0.020 (95 % -0.120 to +0.080); right by"
    assert clean in notes
    assert "7 images that the other gets wrong, against 5 (McNemar p < 0.001)" in notes
    assert "mean probability +0.500 (95 % -0.500 to +0.500, DeLong p = 0.250)" in notes
    assert "Clean_Baseline 0.000, Clean_Defended 0.125, Robust_Baseline 0.250" in notes


def test_metrics_table_says_what_there_is_no_interval_of(rows, uncertainty):
    uncertainty["intervals"] = None
    for name in ("clean", "robust"):
        uncertainty["comparisons"][name]["difference"] = None
    uncertainty["comparisons"]["clean"]["delong"] = None  # more than two classes
    uncertainty["comparisons"]["robust"]["delong"]["p_value"] = None
    text = metrics_table(rows, majority_class_accuracy=0.5, uncertainty=uncertainty)
    notes = " ".join(text.split())
    assert "95 % interval " not in text
    assert "No bootstrap intervals: hardly a resample" in notes
    assert "Baseline, clean: right by majority on 7 images" in notes
    assert notes.count("DeLong p") == 1
    assert "DeLong p not defined" in notes


@pytest.mark.parametrize(
    ("kind", "n", "said"),
    [
        ("patient", 30, "whole patients (30)."),
        ("patient", 6, "whole patients (6)."),
        ("image", 215, "single images (215), taken as independent."),
    ],
)
def test_metrics_table_names_the_grouping(rows, uncertainty, kind, n, said):
    uncertainty["intervals"] |= {"clustered_by": kind, "n_clusters": n}
    notes = metrics_table(rows, majority_class_accuracy=0.5, uncertainty=uncertainty)
    notes = " ".join(notes.split())
    assert said in notes
    assert ("Of fewer than 20 they are too narrow" in notes) == (n < 20)


def test_timings_table_has_both_columns_of_the_paper(timings):
    lines = timings_table(timings).splitlines()
    assert lines[0].split() == ["stage", "seconds", "items", "peak", "memory", "paper", "CPU"] + [
        "paper",
        "GPU",
    ]
    for line, stage in zip(lines[2:8], PAPER_TIMINGS, strict=True):
        published = PAPER_TIMINGS[stage]
        assert line.split()[-2:] == [f"{published['cpu']:.2f}", f"{published['gpu']:.2f}"]
    assert lines[2].split()[-6:-2] == ["6.50", "1,500", "700", "MiB"]
    assert lines[7].startswith("Total of these five")
    assert lines[8].startswith("read images")
    assert lines[8].split()[-2:] == ["–", "–"]


def test_timings_table_with_a_missing_stage(timings):
    timings["rows"] = [r for r in timings["rows"] if r["stage"] != "autoattack_defended"]
    lines = timings_table(timings).splitlines()
    assert lines[6].split()[-5:] == ["–", "–", "–", "155.00", "70.30"]
    assert "the whole process" in " ".join("\n".join(lines).split())
    timings["device"] = "cuda"
    assert "on the device" in " ".join(timings_table(timings).split())


def test_timings_table_without_the_papers_seconds(timings):
    text = timings_table(timings, paper=False)
    assert "paper" not in text
    assert "155.00" not in text
    assert text.splitlines()[2].split()[-4:] == ["6.50", "1,500", "700", "MiB"]


def test_metrics_table_of_a_defence_without_noise(rows):
    spread = {"Robust_Defended": dict.fromkeys(PAPER_METRICS["Robust_Defended"], 0.0)}
    text = metrics_table(
        rows,
        majority_class_accuracy=0.5,
        spread=spread,
        n_predictions=1,
        paper_defence=False,
        random_defence=False,
    )
    assert "±" not in text
    assert "The defence has no noise: its rows are of one answer to each image." in text
    labels = [line.split("  ")[1] for line in text.splitlines() if line.startswith("  paper")]
    assert labels == ["paper", "paper (its own defence)"] * 2
