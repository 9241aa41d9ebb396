"""Tables for the terminal, figures, and the self-contained HTML report."""

from __future__ import annotations

from nnmf_cuda.report.run_report import RunReport, write_report
from nnmf_cuda.report.tables import MetricTable, StageTable, bullet_list

__all__ = ["MetricTable", "RunReport", "StageTable", "bullet_list", "write_report"]
