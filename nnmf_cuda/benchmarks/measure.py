"""Seconds, memory and error of one call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnmf_cuda.benchmarks.registry import Call
from nnmf_cuda.timing import peak_rss_bytes, reset_peak_rss

__all__ = ["MIN_ROUNDS", "extra_peak_bytes", "interleaved_seconds", "largest_error"]

MIN_ROUNDS = 5
"""A median of fewer says little."""

_L2_BYTES = 256 * 2**20  # larger than the L2 cache of any present device


def interleaved_seconds(
    calls: Mapping[str, Call], *, device: torch.device, min_run_seconds: float
) -> tuple[dict[str, NDArray[np.float64]], str]:
    """Time calls in turns, so that a machine that is busy for a while slows all of them alike.

    Each round takes one sample of every call, until ``min_run_seconds`` have been spent on each on
    average, and at least `MIN_ROUNDS` rounds. On CPU a sample is the mean over a block of calls of
    about 10 ms, or one longer call. On CUDA it is one call between two events, after the L2 cache
    was overwritten.

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
    seconds : dict of str to array
        One sample an entry.
    method : str
        "interleaved" or "interleaved_cuda_events_l2_flushed".
    """
    cuda = device.type == "cuda"
    samplers = {
        name: _cuda_sampler(call, device) if cuda else _cpu_sampler(call)
        for name, call in calls.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + min_run_seconds * len(calls)
    n_rounds = 0
    while n_rounds < MIN_ROUNDS or time.perf_counter() < end:
        for name, sample in samplers.items():
            samples[name].append(sample())
        n_rounds += 1
    method = "interleaved_cuda_events_l2_flushed" if cuda else "interleaved"
    return {name: np.array(values) for name, values in samples.items()}, method


def _cpu_sampler(call: Call) -> Callable[[], float]:
    def clocked(n_calls: int) -> float:
        start = time.perf_counter()
        for _ in range(n_calls):
            call()
        return (time.perf_counter() - start) / n_calls

    once = clocked(1)
    block = max(1, math.ceil(0.01 / max(once, 1e-7)))
    return lambda: clocked(block)


def _cuda_sampler(call: Call, device: torch.device) -> Callable[[], float]:
    flush = torch.empty(_L2_BYTES, dtype=torch.int8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample() -> float:
        flush.zero_()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1e3

    for _ in range(3):
        call()
    return sample


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
