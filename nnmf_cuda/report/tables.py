"""The metric table and the stage table, as lines that the terminal and the HTML both show."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from nnmf_cuda.evaluation import (
    METRIC_NAMES,
    METRICS,
    PAPER_METRICS,
    PAPER_TIMINGS,
    ROW_NAMES,
    Comparison,
    EvaluatedRows,
    Metrics,
    RowIntervals,
    Uncertainty,
    majority_class_accuracy,
)
from nnmf_cuda.timing import PAPER_STAGES, Timings

METRIC_TITLES = {metric.name: metric.title for metric in METRICS}

STAGE_TITLES = {
    "nnmf_feature_extraction": "NNMF feature extraction",
    "cnn_training": "CNN training",
    "denoiser_training": "Diffusion denoiser training",
    "autoattack_baseline": "APGD-CE + Square, baseline",
    "autoattack_defended": "APGD-CE + Square, defended",
    "total": "Total of these five",
}

PAPER_SECONDS_NOTE = (
    "The paper's seconds are from its own data, hardware and software (MATLAB, then ONNX into "
    "PyTorch): for reading beside these, not for a ratio."
)

NONE = "–"

_WIDTH = 100
_FEW_CLUSTERS = 20
"""Below this, percentile intervals are known to be too narrow."""


@dataclass(frozen=True)
class Line:
    """One line of a table: its first cell, and the others, formatted."""

    kind: str  # "measured", "interval", "spread", "paper", "constant", "total" or "other"
    label: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class MetricTable:
    """The paper's four rows by its metrics, with all that stands beside them."""

    rows: EvaluatedRows
    uncertainty: Uncertainty
    papers_images: bool  # whether the paper's figures, of the same test images, stand under ours
    papers_defence: bool = True  # whether the defence is the paper's purifier
    draws_noise: bool = True  # whether the defence has several answers to a sample

    @property
    def header(self) -> tuple[str, ...]:
        """Titles of the columns."""
        return ("", *METRIC_TITLES.values())

    @property
    def constant_accuracy(self) -> float:
        """Accuracy of always naming the most frequent class of the test images."""
        return majority_class_accuracy(self.rows.labels)

    @property
    def against_constant(self) -> str:
        """How far Robust_Defended is above or below the constant answer."""
        points = 100 * (self.rows.rows["Robust_Defended"].accuracy - self.constant_accuracy)
        side = "above" if points >= 0 else "below"
        return f"Robust_Defended is {abs(points):.1f} percentage points {side} it"

    @property
    def counted(self) -> str:
        """What a defended row is the mean of."""
        n = self.rows.n_predictions
        return "one prediction a sample" if n == 1 else f"mean of {n} fresh predictions"

    def lines(self) -> list[Line]:
        """Return each row, its interval and spread, and the paper's; then the constant answer."""
        lines = []
        for name in ROW_NAMES:
            row, spread = self.rows.rows[name], self.rows.spread.get(name)
            lines.append(Line("measured", name, _metric_cells(row)))
            if self.uncertainty.intervals is not None:
                ends = self.uncertainty.intervals.rows[name]
                shown = (f"{ends[m].low:.2f}–{ends[m].high:.2f}" for m in METRIC_NAMES)
                label = f"{100 * self.uncertainty.level:.0f} % interval"
                lines.append(Line("interval", label, tuple(shown)))
            if spread is not None and self.rows.n_predictions > 1:
                lines.append(Line("spread", "noise spread", _metric_cells(spread, "±")))
            if self.papers_images:
                own = self.papers_defence or name.endswith("Baseline")
                label = "paper" if own else "paper (its own defence)"
                published = PAPER_METRICS[name]
                cells = (f"{published[m]:.4f}" if m in published else NONE for m in METRIC_NAMES)
                lines.append(Line("paper", label, tuple(cells)))
        constant = (f"{self.constant_accuracy:.4f}", *(NONE for _ in METRIC_NAMES[1:]))
        return [*lines, Line("constant", "Constant answer", constant)]

    def notes(self) -> list[str]:
        """Return the sentences that belong under the table."""
        n, found = len(self.rows.labels), self.uncertainty
        lower = " and ".join(m.title for m in METRICS if not m.higher_is_better)
        wilson = ", ".join(
            f"{name} {found.wilson[name].low:.3f}-{found.wilson[name].high:.3f}"
            for name in ROW_NAMES
        )
        notes = [
            f"{n} test images. {lower}: lower is better; all others: higher.",
            "Constant answer: always naming the most frequent class scores"
            f" {self.constant_accuracy:.4f}; {self.against_constant}.",
            f"{100 * found.level:.0f} % Wilson intervals of accuracy, images taken as independent:"
            f" {wilson}.",
            _intervals_note(found.intervals),
            comparison_note(found.clean, "clean", level=found.level, is_random=self.draws_noise),
            comparison_note(found.robust, "robust", level=found.level, is_random=self.draws_noise),
            calibration_note(found.calibration_errors, n_bins=found.n_bins),
            self._prediction_note(),
        ]
        if not self.papers_images:
            return [
                *notes,
                "The data are not the paper's, so its figures are not shown beside these.",
            ]
        notes.append("The paper's defended rows are one prediction each.")
        if not self.papers_defence:
            notes.append("They are of the paper's own defence, its purifier, not of this run's.")
        return notes

    def _prediction_note(self) -> str:
        if not self.draws_noise:
            return "The defence has no noise: its rows are of one answer to each image."
        if self.rows.n_predictions == 1:
            return "Defended rows: one prediction with fresh noise for each image."
        return (
            f"Defended rows: mean of each metric over {self.rows.n_predictions} predictions with"
            " fresh noise; ± is their standard deviation, not the uncertainty from the number of"
            " images."
        )

    def text(self) -> str:
        """Return the table and its notes for a terminal."""
        return _plain_text(self.header, self.lines(), self.notes())


def _metric_cells(row: Metrics | Mapping[str, float], sign: str = "") -> tuple[str, ...]:
    return tuple(f"{sign}{row[name]:.4f}" for name in METRIC_NAMES)


def _intervals_note(intervals: RowIntervals | None) -> str:
    if intervals is None:
        return "No bootstrap intervals: hardly a resample of the test images holds every class."
    n = intervals.n_clusters
    drawn = {
        "patient": f"whole patients ({n})",
        "series": f"whole slice series ({n}), as patients are not known",
        "image": f"single images ({n}), taken as independent",
    }[intervals.clustered_by]
    few = f" Of fewer than {_FEW_CLUSTERS} they are too narrow." if n < _FEW_CLUSTERS else ""
    return (
        f"Intervals under the rows: percentile bootstrap, {intervals.n_resamples} resamples of"
        f" {drawn}. They leave out how training would vary.{few}"
    )


def comparison_note(
    found: Comparison, condition: str, *, level: float, is_random: bool = True
) -> str:
    """Return the sentence on the two models' differences on "clean" or "robust" features.

    `level` is the coverage of the intervals; with `is_random` the defended model has several
    answers to a sample.
    """
    covers = f"{100 * level:.0f} %"
    parts = []
    if found.difference is not None:
        accuracy = found.difference["accuracy"]
        parts.append(
            f"accuracy {accuracy.estimate:+.3f} ({covers} {accuracy.low:+.3f} to"
            f" {accuracy.high:+.3f})"
        )
    right, area = "right", "ROC-AUC"
    if is_random:
        right, area = "right by majority", "ROC-AUC of the mean probability"
    parts.append(
        f"{right} on {found.mcnemar.n_only_a} images that the other gets wrong, against"
        f" {found.mcnemar.n_only_b} (McNemar {_p(found.mcnemar.p_value)})"
    )
    areas = found.delong
    if areas is not None and not math.isnan(areas.low):
        parts.append(
            f"{area} {areas.difference:+.3f} ({covers} {areas.low:+.3f} to {areas.high:+.3f},"
            f" DeLong {_p(areas.p_value)})"
        )
    independent = "" if condition == "clean" else " Both tests take images as independent."
    return f"Defended against Baseline, {condition}: {'; '.join(parts)}.{independent}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def calibration_note(errors: Mapping[str, float], *, n_bins: int) -> str:
    """Return the sentence on how far probabilities are from frequencies, by row."""
    values = ", ".join(f"{name} {errors[name]:.3f}" for name in ROW_NAMES)
    return f"Expected calibration error, {n_bins} bins: {values}."


@dataclass(frozen=True)
class StageTable:
    """Seconds and memory of each stage."""

    timings: Timings
    paper: bool  # whether the paper's seconds stand beside ours: its images are the same

    @property
    def header(self) -> tuple[str, ...]:
        """Titles of the columns."""
        titles = ("stage", "seconds", "items", "peak memory")
        return (*titles, "paper CPU", "paper GPU") if self.paper else titles

    def lines(self) -> list[Line]:
        """Return the paper's five stages, their total, then the others."""
        measured = {row.stage: row for row in self.timings.rows}
        lines = []
        for name in dict.fromkeys((*STAGE_TITLES, *measured)):
            row, cells = measured.get(name), [NONE, NONE, NONE]
            if row is not None:
                items = f"{row.n_items:,}" if row.n_items and name != "total" else NONE
                peak = f"{row.peak_bytes / 2**20:,.0f} MiB" if row.peak_bytes else NONE
                cells = [f"{row.seconds:.2f}", items, peak]
            if self.paper:
                published = PAPER_TIMINGS.get(name)
                cells += [f"{published[d]:.2f}" if published else NONE for d in ("cpu", "gpu")]
            kind = "measured" if name in PAPER_STAGES else "total" if name == "total" else "other"
            lines.append(Line(kind, STAGE_TITLES.get(name, name.replace("_", " ")), tuple(cells)))
        return lines

    def notes(self) -> list[str]:
        """Return the sentences that belong under the table."""
        memory = "the largest resident set of the whole process"
        if self.timings.device.startswith("cuda"):
            memory = "the most that torch held on the device"
        notes = [f"Measured on {self.timings.device}. Peak memory: {memory} during the stage."]
        return [*notes, PAPER_SECONDS_NOTE] if self.paper else notes

    def text(self) -> str:
        """Return the table and its notes for a terminal."""
        return _plain_text(self.header, self.lines(), self.notes())


def plain_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Set a table with the first column to the left and the others to the right."""
    return tabulate(
        rows,
        headers=header,
        disable_numparse=True,
        colalign=("left", *("right" for _ in header[1:])),
        preserve_whitespace=True,
    )


def _plain_text(header: Sequence[str], lines: Iterable[Line], notes: Iterable[str]) -> str:
    indent = dict.fromkeys(("interval", "spread", "paper"), "  ")
    rows = [(indent.get(line.kind, "") + line.label, *line.cells) for line in lines]
    table = plain_table(header, rows)
    return f"{table}\n{bullet_list(notes, width=max(map(len, table.splitlines())))}"


def bullet_list(notes: Iterable[str], *, width: int = _WIDTH) -> str:
    """Return sentences as a list of wrapped lines, each beginning with an asterisk."""
    return "\n".join(
        textwrap.fill(note, width, initial_indent="* ", subsequent_indent="  ") for note in notes
    )
