"""A fit by two processes of one thread each, beside that of one process of two threads."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.large_rows import SIDE, status_of, watch, write_images
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder

__all__ = ["run_two_ranks_benchmarks"]

_N_COMPONENTS = 15
_N_ITER = 20
_ROUNDS = 5
_TIMEOUT = 3600  # seconds
_TEAMS = {"one process of two threads": (1, 2), "two ranks of one thread": (2, 1)}
"""Processes, and the threads of each."""


def run_two_ranks_benchmarks(
    *,
    smoke: bool = False,
    json_path: str | Path | None = None,
    folder: str | None = None,
    progress: bool = False,
) -> list[Record]:
    """Time fits for Kullback-Leibler to 200,000 x 4096 pixels in a memory map, by turns.

    Parameters
    ----------
    smoke, json_path, progress
        As for `run_kernel_benchmarks`.
    folder : str, optional
        Where the pixels are for the time; by default the system's for temporary files.

    Returns
    -------
    list of dict
        Records as of `run_kernel_benchmarks` with ``op`` "fit of ranks": the median and quartiles
        of the time from when all processes begin to when all have ended; ``cpu_s`` of all
        processes together, of the median round; of the process that took the most in any round,
        ``resident_bytes`` the peak beside what it had before the fit, pages of X with it, and
        ``peak_bytes`` the same without pages of files; ``waiting_share`` of the time spent in
        exchanges, in which one rank waits for the other.
    """
    from tqdm import tqdm

    recorder = Recorder("two_ranks", device=torch.device("cpu"), smoke=smoke, json_path=json_path)
    n, rounds, n_iter = (2**11, 2, 3) if smoke else (200_000, _ROUNDS, _N_ITER)
    shape = {"n_samples": n, "n_features": SIDE * SIDE, "n_components": _N_COMPONENTS}
    seen: dict[str, list[Record]] = {name: [] for name in _TEAMS}
    reasons: dict[str, str] = {}
    turns = [
        name for turn in range(rounds) for name in (list(_TEAMS), list(_TEAMS)[::-1])[turn % 2]
    ]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        images = Path(place) / "images.npy"
        write_images(images, n)
        for name in tqdm(turns, desc="bench", disable=None if progress else True):
            try:
                seen[name].append(_fitted(images, *_TEAMS[name], n_iter))
            except RuntimeError as error:
                reasons[name] = str(error)
        x_bytes = images.stat().st_size
    for name, found in seen.items():
        measured = {"status": "failed", "reason": reasons[name]} if name in reasons else _of(found)
        nothing = {"resident_bytes": None, "cpu_s": None, "waiting_share": None}
        recorder.add(
            op="fit of ranks",
            size="smoke" if smoke else "large",
            impl=name,
            served_by="estimator",
            shape={**shape, "n_iter": n_iter},
            dtype="uint8",
            options={"beta_loss": 1.0},
            x_bytes=x_bytes,
            **{**MEASURED, **nothing, **measured},
        )
    return recorder.records


def _of(found: list[Record]) -> Record:
    """Return what a record has of the rounds of one team."""
    seconds = np.array([one["seconds"] for one in found])
    median = found[int(np.argsort(seconds)[len(seconds) // 2])]
    p25, p75 = np.percentile(1e3 * seconds, (25, 75))
    return {
        "status": "ok",
        "median_ms": 1e3 * float(np.median(seconds)),
        "p25": float(p25),
        "p75": float(p75),
        "n": len(found),
        "cpu_s": median["cpu_s"],
        "waiting_share": median["waiting_share"],
        "resident_bytes": max(one["resident_bytes"] for one in found),
        "peak_bytes": max(one["peak_bytes"] for one in found),
    }


def _fitted(images: Path, n_ranks: int, threads: int, n_iter: int) -> Record:
    """Return what a fit of so many processes took; they begin together."""
    command = ["torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}"]
    command += ["-m", "bench.two_ranks", str(images), str(threads), str(n_iter)]
    return watch(command, timeout_s=_TIMEOUT).found


# The processes that are started: one fit ---------------------------------------------------------


@contextmanager
def _timed_exchanges() -> Iterator[list[float]]:
    """Yield a list to which the seconds of each exchange with the other ranks are added."""
    from nnmf_cuda.distributed.ranks import Ranks

    seconds: list[float] = []
    original = Ranks._connected

    def timed(self: Ranks, call: Any, *arguments: Any) -> Any:
        begun = time.perf_counter()
        try:
            return original(self, call, *arguments)
        finally:
            seconds.append(time.perf_counter() - begun)

    Ranks._connected = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        Ranks._connected = original  # type: ignore[method-assign]


def main() -> None:
    """Fit to this process's share; rank 0 prints what all took as a line of JSON."""
    import torch.distributed as dist

    from nnmf_cuda import NNMF
    from nnmf_cuda.distributed import Shard
    from nnmf_cuda.timing import reset_peak_rss

    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    for name in ("threads", "n_iter"):
        parser.add_argument(name, type=int)
    given: Any = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    dist.init_process_group("gloo")
    X = np.load(given.images, mmap_mode="r").reshape(-1, SIDE * SIDE)
    alone = dist.get_world_size() == 1
    NNMF(2, max_iter=1, tol=0).fit(Shard(np.ones((4, 8), np.float32)))  # libraries are loaded
    model = NNMF(_N_COMPONENTS, max_iter=given.n_iter, tol=0, random_state=0)
    dist.barrier()
    before = status_of()
    reset_peak_rss()
    cpu, begun = time.process_time(), time.perf_counter()
    with _timed_exchanges() as exchanges:
        model.fit(X if alone else Shard.of_rows(X))
    own_seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    after = status_of()
    dist.barrier()
    seconds = time.perf_counter() - begun
    resident = after["VmHWM"] - before["VmRSS"]
    files = after["RssFile"] - before["RssFile"]
    own = cpu, sum(exchanges) / own_seconds, resident, max(0, resident - files)
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, own)
    dist.destroy_process_group()
    if int(os.environ["RANK"]) == 0:
        cpus, waiting, residents, owns = zip(*of_all, strict=True)
        found = {
            "seconds": seconds,
            "cpu_s": sum(cpus),
            "waiting_share": sum(waiting) / len(waiting),
            "resident_bytes": max(residents),
            "peak_bytes": max(owns),
        }
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
