"""What serves each op on this machine."""

from __future__ import annotations

import sys
from typing import Any

import torch

from nnmf_cuda import _extension
from nnmf_cuda.ops._schema import OPS

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}


def show_config() -> dict[str, Any]:
    """Tell the versions, the devices, and what serves each op.

    Returns
    -------
    dict
        "versions" (name to version), "devices" (list of names), "threads" (of torch),
        "extension" (the build's facts, empty where it is not built), "cpu_isa" (instruction set
        chosen at run time, or None), and "ops": for each op and device "kernel" (compiled),
        "reference" (plain torch) or
        "unavailable" (no such device here).

    Examples
    --------
    >>> show_config()["ops"]["nnmf_mu"]["cpu"]
    'kernel'
    """
    from nnmf_cuda._version import __version__

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": {
            "nnmf_cuda": __version__,
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "cuda of torch": torch.version.cuda,
        },
        "devices": devices,
        "threads": torch.get_num_threads(),
        "extension": _extension.build_info(),
        "cpu_isa": _extension.cpu_isa(),
        "ops": {op: {device: served_by(op, device) for device in _KEYS} for op in OPS},
    }


def served_by(op: str, device: str) -> str:
    """Return "kernel", "reference" or "unavailable" for an op on "cpu" or "cuda"."""
    if device == "cuda" and not torch.cuda.is_available():
        return "unavailable"
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"nnmf_cuda::{op}", _KEYS[device])
    return "kernel" if has_kernel else "reference"
