"""The same experiment from several seeds, and how far its figures move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES

__all__ = ["summarize", "summarize_robustness", "summary_table"]


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


def summarize_robustness(contents: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over seeds of what `robustness.json` says first.

    Parameters
    ----------
    contents : mapping of int to mapping
        Content of `robustness.json` for each seed.
    """
    found = {}
    for name in ("clean_accuracy", "worst_case_accuracy", "all_right_accuracy"):
        values = np.array([content[name] for content in contents.values()])
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        found[name] = {"mean": float(values.mean()), "std": spread}
    return found


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
    for name, cell in summary.get("robustness", {}).items():
        lines.append(f"{name:<{width}}    {cell['mean']:.4f} ± {cell['std']:.4f}")
    lines.append("All seeds share one test split: this is not the uncertainty of a new one.")
    return "\n".join(lines)
