"""What a time on a GPU depends on: the device, its driver and its clocks."""

from __future__ import annotations

import subprocess
from typing import Any

import torch

__all__ = ["describe_gpu", "gpu_clocks"]

_TIMEOUT = 10  # seconds


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """Return what does not change while benchmarks run.

    Returns
    -------
    dict
        ``name, compute_capability, sm_count, memory_bytes, l2_bytes, cuda`` (that torch was built
        with), and as `nvidia-smi` tells them ``driver``, ``max_sm_mhz``, ``max_memory_mhz`` and
        ``power_limit_watts``; None where it does not.
    """
    properties = torch.cuda.get_device_properties(device)
    told = _nvidia_smi(
        device, "driver_version", "clocks.max.sm", "clocks.max.memory", "power.limit"
    )
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "sm_count": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "driver": told["driver_version"],
        "max_sm_mhz": _number(told["clocks.max.sm"]),
        "max_memory_mhz": _number(told["clocks.max.memory"]),
        "power_limit_watts": _number(told["power.limit"]),
    }


def gpu_clocks(device: torch.device) -> dict[str, float | None]:
    """Return the present clocks of a GPU and its temperature, as `nvidia-smi` tells them.

    Returns
    -------
    dict
        ``sm_mhz``, ``memory_mhz``, ``celsius``; None where it does not tell.
    """
    told = _nvidia_smi(device, "clocks.sm", "clocks.mem", "temperature.gpu")
    return {
        "sm_mhz": _number(told["clocks.sm"]),
        "memory_mhz": _number(told["clocks.mem"]),
        "celsius": _number(told["temperature.gpu"]),
    }


def _nvidia_smi(device: torch.device, *names: str) -> dict[str, str | None]:
    """Ask nvidia-smi, which may be missing, or not know: None then."""
    # nvidia-smi counts all devices, torch those that it may use: their numbers can differ.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    which = f"GPU-{uuid}" if uuid is not None else str(device.index or 0)
    command = ["nvidia-smi", f"--id={which}", f"--query-gpu={','.join(names)}"]
    try:
        done = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(names)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if len(values) != len(names):
        return dict.fromkeys(names)
    return dict(zip(names, values, strict=True))


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:  # [N/A], [Not Supported]
        return None
