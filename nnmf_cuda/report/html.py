"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from nnmf_cuda.report import curves, figures, tables
from nnmf_cuda.report.content import ReportContent
from nnmf_cuda.report.robustness import robustness_section

__all__ = ["write_report"]

_DPI = 130


@dataclass(frozen=True)
class _Picture:
    """A figure as the template shows it."""

    png: bytes
    alt: str
    caption: str

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


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
        png = _png(figure)
        _write_atomically(out_dir / "figures" / f"{name}.png", png)
        pictures[name] = _Picture(png, alt, caption)
    path = out_dir / "report.html"
    _write_atomically(path, _render(content, pictures).encode("utf-8"))
    return path


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


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
            figures.stage_times_figure(content.timings),
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
        made["denoising_error"] = (
            figures.denoising_figure(content.denoising_error, purify_t=content.purify_t),
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


def _render(content: ReportContent, pictures: Mapping[str, _Picture]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = _shown
    paper, majority = content.paper_comparable, content.majority_class_accuracy
    stages = None
    if content.timings is not None:
        stages = {
            "header": tables.STAGE_HEADER,
            "lines": tables.stage_lines(content.timings),
            "notes": tables.stage_notes(content.timings),
        }
    return environment.get_template("template.html").render(
        content=content,
        pictures=pictures,
        metric_titles=tuple(tables.METRIC_TITLES.values()),
        metric_lines=tables.metric_lines(
            content.rows,
            majority_class_accuracy=majority,
            paper=paper,
            spread=content.spread,
            uncertainty=content.uncertainty,
        ),
        metric_notes=tables.metric_notes(
            content.rows,
            majority_class_accuracy=majority,
            paper=paper,
            n_predictions=content.n_predictions,
            uncertainty=content.uncertainty,
        ),
        stages=stages,
        robustness=None
        if content.robustness is None
        else Markup(robustness_section(content.robustness, examples=content.pixel_examples)),
        against_constant=tables.against_constant(content.rows, majority),
    )


def _shown(value: Any) -> str:
    """Set a setting or finding as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return "; ".join(map(_shown, value)) or "none"
    return "not run" if value is None else str(value)
