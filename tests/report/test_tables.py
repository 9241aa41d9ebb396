"""Plain-text tables."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from nnmf_cuda.evaluation import (
    METRIC_NAMES,
    PAPER_METRICS,
    PAPER_TIMINGS,
    ROW_NAMES,
    EvaluatedRows,
    Metrics,
)
from nnmf_cuda.report.tables import MetricTable, StageTable


@pytest.fixture
def make(uncertainty):
    """Return a function that makes the table of the paper's own figures, but for some accuracies.

    Its other arguments are fields of `MetricTable`.
    """

    def make(accuracies=None, spread=None, n_predictions=20, n_positive=118, **fields):
        rows = {}
        for name, published in PAPER_METRICS.items():
            changed = {"accuracy": (accuracies or {}).get(name, published["accuracy"])}
            rows[name] = Metrics(
                **{**dict.fromkeys(METRIC_NAMES, 0.5), **published, **changed}, n=215
            )
        spreads = {} if spread is None else {"Robust_Defended": dict.fromkeys(METRIC_NAMES, spread)}
        labels = (np.arange(215) < n_positive).astype(np.int64)
        fields = {"uncertainty": uncertainty, "papers_images": True, **fields}
        return MetricTable(EvaluatedRows(rows, spreads, {}, labels, n_predictions), **fields)

    return make


def test_metric_table_holds_ours_the_papers_and_the_constant_answer(make, uncertainty):
    without = replace(uncertainty, intervals=None)
    text = make({"Clean_Baseline": 0.8701}, spread=0.0123, uncertainty=without).text()
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
    assert body[7].split()[2:] == ["±0.0123"] * len(METRIC_NAMES)
    assert body[9].split()[2] == "0.5488"
    assert len({len(line) for line in body[:9]}) == 1  # columns line up
    notes = " ".join(text.split())
    assert "Robust_Defended is 4.6 percentage points above it" in notes
    below = make({"Robust_Defended": 0.4488}).text()
    assert "10.0 percentage points below it" in " ".join(below.split())
    assert "mean of each metric over 20 predictions" in notes
    assert "Robust_Defended 0.529-0.659" in notes
    assert "Brier and log loss: lower is better" in notes


def test_metric_table_without_the_papers_figures(make):
    text = make(papers_images=False).text()
    assert not re.search(r"^ +paper ", text, re.MULTILINE)
    assert "The data are not the paper's" in " ".join(text.split())
    assert all(name in text for name in ROW_NAMES)


def test_metric_table_with_intervals(make):
    text = make(spread=0.0123, papers_images=False).text()
    body = text.splitlines()[2:12]
    assert [line.split()[0] for line in body] == [
        *("Clean_Baseline", "95", "Clean_Defended", "95", "Robust_Baseline", "95"),
        *("Robust_Defended", "95", "noise", "Constant"),
    ]
    assert body[3].split() == ["95", "%", "interval", *["0.20–0.30"] * len(METRIC_NAMES)]
    assert max(map(len, text.splitlines())) <= 120
    notes = " ".join(text.split())
    assert "2000 resamples of whole slice series (152), as patients are not known." in notes
    assert "too narrow" not in notes
    clean = "Defended against Baseline, clean: accuracy -0.020 (95 % -0.120 to +0.080); right by"
    assert clean in notes
    assert "7 images that the other gets wrong, against 5 (McNemar p < 0.001)" in notes
    assert "mean probability +0.500 (95 % -0.500 to +0.500, DeLong p = 0.250)" in notes
    assert "Clean_Baseline 0.000, Clean_Defended 0.125, Robust_Baseline 0.250" in notes


def test_metric_table_says_what_there_is_no_interval_of(make, uncertainty):
    clean = replace(uncertainty.clean, difference=None, delong=None)  # more than two classes
    perfect = replace(uncertainty.robust.delong, p_value=np.nan, low=np.nan, high=np.nan)
    robust = replace(uncertainty.robust, difference=None, delong=perfect)
    found = replace(uncertainty, intervals=None, clean=clean, robust=robust)
    text = make(uncertainty=found).text()
    notes = " ".join(text.split())
    assert "95 % interval " not in text
    assert "No bootstrap intervals: hardly a resample" in notes
    assert "Baseline, clean: right by majority on 7 images" in notes
    assert "DeLong p" not in notes


@pytest.mark.parametrize(
    ("kind", "n", "said"),
    [
        ("patient", 30, "whole patients (30)."),
        ("patient", 6, "whole patients (6)."),
        ("image", 215, "single images (215), taken as independent."),
    ],
)
def test_metric_table_names_the_grouping(make, uncertainty, kind, n, said):
    intervals = replace(uncertainty.intervals, clustered_by=kind, n_clusters=n)
    notes = " ".join(make(uncertainty=replace(uncertainty, intervals=intervals)).notes())
    assert said in notes
    assert ("Of fewer than 20 they are too narrow" in notes) == (n < 20)


def test_metric_table_of_a_defence_without_noise(make):
    table = make(spread=0.0, n_predictions=1, papers_defence=False, draws_noise=False)
    text = table.text()
    assert "±" not in text
    assert "The defence has no noise: its rows are of one answer to each image." in text
    labels = [line.split("  ")[1] for line in text.splitlines() if line.startswith("  paper")]
    assert labels == ["paper", "paper (its own defence)"] * 2


def test_stage_table_has_both_columns_of_the_paper(timings):
    lines = StageTable(timings, paper=True).text().splitlines()
    titles = "stage seconds items peak memory paper CPU paper GPU"
    assert lines[0].split() == titles.split()
    for line, stage in zip(lines[2:8], PAPER_TIMINGS, strict=True):
        published = PAPER_TIMINGS[stage]
        assert line.split()[-2:] == [f"{published['cpu']:.2f}", f"{published['gpu']:.2f}"]
    assert lines[2].split()[-6:-2] == ["6.50", "1,500", "700", "MiB"]
    assert lines[7].startswith("Total of these five")
    assert lines[8].startswith("read images")
    assert lines[8].split()[-2:] == ["–", "–"]


def test_stage_table_with_a_missing_stage(timings):
    rows = tuple(row for row in timings.stages if row.stage != "autoattack_defended")
    lines = StageTable(replace(timings, stages=rows), paper=True).text().splitlines()
    assert lines[6].split()[-5:] == ["–", "–", "–", "155.00", "70.30"]
    assert "the whole process" in " ".join("\n".join(lines).split())
    on_cuda = StageTable(replace(timings, device="cuda"), paper=True).text()
    assert "on the device" in " ".join(on_cuda.split())


def test_stage_table_without_the_papers_seconds(timings):
    text = StageTable(timings, paper=False).text()
    assert "paper" not in text
    assert "155.00" not in text
    assert text.splitlines()[2].split()[-4:] == ["6.50", "1,500", "700", "MiB"]
