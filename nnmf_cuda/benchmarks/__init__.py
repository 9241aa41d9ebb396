"""Speed of the ops and of the experiment's stages: what ``nnmf-cuda bench`` runs."""

from __future__ import annotations

from nnmf_cuda.benchmarks.break_even import break_even_size, run_break_even_benchmarks
from nnmf_cuda.benchmarks.convergence import run_convergence_benchmarks
from nnmf_cuda.benchmarks.device_tables import write_device_tables
from nnmf_cuda.benchmarks.equality import run_equality_benchmarks
from nnmf_cuda.benchmarks.memory import run_memory_benchmarks
from nnmf_cuda.benchmarks.plot import plot_records
from nnmf_cuda.benchmarks.records import latest_records, read_records
from nnmf_cuda.benchmarks.registry import (
    Case,
    NotApplicableError,
    Size,
    Work,
    case_names,
    register,
    register_implementation,
)
from nnmf_cuda.benchmarks.runner import run_kernel_benchmarks, run_scaling_benchmarks
from nnmf_cuda.benchmarks.stage_quality import QualityError
from nnmf_cuda.benchmarks.stage_tables import stages_table
from nnmf_cuda.benchmarks.stages import run_stage_benchmarks
from nnmf_cuda.benchmarks.table import records_table

__all__ = [
    "Case",
    "NotApplicableError",
    "QualityError",
    "Size",
    "Work",
    "break_even_size",
    "case_names",
    "latest_records",
    "plot_records",
    "read_records",
    "records_table",
    "register",
    "register_implementation",
    "run_break_even_benchmarks",
    "run_convergence_benchmarks",
    "run_equality_benchmarks",
    "run_kernel_benchmarks",
    "run_memory_benchmarks",
    "run_scaling_benchmarks",
    "run_stage_benchmarks",
    "stages_table",
    "write_device_tables",
]
