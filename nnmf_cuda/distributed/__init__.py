"""Rows that are dealt among the processes of torch.distributed."""

from __future__ import annotations

from nnmf_cuda.distributed.ranks import RanksError
from nnmf_cuda.distributed.shard import Shard

__all__ = ["RanksError", "Shard"]
