"""The tests that a check on a GPU runs: neither a crash nor a hang loses what others have found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu_tests
from bench.gpu_tests import PLUGINS, command_of_tests, count_tests
from bench.gpu_tests import test_files as files_with_tests

ROOT = Path(__file__).parents[2]
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
def test_hangs(): time.sleep(100)
def test_last(): pass
"""
LOST = """
import torch
def lost(): raise RuntimeError('CUDA error: an illegal memory access')
def test_first():
    torch.cuda.is_available = lambda: True
    torch.cuda.synchronize = lost
    assert False
def test_second():
    assert torch.cuda.synchronize is not lost
"""


def run(log, text, folder, *, each=5.0, stdout=None):
    file = folder / "test_made_up.py"
    file.write_text(text)
    command = command_of_tests(
        log, [str(file)], marker="not slow", workers=1, each=each, select=None
    )
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=stdout or subprocess.DEVNULL,
        timeout=300,
    )
    return count_tests(log)


@pytest.fixture
def plugins():
    for module in PLUGINS:
        pytest.importorskip(module)


def test_neither_crash_nor_hang_loses_other_tests(plugins, tmp_path):
    found = run(tmp_path / "log.jsonl", MADE_UP, tmp_path)
    assert found.counts == {"passed": 3, "failed": 4, "skipped": 1}
    messages = {f["test"].partition("::")[2]: f["message"] for f in found.failures}
    assert set(messages) == {
        "test_wrong",
        "test_dies",
        "test_of_a_broken_fixture",
        "test_hangs",
    }
    assert "one is not two" in messages["test_wrong"]
    assert "crashed" in messages["test_dies"]
    assert "crashed" in messages["test_hangs"]
    assert str(found) == "3 passed, 4 failed, 1 skipped"


def test_a_lost_device_ends_the_worker_and_the_rest_goes_on(plugins, tmp_path):
    """torch is made to fail as after an illegal access, in the worker of one failing test."""
    found = run(tmp_path / "log.jsonl", LOST, tmp_path, each=60)
    assert found.counts == {"failed": 1, "passed": 1}
    assert found.failures[0]["test"].endswith("test_first")


def test_a_file_that_cannot_begin_is_a_failure(plugins, tmp_path):
    found = run(tmp_path / "log.jsonl", "import no_such_module\n", tmp_path)
    assert found.counts == {"failed": 1}
    assert "no_such_module" in found.failures[0]["message"]


def test_without_plugins_pytest_is_plain_and_its_words_are_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_tests, "missing_plugins", lambda: list(PLUGINS.values()))
    text = MADE_UP.replace("os._exit(11)", "pass").replace("time.sleep(100)", "pass")
    log = tmp_path / "log.txt"
    with log.open("w") as stream:
        found = run(log, text, tmp_path, stdout=stream)
    assert found.counts == {"passed": 5, "failed": 2, "skipped": 1}
    command = command_of_tests(log, [], marker="m", workers=3, each=9, select="words")
    assert not {"-n", "--timeout", "--report-log", "bench.gpu_tests"} & set(command)
    assert command[-2:] == ["-k", "words"]


@pytest.mark.parametrize(
    ("missing", "absent", "present"),
    [
        (["pytest-xdist"], {"-n"}, {"--timeout", "--report-log"}),
        (["pytest-timeout"], {"--timeout"}, {"-n", "--report-log"}),
        (["pytest-reportlog"], {"--report-log"}, {"-n", "--timeout"}),
    ],
)
def test_each_plugin_can_be_missing_alone(monkeypatch, missing, absent, present):
    monkeypatch.setattr(gpu_tests, "missing_plugins", lambda: missing)
    command = set(command_of_tests(Path("log"), [], marker="m", workers=3, each=9, select=None))
    assert not absent & command
    assert present <= command


def test_what_workers_print_is_read(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text(
        "[gw0] [  5%] PASSED tests/a.py::test_one[cuda-3]\n"
        "[gw1] [ 10%] FAILED tests/a.py::test_two\n"
        "tests/a.py::test_three SKIPPED (no device)\n"
        "tests/a.py::test_four ERROR\n"
        "FAILED tests/a.py::test_two - AssertionError\n"
        "tests/a.py::test_five PASS"
    )
    found = count_tests(log)
    assert found.counts == {"passed": 1, "failed": 2, "skipped": 1}
    assert str(count_tests(tmp_path / "none")) == "none ran"


def test_a_report_that_was_cut_off_is_left_out(tmp_path):
    log = tmp_path / "log.jsonl"
    report = {"$report_type": "TestReport", "nodeid": "t::a", "when": "call", "outcome": "passed"}
    log.write_text(json.dumps(report) + "\n" + json.dumps({**report, "nodeid": "t::b"})[:-9])
    assert count_tests(log).counts == {"passed": 1}


def test_files_with_cuda_tests_are_found_and_the_ops_come_first():
    found = files_with_tests(ROOT)
    assert found[:2] == ["tests/ops/test_cuda.py", "tests/ops/test_devices.py"]
    assert "tests/bench/test_kernels.py" in found
    assert "tests/data/test_npz.py" not in found
    assert len(found) == len(set(found))


def test_missing_plugins_are_named(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gpu_tests.missing_plugins() == list(PLUGINS.values())
    assert (
        sys.executable
        == command_of_tests(Path("log"), [], marker="m", workers=1, each=1, select=None)[0]
    )
