"""What an iteration over several processes takes here: its parts, and whole fits, on loopback."""

from __future__ import annotations

import datetime
import pickle
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.measure import elapsed_or_own
from bench.memory import peak_beside
from bench.ranks_record import IterationTime, Rate, Record, SumTime
from nnmf_cuda import NNMF
from nnmf_cuda.distributed import Shard
from nnmf_cuda.distributed.ranks import Ranks
from nnmf_cuda.distributed.shard import share
from nnmf_cuda.nnmf.matrix import Dense
from nnmf_cuda.nnmf.sharded_matrix import Sharded
from nnmf_cuda.pipeline.environment import describe_environment
from nnmf_cuda.reference.nnmf import EPSILON

__all__ = ["RECORD", "measure_ranks"]

RECORD = Path(__file__).parent / "results" / "ranks-2-cores.json"
"""Where the figures of docs/scaling.md stand."""

SIZE = 4
_FEW_ROWS = 16
_N_ITER = 20  # of a fit: two records
_SETUPS = ((1, 1), (1, 2), (2, 1), (3, 1), (4, 1))
"""Ranks, and threads of each, whose whole iterations are timed."""
_MACHINE = (
    *("device_name", "cpu_count", "cpu_isa", "torch", "nnmf_cuda", "commit"),
    *("uncommitted_changes", "load_average"),
)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes
    ----------
    shapes : sequence of tuple of int
        Samples, features and components of X, uint8.
    numbers : sequence of int
        Of a sum.
    rounds : int
        In which everything takes turns.
    updates : int
        Of each rank, for the spread of their times.
    tall, wide : tuple of int
        Shapes whose W or H is large, for the memory.
    """

    shapes: Sequence[tuple[int, int, int]]
    numbers: Sequence[int]
    rounds: int
    updates: int
    tall: tuple[int, int, int]
    wide: tuple[int, int, int]


FULL = Plan(
    shapes=((4000, 4096, 15), (1500, 16384, 15), (600, 16384, 64)),
    numbers=(1, 4096, 61_455, 245_775, 1_048_640),
    rounds=4,
    updates=100,
    tall=(400_000, 32, 16),
    wide=(64, 65_536, 64),
)
SMOKE = Plan(
    shapes=((60, 40, 3), (40, 3000, 3)),
    numbers=(1, 100, 9000, 20_000),
    rounds=1,
    updates=5,
    tall=(4000, 16, 4),
    wide=(16, 4000, 4),
)


def measure_ranks(*, smoke: bool = False, progress: bool = False) -> Record:
    """Measure 1 to 4 processes of this machine, which gloo joins over loopback.

    Times are medians of rounds in which everything takes turns: CPU time of updates of many rows
    and of few by one rank, and elapsed time of sums over ranks, and of whole iterations of fits to
    the same rows by each number of ranks, from one record to the next.

    Parameters
    ----------
    smoke : bool, default=False
        Tiny sizes: shows that it works, not how fast it is.
    progress : bool, default=False
        Show a progress bar.

    Returns
    -------
    Record
    """
    plan = SMOKE if smoke else FULL
    told = machine()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, plan, progress)
        spawn(_serve, args=arguments, nprocs=SIZE)
        found: _Found = pickle.loads((Path(folder) / "found").read_bytes())
    return found.record({**told, "load_average_after": machine()["load_average"], "smoke": smoke})


def machine() -> dict[str, Any]:
    """Return what the times depend on, and how busy the machine is."""
    told = describe_environment(torch.device("cpu"), data_sha256="")
    told |= {"load_average": told["load_average"][0], "torch": torch.__version__}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {**{name: told[name] for name in _MACHINE}, "date": date}


# The processes ------------------------------------------------------------------------------------


class _Found:
    """Samples of rank 0."""

    def __init__(self) -> None:
        self.updates: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        self.sums: dict[tuple[int, int], list[float]] = defaultdict(list)
        self.iterations: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        self.again: list[float] = []
        self.W_times = self.H_times = 0.0
        self.operations = 0

    def record(self, told: dict[str, Any]) -> Record:
        median = float(np.median(self.again))
        return Record(
            machine=told,
            rates=[self._rate(*shape) for shape in dict.fromkeys(of[0] for of in self.updates)],
            sums=[
                SumTime(ranks, numbers, 1e3 * float(np.median(seconds)))
                for (ranks, numbers), seconds in self.sums.items()
            ],
            iterations=[
                IterationTime(n, f, k, ranks, threads, *_quartiles(seconds))
                for ((n, f, k), ranks, threads), seconds in self.iterations.items()
            ],
            relative_times=[value / median for value in sorted(self.again)],
            update_ms=1e3 * median,
            W_times=self.W_times,
            H_times=self.H_times,
            operations=self.operations,
        )

    def _rate(self, n: int, f: int, k: int) -> Rate:
        many, few, divergence, of_few = (
            float(np.median(self.updates[(n, f, k), what]))
            for what in ("many", "few", "divergence", "divergence of few")
        )
        entry = max(many - few, 0.0) / ((n - _FEW_ROWS) * f)
        record = max(divergence - of_few, 0.0) / ((n - _FEW_ROWS) * f)
        H = max(few - _FEW_ROWS * f * entry, 0.0)
        elapsed = float(np.median(self.updates[(n, f, k), "many, elapsed"]))
        share = record / entry if entry else 0.0
        return Rate(n, f, k, 1e9 * entry, share, 1e3 * H, elapsed / many)


def _quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    p25, median, p75 = (1e3 * float(v) for v in np.percentile(seconds, (25, 50, 75)))
    return median, p25, p75


def _serve(rank: int, folder: str, plan: Plan, progress: bool) -> None:
    """Do what one of the processes does, all of them in the same order."""
    from tqdm import tqdm

    store = f"file://{Path(folder) / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=SIZE)
    groups = {size: dist.new_group(list(range(size))) for size in range(1, SIZE + 1)}
    rng = np.random.default_rng(0)
    data = {shape: _images(rng, *shape[:2]) for shape in plan.shapes}
    found = _Found()
    hidden = None if progress and rank == 0 else True
    with tqdm(total=plan.rounds, desc="bench", disable=hidden) as bar:
        for _ in range(plan.rounds):
            _round(rank, groups, plan, data, found)
            bar.update()
    _together(rank, 2, _again, groups[2], plan, data, found)
    _together(rank, 2, _memory, groups[2], plan, found)
    if rank == 0:
        (Path(folder) / "found").write_bytes(pickle.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _together(rank: int, size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Let the first few ranks do something while the others wait."""
    dist.barrier()
    if rank < size:
        work(*arguments)
    dist.barrier()


def _round(
    rank: int,
    groups: dict[int, dist.ProcessGroup],
    plan: Plan,
    data: dict[tuple[int, int, int], NDArray[np.uint8]],
    found: _Found,
) -> None:
    for shape, X in data.items():
        torch.set_num_threads(1)
        _together(rank, 1, _updates, groups[1], X, shape, found)
        for ranks, threads in _SETUPS:
            torch.set_num_threads(threads)
            own = X[share(len(X), rank, ranks)] if rank < ranks else X[:0]
            samples = found.iterations[shape, ranks, threads]
            _together(rank, ranks, _iterations, groups[ranks], own, shape[2], samples)
    torch.set_num_threads(1)
    for ranks in range(2, SIZE + 1):
        for numbers in plan.numbers:
            _together(rank, ranks, _sums, groups[ranks], numbers, found.sums[ranks, numbers])


def _images(rng: np.random.Generator, n: int, f: int) -> NDArray[np.uint8]:
    return rng.integers(1, 256, size=(n, f), dtype=np.uint8)


def _factors(n: int, f: int, k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    W, H = (torch.rand(1, *shape, generator=generator) + 0.1 for shape in ((n, k), (k, f)))
    return W, H


def _timed(call: Callable[..., object], *arguments: Any, times: int) -> Iterator[float]:
    for _ in range(times):
        begin = time.perf_counter()
        call(*arguments)
        yield time.perf_counter() - begin


def _own(call: Callable[..., object], *arguments: Any) -> float:
    return elapsed_or_own(lambda: call(*arguments))


def _updates(
    group: dist.ProcessGroup,
    X: NDArray[np.uint8],
    shape: tuple[int, int, int],
    found: _Found,
) -> None:
    """Time an iteration and the divergence, of all rows and of few."""
    n, f, k = shape
    for rows, update, divergence in (
        (n, "many", "divergence"),
        (_FEW_ROWS, "few", "divergence of few"),
    ):
        whole = Sharded(Dense(torch.from_numpy(X[:rows])), Ranks(group))
        W, H = _factors(rows, f, k)
        for _ in range(3):
            begin = time.perf_counter()
            found.updates[shape, update].append(_own(whole.mu, W, H))
            found.updates[shape, f"{update}, elapsed"].append(time.perf_counter() - begin)
        of_loss = partial(whole.divergence, beta_loss=1.0, floor=EPSILON)
        found.updates[shape, divergence] += [_own(of_loss, W, H) for _ in range(3)]


def _iterations(
    group: dist.ProcessGroup, own: NDArray[np.uint8], k: int, samples: list[float]
) -> None:
    """Note the seconds of an iteration, from each record of a fit to the next."""
    at: list[float] = []
    model = NNMF(k, max_iter=_N_ITER, tol=0, random_state=0)
    model.fit(Shard(own, group), callback=lambda record: at.append(time.perf_counter()))
    n_iter = _N_ITER / (len(at) - 1)
    samples += [float(seconds) / n_iter for seconds in np.diff(at)]


def _sums(group: dist.ProcessGroup, numbers: int, samples: list[float]) -> None:
    ranks, values = Ranks(group), torch.ones(numbers, dtype=torch.float64)
    ranks.totals(values)
    samples += _timed(ranks.totals, values, times=5)


def _again(
    group: dist.ProcessGroup,
    plan: Plan,
    data: dict[tuple[int, int, int], NDArray[np.uint8]],
    found: _Found,
) -> None:
    """Update again and again without waiting for the other, and gather what both took."""
    torch.set_num_threads(1)
    shape = plan.shapes[0]
    own = Dense(torch.from_numpy(data[shape]))
    W, H = _factors(*shape)
    seconds = list(_timed(partial(own.mu, n_iter=1), W, H, times=plan.updates))
    for of_rank in Ranks(group).gathered(seconds):
        found.again += of_rank


def _memory(group: dist.ProcessGroup, plan: Plan, found: _Found) -> None:
    """Measure what a rank has beside X: where W is large, and where H is; count what torch does."""
    rng = np.random.default_rng(0)
    rank = dist.get_rank(group)

    def beside(n: int, f: int, k: int) -> int:
        own = _images(rng, n, f)[share(n, rank, 2)]
        return peak_beside(partial(_iterations, group, own, k, []))

    (n, f, k), (_, wide_f, wide_k) = plan.tall, plan.wide
    found.W_times = beside(*plan.tall) / (4 * k * (n // 2))
    found.H_times = beside(*plan.wide) / (8 * wide_k * wide_f)
    n, f, k = plan.shapes[0]
    W, H = _factors(64, f, k)
    sharded = Sharded(Dense(torch.from_numpy(_images(rng, 64, f))), Ranks(group))
    with _Counted() as counted:
        sharded.mu(W, H)
    found.operations = counted.n


class _Counted(TorchDispatchMode):
    """Counts the operations of torch that are not views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += not func.is_view
        return func(*args, **(kwargs or {}))
