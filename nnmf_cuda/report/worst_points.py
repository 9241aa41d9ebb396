"""The nine metrics on the points of highest loss, beside those of the paper's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES
from nnmf_cuda.report.evaluated import is_random
from nnmf_cuda.report.tables import Line
from nnmf_cuda.report.uncertainty import calibration_note, comparison_note

__all__ = ["worst_point_lines", "worst_point_notes"]


def worst_point_lines(
    content: Mapping[str, Any], paper: Mapping[str, Mapping[str, float]] | None
) -> list[Line]:
    """Return the rows on the worst points, each attacked one above the paper protocol's.

    Parameters
    ----------
    content : mapping
        Content of `robustness.json`.
    paper : mapping, optional
        ``rows`` of ``metrics.json``.
    """
    found = content.get("worst_points")
    if not found:
        return []
    lines = []
    for name in ROW_NAMES:
        lines.append(_line("measured", name, found["rows"][name]))
        if paper is not None and name.startswith("Robust"):
            lines.append(_line("interval", "the paper's protocol", paper[name]))
    return lines


def _line(kind: str, label: str, values: Mapping[str, float]) -> Line:
    return Line(kind, label, tuple(f"{values[metric]:.4f}" for metric in METRIC_NAMES))


def worst_point_notes(content: Mapping[str, Any]) -> list[str]:
    """Return the comparisons and the calibration on the worst points, as sentences."""
    found = content.get("worst_points") or {}
    notes = []
    comparisons = found.get("comparisons") or {}
    if comparisons:
        level = {"level": 0.95, **comparisons}
        notes += [
            comparison_note(level, name, is_random=is_random(content))
            for name in ("clean", "robust")
            if name in level
        ]
    if found.get("calibration"):
        notes.append(calibration_note(found["calibration"]))
    return notes
