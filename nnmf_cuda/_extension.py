"""Load the compiled extension, and say what it is."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from types import ModuleType
from typing import Any

import torch  # libtorch must be in the process before the extension is

logger = logging.getLogger(__name__)

_NAME = "nnmf_cuda._C"
_REMEDY = (
    "build it with `pip install --no-build-isolation -e .` in the source folder "
    "(a C++20 compiler is needed; nvcc for the CUDA part)"
)


def load() -> ModuleType | None:
    """Load the compiled kernels, which register themselves with torch.

    Returns
    -------
    module or None
        ``nnmf_cuda._C``, or None where there is no usable one; the reference implementations then
        serve every op, which is logged once.

    Raises
    ------
    ImportError
        If there is no usable extension and the environment variable ``NNMF_CUDA_REQUIRE_EXT`` is 1.
    """
    module, reason = _load_once()
    if module is None and os.environ.get("NNMF_CUDA_REQUIRE_EXT") == "1":
        raise ImportError(
            f"NNMF_CUDA_REQUIRE_EXT=1, but the compiled extension is {reason}; {_REMEDY}"
        )
    return module


@functools.cache
def _load_once() -> tuple[ModuleType | None, str]:
    """Return the module, or None and why there is none."""
    _survive_forks()
    if importlib.util.find_spec(_NAME) is None:
        reason = "not built"
    else:
        try:
            return importlib.import_module(_NAME), ""
        except ImportError as error:
            reason = f"not loadable ({error})"
    logger.warning(
        "the compiled extension is %s: the slower reference serves every op; %s", reason, _REMEDY
    )
    return None, reason


def _survive_forks() -> None:
    """Give processes that are forked from this one a single thread.

    OpenMP's other threads, which kernels of ours and of torch share, do not live on in the child:
    with more than one it would wait for them for ever.
    """
    if hasattr(os, "register_at_fork"):  # Windows does not fork
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def build_info() -> dict[str, Any]:
    """Return facts about the compiled extension.

    Returns
    -------
    dict
        ``version`` (of this package when it was built), ``compiler``, ``flags``,
        ``cpu_instruction_sets`` (the variants of the CPU kernels that were built),
        ``stable_abi_target`` (the oldest torch it runs with), ``cuda`` (bool), ``cuda_version``
        and ``cuda_architectures`` (such as ``["sm_80", "compute_90"]``; compute means PTX).
        Empty where there is no extension. Where that was built under another Python, only
        ``cpu_instruction_sets`` is known.
    """
    module = load()
    if module is None:
        return {}
    sets = module.cpu_instruction_sets().split()
    try:
        facts = importlib.import_module("nnmf_cuda._build_info").build_info()
    except ImportError:
        facts = {}
    return {**facts, "cpu_instruction_sets": sets}


def cpu_isa() -> str | None:
    """Return which variant of the CPU kernels runs here: avx512, avx2 or baseline.

    None where there is no extension.
    """
    module = load()
    return None if module is None else str(module.cpu_isa())
