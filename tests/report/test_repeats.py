"""Summaries of several runs."""

from __future__ import annotations

import re

import pytest

from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES
from nnmf_cuda.report.repeats import folds_page, folds_table, seeds_table


def _cell(mean, std=0.01):
    return {"mean": mean, "std": std, "low": mean - 0.1, "high": mean + 0.1}


def _seeds(n_seeds, mean, robust=True):
    summary = {
        "seeds": list(range(n_seeds)),
        "one_split": True,
        "majority_class_accuracy": 0.55,
        "rows": {row: dict.fromkeys(METRIC_NAMES, _cell(mean)) for row in ROW_NAMES},
    }
    names = ("clean_accuracy", "worst_case_accuracy", "all_right_accuracy")
    return summary | ({"robustness": dict.fromkeys(names, _cell(0.4444))} if robust else {})


@pytest.fixture
def summary():
    folds = {**_seeds(1, 0.7), "n_folds": 2, "majority_class_accuracy": _cell(0.56)}
    return {
        "seeds": [0, 1],
        "split_by": "patient",
        "folds": folds,
        "splits": {"own split": _seeds(2, 0.8), "fold 1": _seeds(2, 0.6), "fold 2": _seeds(2, 0.7)},
    }


def test_seeds_table_begins_with_constant_answer_and_worst_case():
    lines = seeds_table(_seeds(2, 0.8)).splitlines()
    assert lines[1].split() == ["constant", "answer", "0.5500"]
    assert lines[2].startswith("worst case over all attacks")
    assert lines[2].endswith("0.4444 ± 0.0100")
    text = "\n".join(lines)
    assert "\nF1 " in text
    assert "\nMCC " in text
    assert "balanced_accuracy" not in text
    assert "worst case" not in seeds_table(_seeds(2, 0.8, robust=False))


def test_folds_have_a_row_each_and_say_what_the_spread_is_over(summary):
    text = folds_table(summary)
    rows = [line for line in text.splitlines() if re.search(r"\d ± \d", line)]
    names = ["own split", "fold 1", "fold 2", "mean of folds"]
    assert [re.split(r"  +", row)[0] for row in rows] == names
    assert "± is over 2 seeds, in the last row over 2 folds" in " ".join(text.split())
    assert rows[1].split("  ")[-1].strip() == "0.550"
    assert "0.600 ± 0.010" in rows[1]
    assert "0.444 ± 0.010" in rows[1]
    summary["seeds"] = [0]
    one = folds_table(summary)
    assert "± is over 2 folds" in " ".join(one.split())
    assert len(re.findall(r"\d ± \d", one)) == 6  # only over folds


def test_folds_page_folds_the_nine_metrics_away(summary):
    summary["about"] = {"source": "scans.npz", "date": "2026-11-28"}
    html = folds_page(summary, home="runs/cv")
    assert html.count("<details") == 5
    assert "Data: scans.npz · Run: runs/cv · Date: 2026-11-28" in html
    assert "own split, mean ± over 2 seeds" in html
    assert "folds, mean ± over 2 folds" in html
    headline = html.partition("<details")[0]
    assert headline.index("worst case over all attacks") < headline.index("constant answer")
    assert "MCC" not in headline
    assert "MCC" in html
    del summary["folds"]["robustness"]
    assert "Worst case: not run (--evaluation honest)." in folds_page(summary)


def test_folds_without_an_own_split(summary):
    del summary["splits"]["own split"]
    assert folds_table(summary).startswith("2 folds by patient")
    assert "own split</th>" not in folds_page(summary)
