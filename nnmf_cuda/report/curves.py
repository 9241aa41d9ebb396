"""ROC and reliability curves of the four rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from nnmf_cuda.evaluation import (
    ROW_NAMES,
    expected_calibration_error,
    reliability_curve,
)
from nnmf_cuda.report.figures import BLUE, GREEN, GREY, INK, VERMILION, new_figure, style

__all__ = ["reliability_figure", "roc_figure"]

PANELS = {"Clean": "Clean features", "Robust": "Attacked features"}
MODELS = {"Baseline": VERMILION, "Defended": BLUE}
CLASS_COLORS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY)


def pooled(labels: NDArray[Any], probabilities: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Put the predictions of a row (n_predictions, n, n_classes) one after another."""
    return np.tile(labels, len(probabilities)), np.concatenate(list(probabilities))


def roc_figure(
    labels: NDArray[Any],
    probabilities: Mapping[str, NDArray[Any]],
    rows: Mapping[str, Mapping[str, float]],
    label_names: Sequence[str],
) -> Figure:
    """Draw ROC curves: clean and attacked, baseline and defended.

    With more than two classes, one panel a row of the table with one-vs-rest curves. The
    predictions of a defended row are pooled; the area in the legend is the table's.

    Parameters
    ----------
    labels : array of shape (n,)
    probabilities : mapping of str to array (n_predictions, n, n_classes)
    rows : mapping
        The metric table.
    label_names : sequence of str
    """
    if len(label_names) > 2:
        return _roc_one_vs_rest(labels, probabilities, rows, label_names)
    figure = new_figure(5.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (condition, title) in zip(panels, PANELS.items(), strict=True):
        _roc_axes(axes, title)
        for model, color in MODELS.items():
            name = f"{condition}_{model}"
            y, p = pooled(labels, probabilities[name])
            fpr, tpr, _ = roc_curve(y, p[:, 1])
            label = f"{model.lower()}, area {rows[name]['roc_auc']:.3f}"
            axes.plot(fpr, tpr, color=color, linewidth=1.8, label=label)
        _legend_below(axes)
    panels[0].set_ylabel(f"true positive rate ({label_names[-1]})")
    return figure


def _roc_one_vs_rest(
    labels: NDArray[Any],
    probabilities: Mapping[str, NDArray[Any]],
    rows: Mapping[str, Mapping[str, float]],
    label_names: Sequence[str],
) -> Figure:
    figure = new_figure(11.4)
    for axes, name in zip(figure.subplots(2, 2).ravel(), ROW_NAMES, strict=True):
        _roc_axes(axes, f"{name}, mean area {rows[name]['roc_auc']:.3f}")
        y, p = pooled(labels, probabilities[name])
        for index, label in enumerate(label_names):
            fpr, tpr, _ = roc_curve(y == index, p[:, index])
            color = CLASS_COLORS[index % len(CLASS_COLORS)]
            axes.plot(fpr, tpr, color=color, linewidth=1.6, label=f"{label} against the rest")
        axes.set_ylabel("true positive rate")
        _legend_below(axes)
    return figure


def _legend_below(axes: Axes) -> None:
    """Set the legend under the axes: attacked curves go through every corner."""
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _roc_axes(axes: Axes, title: str) -> None:
    style(axes, title=title, xlabel="false positive rate")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    axes.set_box_aspect(1)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)


def reliability_figure(
    labels: NDArray[Any],
    probabilities: Mapping[str, NDArray[Any]],
    label_names: Sequence[str],
) -> Figure:
    """Draw observed frequency against predicted probability, clean and attacked.

    The area of a point follows the share of predictions in its bin. Predictions of a defended row
    are pooled.

    Parameters
    ----------
    labels : array of shape (n,)
    probabilities : mapping of str to array (n_predictions, n, n_classes)
    label_names : sequence of str
    """
    binary = len(label_names) == 2
    figure = new_figure(5.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (condition, title) in zip(panels, PANELS.items(), strict=True):
        what = f"probability of {label_names[-1]}" if binary else "probability of the answer"
        style(axes, title=title, xlabel=f"predicted {what}")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        for model, color in MODELS.items():
            y, p = pooled(labels, probabilities[f"{condition}_{model}"])
            curve = reliability_curve(y, p)
            error = expected_calibration_error(y, p)
            label = f"{model.lower()}, calibration error {error:.3f}"
            axes.plot(curve.predicted, curve.observed, color=color, linewidth=1.2, label=label)
            sizes = 8 + 250 * curve.counts / curve.counts.sum()
            axes.scatter(curve.predicted, curve.observed, s=sizes, color=color, alpha=0.75)
        axes.set_box_aspect(1)
        axes.set_xlim(-0.04, 1.04)
        axes.set_ylim(-0.04, 1.04)
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    panels[0].set_ylabel(f"share of {label_names[-1]}" if binary else "share of right answers")
    panels[0].yaxis.label.set_color(INK)
    return figure
