"""Tables of several runs: over seeds, and the source's own split beside folds."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES
from nnmf_cuda.report.pages import environment
from nnmf_cuda.report.robustness import Tile, about_text
from nnmf_cuda.report.tables import METRIC_TITLES

__all__ = ["folds_page", "folds_table", "seeds_table"]

_NOTE = "All seeds share one test split: this is not the uncertainty of a new one."
_ROBUSTNESS = {
    "worst_case_accuracy": "worst case over all attacks",
    "all_right_accuracy": "worst case, all 20 decisions right",
    "clean_accuracy": "clean, majority of 20",
}
_COLUMNS = {
    "Clean_Baseline": "clean, Baseline",
    "Clean_Defended": "clean, Defended",
    "Robust_Baseline": "robust, Baseline",
    "Robust_Defended": "robust, Defended",
}
_CONSTANT, _WORST = "constant answer", "worst case"
_OWN_SPLIT = "own split"
_WIDTH = 100

Cell = Mapping[str, float]


def seeds_table(summary: Mapping[str, Any], *, names: Sequence[str] = METRIC_NAMES) -> str:
    """Return mean and standard deviation over seeds, as plain text.

    The constant answer and the worst case come first, then each metric of the four rows.
    """
    seeds = ", ".join(map(str, summary["seeds"]))
    found = {_CONSTANT: f"{summary['majority_class_accuracy']:.4f}"}
    cells = summary.get("robustness", {})
    found |= {title: _mean(cells[key]) for key, title in _ROBUSTNESS.items() if key in cells}
    width = max(map(len, found))
    lines = [f"Mean and standard deviation over seeds {seeds}"]
    lines += [f"{title:<{width}}  {value}" for title, value in found.items()]
    lines += ["", "Accuracy and other metrics: robust by the paper's protocol"]
    lines.append(" " * 10 + "".join(f"{row:>18}" for row in ROW_NAMES))
    for name in names:
        means = (_mean(summary["rows"][row][name]) for row in ROW_NAMES)
        lines.append(f"{METRIC_TITLES[name]:<10}" + "".join(f"{mean:>18}" for mean in means))
    if summary["one_split"]:
        lines.append(_NOTE)
    return "\n".join(lines)


def folds_table(summary: Mapping[str, Any]) -> str:
    """Return accuracies on the source's own split and on every fold, as plain text."""
    header, *rows = _accuracies(summary)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [textwrap.fill(_title(summary), _WIDTH), ""]
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    note = f"{_counted(summary)} The other metrics: summary.html."
    return "\n".join([*lines, "", textwrap.fill(note, _WIDTH)])


def folds_page(summary: Mapping[str, Any], *, home: str | Path | None = None) -> str:
    """Return the same, and every metric, as a page of HTML that needs nothing else.

    Parameters
    ----------
    summary : mapping
        What `nnmf_cuda.run.repeats.summarize_folds` returned.
    home : path, optional
        Directory of the runs, named at the top.
    """
    header, *rows = _accuracies(summary)
    templates = environment()
    section = templates.get_template("folds.html").render(
        title=_title(summary),
        tiles=_tiles(summary),
        header=header,
        rows=rows,
        counted=_counted(summary),
        detail_header=_detail_header(summary),
        details=_details(summary),
    )
    about = summary.get("about") or {}
    page: str = templates.get_template("page.html").render(
        title="Own split and folds",
        lead=about_text(about, home),
        synthetic=about.get("synthetic", False),
        section=Markup(section),
    )
    return page


def _title(summary: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, summary["seeds"]))
    own = "The source's own split beside " if _OWN_SPLIT in summary["splits"] else ""
    text = (
        f"{own}{summary['folds']['n_folds']} folds by {summary['split_by']}, each of which tests"
        f" once; every fitted step is fitted inside its fold. Seeds {seeds}."
    )
    return text[0].upper() + text[1:]


def _counted(summary: Mapping[str, Any]) -> str:
    n_seeds, n_folds = len(summary["seeds"]), summary["folds"]["n_folds"]
    over_seeds = f"± is over {n_seeds} seeds, in the last row" if n_seeds > 1 else "± is"
    text = (
        f"Accuracy; {over_seeds} over {n_folds} folds. Robust: by the paper's protocol, mean of"
        " fresh predictions; Defended is the run's defence."
    )
    if "robustness" not in summary["folds"]:
        return f"{text} Worst case: not run (--evaluation honest)."
    return f"{text} Worst case: over all attacks on the defence, majority of 20 decisions."


def _accuracies(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a header, a row for the own split and each fold, and their mean."""
    folds, n_seeds = summary["folds"], len(summary["seeds"])
    has_worst = "robustness" in folds
    header = ("", *_COLUMNS.values(), *((_WORST,) if has_worst else ()), _CONSTANT)
    splits = {name: found for name, found in summary["splits"].items() if name != _OWN_SPLIT}
    if _OWN_SPLIT in summary["splits"]:
        splits = {_OWN_SPLIT: summary["splits"][_OWN_SPLIT], **splits}
    rows = [_row(name, found, has_worst, several=n_seeds > 1) for name, found in splits.items()]
    return [header, *rows, _row("mean of folds", folds, has_worst, several=True)]


def _row(
    label: str, found: Mapping[str, Any], has_worst: bool, *, several: bool
) -> tuple[str, ...]:
    show = _mean if several else _value
    cells = [show(found["rows"][row]["accuracy"], 3) for row in _COLUMNS]
    if has_worst:
        worst = found.get("robustness", {}).get("worst_case_accuracy")
        cells.append("–" if worst is None else show(worst, 3))
    constant = found["majority_class_accuracy"]
    cells.append(_mean(constant, 3) if isinstance(constant, Mapping) else f"{constant:.3f}")
    return (label, *cells)


def _tiles(summary: Mapping[str, Any]) -> list[Tile]:
    """Return the means over folds in large type, all counted in one way."""
    folds = summary["folds"]
    evaluated, rows = folds.get("robustness"), folds["rows"]
    cells = {
        "robust, by the paper's protocol": rows["Robust_Defended"]["accuracy"],
        _CONSTANT: folds["majority_class_accuracy"],
        "clean, Defended": rows["Clean_Defended"]["accuracy"],
    }
    if evaluated:
        cells = {
            "worst case over all attacks": evaluated["worst_case_accuracy"],
            _CONSTANT: folds["majority_class_accuracy"],
            "clean": evaluated["clean_accuracy"],
        }
    return [
        Tile(f"{cell['mean']:.3f}", title, f"folds: {cell['low']:.3f}–{cell['high']:.3f}", i == 0)
        for i, (title, cell) in enumerate(cells.items())
    ]


def _detail_header(summary: Mapping[str, Any]) -> tuple[str, ...]:
    n_seeds, n_folds = len(summary["seeds"]), summary["folds"]["n_folds"]
    own = f"own split, mean ± over {n_seeds} seeds" if n_seeds > 1 else _OWN_SPLIT
    return (own, f"folds, mean ± over {n_folds} folds", "lowest–highest fold")


def _details(summary: Mapping[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    """Return every metric by the row of the table, and what the evaluation found."""
    own, folds = summary["splits"].get(_OWN_SPLIT) or {}, summary["folds"]
    show = _mean if len(summary["seeds"]) > 1 else _value

    def line(title: str, mine: Cell | None, cell: Cell) -> tuple[str, ...]:
        ends = f"{cell['low']:.4f}–{cell['high']:.4f}"
        return (title, "–" if mine is None else show(mine), _mean(cell), ends)

    found = {
        row: [
            line(title, own["rows"][row][name] if own else None, folds["rows"][row][name])
            for name, title in METRIC_TITLES.items()
        ]
        for row in ROW_NAMES
    }
    cells, mine = folds.get("robustness", {}), own.get("robustness", {})
    evaluated = [
        line(title, mine.get(key), cells[key]) for key, title in _ROBUSTNESS.items() if key in cells
    ]
    return {**({"Evaluation": evaluated} if evaluated else {}), **found}


def _mean(cell: Cell, digits: int = 4) -> str:
    return f"{cell['mean']:.{digits}f} ± {cell['std']:.{digits}f}"


def _value(cell: Cell, digits: int = 4) -> str:
    return f"{cell['mean']:.{digits}f}"
