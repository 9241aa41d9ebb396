"""Fixtures and markers shared by every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnmf_cuda import _extension

pytest_plugins = ["tests.saved_runs"]


_NOT_HERE = pytest.StashKey[int]()
"""How many tests were left out because they need a GPU."""


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several workers one thread: together they have the machine's cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none, unless the environment asks for it."""
    if torch.cuda.is_available() or os.environ.get("NNMF_CUDA_REQUIRE_CUDA") == "1":
        return
    left_out = [item for item in items if item.get_closest_marker("needs_cuda")]
    items[:] = [item for item in items if not item.get_closest_marker("needs_cuda")]
    config.hook.pytest_deselected(items=left_out)
    config.stash[_NOT_HERE] = len(left_out)
    if hasattr(config, "workeroutput"):
        config.workeroutput["needs_cuda"] = len(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the number from a worker of pytest-xdist, each of which has collected all tests."""
    node.config.stash[_NOT_HERE] = getattr(node, "workeroutput", {}).get("needs_cuda", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say in one line what was left out."""
    if count := config.stash.get(_NOT_HERE, 0):
        terminalreporter.write_line(f"{count} tests were left out: they need a CUDA device")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the installed package cannot run, unless the environment says that it must."""
    if item.get_closest_marker("needs_ext") and _extension.load() is None:
        if os.environ.get("NNMF_CUDA_REQUIRE_EXT") != "1":
            pytest.skip("needs the compiled extension")


@pytest.fixture(autouse=True)
def _restore_random_state() -> Iterator[None]:
    """Keep one test's random draws from reaching the next."""
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    np.random.set_state(numpy_state)  # noqa: NPY002
    torch.set_rng_state(torch_state)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder with darabi.npz, btp.npz and darabi-sample/, named by NNMF_CUDA_DATA."""
    folder = os.environ.get("NNMF_CUDA_DATA")
    if not folder:
        pytest.skip("set NNMF_CUDA_DATA to the folder with darabi.npz to run this test")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"NNMF_CUDA_DATA={folder!r} is not a folder")
    return path
