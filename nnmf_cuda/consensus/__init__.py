"""Consensus NMF, in memory and on the files of dylkot/cNMF."""

from __future__ import annotations

from nnmf_cuda.consensus.estimator import ConsensusNNMF, KSelection
from nnmf_cuda.consensus.run import CnmfResults, CnmfRun

__all__ = ["CnmfResults", "CnmfRun", "ConsensusNNMF", "KSelection"]
