"""Seconds, memory and error of one call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.case import Call
from nnmf_cuda.benchmarks.records import Record, ask_driver
from nnmf_cuda.timing import peak_rss_bytes, reset_peak_rss

__all__ = [
    "MIN_ROUNDS",
    "CudaClock",
    "Timed",
    "cuda_sampler",
    "elapsed_or_own",
    "extra_peak_bytes",
    "gpu_clocks",
    "interleaved_seconds",
    "largest_error",
    "quartiles",
]

MIN_ROUNDS = 5
"""A median of fewer says little."""

_FLUSH_BYTES = 256 * 2**20
"""At least this much is written and read between two calls on CUDA; more where L2 is larger."""
_BLOCK_SECONDS = 2e-3
_WARM_UP = 3


@dataclass(frozen=True)
class Timed:
    """Samples of calls that were timed in turns.

    Attributes
    ----------
    seconds : dict of str to array
        By name of the call, one sample an entry.
    method : str
        "interleaved" or "interleaved_cuda_events_l2_flushed".
    l2 : str, optional
        What was in the device's L2 cache when a call began: "flushed", nothing of its inputs. None
        on the CPU.
    """

    seconds: dict[str, NDArray[np.float64]]
    method: str
    l2: str | None


class CudaClock:
    """Events on the current stream of a device, and memory that pushes all else out of its L2.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        l2_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
        self._device = device
        self._memory = torch.empty(
            max(_FLUSH_BYTES, 4 * l2_bytes) // 4, dtype=torch.float32, device=device
        )

    def event(self) -> Any:
        """Return a new event that can be recorded."""
        return torch.cuda.Event(enable_timing=True)

    def flush_l2(self) -> None:
        """Overwrite the cache, then fill it with lines that need not be written back.

        Lines still to be written would cost the next call some of its bandwidth. Meanwhile (about
        0.2 ms) the host queues that call, so that its first launch is no part of its time.
        """
        self._memory.zero_()
        self._memory.sum()

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self._device)


def interleaved_seconds(
    calls: Mapping[str, Call], *, device: torch.device, min_run_seconds: float
) -> Timed:
    """Time calls in turns, so that a machine that is busy for a while slows all of them alike.

    Each round takes one sample of every call, until ``min_run_seconds`` have been spent on each on
    average, and at least `MIN_ROUNDS` rounds. On CPU a sample is the mean over a block of calls of
    about 10 ms, or one longer call. On CUDA it is the mean over a block of calls of about 2 ms,
    each between two events of its own and after the L2 cache was flushed.

    Parameters
    ----------
    calls : mapping of str to callable
        Each is called a few times before it is timed.
    device : torch.device
        Where they work.
    min_run_seconds : float
        Time for each.

    Returns
    -------
    Timed
    """
    if device.type == "cuda":
        clock = CudaClock(device)
        samplers = {name: cuda_sampler(call, clock) for name, call in calls.items()}
        method, l2 = "interleaved_cuda_events_l2_flushed", "flushed"
    else:
        samplers = {name: _cpu_sampler(call) for name, call in calls.items()}
        method, l2 = "interleaved", None
    samples: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + min_run_seconds * len(calls)
    n_rounds = 0
    while n_rounds < MIN_ROUNDS or time.perf_counter() < end:
        for name, sample in samplers.items():
            samples[name].append(sample())
        n_rounds += 1
    seconds = {name: np.array(values) for name, values in samples.items()}
    return Timed(seconds, method, l2)


def elapsed_or_own(call: Callable[[], Any]) -> float:
    """Return how long a call takes: of one thread its CPU time, whatever else the machine does."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    call()
    return clock() - begin


def quartiles(milliseconds: Sequence[float]) -> Record:
    """Return what a record says of times that `elapsed_or_own` gave."""
    p25, median, p75 = (float(v) for v in np.percentile(milliseconds, (25, 50, 75)))
    timer = "CPU time" if torch.get_num_threads() == 1 else "elapsed time"
    return {"median_ms": median, "p25": p25, "p75": p75, "n": len(milliseconds), "timer": timer}


def _cpu_sampler(call: Call) -> Callable[[], float]:
    def clocked(n_calls: int) -> float:
        start = time.perf_counter()
        for _ in range(n_calls):
            call()
        return (time.perf_counter() - start) / n_calls

    once = clocked(1)
    block = max(1, math.ceil(0.01 / max(once, 1e-7)))
    return lambda: clocked(block)


def cuda_sampler(call: Call, clock: CudaClock) -> Callable[[], float]:
    """Return a function that gives the seconds of a call on a device, as its events tell them."""

    def block(n_calls: int) -> float:
        pairs = [(clock.event(), clock.event()) for _ in range(n_calls)]
        for start, end in pairs:
            clock.flush_l2()
            start.record()
            call()
            end.record()
        clock.synchronize()
        milliseconds = [float(start.elapsed_time(end)) for start, end in pairs]
        return sum(milliseconds) / n_calls / 1e3

    block(_WARM_UP)
    once = block(1)
    n_calls = max(1, math.ceil(_BLOCK_SECONDS / max(once, 1e-6)))
    return lambda: block(n_calls)


def extra_peak_bytes(call: Call, *, device: torch.device) -> int | None:
    """Return the most memory that a call took beyond what was in use before it.

    Result included. On CPU from the resident set, which memory that the process already holds
    does not raise: a lower bound. None where the system cannot reset the peak.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    if not reset_peak_rss():
        return None
    before = peak_rss_bytes()
    call()
    return max(0, peak_rss_bytes() - before)


def gpu_clocks(device: torch.device) -> dict[str, float | str | None]:
    """Return the present clocks of a GPU and its temperature, as the driver tells them.

    Returns
    -------
    dict
        ``sm_mhz``, ``memory_mhz``, ``celsius``; None where it does not tell (see `ask_driver`).
    """
    return ask_driver(
        device,
        {
            "sm_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
            "celsius": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(
                gpu, nvml.NVML_TEMPERATURE_GPU
            ),
        },
    )


def largest_error(found: Any, truth: Any) -> float:
    """Return the largest error over all outputs, each as a share of its largest true value.

    Infinite where shapes differ or a value is not finite.
    """
    outputs, truths = _outputs(found), _outputs(truth)
    if len(outputs) != len(truths):
        return float("inf")
    worst = 0.0
    for output, expected in zip(outputs, truths, strict=True):
        if output.shape != expected.shape or not np.isfinite(output).all():
            return float("inf")
        scale = float(np.abs(expected).max(initial=0)) or 1.0
        worst = max(worst, float(np.abs(output - expected).max(initial=0)) / scale)
    return worst


def _outputs(value: Any) -> list[NDArray[np.float64]]:
    values = value if isinstance(value, tuple) else (value,)
    return [
        np.asarray(v.detach().cpu() if isinstance(v, torch.Tensor) else v, dtype=np.float64)
        for v in values
    ]
