"""The benchmark runner: verification before timing, records, selection of cases."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest
import torch

from nnmf_cuda import benchmarks
from nnmf_cuda.benchmarks import Case, NotApplicableError, Size, cases, registry, runner
from nnmf_cuda.benchmarks.measure import extra_peak_bytes, largest_error

OPS = ("nnmf_mu", "nnmf_divergence", "nnls", "project", "purify")
KEYS = {
    *("op", "size", "impl", "served_by", "shape", "dtype", "options", "status", "reason"),
    *("median_ms", "p25", "p75", "n", "timer", "peak_bytes", "max_err", "tolerance", "smoke"),
    *("device", "device_name", "torch", "cuda", "nnmf_cuda", "commit", "threads", "date"),
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "new" / "records.jsonl"
    records = benchmarks.run_kernel_benchmarks(smoke=True, json_path=path)
    return records, path


def test_smoke_run_verifies_and_times_everything(smoke):
    records, _ = smoke
    assert tuple(dict.fromkeys(r["op"] for r in records)) == OPS
    implementations = {(r["op"], r["impl"]) for r in records}
    assert implementations == {
        *((op, impl) for op in OPS for impl in ("reference", "ours")),
        *(("nnmf_mu", "scikit-learn"), ("nnls", "scipy"), ("project", "scipy")),
    }
    for record in records:
        assert set(record) == KEYS
        assert record["status"] == "ok", record
        assert record["max_err"] <= record["tolerance"]
        assert 0 < record["p25"] <= record["median_ms"] <= record["p75"]
        assert record["n"] >= 3
        assert record["device"] == "cpu"


def test_records_are_lines_of_json_and_appended(smoke):
    records, path = smoke
    assert [json.loads(line) for line in path.read_text().splitlines()] == records
    more = benchmarks.run_kernel_benchmarks(cases=["nnls"], smoke=True, json_path=path)
    assert {r["op"] for r in more} == {"nnls"}
    assert len(path.read_text().splitlines()) == len(records) + len(more)


def test_served_by_says_what_ran(smoke):
    from nnmf_cuda import show_config

    served = show_config()["ops"]
    for record in smoke[0]:
        expected = {"reference": "reference", "ours": served[record["op"]]["cpu"]}
        assert record["served_by"] == expected.get(record["impl"], "library")


@pytest.mark.parametrize("op", OPS)
def test_every_size_has_a_tolerance_and_inputs_of_its_shape(op):
    (case,) = registry.get_cases([op])
    for size in (*case.sizes, case.smoke):
        tiny = Size(
            size.name, {k: min(v, 4) for k, v in size.shape.items()}, size.dtype, size.options
        )
        inputs = case.inputs(tiny, 0, torch.device("cpu"))
        again = case.inputs(tiny, 0, torch.device("cpu"))
        other = case.inputs(tiny, 1, torch.device("cpu"))
        first = next(iter(inputs))
        assert torch.equal(inputs[first], again[first])
        assert not torch.equal(inputs[first], other[first])
        assert 0 < runner._tolerance(case, inputs) < 1e-3
        truth = case.truth(inputs)
        for name, build in case.implementations.items():
            try:
                assert largest_error(build(inputs)(), truth) < 1e-3, name
            except NotApplicableError:
                assert size.dtype == "uint8"


@pytest.fixture
def toy(monkeypatch):
    """Replace the registry by one toy case: doubling."""
    assert cases  # imported before, so that it does not register itself in the toy registry
    calls: list[str] = []

    def wrong(inputs):
        def call():
            calls.append("wrong")
            return 2.001 * inputs["x"]

        return call

    def broken(inputs):
        raise RuntimeError("no such kernel\nwith details")

    def other_device(inputs):
        raise NotApplicableError("runs elsewhere")

    def not_installed(inputs):
        import a_package_that_is_not_there  # noqa: F401

    def slow(inputs):
        def call():
            time.sleep(0.01)
            return 2 * inputs["x"]

        return call

    size = Size("only", {"n": 3})
    case = Case(
        op="nnls",
        sizes=(size,),
        smoke=size,
        inputs=lambda size, seed, device: {"x": torch.ones(size.shape["n"])},
        truth=lambda inputs: 2 * inputs["x"].double(),
        implementations={
            "reference": lambda inputs: lambda: 2 * inputs["x"],
            "wrong": wrong,
            "broken": broken,
            "elsewhere": other_device,
            "absent": not_installed,
            "slow": slow,
        },
        tolerance={"float32": 1e-6},
    )
    monkeypatch.setattr(registry, "_CASES", {"nnls": case})
    return calls


def test_wrong_and_broken_implementations_are_never_timed(toy, tmp_path):
    path = tmp_path / "records.jsonl"
    records = benchmarks.run_kernel_benchmarks(min_run_seconds=0.05, json_path=path)
    found = {r["impl"]: r for r in records}
    assert toy == ["wrong"]  # called once, to be verified
    assert {k: r["status"] for k, r in found.items()} == {
        "reference": "ok",
        "wrong": "failed",
        "broken": "failed",
        "elsewhere": "skipped",
        "absent": "skipped",
        "slow": "ok",
    }
    assert found["wrong"]["reason"] == "wrong: error 0.0005 above 1e-06"
    assert found["wrong"]["median_ms"] is None
    assert found["wrong"]["max_err"] == pytest.approx(5e-4, rel=1e-3)
    assert found["broken"]["reason"] == "RuntimeError: no such kernel"
    assert found["elsewhere"]["reason"] == "runs elsewhere"
    assert "a_package_that_is_not_there" in found["absent"]["reason"]
    assert 10 <= found["slow"]["median_ms"] < 100
    table = benchmarks.records_table(records)
    line = next(x for x in table.splitlines() if " slow " in x)
    ratio = found["reference"]["median_ms"] / found["slow"]["median_ms"]
    assert f"{ratio:.2f} x" in line
    assert "failed" in next(x for x in table.splitlines() if " broken " in x)


def test_register(toy):
    (case,) = registry.get_cases()
    with pytest.raises(ValueError, match="op='nnls' has a benchmark case"):
        benchmarks.register(case)
    benchmarks.register_implementation("nnls", "peer", lambda inputs: lambda: 2 * inputs["x"])
    with pytest.raises(ValueError, match="has an implementation 'peer'"):
        benchmarks.register_implementation("nnls", "peer", lambda inputs: lambda: None)
    assert "peer" in {r["impl"] for r in benchmarks.run_kernel_benchmarks(smoke=True)}


def test_table_of_a_smoke_run(smoke):
    table = benchmarks.records_table(smoke[0])
    assert not re.search(r"\d\.\d\d x", table)  # no speeds from tiny problems
    assert "Smoke run" in table
    for op in OPS:
        assert any(line.startswith(f"{op} smoke float32") for line in table.splitlines())
    assert benchmarks.records_table([]) == "no records"


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"no benchmark case \['nmf'\]; choose from nnmf_mu"):
        benchmarks.run_kernel_benchmarks(cases=["nmf"])
    with pytest.raises(ValueError, match="min_run_seconds=0"):
        benchmarks.run_kernel_benchmarks(min_run_seconds=0)
    with pytest.raises(ValueError, match="nowhere"):
        benchmarks.run_kernel_benchmarks(device="nowhere")


def test_largest_error():
    truth = (torch.tensor([1.0, -4.0]), torch.tensor(2.0))
    assert largest_error(truth, truth) == 0
    assert largest_error((np.array([1.0, -4.4]), 2.0), truth) == pytest.approx(0.1)
    assert largest_error((np.array([1.0, -4.0]), 3.0), truth) == pytest.approx(0.5)
    assert largest_error(truth[:1], truth) == np.inf
    assert largest_error(torch.tensor([1.0, np.nan]), truth[0]) == np.inf
    assert largest_error(torch.zeros(3), truth[0]) == np.inf


def test_extra_peak_bytes_sees_what_a_call_takes():
    found = extra_peak_bytes(lambda: np.ones(30_000_000), device=torch.device("cpu"))  # 240 MB
    if found is None:
        pytest.skip("the peak resident set cannot be reset here")
    assert 200e6 < found < 400e6


@pytest.mark.needs_cuda
def test_smoke_run_on_cuda():
    records = benchmarks.run_kernel_benchmarks(device="cuda", smoke=True)
    assert {r["op"] for r in records} == set(OPS)
    for record in records:
        expected = "skipped" if record["served_by"] == "library" else "ok"
        assert record["status"] == expected, record
        if expected == "ok":
            assert record["timer"] == "interleaved_cuda_events_l2_flushed"
