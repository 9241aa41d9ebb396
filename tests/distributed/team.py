"""Four processes of one thread, of which the first few do what a test asks for."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SIZE = 4
_SECONDS = 600  # for what takes less than one: where the machine is busy, they start in a minute


class Team:
    """Processes that wait for work; `run` gives it to the ranks of a group of the first few."""

    def __init__(self, place: str, size: int = SIZE) -> None:
        context = mp.get_context("spawn")
        self._work = [context.SimpleQueue() for _ in range(size)]
        self._results = context.Queue()
        self._processes = [
            context.Process(
                target=_serve,
                args=(rank, size, place, self._work[rank], self._results),
                daemon=True,
            )
            for rank in range(size)
        ]
        for process in self._processes:
            process.start()

    def run(self, function: Callable[..., Any], *of_ranks: Any) -> list[Any]:
        """Return, by rank, what `function` returns or raises for the arguments of each rank.

        Inside, `team_group()` is the group of these ranks.
        """
        found = self.answers(len(of_ranks), function, *of_ranks)
        return [found[rank] for rank in range(len(of_ranks))]

    def answers(self, n: int, function: Callable[..., Any], *of_ranks: Any) -> dict[int, Any]:
        """Return what the first `n` ranks to answer return or raise, by rank."""
        for rank, argument in enumerate(of_ranks):
            self._work[rank].put((function, argument, len(of_ranks)))
        return dict(self._results.get(timeout=_SECONDS) for _ in range(n))

    def close(self) -> None:
        """End the processes."""
        for queue in self._work:
            queue.put(None)
        for process in self._processes:
            process.join(_SECONDS)

    def kill(self) -> None:
        """End what is left of processes that cannot end by themselves."""
        for process in self._processes:
            process.kill()
            process.join()


_group: dist.ProcessGroup | None = None


def team_group() -> dist.ProcessGroup:
    """Return the group of the ranks that work on what is asked for."""
    assert _group is not None
    return _group


def _serve(rank: int, n_ranks: int, place: str, work: Any, results: Any) -> None:
    global _group
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=n_ranks)
    groups = {size: dist.new_group(list(range(size))) for size in range(1, n_ranks + 1)}
    while (task := work.get()) is not None:
        function, argument, size = task
        _group = groups[size]
        try:
            result = function(argument)
        except Exception as error:
            error.add_note(traceback.format_exc())
            result = error
        results.put((rank, result))
    dist.destroy_process_group()
