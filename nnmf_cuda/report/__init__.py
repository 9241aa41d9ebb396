"""Tables for the terminal, figures, and the self-contained HTML report."""

from __future__ import annotations

from nnmf_cuda.report.run_report import ReportContent, write_report
from nnmf_cuda.report.tables import bullet_list, metrics_table, timings_table

__all__ = ["ReportContent", "bullet_list", "metrics_table", "timings_table", "write_report"]
