"""The stage benchmark, on a tiny experiment."""

from __future__ import annotations

import json

import pytest

from nnmf_cuda.benchmarks import run_stage_benchmarks
from nnmf_cuda.timing import PAPER_STAGES


@pytest.mark.slow
def test_stage_benchmark_times_the_papers_stages(tmp_path):
    from nnmf_cuda.pipeline.config import (
        AttackConfig,
        ClassifierConfig,
        DiffusionConfig,
        ExperimentConfig,
        NNMFConfig,
    )

    config = ExperimentConfig(
        nnmf=NNMFConfig(n_components=4, max_iter=5),
        classifier=ClassifierConfig(epochs=2),
        diffusion=DiffusionConfig(epochs=2, n_draws=2),
        attack=AttackConfig(n_iter=3, n_restarts=1, n_queries=10),
        n_predictions=2,
    )
    path = tmp_path / "stages.jsonl"
    table = run_stage_benchmarks(config=config, json_path=path)
    assert "paper CPU" in table
    (record,) = [json.loads(line) for line in path.read_text().splitlines()]
    seconds = {row["stage"]: row["seconds"] for row in record["rows"]}
    assert all(seconds[stage] > 0 for stage in PAPER_STAGES)
    assert record["synthetic"]
    assert record["op"] == "stages"
    assert record["environment"]["threads"] >= 1
