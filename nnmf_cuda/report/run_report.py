"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnmf_cuda.evaluation import ROW_NAMES, DenoisingError
from nnmf_cuda.report import figures, tables
from nnmf_cuda.report import figures as curves
from nnmf_cuda.report.details import readable
from nnmf_cuda.report.pages import Picture, environment
from nnmf_cuda.report.robustness import Tile, not_run_parts, robustness_parts

__all__ = ["OPTIONAL_PARTS", "ReportContent", "write_report"]


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


# What a report shows, as plain arrays and dictionaries.

OPTIONAL_PARTS = {
    "components": "Component images",
    "class_means": "Class means of the features",
    "selection": "Selection statistics of the components",
    "classifier_history": "Training curve of the classifier",
    "denoiser_history": "Training curve of the denoiser",
    "denoising_error": "Denoising error against noise level",
    "probabilities": "ROC and reliability curves",
    "uncertainty": "Intervals and comparisons of the rows",
    "timings": "Stage times",
    "attacks": "Settings and checks of the attack",
}
"""Fields of `ReportContent` that may be None, with the title of what is then not shown."""


@dataclass(frozen=True)
class ReportContent:
    """Everything `write_report` shows; no model and no tensor.

    Attributes
    ----------
    source : str
        Where the images came from.
    synthetic : bool
        Whether they were generated; a banner then says so.
    label_names : tuple of str
        Class names; the last is the positive class.
    split_counts : mapping of str to sequence of int
        Images of each class in "train", "valid" and "test".
    rows : mapping of str to mapping
        The nine metrics and ``n`` of the four rows (``metrics.json``).
    majority_class_accuracy : float
        Accuracy of the constant answer on the test images.
    spread : mapping, optional
        Standard deviation over predictions, for rows that have one.
    n_predictions : int
        Predictions behind each defended row.
    paper_comparable : bool
        Whether the data are the paper's, so that its figures stand beside ours.
    paper_defence : bool
        Whether the defence is the paper's purifier.
    random_defence : bool
        Whether the defence draws noise before it answers.
    uncertainty : mapping, optional
        ``intervals``, ``comparisons`` and ``calibration`` of ``metrics.json``.
    timings : mapping, optional
        Content of ``timings.json``.
    stage_benchmark : mapping, optional
        Record of `nnmf_cuda.benchmarks.run_stage_benchmarks` on these images.
    components : array of shape (n_components, height, width), optional
        Images of the NNMF components.
    class_means : array of shape (n_classes, n_features), optional
        Mean selected feature of each class on the training split.
    selection : mapping, optional
        ``auc``, ``cohens_d``, ``p_value`` (each of n_components), ``ranking`` (best first) and
        ``selected`` (indices kept).
    classifier_history, denoiser_history : mapping of str to sequence of float, optional
        One value an epoch; names that end in "loss" share an axis, the others another.
    best_epoch : int, optional
        Epoch kept of the classifier, counted from 0.
    denoising_error : DenoisingError, optional
        What `nnmf_cuda.evaluation.denoising_error` returns.
    purify_t : int, optional
        Timestep at which the defence works.
    labels : array of shape (n_test,), optional
        True classes; needed with ``probabilities``.
    probabilities : mapping of str to array (n_predictions, n_test, n_classes), optional
        Softmax probabilities behind each row.
    attacks : mapping of str to mapping, optional
        For each attacked model, settings and findings by name.
    robustness : mapping, optional
        Content of ``robustness.json``.
    pixel_examples : mapping, optional
        "clean" and "attacked" images (m, height, width) of the attack on pixels, and optionally
        "titles" and "eps_255".
    environment : mapping
        Versions, device, commit and the like.
    config : str
        The configuration, as YAML.
    notes : sequence of str
        What the reader and the run decided or skipped.
    not_run : sequence of str
        What was left out of this run.
    """

    source: str
    synthetic: bool
    label_names: tuple[str, ...]
    split_counts: Mapping[str, Sequence[int]]
    rows: Mapping[str, Mapping[str, float]]
    majority_class_accuracy: float
    spread: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    n_predictions: int = 20
    paper_comparable: bool = False
    paper_defence: bool = True
    random_defence: bool = True
    uncertainty: Mapping[str, Any] | None = None
    timings: Mapping[str, Any] | None = None
    stage_benchmark: Mapping[str, Any] | None = None
    components: NDArray[np.floating[Any]] | None = None
    class_means: NDArray[np.floating[Any]] | None = None
    selection: Mapping[str, NDArray[Any]] | None = None
    classifier_history: Mapping[str, Sequence[float]] | None = None
    denoiser_history: Mapping[str, Sequence[float]] | None = None
    best_epoch: int | None = None
    denoising_error: DenoisingError | None = None
    purify_t: int | None = None
    labels: NDArray[np.integer[Any]] | None = None
    probabilities: Mapping[str, NDArray[np.floating[Any]]] | None = None
    attacks: Mapping[str, Mapping[str, Any]] | None = None
    robustness: Mapping[str, Any] | None = None
    pixel_examples: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""
    notes: Sequence[str] = ()
    not_run: Sequence[str] = ()

    def __post_init__(self) -> None:
        missing = [name for name in ROW_NAMES if name not in self.rows]
        if missing:
            raise ValueError(f"rows has no {missing}; give all of {ROW_NAMES}")
        n_classes = len(self.label_names)
        for split, counts in self.split_counts.items():
            if len(counts) != n_classes:
                raise ValueError(
                    f"split_counts[{split!r}] has {len(counts)} entries for {n_classes} label_names"
                )
        if self.components is not None and np.ndim(self.components) != 3:
            raise ValueError(
                f"components has shape {np.shape(self.components)}; "
                "give (n_components, height, width)"
            )
        if self.class_means is not None and np.shape(self.class_means)[:1] != (n_classes,):
            raise ValueError(
                f"class_means has shape {np.shape(self.class_means)}; "
                f"give ({n_classes}, n_features)"
            )
        if self.probabilities is not None:
            self._check_probabilities(self.probabilities)

    def _check_probabilities(self, probabilities: Mapping[str, NDArray[Any]]) -> None:
        if self.labels is None:
            raise ValueError("labels is None; probabilities need the labels they belong to")
        expected = (len(self.labels), len(self.label_names))
        for name in ROW_NAMES:
            if name not in probabilities:
                raise ValueError(f"probabilities has no {name!r}; give all of {ROW_NAMES}")
            shape = np.shape(probabilities[name])
            if len(shape) != 3 or shape[1:] != expected:
                raise ValueError(
                    f"probabilities[{name!r}] has shape {shape}; give (n_predictions, "
                    f"{expected[0]}, {expected[1]})"
                )

    @property
    def missing_parts(self) -> list[str]:
        """Titles of the optional parts that are not there."""
        return [title for name, title in OPTIONAL_PARTS.items() if getattr(self, name) is None]
