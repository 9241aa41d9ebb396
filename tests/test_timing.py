"""Rows of the stage timer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from nnmf_cuda import timing
from nnmf_cuda.timing import PAPER_STAGES, StageRow, StageTimer, Timings

KEYS = {"stage", "seconds", "n_items", "peak_bytes"}


def test_rows_have_exactly_the_documented_keys():
    timer = StageTimer("cpu")
    with timer.stage("read_images", n_items=3):
        time.sleep(0.02)
    with timer.stage("cnn_training") as stage:
        stage.n_items = 7
    content = json.loads(json.dumps(timer.timings().as_dict()))
    assert content["device"] == "cpu"
    assert [row["stage"] for row in content["rows"]] == ["read_images", "cnn_training", "total"]
    assert all(set(row) == KEYS for row in content["rows"])
    assert [row["n_items"] for row in content["rows"]] == [3, 7, 7]
    assert 0.02 <= content["rows"][0]["seconds"] < 2
    assert content["rows"][0]["peak_bytes"] > 1e6


def test_total_sums_the_papers_stages_only():
    timer = StageTimer()
    for name in ("read_images", *PAPER_STAGES, "report"):
        with timer.stage(name, n_items=2):
            pass
    rows = tuple(
        replace(row, seconds=seconds, peak_bytes=seconds)
        for row, seconds in zip(timer.rows, (100, 1, 2, 4, 8, 16, 1000), strict=True)
    )
    assert Timings("cpu", rows).total == StageRow("total", seconds=31, n_items=2, peak_bytes=16)


def test_a_failed_stage_leaves_no_row_and_no_lock():
    timer = StageTimer()
    with pytest.raises(KeyError), timer.stage("one"):
        raise KeyError
    with timer.stage("one"):
        pass
    assert [row.stage for row in timer.rows] == ["one"]


def test_misuse_is_named():
    timer = StageTimer()
    with timer.stage("one"):
        pass
    for name in ("one", "total"):
        with pytest.raises(ValueError, match=f"stage='{name}' is taken"), timer.stage(name):
            pass
    with pytest.raises(RuntimeError, match="'three' started inside stage 'two'"):  # noqa: PT012
        with timer.stage("two"), timer.stage("three"):
            pass


PEAKS_OF_TWO_STAGES = """
import sys
from nnmf_cuda import timing
timer = timing.StageTimer()
with timer.stage("large"):
    block = b"x" * 160_000_000
    del block
sys.exit(3) if not timing.reset_peak_rss() else None
with timer.stage("small"):
    pass
large, small = (row.peak_bytes for row in timer.rows)
assert large > small + 100e6, (large, small)
"""


def test_peak_follows_the_stage_where_the_system_can_reset_it():
    # A process of its own: in the suite's, earlier tests' memory comes and goes.
    done = subprocess.run([sys.executable, "-c", PEAKS_OF_TWO_STAGES], check=False)
    if done.returncode == 3:
        pytest.skip("the peak resident set cannot be reset here")
    assert done.returncode == 0


@pytest.mark.needs_cuda
def test_cuda_stage_waits_and_counts_device_memory():
    timer = StageTimer("cuda")
    x = torch.ones(4096, 4096, device="cuda")
    with timer.stage("matmul", n_items=1):
        y = x
        for _ in range(20):
            y = x @ y
    row = timer.rows[0]
    assert row.peak_bytes >= 2 * 4 * 4096**2
    assert row.seconds > 20 * 2 * 4096**3 / 2e15  # no present device is faster


def test_timing_imports_nothing_of_the_package():
    code = (
        "import sys, importlib.util as u;"
        f"s = u.spec_from_file_location('timing', {timing.__file__!r});"
        "m = sys.modules['timing'] = u.module_from_spec(s); s.loader.exec_module(m);"
        "assert not [n for n in sys.modules if n.startswith('nnmf_cuda')];"
        "import torch; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
