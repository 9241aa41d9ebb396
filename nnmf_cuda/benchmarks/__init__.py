"""Speed of the ops and of the experiment's stages: what ``nnmf-cuda bench`` runs."""

from __future__ import annotations

from nnmf_cuda.benchmarks.registry import (
    Case,
    NotApplicableError,
    Size,
    case_names,
    register,
    register_implementation,
)
from nnmf_cuda.benchmarks.runner import run_kernel_benchmarks
from nnmf_cuda.benchmarks.stages import run_stage_benchmarks
from nnmf_cuda.benchmarks.table import records_table

__all__ = [
    "Case",
    "NotApplicableError",
    "Size",
    "case_names",
    "records_table",
    "register",
    "register_implementation",
    "run_kernel_benchmarks",
    "run_stage_benchmarks",
]
