"""The benchmark of the consensus: its records, and one that does not agree."""

from __future__ import annotations

import numpy as np
import pytest

from bench import consensus
from bench.tables import baselines, records_table
from nnmf_cuda.benchmarks.records import read_records


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "records.jsonl"
    found = consensus.run_consensus_benchmarks(smoke=True, json_path=path)
    assert [record["impl"] for record in read_records([path])] == [one["impl"] for one in found]
    return found


def test_every_way_agrees_with_the_plain_steps(records):
    assert [record["status"] for record in records] == ["ok"] * 10, records
    assert [record["options"]["beta_loss"] for record in records] == [2.0] * 5 + [1.0] * 5
    assert [records[place]["correlation"] for place in (0, 5)] == pytest.approx([1, 1])
    assert all(0.99 <= record["correlation"] <= 1 + 1e-9 for record in records)
    assert [record["dtype"] for record in records[2:5]] == ["float64", "float64", "float32"]
    found = baselines(records)
    assert {records[place]["median_ms"] for place in (0, 5)} == set(found.values())
    table = records_table(records)
    assert "ours hals, sparse" in table
    assert "correlation" in table


def test_spectra_that_do_not_agree_are_recorded_as_failed(rng):
    goal = rng.random((3, 40))
    record = consensus._record(1.0, np.roll(goal, 1, axis=1), goal)
    assert record["status"] == "failed"
    assert "agrees to" in record["reason"]


def test_one_that_raises_does_not_hide_the_others(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(consensus, "_ours", broken)
    records = consensus.run_consensus_benchmarks(smoke=True)
    states = ["ok", "ok", "failed", "failed", "failed"]
    assert [record["status"] for record in records] == 2 * states
    assert "no memory" in records_table(records)
