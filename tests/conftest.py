"""Fixtures and markers shared by every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nnmf_cuda import _extension

pytest_plugins = ["tests.saved_runs"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, unless the environment says that it must."""
    if item.get_closest_marker("needs_cuda") and not torch.cuda.is_available():
        if os.environ.get("NNMF_CUDA_REQUIRE_CUDA") != "1":
            pytest.skip("needs a CUDA device")
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
