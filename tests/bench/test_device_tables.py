"""Equality with scikit-learn, the break-even size, and the page that shows both."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from bench import break_even, equality
from bench.break_even import COPIES, ON_CPU, ON_DEVICE, break_even_size
from bench.cases import get_cases
from bench.plot import write_device_tables
from bench.tables import break_even_table, equality_table, records_table
from nnmf_cuda import ops
from nnmf_cuda.benchmarks.records import read_records
from tests.helpers import DEVICES


@pytest.fixture
def few(monkeypatch):
    """Leave a few problems of each kind."""
    monkeypatch.setattr(equality, "BETA_LOSSES", (1.0, 0.0))
    monkeypatch.setattr(equality, "ITERATIONS", (1, 3))


@pytest.mark.parametrize("device", DEVICES)
def test_updates_equal_scikit_learns(device, tmp_path):
    path = tmp_path / "records.jsonl"
    records = equality.run_equality_benchmarks(device=device, smoke=True, json_path=path)
    assert {r["dtype"] for r in records} == {"float64", "float32", "uint8"}
    assert {r["options"]["beta_loss"] for r in records} == set(equality.BETA_LOSSES)
    for record in records:
        assert record["status"] == "ok", record["reason"]
        assert list(record["differences"]) == ["1", "10", "100"]
        rounding = 1e-12 if record["dtype"] == "float64" else 2e-5
        assert 0 < record["max_err"] < rounding
    assert read_records([path]) == records
    assert "2e-05" not in records_table(records)


def test_one_wrong_entry_is_a_difference(few, monkeypatch):
    right = ops.nnmf_mu

    def wrong(X, W, H, *, n_iter, **options):
        new_W, new_H, divergence = right(X, W, H, n_iter=n_iter, **options)
        if n_iter == 3 and W.dtype == torch.float32:
            new_H[0, 0] += 1e-3 * new_H.max()
        return new_W, new_H, divergence

    monkeypatch.setattr(ops, "nnmf_mu", wrong)
    records = equality.run_equality_benchmarks(smoke=True)
    for record in records:
        if record["dtype"] == "float64":
            assert record["status"] == "ok"
        else:
            assert record["status"] == "failed"
            assert record["reason"] == "H after 3 iterations: 0.001 above 2e-05"
            assert record["differences"]["1"]["H"] < 2e-5 < record["differences"]["3"]["H"]


def test_nan_and_exceptions_fail(few, monkeypatch):
    monkeypatch.setattr(equality, "_ours", lambda X, W, H, *_: (W.numpy(), H.numpy(), np.nan))
    assert {r["status"] for r in equality.run_equality_benchmarks(smoke=True)} == {"failed"}

    def broken(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(equality, "_ours", broken)
    records = equality.run_equality_benchmarks(smoke=True)
    assert {r["reason"] for r in records} == {"RuntimeError: no such kernel"}
    assert "failed" in equality_table(records)


def test_a_page_says_what_no_gpu_has_run(few, tmp_path, monkeypatch):
    records = equality.run_equality_benchmarks(smoke=True)
    path, page = tmp_path / "records.jsonl", tmp_path / "page.md"
    real = [{**r, "smoke": False} for r in records]
    path.write_text("".join(f"{json.dumps(r)}\n" for r in real))
    page.write_text(
        "# Title\n<!-- equality -->\n<!-- /equality -->\nbetween\n"
        "<!-- break_even -->\nold\n<!-- /break_even -->\n<!-- stages -->\n<!-- /stages -->\nend\n"
    )
    assert write_device_tables([path], page=page) == page
    text = re.sub(" +", " ", page.read_text())
    assert text.startswith("# Title\n<!-- equality -->\n| divergence | X | ")
    assert "a GPU, W | a GPU, H | a GPU, objective |" in text
    row = next(line for line in text.splitlines() if "31 x 129 x 5 uint8" in line)
    assert row.startswith("| Kullback-Leibler |")
    assert row.endswith("| not run | not run | not run |")
    assert "Not measured: no GPU has run." in text
    assert "old" not in text
    assert text.endswith("end\n")
    on_gpu = [{**r, "device": "cuda", "device_name": "NVIDIA H100"} for r in real]
    on_gpu[0] = {**on_gpu[0], "status": "failed"}
    table = equality_table([*real, *on_gpu[:-1]])
    assert "NVIDIA H100, W" in table
    assert "a GPU" not in table
    assert table.count("not run") == 3  # the one problem that the GPU has not run
    assert table.count("(failed)") == 3
    page.write_text("no place\n")
    with pytest.raises(ValueError, match="has no lines '<!-- equality -->'"):
        write_device_tables([path], page=page)


def point(size, impl, ms, op="nnmf_mu"):
    shape = {"n_samples": size, "n_features": 9, "n_components": 2, "n_iter": 10}
    record = {"op": op, "size": str(size), "impl": impl, "status": "ok", "median_ms": ms}
    return {**record, "shape": shape, "device": "cuda:0", "device_name": "NVIDIA H100"}


def points(cpu, device, copies):
    return [
        point(2**i, impl, ms)
        for i, times in enumerate(zip(cpu, device, copies, strict=True))
        for impl, ms in zip((ON_CPU, ON_DEVICE, COPIES), times, strict=True)
    ]


@pytest.mark.parametrize(
    ("cpu", "device", "copies", "without", "with_copies"),
    [
        ([1, 2, 4, 8], [3, 3, 3, 3], [2, 2, 2, 2], 4, 8),
        ([4, 1, 4, 8], [3, 3, 3, 3], [0, 0, 0, 0], 4, 4),  # one win among losses does not count
        ([1, 2, 3, 4], [5, 5, 5, 5], [0, 0, 0, 0], None, None),
        ([9, 9, 9, 9], [5, 5, 5, 5], [1, 1, 1, 9], 1, None),
    ],
)
def test_break_even_size(cpu, device, copies, without, with_copies):
    records = points(cpu, device, copies)
    for counted, expected in ((False, without), (True, with_copies)):
        found = break_even_size(records, "nnmf_mu", copies=counted)
        assert (found and found["shape"]["n_samples"]) == expected
    assert break_even_size(records, "project", copies=False) is None
    lost = [r for r in records if not (r["impl"] == ON_DEVICE and r["size"] == "2")]
    assert break_even_size(lost, "nnmf_mu", copies=False) is None


def test_break_even_on_the_cpu_alone_says_so():
    records = break_even.run_break_even_benchmarks(device="cpu", smoke=True)
    found = {(r["op"], r["impl"]): r for r in records}
    assert len(found) == 6
    for (_, impl), record in found.items():
        assert record["status"] == ("ok" if impl == ON_CPU else "skipped")
        if impl != ON_CPU:
            assert "give --device cuda" in record["reason"]
    assert found["nnmf_mu", ON_CPU]["max_err"] < 1e-5
    assert "skipped" in records_table(records)
    assert break_even_table(records) == "Not measured: no GPU has run."


def test_device_and_copies_have_times_of_their_own(monkeypatch):
    """With the CPU in the place of the device."""
    waited = []
    monkeypatch.setattr(break_even, "_moved", lambda inputs, device: dict(inputs))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    (case,) = get_cases(["nnmf_mu"])
    cuda = torch.device("cuda")
    found = break_even._measure(case, break_even._SMOKE["nnmf_mu"][0], cuda, min_run_seconds=0.01)
    assert list(found) == [ON_CPU, ON_DEVICE, COPIES]
    assert {r["status"] for r in found.values()} == {"ok"}
    assert set(waited) == {cuda}
    for name in (ON_CPU, ON_DEVICE):
        assert found[name]["iteration_ms"] == pytest.approx(found[name]["median_ms"] / 10)
    assert found[COPIES]["iteration_ms"] is None


def test_a_wrong_result_has_no_time(monkeypatch):
    monkeypatch.setattr(break_even, "largest_error", lambda *_: 0.5)
    records = break_even.run_break_even_benchmarks(device="cpu", smoke=True)
    assert {r["status"] for r in records} == {"failed", "skipped"}
    assert all(r["median_ms"] is None for r in records)


def test_sizes_grow_to_the_papers():
    for op, sizes in break_even.SIZES.items():
        entries = [s.shape["n_samples"] * s.shape["n_features"] for s in sizes]
        assert entries == sorted(entries), op
    assert break_even.SIZES["nnmf_mu"][-1].shape["n_samples"] == 1500


@pytest.mark.needs_cuda
def test_break_even_on_a_gpu():
    records = break_even.run_break_even_benchmarks(device="cuda", smoke=True)
    assert {r["status"] for r in records} == {"ok"}
    assert all(r["median_ms"] > 0 for r in records)
    assert "NVIDIA" in break_even_table(records)
