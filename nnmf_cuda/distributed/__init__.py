"""Rows that are dealt among the processes of torch.distributed, and commands that are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnmf_cuda.distributed.ranks import RanksError
    from nnmf_cuda.distributed.shard import Shard

__all__ = ["RanksError", "Shard"]

_HOMES = {"RanksError": "nnmf_cuda.distributed.ranks", "Shard": "nnmf_cuda.distributed.shard"}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use: the command line takes `crew` alone, without torch."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nnmf_cuda.distributed' has no attribute {name!r}")
