"""The report of a run as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnmf_cuda.data import SPLITS, ImageDataset
from nnmf_cuda.evaluation import ROW_NAMES, DenoisingError
from nnmf_cuda.evaluation.robustness import RobustnessReport
from nnmf_cuda.nnmf.estimator import NNMF
from nnmf_cuda.nnmf.selection import ComponentSelector
from nnmf_cuda.report import figures
from nnmf_cuda.report.details import readable
from nnmf_cuda.report.pages import Picture, environment
from nnmf_cuda.report.robustness import Tile, robustness_parts
from nnmf_cuda.report.tables import MetricTable, StageTable
from nnmf_cuda.timing import Timings
from nnmf_cuda.training import TrainingResult


@dataclass(frozen=True)
class RunReport:
    """Everything that the report of a run shows."""

    dataset: ImageDataset
    table: MetricTable
    nnmf: NNMF
    selector: ComponentSelector
    x_train: NDArray[np.floating[Any]]  # selected features (n_train, n_features)
    classifier: TrainingResult[Any]
    denoiser: TrainingResult[Any]
    denoising_error: DenoisingError  # on the test features
    purify_t: int | None  # timestep at which the defence adds noise; None where it adds none
    attacks: Mapping[str, Mapping[str, Any]]  # by model, as `metrics.json` has them
    timings: Timings
    stage_benchmark: Mapping[str, Any] | None  # record of the stages on these images
    robustness: RobustnessReport | None
    environment: Mapping[str, Any]  # content of `environment.json`
    config_yaml: str  # content of `config.yaml`
    notes: Sequence[str]  # what the reader and the run decided or skipped
    not_run: Sequence[str]  # what was left out of this run


def write_report(out_dir: str | Path, report: RunReport) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into a folder; return the path of the page.

    A report in it is replaced. The page holds its figures and styles and asks the network for
    nothing.
    """
    out_dir = Path(out_dir)
    (out_dir / "figures").mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, figure in _figures(report):
        pictures[name] = Picture.of(figure)
        (out_dir / "figures" / f"{name}.png").write_bytes(pictures[name].png)
    path = out_dir / "report.html"
    path.write_text(render_report(report, pictures), encoding="utf-8")
    return path


def _figures(report: RunReport) -> Iterator[tuple[str, Figure]]:
    """Yield each figure with its name; the template says what it shows."""
    selector, label_names, rows = report.selector, report.dataset.label_names, report.table.rows
    paper = report.table.papers_images
    yield "stage_times", figures.stage_times_figure(report.timings, paper=paper)
    if report.stage_benchmark is not None:
        yield "stage_benchmark", figures.stage_benchmark_figure([report.stage_benchmark])
    components = report.nnmf.components_.reshape(-1, *report.dataset.image_shape)
    yield "components", figures.components_figure(components, selector)
    y_train = report.dataset.labels_of("train")
    means = np.stack([report.x_train[y_train == c].mean(0) for c in range(len(label_names))])
    yield "class_means", figures.class_means_figure(means, label_names, selector.selected_)
    yield "selection", figures.selection_figure(selector)
    classifier = report.classifier
    curves = figures.training_figure(classifier.history, best_epoch=classifier.best_epoch)
    yield "classifier_training", curves
    yield "denoiser_training", figures.training_figure(report.denoiser.history)
    error = figures.denoising_figure(report.denoising_error, purify_t=report.purify_t)
    yield "denoising_error", error
    yield "roc", figures.roc_figure(rows, label_names)
    yield "reliability", figures.reliability_figure(rows, label_names)


_SECTIONS = {
    "robustness": "Robustness",
    "metrics": "Metrics",
    "meaning": "What they mean",
    "attack_curves": "What attacks spent",
    "points": "Twenty points",
    "attack": "Attack",
    "curves": "ROC",
    "features": "Features",
    "training": "Training",
    "times": "Stage times",
    "data": "Data",
    "not-run": "Not run",
    "environment": "Environment",
}
"""Every section that a report may have, in the template's order, with its title in the list."""


def render_report(report: RunReport, pictures: Mapping[str, Picture]) -> str:
    """Return the page with those pictures that are given."""
    templates = environment()
    templates.filters |= {"shown": _shown, "readable": readable}
    robustness: dict[str, Markup] = {}
    not_run = list(report.not_run)
    if report.robustness is not None:
        robustness = robustness_parts(report.robustness, rows=report.table.rows.rows)
        not_run += [f"Point {part}." for part in report.robustness.not_run]
    absent = {"robustness", "attack_curves", "points"} - set(robustness)
    labels, n_classes = report.dataset.labels_of, report.dataset.n_classes
    return templates.get_template("run.html").render(
        report=report,
        table=report.table,
        dataset=report.dataset,
        split_counts={s: np.bincount(labels(s), minlength=n_classes).tolist() for s in SPLITS},
        pictures=pictures,
        sections={name: title for name, title in _SECTIONS.items() if name not in absent},
        tiles=_tiles(report.table),
        stages=StageTable(report.timings, report.table.papers_images),
        robustness=robustness,
        not_run=not_run,
        attack_rows=_attack_rows(report.attacks),
    )


def _tiles(table: MetricTable) -> list[Tile]:
    """Return the large figures of a report without an evaluation, all counted in one way."""
    tiles = []
    for name in reversed(ROW_NAMES):
        note = table.counted if name.endswith("Defended") else "one answer a sample"
        accuracy = table.rows.rows[name].accuracy
        tiles.append(Tile(f"{accuracy:.3f}", name, note, name == "Robust_Defended"))
    constant = f"{table.constant_accuracy:.3f}"
    tiles.insert(1, Tile(constant, "constant answer", "always the most frequent class"))
    return tiles


_ATTACK_NAMES = {
    "accuracy_after": "AutoAttack's own flags, after each attack",
    "all_right_accuracy": "all fresh decisions right",
    "clean_accuracy": "AutoAttack's own flags, before the attack",
    "fresh_accuracy": "mean of fresh decisions",
    "fresh_accuracy_on_changed": "mean of fresh decisions on changed points",
    "majority_accuracy": "majority of fresh decisions right",
    "max_perturbation": "largest change of a sample",
    "n_clamped": "features moved into the box beforehand",
    "n_queries": "queries of Square",
    "n_unchanged": "points returned unchanged",
    "warnings": "AutoAttack's own warnings",
}


def _attack_rows(attacks: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Return settings and counts of the attacks, a column for each attacked model."""
    names = dict.fromkeys(name for record in attacks.values() for name in record)
    return [
        (_ATTACK_NAMES.get(name) or readable(name), [r.get(name, "–") for r in attacks.values()])
        for name in names
    ]


def _shown(value: Any) -> str:
    """Set a setting or count as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        texts = [_shown(item) for item in value]
        are_sentences = all(text.endswith((".", "!")) for text in texts)
        return (" " if are_sentences else "; ").join(texts) or "none"
    return "none" if value is None else str(value)
