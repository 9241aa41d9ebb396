"""The executables that hold the kernels, built once a worker, and what a worker takes at once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cuda_on_cpu.harness import Builder

# Tests whose executables have mistakes; those of a file share most of them.
OF_MUTANTS = (
    "test_every_barrier_is_needed",
    "test_an_index_that_is_one_too_large_is_seen",
    "without_a_mutation",
)


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("kernels"))


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests together that share an executable: a file's mutants, and its other tests.

    With all of a file together, the last worker is busy for minutes when the others have nothing
    left.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class FilesAndMutants(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            of_mutants = nodeid.partition("[")[0].endswith(OF_MUTANTS)
            return super()._split_scope(nodeid) + "::mutants" * of_mutants

    return FilesAndMutants(config, log)
