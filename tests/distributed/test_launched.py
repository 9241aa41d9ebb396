"""Processes that are started together find each other, and not those of an earlier start."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from nnmf_cuda.distributed.launched import name_of_start

ROOT = Path(__file__).parents[2]

SECONDS = timedelta(seconds=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


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
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
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


DYING = """
import os, signal, sys, time
from pathlib import Path
from nnmf_cuda.distributed.launched import launched
died = Path(sys.argv[1])
with launched() as launch:
    crew = launch.crew
    if not crew.restarted:
        if crew.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        died.touch()
        time.sleep(600)  # it does not fail, but is started anew for the other
    Path(f"met-{crew.rank}").write_text(str(crew.gathered(crew.rank)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("apart", ["0", "1"])
def test_a_machine_starts_anew_for_another(tmp_path: Path, apart: str) -> None:
    """Whether or not torchrun has a store for each start."""
    (tmp_path / "dying.py").write_text(DYING, encoding="utf-8")
    options = f"--nnodes=2 --nproc-per-node=1 --max-restarts=1 --rdzv-id={apart}"
    options += f" --rdzv-backend=c10d --rdzv-endpoint=localhost:{free_port()}"
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = apart
    command = [sys.executable, "-m", "torch.distributed.run", *options.split(), "dying.py", "died"]
    machines = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    try:  # not to the end of torchrun, which may wait for the other by minutes
        end = time.monotonic() + 120
        while len(met := sorted(tmp_path.glob("met-*"))) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        assert [path.name for path in met] == ["met-0", "met-1"]
        assert (tmp_path / "died").exists()
    finally:
        for machine in machines:
            machine.kill()
            machine.wait()
