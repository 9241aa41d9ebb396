"""The benchmark of sparse counts: data as promised, verified fits, a table."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.sparse import newsgroups_like, run_sparse_benchmarks
from bench.tables import records_table
from nnmf_cuda.benchmarks.records import read_records


def test_counts_are_like_those_of_documents():
    X = newsgroups_like(1000, 10000, 20, seed=1)
    assert X.shape == (1000, 10000)
    assert X.has_canonical_format
    assert (X.data == X.data.round()).all()
    assert X.data.min() >= 1
    assert 0.005 < X.nnz / (1000 * 10000) < 0.009
    documents = np.sort(np.bincount(X.indices, minlength=10000))[::-1]
    assert documents[0] > 20 * documents[1000] > 0
    assert (X != newsgroups_like(1000, 10000, 20, seed=1)).nnz == 0


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_all_is_measured_and_told(tmp_path):
    path = tmp_path / "records.jsonl"
    records = run_sparse_benchmarks(smoke=True, json_path=path)
    assert read_records([path]) == [json.loads(json.dumps(r)) for r in records]
    fits = [r for r in records if r["op"] == "sparse fit"]
    assert {r["impl"] for r in fits} == {
        *("scikit-learn mu", "scikit-learn cd"),
        *("ours mu", "ours accelerated-mu", "ours cd", "ours hals"),
    }
    for record in records:
        assert record["status"] == "ok", record["reason"]
        if record["op"].startswith("sparse memory"):
            assert record["x_bytes"] > 0
        else:
            assert record["median_ms"] > 0
    assert all(r["objective"] <= r["goal"] for r in fits)
    of_estimator = {r["impl"] for r in records if r["op"] == "sparse memory of fit"}
    assert of_estimator == {"ours mu", "ours hals"}
    table = records_table(records)
    assert all(f"ours {op}" in table for op in ("nnmf_mu", "nnmf_cd", "nnmf_hals"))
    assert "MiB" in table
