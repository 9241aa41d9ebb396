"""What ``nnmf-cuda bench`` runs: a quick look at the ops, and the seconds of the paper's stages.

Comparisons with other libraries and with the machine's ceilings are in the folder ``bench`` of the
source tree, which writes records of the same layout.
"""

from __future__ import annotations

from nnmf_cuda.benchmarks.quick_look import OPS_LOOKED_AT, quick_look_table, run_quick_look
from nnmf_cuda.benchmarks.records import latest_records, read_records
from nnmf_cuda.benchmarks.stage_tables import stages_markdown, stages_table
from nnmf_cuda.benchmarks.stages import QualityError, run_stage_benchmarks

__all__ = [
    "OPS_LOOKED_AT",
    "QualityError",
    "latest_records",
    "quick_look_table",
    "read_records",
    "run_quick_look",
    "run_stage_benchmarks",
    "stages_markdown",
    "stages_table",
]
