"""What several runs found: over seeds, and on the source's own split beside folds; their tables."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from nnmf_cuda.evaluation import METRIC_NAMES, ROW_NAMES
from nnmf_cuda.evaluation.headline import Headline
from nnmf_cuda.evaluation.robustness import About
from nnmf_cuda.report.pages import environment
from nnmf_cuda.report.robustness import Tile, about_text
from nnmf_cuda.report.tables import METRIC_TITLES, NONE, plain_table

OWN_SPLIT = "own split"
EVALUATED = {
    "worst_case_accuracy": "worst case over all attacks",
    "all_right_accuracy": "worst case, all 20 decisions right",
    "clean_accuracy": "clean, majority of 20",
    "ceiling": "ceiling of any classifier",
    "proven_accuracy": "proven",
    "undecided_accuracy": "undecided",
}
"""Figures of `robustness.json` that are summarised, with their titles."""

_NOTE = "All seeds share one test split: this is not the uncertainty of a new one."
_COLUMNS = {
    "Clean_Baseline": "clean, Baseline",
    "Clean_Defended": "clean, Defended",
    "Robust_Baseline": "robust, Baseline",
    "Robust_Defended": "robust, Defended",
}
_CONSTANT, _WORST = "constant answer", "worst case"
_WIDTH = 100


@dataclass(frozen=True)
class Spread:
    """How far a figure moves over runs: mean, standard deviation (ddof 1), lowest, highest."""

    mean: float
    std: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise a figure's values; one alone has no deviation."""
        array = np.array(values)
        std = float(array.std(ddof=1)) if len(array) > 1 else 0.0
        return cls(float(array.mean()), std, float(array.min()), float(array.max()))

    def text(self, digits: int = 4, *, several: bool = True) -> str:
        """Return mean and, of several runs, standard deviation."""
        mean = f"{self.mean:.{digits}f}"
        return f"{mean} ± {self.std:.{digits}f}" if several else mean


@dataclass(frozen=True)
class SeedsSummary:
    """Runs from several seeds."""

    seeds: tuple[int, ...]
    one_split: bool  # whether all have the same images and split
    majority_class_accuracy: float  # of the constant answer, of the first
    rows: Mapping[str, Mapping[str, Spread]]  # each metric of the four rows
    robustness: Mapping[str, Spread]  # each of `EVALUATED` that every run has
    headline: Headline | None = None  # means; None where not every run was evaluated

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        content = asdict(self)
        del content["headline"]
        if not self.robustness:
            del content["robustness"]
        if self.headline is not None:
            content["line"] = self.headline.line
        return {**content, "seeds": list(self.seeds)}


class FoldsSummary:
    """Runs fold by fold, from one or several seeds each, beside the source's own split if any.

    `constant`, `rows` and `robustness` are as in `SeedsSummary`, the spread of the seeds' means
    over folds; `headline` has the means over folds.
    """

    def __init__(
        self, splits: Mapping[str, SeedsSummary], *, split_by: str, source: str, preset: str
    ) -> None:
        self.own = splits.get(OWN_SPLIT)
        self.folds = {name: found for name, found in splits.items() if name != OWN_SPLIT}
        self.split_by, self.source, self.preset = split_by, source, preset
        folds = list(self.folds.values())
        self.seeds = folds[0].seeds
        self.constant = Spread.of([fold.majority_class_accuracy for fold in folds])
        self.rows = {row: _over_folds([fold.rows[row] for fold in folds]) for row in ROW_NAMES}
        evaluated = all(fold.robustness for fold in folds)
        self.robustness = _over_folds([fold.robustness for fold in folds]) if evaluated else {}
        lines = [fold.headline for fold in folds if fold.headline is not None]
        self.headline = Headline.mean(lines) if len(lines) == len(folds) else None

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        own = {} if self.own is None else {OWN_SPLIT: self.own}
        together = {
            "n_folds": len(self.folds),
            "majority_class_accuracy": asdict(self.constant),
            "rows": {row: _as_dicts(spreads) for row, spreads in self.rows.items()},
        }
        if self.robustness:
            together["robustness"] = _as_dicts(self.robustness)
        if self.headline is not None:
            together["line"] = self.headline.line
        return {
            "seeds": list(self.seeds),
            "split_by": self.split_by,
            "folds": together,
            "splits": {name: found.as_dict() for name, found in {**own, **self.folds}.items()},
            "about": {"source": self.source, "preset": self.preset},
        }


def _over_folds(folds: Sequence[Mapping[str, Spread]]) -> dict[str, Spread]:
    """Summarise the seeds' means of what every fold has."""
    shared = [name for name in folds[0] if all(name in fold for fold in folds)]
    return {name: Spread.of([fold[name].mean for fold in folds]) for name in shared}


def _as_dicts(spreads: Mapping[str, Spread]) -> dict[str, dict[str, float]]:
    return {name: asdict(spread) for name, spread in spreads.items()}


def seeds_table(summary: SeedsSummary) -> str:
    """Return mean and standard deviation over seeds, as plain text.

    The constant answer and the worst case come first, then each metric of the four rows.
    """
    seeds = ", ".join(map(str, summary.seeds))
    shown = {_CONSTANT: f"{summary.majority_class_accuracy:.4f}"}
    shown |= {EVALUATED[name]: spread.text() for name, spread in summary.robustness.items()}
    width = max(map(len, shown))
    metrics = [
        (METRIC_TITLES[name], *(summary.rows[row][name].text() for row in ROW_NAMES))
        for name in METRIC_NAMES
    ]
    lines = [
        f"Mean and standard deviation over seeds {seeds}",
        *(textwrap.wrap(summary.headline.line, _WIDTH) if summary.headline else ()),
        *(f"{title:<{width}}  {value}" for title, value in shown.items()),
        "",
        "Accuracy and other metrics: robust by the paper's protocol",
        plain_table(("", *ROW_NAMES), metrics),
    ]
    return "\n".join([*lines, _NOTE] if summary.one_split else lines)


def folds_table(summary: FoldsSummary) -> str:
    """Return accuracies on the source's own split and on every fold, as plain text."""
    title = textwrap.fill(_title(summary), _WIDTH)
    note = f"{_counted(summary)} The other metrics: summary.html."
    table = plain_table(_header(summary), _accuracies(summary))
    lines = "\n".join(textwrap.fill(line, _WIDTH) for line in _lines(summary))
    found = f"{lines}\n\n" if lines else ""
    return f"{title}\n\n{table}\n\n{found}{textwrap.fill(note, _WIDTH)}"


def folds_page(summary: FoldsSummary, *, home: str | Path | None = None) -> str:
    """Return the same, and every metric, as a page that needs nothing else and names `home`."""
    templates = environment()
    section = templates.get_template("folds.html").render(
        title=_title(summary),
        tiles=[
            Tile(f"{s.mean:.3f}", title, f"folds: {s.low:.3f}–{s.high:.3f}", i == 0)
            for i, (title, s) in enumerate(_headline(summary).items())
        ],
        header=_header(summary),
        rows=_accuracies(summary),
        counted=_counted(summary),
        lines=_lines(summary),
        summary=summary,
        evaluated=EVALUATED,
        metrics=METRIC_TITLES,
        own_split=OWN_SPLIT,
    )
    page: str = templates.get_template("page.html").render(
        title="Own split and folds",
        lead=about_text(About(source=summary.source, preset=summary.preset), home),
        synthetic=False,
        section=Markup(section),
    )
    return page


def _title(summary: FoldsSummary) -> str:
    seeds = ", ".join(map(str, summary.seeds))
    own = "" if summary.own is None else "The source's own split beside "
    return (
        f"{own}{len(summary.folds)} folds by {summary.split_by}, each of which tests once; every"
        f" fitted step is fitted inside its fold. Seeds {seeds}."
    )


def _lines(summary: FoldsSummary) -> list[str]:
    """Return the evaluation's line of the own split, of each fold and of their mean."""
    own = {} if summary.own is None else {OWN_SPLIT: summary.own.headline}
    folds = {name: fold.headline for name, fold in summary.folds.items()}
    found = {**own, **folds, "mean of folds": summary.headline}
    return [f"{name}: {headline.line}" for name, headline in found.items() if headline is not None]


def _counted(summary: FoldsSummary) -> str:
    n_seeds, n_folds = len(summary.seeds), len(summary.folds)
    over_seeds = f"± is over {n_seeds} seeds, in the last row" if n_seeds > 1 else "± is"
    text = (
        f"Accuracy; {over_seeds} over {n_folds} folds. Robust: by the paper's protocol, mean of"
        " fresh predictions; Defended is the run's defence."
    )
    if not summary.robustness:
        return f"{text} Worst case: not run (--evaluation honest)."
    return f"{text} Worst case: over all attacks on the defence, majority of 20 decisions."


def _header(summary: FoldsSummary) -> tuple[str, ...]:
    worst = (_WORST,) if summary.robustness else ()
    return ("", *_COLUMNS.values(), *worst, _CONSTANT)


def _accuracies(summary: FoldsSummary) -> list[list[str]]:
    """Return a row for the own split and each fold, and their mean."""
    own, several = {} if summary.own is None else {OWN_SPLIT: summary.own}, len(summary.seeds) > 1

    def cells(found: SeedsSummary | FoldsSummary, several: bool) -> list[str]:
        spreads: list[Spread | None] = [found.rows[row]["accuracy"] for row in _COLUMNS]
        if summary.robustness:
            spreads.append(found.robustness.get("worst_case_accuracy"))
        return [NONE if s is None else s.text(3, several=several) for s in spreads]

    table = [
        [label, *cells(found, several), f"{found.majority_class_accuracy:.3f}"]
        for label, found in {**own, **summary.folds}.items()
    ]
    return [*table, ["mean of folds", *cells(summary, several=True), summary.constant.text(3)]]


def _headline(summary: FoldsSummary) -> dict[str, Spread]:
    """Return what stands in large type, all counted in one way."""
    if summary.robustness:
        return {
            EVALUATED["worst_case_accuracy"]: summary.robustness["worst_case_accuracy"],
            _CONSTANT: summary.constant,
            "clean": summary.robustness["clean_accuracy"],
        }
    return {
        "robust, by the paper's protocol": summary.rows["Robust_Defended"]["accuracy"],
        _CONSTANT: summary.constant,
        "clean, Defended": summary.rows["Clean_Defended"]["accuracy"],
    }
