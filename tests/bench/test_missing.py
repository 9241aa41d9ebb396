"""The benchmark of missing entries: data as promised, verified iterations, what fits find."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench import missing
from bench.tables import records_table
from nnmf_cuda import ops
from nnmf_cuda.benchmarks.records import read_records


def test_counts_are_those_of_planted_parts():
    X, means, parts = missing.planted_counts(300, 50, 4, seed=1)
    assert X.shape == means.shape == (300, 50)
    assert (X == X.round()).all()
    assert means.mean() == pytest.approx(10)
    assert np.linalg.matrix_rank(means) == 4
    assert np.linalg.lstsq(parts.T, means.T)[1].max() < 1e-20  # made of the parts
    # Poisson: the variance is the mean.
    assert ((X - means) ** 2 / means).mean() == pytest.approx(1, abs=0.1)


def test_all_is_measured_and_told(tmp_path):
    path = tmp_path / "records.jsonl"
    records = missing.run_missing_benchmarks(smoke=True, json_path=path)
    assert read_records([path]) == [json.loads(json.dumps(r)) for r in records]
    for record in records:
        assert record["status"] == "ok", record["reason"]
    costs, found = records[:-4], {record["impl"]: record for record in records[-4:]}
    assert [record["impl"] for record in costs] == 5 * ["all entries", "30 % masked", "weights"]
    assert {record["times_as_long"] for record in costs[::3]} == {1}
    assert all(record["times_as_long"] > 0 and record["median_ms"] > 0 for record in costs)
    assert all(0 < record["max_err"] <= record["tolerance"] for record in costs)
    zeros, means = found["zeros in place"], found["column means in place"]
    for way in ("sees all", "mask"):
        assert found[way]["cosine"] > max(zeros["cosine"], means["cosine"])
        assert found[way]["hidden_error"] < min(zeros["hidden_error"], means["hidden_error"])
        assert len(found[way]["cosines"]) == len(found[way]["hidden_errors"]) == 4
    table = records_table(records)
    assert "column means in place" in table
    assert "times as long" in table


def test_an_iteration_that_is_wrong_is_recorded_as_failed(monkeypatch):
    right = ops.nnmf_mu

    def wrong(*args, **kwargs):
        W, H, divergence = right(*args, **kwargs)
        return (W if ops.is_reference_path() else 2 * W), H, divergence

    monkeypatch.setattr(ops, "nnmf_mu", wrong)
    records = missing._costs(missing._Iteration("nnmf_mu", 1.0, 20, 15, 2), rounds=2)
    assert [record["status"] for record in records.values()] == ["failed"] * 3
    assert all("is above" in record["reason"] for record in records.values())
