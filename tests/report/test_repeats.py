"""Summaries of several runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES
from nnmf_cuda.evaluation.headline import Headline
from nnmf_cuda.report.repeats import (
    EVALUATED,
    OWN_SPLIT,
    FoldsSummary,
    SeedsSummary,
    Spread,
    folds_page,
    folds_table,
    seeds_table,
)


def _spread(mean):
    return Spread(mean, 0.01, mean - 0.1, mean + 0.1)


def _seeds(n_seeds, mean, robust=True):
    return SeedsSummary(
        seeds=tuple(range(n_seeds)),
        one_split=True,
        majority_class_accuracy=0.55,
        rows={row: dict.fromkeys(METRIC_NAMES, _spread(mean)) for row in ROW_NAMES},
        robustness=dict.fromkeys(EVALUATED, _spread(0.4444)) if robust else {},
    )


def _headline(attacked):
    return Headline(
        attacked, 0.85, 0.55, ceiling=0.9, proven=attacked - 0.1, undecided=0.1, proof="search"
    )


def _folds(n_seeds=2, robust=True, own=True):
    splits = {OWN_SPLIT: _seeds(n_seeds, 0.8, robust)} if own else {}
    splits |= {"fold 1": _seeds(n_seeds, 0.6, robust), "fold 2": _seeds(n_seeds, 0.7, robust)}
    return FoldsSummary(splits, split_by="patient", source="scans.npz", preset="paper")


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


def test_folds_have_a_row_each_and_say_what_the_spread_is_over():
    text = folds_table(_folds())
    rows = [line for line in text.splitlines() if re.search(r"\d ± \d", line)]
    names = ["own split", "fold 1", "fold 2", "mean of folds"]
    assert [re.split(r"  +", row)[0] for row in rows] == names
    assert "± is over 2 seeds, in the last row over 2 folds" in " ".join(text.split())
    assert rows[1].split("  ")[-1].strip() == "0.550"
    assert "0.600 ± 0.010" in rows[1]
    assert "0.444 ± 0.010" in rows[1]
    assert "0.650 ± 0.071" in rows[3]
    one = folds_table(_folds(n_seeds=1))
    assert "± is over 2 folds" in " ".join(one.split())
    assert len(re.findall(r"\d ± \d", one)) == 6  # only over folds


def test_folds_page_folds_the_metrics_away():
    html = folds_page(_folds(), home="runs/cv")
    assert html.count("<details") == 5
    assert "Data: scans.npz · Run: runs/cv" in html
    assert "own split, mean ± over 2 seeds" in html
    assert "folds, mean ± over 2 folds" in html
    headline = html.partition("<details")[0]
    assert headline.index("worst case over all attacks") < headline.index("constant answer")
    assert "MCC" not in headline
    assert "MCC" in html
    without = folds_page(_folds(robust=False))
    assert "Worst case: not run (--evaluation honest)." in without
    assert without.count("<details") == 4


def test_the_evaluations_line_stands_for_each_fold_and_their_mean():
    splits = {
        name: replace(_seeds(1, 0.6), headline=_headline(attacked))
        for name, attacked in {OWN_SPLIT: 0.8, "fold 1": 0.6, "fold 2": 0.7}.items()
    }
    summary = FoldsSummary(splits, split_by="patient", source="scans.npz", preset="paper")
    mean = (
        "ceiling 0.900 >= attacked 0.650 >= proven 0.550, clean 0.850, constant answer 0.550,"
        " undecided 0.100"
    )
    text = " ".join(folds_table(summary).split())
    assert f"mean of folds: {mean}" in text
    assert "own split: ceiling 0.900 >= attacked 0.800" in text
    assert summary.as_dict()["folds"]["line"] == mean
    assert summary.as_dict()["splits"]["fold 2"]["line"] == _headline(0.7).line
    assert f"mean of folds: {mean}".replace(">=", "≥") in folds_page(summary)
    assert seeds_table(splits["fold 1"]).splitlines()[1].startswith("ceiling 0.900 >= attacked")
    splits["fold 2"] = _seeds(1, 0.6)
    summary = FoldsSummary(splits, split_by="patient", source="scans.npz", preset="paper")
    assert "mean of folds: ceiling" not in folds_table(summary)


def test_folds_without_an_own_split():
    assert folds_table(_folds(own=False)).startswith("2 folds by patient")
    assert "own split</th>" not in folds_page(_folds(own=False))


def test_summaries_as_json():
    content = _folds().as_dict()
    assert list(content) == ["seeds", "split_by", "folds", "splits", "about"]
    assert list(content["folds"]) == ["n_folds", "majority_class_accuracy", "rows", "robustness"]
    assert list(content["splits"]) == ["own split", "fold 1", "fold 2"]
    accuracy = content["folds"]["rows"]["Clean_Baseline"]["accuracy"]
    assert accuracy == pytest.approx({"mean": 0.65, "std": 0.0707, "low": 0.6, "high": 0.7}, 1e-3)
    fold = content["splits"]["fold 1"]
    assert set(fold["rows"]["Clean_Baseline"]["accuracy"]) == {"mean", "std", "low", "high"}
    assert "robustness" not in _seeds(1, 0.5, robust=False).as_dict()
    assert json.loads(json.dumps(content)) == content
