"""Scaling along each axis, and the memory of a fit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from bench import kernels, memory
from bench.case import Size
from bench.cases import get_cases
from bench.inputs import PAPER
from bench.tables import records_table
from nnmf_cuda.benchmarks.records import MEASURED


def test_scaling_smoke_run():
    records = kernels.run_scaling_benchmarks(smoke=True)
    assert {r["options"]["axis"] for r in records} == {*kernels.AXES, "threads"}
    for record in records:
        assert record["status"] == "ok", record
        assert record["suite"] == "scaling"
        assert record["impl"] == "ours"
        assert record["rates"]["gflops"] > 0
    assert "GFLOP/s" in records_table(records)


def test_every_axis_goes_through_the_papers_size():
    problems = kernels.scaling_problems(smoke=False, threads=True)
    for axis, values in kernels.AXES.items():
        along = [p for p in problems if p.size.options["axis"] == axis]
        assert [p.size.shape[axis] for p in along] == list(values)
        assert PAPER.get(axis, 1) in values
        fixed = {name: value for name, value in PAPER.items() if name != axis}
        assert all(fixed.items() <= p.size.shape.items() for p in along)


@pytest.mark.parametrize(("most", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6])])
def test_thread_counts(monkeypatch, most, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: most)
    assert kernels.thread_counts() == expected


def test_threads_are_set_for_a_problem_and_restored(monkeypatch):
    before = torch.get_num_threads()
    meanwhile = []

    def measure(problem, **options):
        meanwhile.append(torch.get_num_threads())
        return {"ours": dict(MEASURED)}

    monkeypatch.setattr(kernels, "measure_problem", measure)
    (case,) = get_cases(["nnmf_mu"])
    records = kernels.run_problems(
        [kernels.Problem(case, case.smoke[0], threads=n) for n in (before + 1, None)],
        suite="scaling",
        device="cpu",
        min_run_seconds=0.01,
        smoke=True,
        json_path=None,
        progress=False,
    )
    assert [r["threads"] for r in records] == meanwhile == [before + 1, before]
    assert torch.get_num_threads() == before


def test_the_first_and_the_last_start_of_a_batch_are_verified(monkeypatch):
    (case,) = get_cases(["nnmf_mu"])
    shape = {"n_samples": 9, "n_features": 33, "n_components": 3, "n_batch": 4, "n_iter": 2}
    size = Size("batch", shape, "float32", {"beta_loss": 1.0})
    inputs = case.inputs(size, 0, torch.device("cpu"))
    problem = kernels.Problem(case, size, only=("ours",))
    assert list(kernels.verify(problem, inputs)[1]) == ["ours"]
    for wrong in (0, 3):
        right = case.implementations["ours"]

        def broken(inputs, wrong=wrong, right=right):
            other = {**inputs, "W": inputs["W"].clone()}
            other["W"][wrong] *= 1.5
            other["W"][wrong, 0] = 0
            return right(other)

        monkeypatch.setitem(case.implementations, "ours", broken)
        assert not kernels.verify(problem, inputs)[1]
        monkeypatch.undo()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_smoke_run(monkeypatch):
    def in_a_process(impl, dtype, shape):  # a real one for ours with pixels only: seconds each
        started = (impl, dtype) == ("ours", "uint8") or "scikit" in impl and dtype == "uint8"
        return real(impl, dtype, shape) if started else {"status": "skipped", "reason": "slow"}

    real = memory.fit_in_a_process
    monkeypatch.setattr(memory, "fit_in_a_process", in_a_process)
    records = memory.run_memory_benchmarks(smoke=True)
    found = {(r["impl"], r["dtype"]): r for r in records}
    assert list(found) == [
        (impl, dtype) for dtype in ("float32", "uint8") for impl in memory.LIBRARIES
    ]
    ours = found["ours", "uint8"]
    assert ours["status"] == "ok", ours["reason"]
    assert ours["x_bytes"] == 100 * 300
    assert ours["peak_bytes"] >= 0
    assert found["scikit-learn mu", "uint8"]["reason"] == "takes floating point only"
    assert "of X" in records_table(records)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_measured_memory_is_what_a_fit_takes(monkeypatch):
    def greedy(impl, X, n_components, n_iter):
        if X.shape[0] > 8:  # the fit itself, not the warming up
            assert np.ones(5 * X.size, X.dtype).sum() > 0

    monkeypatch.setattr(memory, "_fit", greedy)
    found = memory.fit_memory("ours", "float32", torch.get_num_threads(), 1, 1000, 10_000, 3)
    assert found["x_bytes"] == 40_000_000
    assert found["peak_bytes"] == pytest.approx(200e6, rel=0.1)


def test_a_fit_that_fails_is_reported(monkeypatch):
    found = memory.fit_in_a_process("ours", "float32", {"n": 3, "f": 3, "k": 0})
    assert found["status"] == "failed"
    assert "n_components must be an integer >= 1, got 0" in found["reason"]
