"""bench/gpu_check.sh and its helpers, on made-up outcomes: no GPU is needed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"
if not BENCH.is_dir():
    pytest.skip("needs the source tree", allow_module_level=True)


@pytest.fixture
def helper(monkeypatch):
    """Import a module of bench/."""
    monkeypatch.syspath_prepend(str(BENCH))

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


# Tests that take their process with them --------------------------------------------------------

MADE_UP = """
import os, time, pytest

def test_good(): pass
def test_wrong(): assert 1 == 2, "one is not two"
def test_dies(): os._exit(11)
def test_after(): pass
@pytest.mark.skip(reason="no device")
def test_left_out(): pass
@pytest.fixture
def broken(): raise RuntimeError("no fixture")
def test_of_a_broken_fixture(broken): pass
def test_hangs(): time.sleep(60)
def test_last(): pass
"""


def test_neither_crash_nor_hang_loses_other_tests(helper, tmp_path, monkeypatch):
    gpu_tests, gpu_record = helper("gpu_tests"), helper("gpu_record")
    monkeypatch.setenv("GPU_TEST_SECONDS", "1")
    file = tmp_path / "test_made_up.py"
    file.write_text(MADE_UP)
    logs = tmp_path / "logs"
    logs.mkdir()
    end = time.monotonic() + 60
    assert gpu_tests.run_file(str(file), logs, marker="not slow", end=end, extra=[])
    tests = gpu_record.count_tests(logs)
    assert tests["counts"] == {"passed": 3, "failed": 2, "died": 1, "skipped": 1, "too long": 1}
    found = {f["test"].partition("::")[2]: (f["outcome"], f["message"]) for f in tests["failures"]}
    assert found["test_dies"] == ("died", "")
    assert found["test_hangs"][0] == "too long"
    assert found["test_wrong"][0] == "failed"
    assert found["test_wrong"][1]
    assert found["test_of_a_broken_fixture"][0] == "failed"
    line = "3 passed, 2 failed, 1 died, 1 too long, 1 skipped"
    assert gpu_record.tests_line(tests) == line


def test_a_lost_device_ends_the_process_and_the_rest_goes_on(helper, tmp_path, monkeypatch):
    """torch is made to fail as after an illegal access, in the process of one failing test."""
    gpu_tests, gpu_record = helper("gpu_tests"), helper("gpu_record")
    monkeypatch.setenv("GPU_TEST_SECONDS", "20")
    file = tmp_path / "test_made_up.py"
    file.write_text(
        "import torch\n"
        "def lost(): raise RuntimeError('CUDA error: an illegal memory access')\n"
        "def test_first():\n"
        "    torch.cuda.is_available = lambda: True\n"
        "    torch.cuda.synchronize = lost\n"
        "    assert False\n"
        "def test_second():\n"
        "    assert torch.cuda.synchronize is not lost\n"
    )
    logs = tmp_path / "logs"
    logs.mkdir()
    end = time.monotonic() + 60
    assert gpu_tests.run_file(str(file), logs, marker="not slow", end=end, extra=[])
    assert gpu_record.count_tests(logs)["counts"] == {"device lost": 1, "passed": 1}


def test_a_file_that_cannot_begin_is_not_tried_for_ever(helper, tmp_path):
    gpu_tests = helper("gpu_tests")
    file = tmp_path / "test_made_up.py"
    file.write_text("import no_such_module\n")
    begin = time.monotonic()
    ended = gpu_tests.run_file(str(file), tmp_path, marker="x", end=begin + 60, extra=[])
    assert not ended
    assert time.monotonic() - begin < 30
    assert "no_such_module" in next(tmp_path.glob("*made_up.txt")).read_text()
    assert not gpu_tests.run_file(str(file), tmp_path, marker="x", end=begin, extra=[])


def test_files_with_cuda_tests_are_found_and_the_ops_come_first(helper):
    found = helper("gpu_tests").test_files(BENCH.parent)
    assert found[:2] == ["tests/ops/test_cuda.py", "tests/ops/test_devices.py"]
    assert "tests/benchmarks/test_kernels.py" in found
    assert "tests/data/test_npz.py" not in found
    assert len(found) == len(set(found))


# The record and the table -----------------------------------------------------------------------


def bench_record(op, size, impl, ms, *, dtype="float32", status="ok", n_iter=None, **others):
    return {
        "suite": "kernels",
        "op": op,
        "size": size,
        "dtype": dtype,
        "impl": impl,
        "status": status,
        "reason": None if status == "ok" else "no such kernel",
        "median_ms": ms,
        "iteration_ms": None if n_iter is None or ms is None else ms / n_iter,
        "rates": None if ms is None else {"gemm_share": 0.61},
        **others,
    }


@pytest.mark.parametrize(
    ("ours", "reference", "met", "speed"),
    [
        (1.0, 6.0, True, 6.0),
        (1.3, 9.1, False, 7.0),
        (1.0, 4.0, False, 4.0),
        (1.0, None, None, None),
    ],
)
def test_targets_need_both_the_time_and_the_speed(helper, ours, reference, met, speed):
    gpu_record = helper("gpu_record")
    records = [bench_record("nnmf_mu", "paper", "ours", ours, n_iter=10)]
    if reference is not None:
        records.append(bench_record("nnmf_mu", "paper", "reference", reference, n_iter=10))
    found = {t["problem"]: t for t in gpu_record.targets(records)}
    paper = found["nnmf_mu paper float32"]
    assert paper["ms"] == pytest.approx(ours / 10)
    assert paper["speed"] == (None if speed is None else pytest.approx(speed))
    assert paper["met"] is met
    assert found["nnls many rows float32"]["met"] is None
    too_slow = [bench_record("nnmf_mu", "paper", "ours", 5.0, n_iter=10)]
    assert gpu_record.targets(too_slow)[0]["met"] is False  # whatever the reference takes


def test_stages_are_shown_by_path(helper):
    stage = {"median_s": 2.5}
    paths = {name: {"stages": {"cnn_training": stage, "total": stage}} for name in ("a", "a b")}
    attacks = {"cuda": {"baseline": {"differing_decisions": 0.025}}}
    record = {"suite": "stages", "paths": paths, "attacks": attacks}
    *lines, attacked = helper("gpu_record").other_lines([record])
    assert attacked == "decisions that differ from the reference's, cuda: baseline 2.5%"
    assert [line.split() for line in lines] == [
        ["seconds", "a", "a", "b"],
        ["cnn_training", "2.50", "2.50"],
        ["total", "2.50", "2.50"],
    ]


def test_targets_are_about_problems_that_are_measured(helper):
    from bench.case import get_cases

    device = torch.device("cuda")
    measured = {
        f"{case.op} {size.name} {size.dtype}"
        for case in get_cases()
        for size in case.sizes_on(device, smoke=False)
    }
    assert {name for name, *_ in helper("gpu_record").TARGETS} <= measured


@pytest.fixture
def work(tmp_path):
    """A work folder of a check of which every part left something."""
    folder = tmp_path / "work"
    part = {"seconds": 7, "limit": 150}
    write_lines(
        folder / "parts.jsonl",
        [
            {"part": "build", "outcome": "ok", **part},
            {"part": "tests", "outcome": "out of time", **part},
            {"part": "experiment", "outcome": "left out", "seconds": 0, "limit": 0},
        ],
    )
    started = [{"test": f"tests/t.py::{i}", "outcome": "started"} for i in range(3)]
    ends = [
        {"test": "tests/t.py::0", "outcome": "passed", "message": ""},
        {"test": "tests/t.py::1", "outcome": "failed", "message": "off by 3"},
    ]
    write_lines(folder / "tests" / "a.jsonl", [*started, *ends])
    tool = {"tool": "memcheck", "outcome": "passed", "calls": 9, "message": "ERROR SUMMARY: 0"}
    write_lines(folder / "sanitizer.jsonl", [tool])
    write_lines(
        folder / "bench.jsonl",
        [
            bench_record("nnmf_mu", "paper", "reference", 7.0, n_iter=10),
            bench_record("nnmf_mu", "paper", "ours", 1.0, n_iter=10),
            bench_record("nnmf_mu", "paper", "ours, CUDA graph", 0.9, n_iter=10),
            bench_record("nnmf_mu", "paper", "CuPy", None, status="skipped"),
            bench_record("nnls", "many rows", "ours", None, status="failed"),
            bench_record("project", "images", "ours", 0.5, dtype="uint8"),
            {"suite": "equality", "status": "ok"},
            {"suite": "equality", "status": "failed"},
        ],
    )
    with (folder / "bench.jsonl").open("a") as file:
        file.write('{"suite": "kernels", "op": "cut o')  # ended in the middle of a line
    return folder


def test_record_and_table_hold_every_part(helper, work, tmp_path, capsys):
    gpu_record = helper("gpu_record")
    results = tmp_path / "results"
    assert gpu_record.main(str(work), str(results)) == 1  # not all parts are ok
    (file,) = results.glob("*.jsonl")
    record, *bench = (json.loads(line) for line in file.read_text().splitlines())
    assert record["kind"] == "gpu_check"
    assert [p["outcome"] for p in record["parts"]] == ["ok", "out of time", "left out"]
    assert record["tests"]["counts"] == {"passed": 1, "failed": 1, "died": 1}
    assert len(bench) == 8
    printed = capsys.readouterr().out
    assert "1 passed, 1 failed, 1 died" in printed
    assert "failed: t.py::1: off by 3" in printed
    assert "out of time" in printed
    assert "memcheck" in printed
    assert "CUDA graph 0.90x" in printed
    assert "reference 7.00x" in printed
    assert "0.1000 ms" in printed
    assert "failed: no such kernel" in printed
    assert "equal to scikit-learn: 1 of 2" in printed
    assert "target nnmf_mu paper float32        MET: 0.1000 ms" in printed
    assert printed.rstrip().endswith("did not end")


def test_records_of_a_check_can_be_read_with_the_benchmarks(helper, work, tmp_path):
    from nnmf_cuda.benchmarks import read_records, run_kernel_benchmarks

    bench = work / "bench.jsonl"
    bench.unlink()
    run_kernel_benchmarks(cases=["nnls"], smoke=True, json_path=bench)
    gpu_record = helper("gpu_record")
    gpu_record.main(str(work), str(tmp_path))
    (file,) = tmp_path.glob("*.jsonl")
    assert {r["op"] for r in read_records([file])} == {"nnls"}


def test_a_check_that_did_nothing_is_recorded(helper, tmp_path, capsys):
    (tmp_path / "work").mkdir()
    assert helper("gpu_record").main(str(tmp_path / "work"), str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "none ran" in printed
    assert printed.count("not measured") == len(helper("gpu_record").TARGETS)


def test_experiment_in_the_table(helper, work, tmp_path, capsys):
    run = work / "run"
    run.mkdir()
    (run / "metrics.json").write_text(json.dumps({"rows": {"Baseline clean": {"accuracy": 0.75}}}))
    (run / "timings.json").write_text('{"rows": [{"stage": "cnn_training", "seconds": 2.5}]}')
    helper("gpu_record").main(str(work), str(tmp_path))
    printed = capsys.readouterr().out
    assert "accuracy: Baseline clean 0.7500" in printed
    assert "seconds: cnn_training 2.50" in printed


# compute-sanitizer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "outcome"),
    [
        (0, "1 nnmf_mu\n2 nnls\n========= ERROR SUMMARY: 0 errors\n", "passed"),
        (99, "1 nnmf_mu\n========= ERROR SUMMARY: 3 errors\n", "failed"),
        (1, "1 nnmf_mu\n========= ERROR SUMMARY: 3 errors\n", "failed"),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", "passed"),
        (0, "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)\n", "failed"),
        (None, "1 nnmf_mu\n", "did not end"),
        (1, "Traceback\nImportError: torch\n", "broken"),
    ],
)
def test_outcome_of_a_tool(helper, code, text, outcome):
    found = helper("sanitize").outcome("memcheck", code, text)
    assert found["outcome"] == outcome
    assert found["calls"] == text.count("1 nnmf_mu") + text.count("2 nnls")
    if "ImportError" in text:
        assert found["message"] == "ImportError: torch"


def script(path, text):
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


def test_tools_run_at_once_and_are_ended_in_time(helper, tmp_path, monkeypatch):
    script(
        tmp_path / "compute-sanitizer",
        'if [[ $2 == memcheck ]]; then echo "1 nnmf_mu"; echo "========= ERROR SUMMARY: 0 errors"\n'
        "else sleep 60; fi",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    begin = time.monotonic()
    found = helper("sanitize").run_tools(
        ["racecheck", "memcheck"], seconds=1, device="cpu", folder=tmp_path
    )
    assert time.monotonic() - begin < 10
    assert [(f["tool"], f["outcome"]) for f in found] == [
        ("racecheck", "did not end"),
        ("memcheck", "passed"),
    ]


def test_a_missing_sanitizer_is_left_out(helper, monkeypatch, tmp_path):
    sanitize = helper("sanitize")
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: None)
    (found,) = sanitize.run_tools(["memcheck"], seconds=1, device="cpu", folder=tmp_path)
    assert found["outcome"] == "skipped"


def test_every_op_is_called_under_the_sanitizer(helper, capsys):
    assert helper("sanitize").run_calls("cpu") == 0
    printed = capsys.readouterr().out
    for op in ("nnmf_mu", "nnmf_divergence", "nnls", "nnls_backward", "project", "philox_normal"):
        assert f" {op} " in printed
    assert "0 with results that are not finite" in printed


# The script itself ------------------------------------------------------------------------------


@pytest.fixture
def check(tmp_path):
    """Run gpu_check.sh with a python3 that does what a test says, except for the record."""

    def run(behaviour, **environment):
        folder = tmp_path / "bin"
        folder.mkdir()
        script(
            folder / "python3",
            f'case "$*" in *gpu_record.py*) exec {sys.executable} "$@";;\n'
            f"{behaviour}\n*) exit 0;; esac",
        )
        out = tmp_path / "out"
        done = subprocess.run(
            ["bash", str(BENCH / "gpu_check.sh"), "--on-cpu"],
            env={
                **os.environ,
                "PATH": f"{folder}:{os.environ['PATH']}",
                "OUT": str(out),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=100,
        )
        (file,) = out.glob("*.jsonl")
        record = json.loads(file.read_text().splitlines()[0])
        return done, {p["part"]: p["outcome"] for p in record["parts"]}, out

    if shutil.which("timeout") is None:
        pytest.skip("needs timeout of coreutils")
    return run


def test_a_part_that_fails_takes_no_other_with_it(check):
    done, parts, out = check('*gpu_tests.py*) echo "all is lost"; exit 3;;')
    assert parts.pop("tests") == "failed (3)"
    assert parts.pop("experiment") == "left out"
    assert set(parts.values()) == {"ok"}
    assert {"build", "info", "bench nnmf_mu", "bench nnls", "sanitizer", "equality"} <= set(parts)
    assert done.returncode == 1
    assert "all is lost" in done.stdout
    assert "all is lost" in (out / "gpu_check.log").read_text()


def test_without_a_build_there_is_a_record_and_nothing_else(check):
    done, parts, _ = check('*setup.py*) echo "no compiler"; exit 1;;')
    assert parts == {"build": "failed (1)"}
    assert done.returncode == 1
    assert "no compiler" in done.stdout


def test_the_whole_ends_in_time(check):
    begin = time.monotonic()
    done, parts, _ = check("*gpu_tests.py*) sleep 60;;", GPU_CHECK_SECONDS="17")
    assert time.monotonic() - begin < 30
    assert parts["tests"] == "out of time"
    assert parts["bench nnmf_mu"] == "no time left"
    assert done.returncode == 1
    assert "not measured" in done.stdout.splitlines()[-2]


def test_the_script_parses():
    for file in BENCH.glob("*.sh"):
        subprocess.run(["bash", "-n", str(file)], check=True)
