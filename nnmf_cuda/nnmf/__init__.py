"""Non-negative matrix factorisation: the estimator, and what chooses its rank and components."""

from __future__ import annotations

from nnmf_cuda.nnmf.estimator import NNMF
from nnmf_cuda.nnmf.fitting import FitRecord
from nnmf_cuda.nnmf.graph import neighbor_graph
from nnmf_cuda.nnmf.rank_selection import RankSelection
from nnmf_cuda.nnmf.selection import ComponentSelector

__all__ = [
    "NNMF",
    "ComponentSelector",
    "FitRecord",
    "RankSelection",
    "neighbor_graph",
]
