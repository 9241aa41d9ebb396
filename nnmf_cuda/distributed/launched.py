"""A process that `torchrun` has started with others, to do one command together."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from nnmf_cuda.distributed.crew import Crew

_START = timedelta(minutes=10)
"""Within which all processes have to be there."""

_POLL_S = 0.02
"""Between two looks at who is there."""

_LONGEST = timedelta(days=7)
"""For which processes wait for each other: some have the harder part. Whoever ends is missed at
once."""

_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")


def is_launched(environ: Mapping[str, str]) -> bool:
    """Tell whether the environment is that of one process among others, as `torchrun` makes it."""
    size = environ.get("WORLD_SIZE", "")
    return size.isdecimal() and int(size) > 1 and all(name in environ for name in _NEEDED)


@dataclass(frozen=True)
class Launch:
    """A process among those that were started with it."""

    crew: Crew
    store: Any  # of torch.distributed

    def may_tell(self) -> bool:
        """Return whether to tell why this process fails: of all, the first that asks may.

        When one fails the others do too, for the same reason or for want of it.
        """
        try:
            return bool(self.store.add("told", 1) == 1)
        except RuntimeError:  # it went with the process that had it
            return self.crew.leads


@contextmanager
def launched() -> Iterator[Launch]:
    """Join the processes that were started with this one, by gloo, and leave them at the end.

    They wait for all to be there, and for each other as long as their shares of a command differ.
    """
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from nnmf_cuda.distributed.ranks import Ranks, RanksError

    try:
        store, rank, size = next(rendezvous("env://", timeout=_START))
        kept = name_of_start(store, rank, size, timeout=_START)
        store = dist.PrefixStore(kept, store)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_LONGEST)
    except RuntimeError as error:
        raise RanksError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} could not join the others"
            f" at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            f" ({str(error).splitlines()[0]})"
        ) from error
    try:
        group = dist.group.WORLD
        assert group is not None
        ranks = Ranks(group)
        attempt, most = (
            max(ranks.gathered(int(os.environ.get(f"TORCHELASTIC_{name}", "0"))))
            for name in ("RESTART_COUNT", "MAX_RESTARTS")
        )
        yield Launch(Crew(ranks, attempt > 0, attempt < most), store)
    finally:
        dist.destroy_process_group()


def name_of_start(store: Any, rank: int, size: int, *, timeout: timedelta) -> str:
    """Return a name that the processes which are started now have in common, and no others.

    The store of `torchrun` outlives a start that fails, and then has the addresses of processes
    that are gone. Nothing in the environment tells starts apart: each machine counts its own. So
    each process gives itself a name, and rank 0 tells its own to all until each has heard it.
    Raises RuntimeError if one is not there in time.
    """
    own, home = uuid.uuid4().hex, "nnmf-cuda"
    if rank > 0:
        store.set(f"{home}/rank {rank}", own)
        store.wait([f"{home}/to {own}"], timeout)
        start: str = store.get(f"{home}/to {own}").decode()
        store.set(f"{home}/{start}/heard by {rank}", "")
        return f"{home}/{start}"
    missing, end = set(range(1, size)), time.monotonic() + timeout.total_seconds()
    while missing:
        for other in missing:  # whose name may be one of an earlier start, until it gives its own
            if store.check([f"{home}/rank {other}"]):
                store.set(f"{home}/to {store.get(f'{home}/rank {other}').decode()}", own)
        missing = {n for n in missing if not store.check([f"{home}/{own}/heard by {n}"])}
        if missing and time.monotonic() > end:
            raise RuntimeError(f"not there in time: ranks {sorted(missing)}")
        time.sleep(_POLL_S if missing else 0)
    return f"{home}/{own}"


def take_own_gpu() -> None:
    """Make the GPU of a process's place on its machine the current one, where several share it."""
    import torch

    place = os.environ.get("LOCAL_RANK", "")
    if is_launched(os.environ) and place.isdecimal():
        torch.cuda.set_device(int(place) % torch.cuda.device_count())
