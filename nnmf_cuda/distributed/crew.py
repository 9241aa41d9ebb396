"""The processes that do one command together, and how they deal its work among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from nnmf_cuda.distributed.ranks import Ranks

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Crew:
    """The processes that do one command together, seen from one of them.

    Its methods are called by all, in the same order. Rank 0 leads: it alone speaks, and holds and
    writes the command's output. One process alone is a crew too, `ALONE`.

    Attributes
    ----------
    ranks : Ranks or None
        What the processes are to each other; None of one alone.
    restarted : bool
        Whether an earlier start of the same command has failed, whose unfinished work may be there.
    may_restart : bool
        Whether the command is started once more if this start fails.
    """

    ranks: Ranks | None = None
    restarted: bool = False
    may_restart: bool = False

    @property
    def rank(self) -> int:
        """Which of the processes this one is."""
        return 0 if self.ranks is None else self.ranks.rank

    @property
    def size(self) -> int:
        """How many processes there are."""
        return 1 if self.ranks is None else self.ranks.size

    @property
    def leads(self) -> bool:
        """Whether this process speaks, and writes what all have found."""
        return self.rank == 0

    def each(self, tasks: Sequence[Callable[[], _Result]]) -> Iterator[_Result]:
        """Yield what tasks return, in their order; each is done by one process, in turn.

        On one process they are done as results are asked for. Else a process does all of its own
        first, and all get all results: objects that pickle knows, with tensors on the CPU.
        """
        if self.ranks is None:
            for task in tasks:
                yield task()
            return
        own = [task() for task in tasks[self.rank :: self.size]]
        parts = self.ranks.gathered(own)
        for number in range(len(tasks)):
            yield parts[number % self.size][number // self.size]

    def first(self, make: Callable[[], _Result]) -> _Result:
        """Return what rank 0 makes."""
        if self.ranks is None:
            return make()
        made: _Result = self.ranks.gathered(make() if self.leads else None)[0]
        return made

    def gathered(self, value: Any) -> list[Any]:
        """Return what each process gives, by rank."""
        return [value] if self.ranks is None else self.ranks.gathered(value)


ALONE = Crew()
"""One process by itself."""
