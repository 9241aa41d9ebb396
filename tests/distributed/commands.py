"""Commands that the ranks of a team do together, and one that `torchrun` starts."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from nnmf_cuda.cli.main import _call, main
from nnmf_cuda.distributed.crew import Crew
from nnmf_cuda.distributed.ranks import Ranks
from tests.distributed.team import Team, team_group


@dataclass(frozen=True)
class Asked:
    """A command, and whether it is started again after a start that has failed."""

    argv: list[str]
    restarted: bool = False


def do(asked: Asked) -> tuple[str, str]:
    """Do a command with the others; return what this rank prints and says.

    An error of one ends it for all, where ranks that `torchrun` has started are ended by it.
    """
    ranks = Ranks(team_group())
    crew = Crew(ranks, restarted=asked.restarted)
    with (
        ranks.together(),
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        _call(asked.argv, crew)
    return printed.getvalue(), said.getvalue()


def together(team: Team, size: int, *argv: str, restarted: bool = False) -> str:
    """Let `size` ranks do a command; return what rank 0 prints."""
    found = team.run(do, *(Asked(list(argv), restarted) for _ in range(size)))
    for one in found:
        if isinstance(one, Exception):
            raise one
    printed: str = found[0][0]
    return printed


def die_once(path: Path, n_blocks: int) -> None:
    """Kill rank 1 of the first start when it has added so many blocks, in the middle of one."""
    from nnmf_cuda.pipeline.extract_parts import Parts

    add, count = Parts.add, 0

    def add_or_die(self, file, block) -> None:
        nonlocal count
        add(self, file, block)
        count += 1
        if os.environ["RANK"] == "1" and count == n_blocks and not path.exists():
            path.touch()
            file.write(b"half of a block")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    Parts.add = add_or_die


if __name__ == "__main__":  # as torchrun starts it: what dies, and the command
    die_once(Path(sys.argv.pop(1)), 2)
    sys.exit(main())
