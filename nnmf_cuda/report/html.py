"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from nnmf_cuda.evaluation import ROW_NAMES
from nnmf_cuda.report import curves, figures, tables
from nnmf_cuda.report.content import ReportContent
from nnmf_cuda.report.details import readable
from nnmf_cuda.report.evaluated import Tile, not_run_parts
from nnmf_cuda.report.pictures import Picture
from nnmf_cuda.report.robustness import robustness_parts
from nnmf_cuda.report.templates import environment

__all__ = ["write_report"]


def write_report(out_dir: str | Path, content: ReportContent) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into a folder.

    Parameters
    ----------
    out_dir : path
        Made where it does not exist; a report in it is replaced.
    content : ReportContent
        What to show.

    Returns
    -------
    Path
        The HTML file. It holds its figures and styles and asks the network for nothing.
    """
    out_dir = Path(out_dir)
    (out_dir / "figures").mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, (figure, alt, caption) in _figures(content).items():
        pictures[name] = Picture.of(figure, alt, caption)
        _write_atomically(out_dir / "figures" / f"{name}.png", pictures[name].png)
    path = out_dir / "report.html"
    _write_atomically(path, _render(content, pictures).encode("utf-8"))
    return path


def _write_atomically(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=path.name, suffix=".tmp", delete=False
    ) as file:
        file.write(data)
    os.chmod(file.name, 0o644)  # temporary files are private to their owner
    os.replace(file.name, path)


def _figures(content: ReportContent) -> dict[str, tuple[Figure, str, str]]:
    """Return figure, alternative text and caption of each part that the content holds."""
    made: dict[str, tuple[Figure, str, str]] = {}
    if content.timings is not None:
        made["stage_times"] = (
            figures.stage_times_figure(content.timings, paper=content.paper_comparable),
            "Bar chart of seconds per stage",
            "Seconds of each stage.",
        )
    if content.stage_benchmark is not None:
        made["stage_benchmark"] = (
            figures.stage_benchmark_figure([content.stage_benchmark]),
            "Bar chart of seconds per stage, of this package and of plain eager torch",
            tables.stage_benchmark_caption(content.stage_benchmark),
        )
    if content.components is not None:
        made["components"] = (
            figures.components_figure(content.components, selection=content.selection),
            f"{len(content.components)} NNMF components as images",
            "The NNMF components, numbered from 0, each on a gray scale of its own from 0 (black) "
            "to its largest value (white).",
        )
    if content.class_means is not None:
        selected = None if content.selection is None else content.selection["selected"]
        made["class_means"] = (
            figures.class_means_figure(content.class_means, content.label_names, selected=selected),
            "Heat map of the mean of each feature in each class",
            "Mean of each feature in each class, on the training images.",
        )
    if content.selection is not None:
        made["selection"] = (
            figures.selection_figure(content.selection),
            "Bar charts of ROC-AUC, Cohen's d and Welch's p for each component",
            "How well each component alone tells the classes apart, on the training images. A bar "
            "to either side of the line separates; the ranking takes the three together.",
        )
    return {**made, **_training_figures(content), **_curve_figures(content)}


def _training_figures(content: ReportContent) -> dict[str, tuple[Figure, str, str]]:
    made = {}
    if content.classifier_history is not None:
        made["classifier_training"] = (
            figures.training_figure(content.classifier_history, best_epoch=content.best_epoch),
            "Training curves of the classifier",
            "The classifier over its epochs; the dotted line is the epoch kept.",
        )
    if content.denoiser_history is not None:
        made["denoiser_training"] = (
            figures.training_figure(content.denoiser_history),
            "Training curve of the denoiser",
            "The denoiser over its epochs: mean squared error of the predicted clean features.",
        )
    if content.denoising_error is not None:
        # A defence without noise works at no timestep: the mark would be somebody else's.
        purify_t = content.purify_t if content.random_defence else None
        made["denoising_error"] = (
            figures.denoising_figure(content.denoising_error, purify_t=purify_t),
            "Mean squared error of noisy and denoised features against the noise level",
            "Error of the features before and after one-shot denoising. The denoiser helps where "
            "its line is below both others.",
        )
    return made


def _curve_figures(content: ReportContent) -> dict[str, tuple[Figure, str, str]]:
    if content.probabilities is None or content.labels is None:
        return {}
    labels, probabilities = content.labels, content.probabilities
    return {
        "roc": (
            curves.roc_figure(labels, probabilities, content.rows, content.label_names),
            "ROC curves on clean and on attacked features",
            "ROC curves on the test images. Dashed: guessing. Below it, the scores of the two "
            "classes have been exchanged by the attack.",
        ),
        "reliability": (
            curves.reliability_figure(labels, probabilities, content.label_names),
            "Reliability curves on clean and on attacked features",
            "Observed against predicted frequency in ten bins; larger points hold more "
            "predictions. Dashed: perfect calibration.",
        ),
    }


_SECTIONS = {
    "robustness": "Robustness",
    "metrics": "Metrics",
    "meaning": "What they mean",
    "spent": "What attacks spent",
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


def _render(content: ReportContent, pictures: Mapping[str, Picture]) -> str:
    templates = environment()
    templates.filters |= {"shown": _shown, "readable": readable}
    robustness: dict[str, Markup] = {}
    if content.robustness is not None:
        robustness = robustness_parts(
            content.robustness, examples=content.pixel_examples, rows=content.rows
        )
    stages = _stages(content)
    absent = {"robustness", "spent", "points"} - set(robustness)
    absent |= set() if stages or "stage_benchmark" in pictures else {"times"}
    absent |= set() if content.attacks else {"attack"}
    return templates.get_template("template.html").render(
        content=content,
        pictures=pictures,
        sections={name: title for name, title in _SECTIONS.items() if name not in absent},
        metric_titles=tuple(tables.METRIC_TITLES.values()),
        tiles=_tiles(content),
        counted=_counted(content),
        stages=stages,
        robustness=robustness,
        not_run=_not_run(content),
        attack_rows=_attack_rows(content),
        against_constant=tables.against_constant(content.rows, content.majority_class_accuracy),
        **_metrics(content),
    )


def _metrics(content: ReportContent) -> dict[str, Any]:
    """Return lines and notes of the metric table."""
    common: dict[str, Any] = {
        "majority_class_accuracy": content.majority_class_accuracy,
        "paper": content.paper_comparable,
        "n_predictions": content.n_predictions,
        "uncertainty": content.uncertainty,
        "paper_defence": content.paper_defence,
    }
    notes = tables.metric_notes(content.rows, random_defence=content.random_defence, **common)
    lines = tables.metric_lines(content.rows, spread=content.spread, **common)
    return {"metric_lines": lines, "metric_notes": notes}


def _counted(content: ReportContent) -> str:
    """Say what the four rows are the mean of."""
    if content.n_predictions == 1:
        return "one prediction a sample"
    return f"mean of {content.n_predictions} fresh predictions"


def _tiles(content: ReportContent) -> list[Tile]:
    """Return the large figures of a report without an evaluation, all counted in one way."""
    counted = _counted(content)
    found = []
    for name in reversed(ROW_NAMES):
        note = counted if name.endswith("Defended") else "one answer a sample"
        main = name == "Robust_Defended"
        found.append(Tile(f"{content.rows[name]['accuracy']:.3f}", name, note, main))
    constant = f"{content.majority_class_accuracy:.3f}"
    found.insert(1, Tile(constant, "constant answer", "always the most frequent class"))
    return found


def _stages(content: ReportContent) -> dict[str, Any] | None:
    if content.timings is None:
        return None
    paper = content.paper_comparable
    return {
        "header": tables.stage_header(paper=paper),
        "lines": tables.stage_lines(content.timings, paper=paper),
        "notes": tables.stage_notes(content.timings, paper=paper),
    }


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


def _attack_rows(content: ReportContent) -> list[tuple[str, list[Any]]]:
    """Return settings and findings of the attacks, a column for each attacked model."""
    attacks = (content.attacks or {}).values()
    names = dict.fromkeys(name for found in attacks for name in found)
    return [
        (_ATTACK_NAMES.get(name) or readable(name), [found.get(name, "–") for found in attacks])
        for name in names
    ]


def _not_run(content: ReportContent) -> list[str]:
    """Return everything that was left out, of the report and of the evaluation's points."""
    found = [*content.not_run]
    found += [f"{part}: not run, so not shown." for part in content.missing_parts]
    if content.robustness is not None:
        found += [f"Point {part}." for part in not_run_parts(content.robustness)]
    return found


def _shown(value: Any) -> str:
    """Set a setting or finding as text."""
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
