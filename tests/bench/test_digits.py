"""The benchmark of SNnet beside PCANet: honest parts, the size chosen on validation alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench import digits
from bench.tables import records_table
from nnmf_cuda.benchmarks.records import read_records


def test_parts_are_disjoint_and_hold_all_digits():
    images, labels, parts = digits._digits(3)
    together = np.sort(np.concatenate(list(parts.values())))
    np.testing.assert_array_equal(together, np.arange(1797))
    assert images.min() == 0
    assert images.max() == 1
    for part, share in digits._SHARES.items():
        assert len(parts[part]) == pytest.approx(share * 1797, abs=1)
        counts = np.bincount(labels[parts[part]])
        assert counts.min() > 0.8 * counts.max()
    assert not np.array_equal(parts["test"], digits._digits(4)[2]["test"])


def test_all_is_measured_and_told(tmp_path):
    path = tmp_path / "records.jsonl"
    records = digits.run_digits_benchmarks(smoke=True, json_path=path)
    assert read_records([path]) == [json.loads(json.dumps(r)) for r in records]
    assert [record["impl"] for record in records] == ["PCANet", "SNnet", "S-SNnet"]
    for record in records:
        assert record["accuracy"] == np.mean(record["accuracies"])
        assert record["valid_accuracy"] == np.mean(record["valid_accuracies"])
        assert len(record["accuracies"]) == len(record["valid_accuracies"]) == 2
        assert record["accuracy"] > 0.9
        difference = record["accuracy"] - records[0]["accuracy"]
        assert record["beside_pcanet"] == pytest.approx(difference)
    assert "beside PCANet" in records_table(records)


def test_the_size_is_chosen_on_validation_parts(monkeypatch):
    best = {(3, (6, 6)): (0.9, 0.99), (5, (6, 6)): (0.95, 0.5), (5, (8, 8)): (0.8, 1.0)}

    def found(filters, size, seeds, smoke, done):
        valid, test = best[size]
        return digits._Found([valid], [test], [1.0])

    monkeypatch.setattr(digits, "_found", found)
    records = digits.run_digits_benchmarks()
    told = [record for record in records if record["accuracy"] is not None]
    assert len(records) == 9
    assert [record["shape"]["patch"] for record in told] == [5, 5, 5]
    assert {record["accuracy"] for record in told} == {0.5}
    assert records_table(records).count("50.00%") == 3
