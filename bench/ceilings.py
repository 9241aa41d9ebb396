"""What the machine can do at best: matrix products and reads from memory, timed beside the ops."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.case import Call, Work
from bench.measure import interleaved_seconds

__all__ = ["Ceilings", "measure_ceilings", "rates", "require_full_float32"]

_GEMM_SECONDS = 0.02
"""Matrices grow until their product takes this long: by then threads and caches are in use."""
_GEMM_LARGEST = 16384
_READ_BYTES = {"cpu": 2**28, "cuda": 2**30}
_READ_MOST = 2**31


@dataclass(frozen=True)
class _Probe:
    call: Call
    amount: float  # floating-point operations or bytes
    method: str


class Ceilings:
    """Two calls to be timed in turns with an op, so that a busy machine slows all alike.

    The product of two square matrices in `dtype`, and one pass over an array many times larger
    than the caches: its sum or its product with a vector, whichever torch does faster.

    Parameters
    ----------
    device : torch.device
        Where to measure.
    dtype : torch.dtype
        float32 or float64.
    smoke : bool, default=False
        Tiny matrices: shows that it works, and is no ceiling.
    """

    def __init__(
        self, device: torch.device, *, dtype: torch.dtype = torch.float32, smoke: bool = False
    ) -> None:
        self._dtype = dtype
        self._probes = {
            "gemm": _gemm_probe(device, dtype, smoke),
            "read": _read_probe(device, smoke),
        }

    @property
    def calls(self) -> dict[str, Call]:
        """The two calls, by names that no implementation has."""
        return {f"ceiling: {name}": probe.call for name, probe in self._probes.items()}

    def from_seconds(self, seconds: Mapping[str, Any]) -> dict[str, Any]:
        """Return the ceilings from the samples of `calls`, by the medians."""
        gemm, read = (self._probes[name] for name in ("gemm", "read"))
        return {
            "gemm_gflops": gemm.amount / float(np.median(seconds["ceiling: gemm"])) / 1e9,
            "gemm_method": gemm.method,
            "gemm_dtype": str(self._dtype).removeprefix("torch."),
            "read_gb_per_s": read.amount / float(np.median(seconds["ceiling: read"])) / 1e9,
            "read_method": read.method,
        }


def measure_ceilings(
    device: torch.device, *, min_run_seconds: float = 0.5, smoke: bool = False
) -> dict[str, Any]:
    """Return the ceilings by themselves; keys as in the records' ``ceilings``."""
    ceilings = Ceilings(device, smoke=smoke)
    timed = interleaved_seconds(ceilings.calls, device=device, min_run_seconds=min_run_seconds)
    return ceilings.from_seconds(timed.seconds)


def require_full_float32() -> None:
    """Raise where products of float32 matrices would be of TF32: neither ceiling nor peer."""
    if torch.backends.cuda.matmul.allow_tf32:
        raise ValueError(
            "torch.backends.cuda.matmul.allow_tf32 is on: float32 products would have 10 bits; set"
            " it to False, or torch.set_float32_matmul_precision to 'highest'"
        )


def rates(
    work: Work, seconds: float, ceilings: Mapping[str, Any] | None
) -> dict[str, float | None]:
    """Return what a call of `work` in `seconds` achieved, and as shares of known ceilings."""
    gflops = None if work.flops is None else work.flops / seconds / 1e9
    read = None if work.bytes is None else work.bytes / seconds / 1e9
    return {
        "gflops": gflops,
        "gemm_share": None if gflops is None or not ceilings else gflops / ceilings["gemm_gflops"],
        "gb_per_s": read,
        "read_share": None if read is None or not ceilings else read / ceilings["read_gb_per_s"],
        "items_per_s": None if work.items is None else work.items / seconds,
    }


def _gemm_probe(device: torch.device, dtype: torch.dtype, smoke: bool) -> _Probe:
    if device.type == "cuda":
        require_full_float32()
    n = 64 if smoke else 512
    while True:
        # Few distinct operands are read again and again; values do not matter, denormals would.
        left, right = (torch.rand(n, n, device=device, dtype=dtype) + 0.5 for _ in range(2))
        out = torch.empty_like(left)

        def product(left: Tensor = left, right: Tensor = right, out: Tensor = out) -> Tensor:
            return torch.matmul(left, right, out=out)

        if smoke or n == _GEMM_LARGEST or _seconds_of(product, device) > _GEMM_SECONDS:
            method = f"{n} x {n} by {n} x {n}" + (", no TF32" if device.type == "cuda" else "")
            return _Probe(product, 2.0 * n**3, method)
        n *= 2


def _read_probe(device: torch.device, smoke: bool) -> _Probe:
    n_bytes = 2**20 if smoke else max(_READ_BYTES[device.type], 4 * _last_level_cache(device))
    n_columns = 2**12 if smoke else 2**16
    data = torch.ones(min(n_bytes, _READ_MOST) // 4 // n_columns, n_columns, device=device)
    vector = torch.ones(n_columns, device=device)
    ways: dict[str, Call] = {
        "sum": lambda: data.sum(),
        "product with a vector": lambda: data @ vector,
    }
    # The second run of each: the first touches the pages and starts the threads.
    seconds = {
        name: min(_seconds_of(call, device) for _ in range(2)) for name, call in ways.items()
    }
    fastest = min(seconds, key=lambda name: seconds[name])
    amount = data.numel() * data.element_size()
    return _Probe(ways[fastest], float(amount), f"{fastest} of {amount // 2**20} MiB")


def _seconds_of(call: Call, device: torch.device) -> float:
    call()
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _last_level_cache(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    try:
        return max(0, os.sysconf("SC_LEVEL3_CACHE_SIZE"))
    except (ValueError, OSError):  # not every system tells
        return 0
