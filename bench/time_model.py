"""How long work takes on a device: from instructions, bytes, latencies and launches to time.

A kernel takes as long as the longest of four: what its busiest scheduler has to issue, what it
moves to and from memory, what it moves to and from L2, and the longest chain of steps that wait for
each other. Kernels follow one another. Everything that is assumed about a device, and not counted
in a kernel, is a number with a name in `Device` or `Assumptions`, so that a measurement can say
which one was wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from bench.machine_code import Code

__all__ = [
    "B200",
    "BEST",
    "BOUNDS",
    "DEVICES",
    "EXPECTED",
    "H200",
    "WORST",
    "Assumptions",
    "Device",
    "KernelWork",
    "Times",
    "issue_cycles",
    "time_of",
]

BOUNDS = ("issue", "memory", "l2", "latency", "launch")
"""What the time of a headline is made of."""


@dataclass(frozen=True)
class Device:
    """What is known of a device.

    Attributes
    ----------
    name, architecture : str
        Such as "NVIDIA H200" and "sm_90".
    multiprocessors : int
    shared_bytes : int
        Of a multiprocessor.
    l2_bytes : int
    """

    name: str
    architecture: str
    multiprocessors: int
    shared_bytes: int
    l2_bytes: int


H200 = Device("NVIDIA H200", "sm_90", 132, 228 * 1024, 60 * 10**6)
"""H100's chip with more memory: NVIDIA's "H100 Tensor Core GPU Architecture" (2022), and what
cudaGetDeviceProperties tells on such a machine."""
B200 = Device("NVIDIA B200", "sm_100", 148, 228 * 1024, 126 * 10**6)
"""Two dies of 74 multiprocessors each: chipsandcheese.com, "Nvidia's B200: Keeping the CUDA
Juggernaut Rolling" (2025)."""
DEVICES = {"h200": H200, "b200": B200}

_SCHEDULERS = 4
"""Of a multiprocessor, each with a warp's instruction in a cycle: CUDA programming guide, compute
capabilities 8.x to 10.x."""
_CYCLES = {"fma": 1.0, "alu": 2.0, "fp64": 2.0, "xu": 8.0, "memory": 4.0, "tensor": 6.4}
"""Cycles for which an instruction keeps a scheduler's unit busy. From results per cycle and
multiprocessor in the programming guide (table of arithmetic throughput, 9.0 and 10.0: float32 128,
int32 and logic 64, float64 64, reciprocals and conversions 16): 32 x 4 / results. Memory: 128 bytes
of a multiprocessor's shared memory a cycle, four schedulers. Tensor: m16n8k8 TF32 at the dense peak
of H100 is 4 cycles, of which mma.sync reached 63 % (Luo et al. 2025, arXiv 2501.12084)."""


@dataclass(frozen=True)
class Assumptions:
    """What no source code tells; `source` says where each number is from.

    Attributes
    ----------
    clock_ghz : float
        Of the multiprocessors under load.
    issue_share : float
        Of the issue slots of a scheduler that has four warps or more; with fewer, each leaves more
        unused (`time_of`).
    memory_tb_per_s, l2_tb_per_s : float
        What streams reach.
    l2_share : float
        Of the L2's bytes that stay from one pass over X to the next.
    launch_us : float
        From the end of a kernel to the first instruction of the next, already queued.
    overlapped_launch_us : float
        From the end of a kernel to what waits for it in the next, whose blocks were there already.
    shared_cycles, l2_cycles, memory_cycles : float
        From a load to what needs it.
    barrier_cycles : float
        From the last warp's arrival to where all go on.
    host_launch_us, host_call_us : float
        Of the host, for a launch, and for an op around its launches (checks, results, autograd).
    """

    clock_ghz: float
    issue_share: float
    memory_tb_per_s: float
    l2_tb_per_s: float
    l2_share: float
    launch_us: float
    overlapped_launch_us: float
    shared_cycles: float
    l2_cycles: float
    memory_cycles: float
    barrier_cycles: float
    host_launch_us: float
    host_call_us: float


SOURCES = {
    "clock_ghz": "boost clock of the SXM boards: 1.98 (H200), 1.965 (B200); float32 work of this"
    " kind does not reach the power limit",
    "issue_share": "assumed: what hand-tuned float32 products reach on earlier chips",
    "memory_tb_per_s": "87 % of 4.8 and of 8 TB/s, as published stream tests find",
    "l2_tb_per_s": "5.5 to 6 on H100 (chipsandcheese.com); as much for each multiprocessor of B200",
    "l2_share": "assumed: hashed sets and two halves of the cache leave some unused",
    "launch_us": "assumed: 1 to 1.5 us between dependent kernels of a stream",
    "overlapped_launch_us": "assumed: griddepcontrol.wait sees the end of a grid in about 0.5 us",
    "shared_cycles": "29 on H100 (Luo et al. 2024, arXiv 2402.13499)",
    "l2_cycles": "263 on H100 (the same); 150 ns within a die of B200 (chipsandcheese.com)",
    "memory_cycles": "479 on an H100 PCIe (the same), more under load",
    "barrier_cycles": "assumed",
    "host_launch_us": "assumed: 2 to 4 us of cudaLaunchKernel and the checks around it",
    "host_call_us": "assumed from the CPU build with tensors of one row: nnmf_mu takes 21 there, on"
    " two cores that others used too, each pass of the defence more"
    " (bench/results/host-time-defence-2-cores.json)",
}

EXPECTED = {
    "h200": Assumptions(1.98, 0.95, 4.2, 5.7, 0.7, 1.3, 0.5, 29, 263, 600, 30, 3.0, 25.0),
    "b200": Assumptions(1.965, 0.95, 7.0, 6.4, 0.7, 1.3, 0.5, 29, 295, 700, 30, 3.0, 25.0),
}
_BEST_FACTORS = {
    "issue_share": 1.03,
    "memory_tb_per_s": 1.05,
    "l2_tb_per_s": 1.2,
    "l2_share": 1.2,
    "launch_us": 0.7,
    "overlapped_launch_us": 0.6,
    "l2_cycles": 0.85,
    "memory_cycles": 0.85,
}
_WORST_FACTORS = {
    "clock_ghz": 0.93,
    "issue_share": 0.88,
    "memory_tb_per_s": 0.88,
    "l2_tb_per_s": 0.75,
    "l2_share": 0.6,
    "launch_us": 1.5,
    "overlapped_launch_us": 2.0,
    "l2_cycles": 1.25,
    "memory_cycles": 1.3,
    "barrier_cycles": 1.5,
}


def _scaled(found: Assumptions, factors: Mapping[str, float]) -> Assumptions:
    return replace(found, **{name: getattr(found, name) * by for name, by in factors.items()})


BEST = {name: _scaled(found, _BEST_FACTORS) for name, found in EXPECTED.items()}
WORST = {name: _scaled(found, _WORST_FACTORS) for name, found in EXPECTED.items()}


@dataclass(frozen=True)
class KernelWork:
    """What a kernel does in one launch, and how often a call launches it.

    Attributes
    ----------
    kernel : str
        Its name and template arguments.
    times : float
        Launches of a call; of an iteration where that is what is timed.
    blocks : int
    issue_cycles : float
        Of the busiest scheduler, if it issues whenever its units allow.
    warps : float
        That a scheduler has at one time.
    memory_bytes, l2_bytes : float
        `cached_bytes` of the memory's come from L2 where it has room for all of them.
    chain : mapping of str to float
        Steps of the longest chain: loads by "shared", "l2", "memory", "barrier"; other cycles as
        "cycles".
    overlaps : bool
        Whether its blocks may start before the kernel before has ended.
    """

    kernel: str
    times: float
    blocks: int
    issue_cycles: float
    warps: float
    memory_bytes: float = 0.0
    l2_bytes: float = 0.0
    cached_bytes: float = 0.0
    chain: Mapping[str, float] = field(default_factory=dict)
    overlaps: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> KernelWork:
        """Return what `dataclasses.asdict` had made a dict of."""
        return cls(**{f.name: values[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class Times:
    """Milliseconds of a call, or of an iteration.

    Attributes
    ----------
    by_bound : mapping of str to float
        By what they are spent on: `BOUNDS`.
    host_ms : float
        Of the host meanwhile, which a CUDA graph takes away.
    """

    by_bound: Mapping[str, float]
    host_ms: float

    @property
    def ms(self) -> float:
        """Of the device."""
        return sum(self.by_bound.values())

    @property
    def binds(self) -> str:
        """What most of the device's time is spent on."""
        return max(self.by_bound, key=lambda bound: self.by_bound[bound])


def issue_cycles(code: Code) -> float:
    """Return the cycles of a scheduler for a warp's instructions, latencies aside."""
    pipes = code.pipes()
    busy = [n * _CYCLES[pipe] for pipe, n in pipes.items() if pipe in _CYCLES]
    return max([code.slots, *busy], default=0.0)


def time_of(
    work: Sequence[KernelWork], device: Device, assumed: Assumptions, *, calls: float = 1.0
) -> Times:
    """Return what kernels take one after the other; `calls`: ops that the host calls for them."""
    spent = dict.fromkeys(BOUNDS, 0.0)
    launches = 0.0
    for kernel in work:
        share = assumed.issue_share * _filled(kernel.warps)
        to_ms = 1e-6 / assumed.clock_ghz  # of cycles
        room = assumed.l2_share * device.l2_bytes
        from_memory = kernel.memory_bytes - (
            kernel.cached_bytes if kernel.cached_bytes <= room else 0.0
        )
        steps = {
            "shared": assumed.shared_cycles,
            "l2": assumed.l2_cycles,
            "memory": assumed.memory_cycles,
            "barrier": assumed.barrier_cycles,
            "cycles": 1.0,
        }
        found = {
            "issue": kernel.issue_cycles / share * to_ms,
            "memory": from_memory / assumed.memory_tb_per_s * 1e-9,
            "l2": (kernel.l2_bytes + kernel.memory_bytes) / assumed.l2_tb_per_s * 1e-9,
            "latency": sum(steps[name] * n for name, n in kernel.chain.items()) * to_ms,
        }
        bound = max(found, key=lambda name: found[name])
        spent[bound] += kernel.times * found[bound]
        # Before the first result of a block there is a load.
        gap = assumed.launch_us * 1e-3 + assumed.memory_cycles * to_ms
        if kernel.overlaps:
            gap = assumed.overlapped_launch_us * 1e-3
        spent["launch"] += kernel.times * gap
        launches += kernel.times
    host = (launches * assumed.host_launch_us + calls * assumed.host_call_us) * 1e-3
    return Times(spent, host)


def _filled(warps: float) -> float:
    """Return how much of what four warps issue, fewer do: their latencies show more."""
    return {1: 0.85, 2: 0.97, 3: 0.99}.get(round(max(warps, 1.0)), 1.0)
