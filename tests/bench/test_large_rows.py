"""Pixels in files, fitted by processes whose memory is watched and limited."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bench import large_rows, out_of_core, two_ranks
from bench.large_rows import SIDE, status_of, watch, write_images
from bench.tables import records_table

pytestmark = pytest.mark.skipif(not status_of(), reason="needs /proc: Linux only")


def test_images_are_of_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    write_images(path, 3000)
    images = np.load(path, mmap_mode="r")
    assert images.shape == (3000, SIDE, SIDE)
    assert images.dtype == np.uint8
    assert len(np.unique(images.reshape(3000, -1), axis=0)) > 2500
    assert (images[:952] != images[2048:]).mean() > 0.5  # blocks are not alike
    assert 0.3 < (images < 8).mean() < 0.8


def test_a_process_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "holds.py").write_text(
        "import time\n"
        "held = b'x' * 2**27\n"
        "time.sleep(0.5)\n"
        "print('words')\n"
        "print('{\"seconds\": 1.5}')\n"
    )
    (tmp_path / "fails.py").write_text("raise ValueError('words')")
    (tmp_path / "waits.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(large_rows, "ROOT", tmp_path)
    told = []
    found = watch(["holds"], timeout_s=60, started=told.append)
    assert found.found == {"seconds": 1.5}
    assert 2**27 < found.own <= found.resident < 2**28
    assert len(told) == 1
    with pytest.raises(RuntimeError, match="exit code 1: ValueError: words"):
        watch(["fails"], timeout_s=60)
    with pytest.raises(RuntimeError, match="took more than 0 s"):
        watch(["waits"], timeout_s=0.2)
    assert status_of(2**22 + os.getpid()) == {}


def test_rows_under_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_core, "WORK", ("fit",))
    (record,) = out_of_core.run_out_of_core_benchmarks(smoke=True)
    assert record["status"] == "ok", record
    assert record["limit_bytes"] == 2**31
    assert 0 < record["peak_bytes"] <= record["resident_bytes"]
    table = records_table([record])
    assert "2048 MiB" in table
    assert record["limited_by"] in table


def test_a_limit_that_is_too_low_is_told(tmp_path: Path) -> None:
    write_images(tmp_path / "images.npy", 8)
    record = out_of_core._done("fit", tmp_path / "images.npy", 2**24)
    assert record["status"] == "failed"
    assert record["reason"].startswith("exit code")


def test_two_ranks(tmp_path: Path) -> None:
    write_images(tmp_path / "images.npy", 50)
    found = two_ranks._fitted(tmp_path / "images.npy", 2, 1, 2)
    assert 0 < found["waiting_share"] < 1
    assert 0 < found["cpu_s"] < 2 * found["seconds"] + 1
    assert 0 <= found["peak_bytes"] <= found["resident_bytes"]
    record = two_ranks._of([found, {**found, "seconds": 3 * found["seconds"]}])
    assert record["median_ms"] == pytest.approx(2000 * found["seconds"])
