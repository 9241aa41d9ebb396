"""The team of processes, once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.team import Team


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    made = Team(str(tmp_path_factory.mktemp("team") / "store"))
    yield made
    made.close()
