"""The report of a run as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
    pictures = {name: Picture.of(draw) for name, draw in _figures(report)}
    for name, picture in pictures.items():
        if picture.png:
            (out_dir / "figures" / f"{name}.png").write_bytes(picture.png)
    path = out_dir / "report.html"
    path.write_text(render_report(report, pictures), encoding="utf-8", errors="backslashreplace")
    return path


def _figures(report: RunReport) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Yield the name of each figure and what draws it; the template says what it shows."""
    selector, label_names, rows = report.selector, report.dataset.label_names, report.table.rows
    yield (
        "stage_times",
        partial(figures.stage_times_figure, report.timings, paper=report.table.papers_images),
    )
    if report.stage_benchmark is not None:
        yield "stage_benchmark", partial(figures.stage_benchmark_figure, [report.stage_benchmark])
    components = report.nnmf.components_.reshape(-1, *report.dataset.image_shape)
    yield "components", partial(figures.components_figure, components, selector)
    y_train = report.dataset.labels_of("train")
    means = np.stack([report.x_train[y_train == c].mean(0) for c in range(len(label_names))])
    yield "class_means", partial(figures.class_means_figure, means, label_names, selector.selected_)
    yield "selection", partial(figures.selection_figure, selector)
    classifier = report.classifier
    yield (
        "classifier_training",
        partial(figures.training_figure, classifier.history, best_epoch=classifier.best_epoch),
    )
    yield "denoiser_training", partial(figures.training_figure, report.denoiser.history)
    yield (
        "denoising_error",
        partial(figures.denoising_figure, report.denoising_error, purify_t=report.purify_t),
    )
    yield "roc", partial(figures.roc_figure, rows, label_names)
    yield "reliability", partial(figures.reliability_figure, rows, label_names)


def render_report(report: RunReport, pictures: Mapping[str, Picture]) -> str:
    """Return the page with those pictures that are given."""
    templates = environment()
    templates.filters |= {"shown": _shown, "readable": readable}
    robustness: dict[str, Markup] = {}
    not_run = list(report.not_run)
    if report.robustness is not None:
        robustness = robustness_parts(report.robustness, rows=report.table.rows.rows)
        not_run += [f"Point {part}." for part in report.robustness.not_run]
    labels, n_classes = report.dataset.labels_of, report.dataset.n_classes
    return templates.get_template("run.html").render(
        report=report,
        table=report.table,
        dataset=report.dataset,
        split_counts={s: np.bincount(labels(s), minlength=n_classes).tolist() for s in SPLITS},
        pictures=pictures,
        tiles=_tiles(report.table),
        stages=StageTable(report.timings, report.table.papers_images),
        robustness=robustness,
        not_run=not_run,
        attack_names=dict.fromkeys(name for found in report.attacks.values() for name in found),
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
