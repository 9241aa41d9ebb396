"""The executables that hold the kernels, built once a worker, and what a worker takes at once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cuda_on_cpu.harness import Builder

# A mutant is built for one test.
OF_MUTANTS = ("::test_every_barrier_is_needed[", "::test_an_index_that_is_one_too_large_is_seen[")


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("kernels"))


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests together, as they share an executable, but let each mutant go alone.

    With all of a file together, the last worker is busy with mutants for minutes when the others
    have nothing left.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class FilesAndMutants(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            alone = any(name in nodeid for name in OF_MUTANTS)
            return nodeid if alone else super()._split_scope(nodeid)

    return FilesAndMutants(config, log)
