"""What a result depends on beside its configuration."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from nnmf_cuda import show_config
from nnmf_cuda._version import __version__
from nnmf_cuda.distributed.launched import take_own_gpu

_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pyautoattack", "autoattack", "pillow")


def resolve_device(name: str) -> torch.device:
    """Return the device behind "auto", "cpu", "cuda" or "cuda:1"; ValueError if it is not here.

    Of several processes that `torchrun` has started on a machine each takes another GPU for "auto"
    and "cuda".
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r} is not a device: give auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name!r} is not supported: give auto, cpu or cuda")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(
                f"--device {name}, but torch {torch.__version__} sees {count} CUDA devices: use"
                " --device cpu, or install a driver and a torch with CUDA"
            )
        if ":" not in name:
            take_own_gpu()
    return device


def describe_environment(device: torch.device, *, data_sha256: str) -> dict[str, Any]:
    """Return versions, device, threads, commit and the data's hash, for `environment.json`."""
    config = show_config()
    commit, dirty = _commit()
    return {
        "nnmf_cuda": __version__,
        "commit": commit,
        "uncommitted_changes": dirty,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": str(device),
        "device_name": _device_name(device),
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "extension": config["extension"],
        "cpu_isa": config["cpu_isa"],
        "ops": {op: served[device.type] for op, served in config["ops"].items()},
        "data_sha256": data_sha256,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def _commit() -> tuple[str, bool]:
    """Return the commit of the source checkout and whether files differ from it; else "", False.

    Asked once a process: the code that runs is the one that was imported.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "", False
    commit = _git(root, "rev-parse", "HEAD")
    return commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
