"""What a step asks of the host: counts are right; times are not looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import host_time
from bench.host_time import Case, cases, measured, this_tree, ways


def test_operations_and_waits_are_those_of_a_step():
    x = torch.rand(3)

    def run(n: int) -> None:
        x.add(1)  # once, whatever n
        for _ in range(n):
            x.mul(2).sum().item()

    line = measured(Case("made up", run, 2, 7, 1), "step by step")
    assert (line.operations, line.waits, line.n_steps) == (3, 1, 5)


def test_a_replayed_step_asks_the_host_for_little(monkeypatch):
    monkeypatch.setattr(host_time, "STEPS", 12)
    names = [
        "APGD, a step, defended",
        "NNMF, ten iterations, accelerated-mu",
        "AutoAttack's Square, a query, CNN",
    ]
    lines = {(line.case, line.way): line for line in this_tree(names)}
    for name in names[:2]:
        plain, replayed = lines[name, "step by step"], lines[name, "replayed"]
        assert plain.operations > 30
        assert replayed.operations < plain.operations / 2
    assert lines[names[2], "step by step"].waits == pytest.approx(1, abs=0.1)
    assert lines[names[2], "looking once in 16"].waits < 0.1


def test_the_record_has_every_case_in_every_way_before_and_now():
    record = json.loads(Path("bench/results/host-time-2-cores.json").read_text("utf-8"))
    found = {(line["case"], line["tree"], line["way"]) for line in record["lines"]}
    assert found == {
        (case.name, tree, way)
        for case in cases()
        for tree in ("before", "this")
        for way in (ways(case) if tree == "this" else ["step by step"])
    }
