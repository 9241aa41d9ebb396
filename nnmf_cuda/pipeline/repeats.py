"""The same experiment from several seeds, and how far its figures move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES

__all__ = ["summarize", "summary_table"]


def summarize(metrics: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation (ddof 1) over seeds of every metric of every row.

    Parameters
    ----------
    metrics : mapping of int to mapping
        Content of `metrics.json` for each seed.
    """
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for row in ROW_NAMES:
        table = {
            name: np.array([m["rows"][row][name] for m in metrics.values()])
            for name in METRIC_NAMES
        }
        rows[row] = {
            name: {
                "mean": float(values.mean()),
                "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
            }
            for name, values in table.items()
        }
    return {"seeds": list(metrics), "rows": rows}


def summary_table(summary: Mapping[str, Any], *, names: Sequence[str] = METRIC_NAMES) -> str:
    """Return the summary as plain text: mean and standard deviation of each metric."""
    width = max(len(name) for name in (*names, "balanced_accuracy"))
    seeds = ", ".join(map(str, summary["seeds"]))
    lines = [f"Mean and standard deviation over seeds {seeds}"]
    lines.append(" " * width + "".join(f"{row:>20}" for row in ROW_NAMES))
    for name in names:
        cells = (summary["rows"][row][name] for row in ROW_NAMES)
        texts = (f"{cell['mean']:.4f} ± {cell['std']:.4f}" for cell in cells)
        lines.append(f"{name:<{width}}" + "".join(f"{text:>20}" for text in texts))
    lines.append("All seeds share one test split: this is not the uncertainty of a new one.")
    return "\n".join(lines)
