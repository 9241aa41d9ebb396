"""The executables that hold the kernels, built once a run."""

from __future__ import annotations

import pytest

from tests.cuda_on_cpu.harness import Builder


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("kernels"))
