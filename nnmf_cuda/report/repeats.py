"""Tables of several runs: over seeds, and the source's own split beside folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES
from nnmf_cuda.report.robustness import environment

__all__ = ["folds_page", "folds_table", "seeds_table"]

_NOTE = "All seeds share one test split: this is not the uncertainty of a new one."


def seeds_table(summary: Mapping[str, Any], *, names: Sequence[str] = METRIC_NAMES) -> str:
    """Return mean and standard deviation over seeds of each metric, as plain text."""
    width = max(len(name) for name in (*names, "balanced_accuracy"))
    seeds = ", ".join(map(str, summary["seeds"]))
    lines = [f"Mean and standard deviation over seeds {seeds}"]
    lines.append(" " * width + "".join(f"{row:>20}" for row in ROW_NAMES))
    for name in names:
        cells = (summary["rows"][row][name] for row in ROW_NAMES)
        lines.append(f"{name:<{width}}" + "".join(f"{_mean(cell):>20}" for cell in cells))
    for name, cell in summary.get("robustness", {}).items():
        lines.append(f"{name:<{width}}    {_mean(cell)}")
    if summary["one_split"]:
        lines.append(_NOTE)
    return "\n".join(lines)


def folds_table(summary: Mapping[str, Any]) -> str:
    """Return the source's own split beside the folds, as plain text."""
    lines = [_title(summary)]
    lines.append(f"{'':<36}{'own split':>18}{'folds: mean':>18}{'lowest - highest':>20}")
    for group, name, own, folds in _rows(summary):
        label = f"{group} {name}".strip()
        lines.append(f"{label:<36}{own:>18}{folds[0]:>18}{folds[1]:>20}")
    return "\n".join(lines)


def folds_page(summary: Mapping[str, Any]) -> str:
    """Return the same as a page of HTML that needs nothing else.

    Parameters
    ----------
    summary : mapping
        What `nnmf_cuda.pipeline.repeats.summarize_folds` returned.
    """
    table = environment().get_template("folds.html").render(rows=_rows(summary))
    page: str = (
        environment()
        .get_template("page.html")
        .render(title="Own split and folds", lead=_title(summary), section=Markup(table))
    )
    return page


def _title(summary: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, summary["seeds"]))
    return (
        f"The source's own split beside {summary['folds']['n_folds']} folds by"
        f" {summary['split_by']}, each of which tests once; every fitted step is fitted inside its"
        f" fold. Seeds {seeds}; ± is the standard deviation over seeds on the own split, over folds"
        " on the folds."
    )


def _rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str, tuple[str, str]]]:
    """Return group, metric, own split, and the folds' mean and range, as text."""
    own, folds = summary["splits"].get("own split"), summary["folds"]
    found = []

    def add(group: str, name: str, mine: Mapping[str, float] | None, cell: Any) -> None:
        spread = f"{cell['low']:.4f} - {cell['high']:.4f}"
        found.append((group, name, "" if mine is None else _mean(mine), (_mean(cell), spread)))

    constant = own and {"mean": own["majority_class_accuracy"], "std": 0.0}
    add("", "constant answer", constant, folds["majority_class_accuracy"])
    for row in ROW_NAMES:
        for name in METRIC_NAMES:
            add(row, name, own and own["rows"][row][name], folds["rows"][row][name])
    for name, cell in folds.get("robustness", {}).items():
        mine = own and own.get("robustness")
        add("evaluation", name, mine and mine[name], cell)
    return found


def _mean(cell: Mapping[str, float]) -> str:
    return f"{cell['mean']:.4f} ± {cell['std']:.4f}"
