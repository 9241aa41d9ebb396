"""Processes that are started together find each other, and not those of an earlier start."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from nnmf_cuda.distributed.launched import name_of_start

ROOT = Path(__file__).parents[2]

SECONDS = timedelta(seconds=60)


def test_starts_have_names_of_their_own_in_one_store() -> None:
    store = dist.HashStore()
    store.set("nnmf-cuda/rank 2", "one that was killed before it heard")
    names = []
    for size in (3, 3, 2):
        with ThreadPoolExecutor(size) as threads:
            ranks = range(size)
            found = list(
                threads.map(lambda r, n=size: name_of_start(store, r, n, timeout=SECONDS), ranks)
            )
        assert len(set(found)) == 1
        names.append(found[0])
    assert len(set(names)) == 3


def test_who_does_not_come_is_named() -> None:
    store = dist.HashStore()
    store.set("nnmf-cuda/rank 1", "of an earlier start")
    with pytest.raises(RuntimeError, match=r"not there in time: ranks \[1, 2\]"):
        name_of_start(store, 0, 3, timeout=timedelta(seconds=0.1))


SCRIPT = """
from nnmf_cuda.distributed.launched import launched
with launched() as launch:
    crew = launch.crew
    print(crew.gathered(crew.rank), crew.restarted, crew.may_restart)
"""


def test_machines_that_have_counted_other_numbers_of_starts_meet() -> None:
    """A machine counts the failures of its own processes, and not that others were started anew."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    shared |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCHELASTIC_MAX_RESTARTS": "3"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, **shared, "RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": count},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, count in enumerate("01")
    ]
    try:
        for process in processes:
            printed, said = process.communicate(timeout=120)
            assert re.fullmatch(r"\[0, 1\] True True\n", printed), said
    finally:
        for process in processes:
            process.kill()
