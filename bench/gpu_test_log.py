"""A pytest plugin for machines where a test can take the device, or the whole process, with it.

Each test is written to the file $GPU_TEST_LOG, a line of JSON when it starts and one when it ends;
tests that the file holds already are left out, so that a process started anew goes on where the
last one ended. A process whose device answers no more, or whose test takes longer than
$GPU_TEST_SECONDS, is ended at once.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DEVICE_LOST, TOO_LONG = 70, 71  # exit codes
LOG = Path(os.environ.get("GPU_TEST_LOG", "gpu_tests.jsonl"))
SECONDS = float(os.environ.get("GPU_TEST_SECONDS", "60"))


def write(**fields: Any) -> None:
    """Append a line, and have it on disk before anything else happens."""
    with LOG.open("a", encoding="utf-8") as file:
        file.write(json.dumps(fields) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has been started before."""
    lines = LOG.read_text("utf-8").splitlines() if LOG.exists() else []
    known = {json.loads(line).get("test") for line in lines}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
    items[:] = [item for item in items if item.nodeid not in known]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Log the start, end a test that hangs, and end the process whose device is lost."""
    write(test=item.nodeid, outcome="started")
    timer = threading.Timer(SECONDS, _too_long, [item.nodeid])
    timer.daemon = True
    timer.start()
    try:
        result = yield
    finally:
        timer.cancel()
    if getattr(item, "gpu_test_failed", False) and not device_answers():
        write(test=item.nodeid, outcome="device lost")
        os._exit(DEVICE_LOST)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Log how a test ended: a failure of its setup or teardown is one of the test."""
    report = yield
    if report.failed:
        item.gpu_test_failed = True
    if report.when == "call" or not report.passed:
        lines = (report.longreprtext or "").strip().splitlines()
        skipped = report.skipped and isinstance(report.longrepr, tuple)
        message = report.longrepr[2] if skipped else (lines[-1] if lines else "")
        write(
            test=item.nodeid,
            outcome=report.outcome,
            seconds=round(report.duration, 3),
            message=message[:300],
        )
    return report


def device_answers() -> bool:
    """Say whether CUDA still works in this process: an illegal access ends that for good."""
    import torch

    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _too_long(test: str) -> None:
    write(test=test, outcome="too long", seconds=SECONDS)
    os._exit(TOO_LONG)
