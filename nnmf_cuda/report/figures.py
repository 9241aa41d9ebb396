"""The report's figures. Each is a matplotlib `Figure` of its own: pyplot's state is not touched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve

from nnmf_cuda.data.names import harmless
from nnmf_cuda.evaluation import (
    PAPER_TIMINGS,
    ROW_NAMES,
    DenoisingError,
    EvaluatedRows,
    expected_calibration_error,
    reliability_curve,
)
from nnmf_cuda.nnmf.selection import ComponentSelector
from nnmf_cuda.report.tables import STAGE_TITLES
from nnmf_cuda.timing import PAPER_STAGES, Timings

WIDTH = 9.0  # inches; at 130 dots an inch wider than the report's column, so that it stays sharp
BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8a8f98"  # Okabe & Ito (2008)
LIGHT_GREY, INK, FAINT = "#c6cad0", "#22262d", "#d9dce1"
_STAGES = (*PAPER_STAGES, "total")
_OF_RUNS = ("low", "median", "high")
_PANELS = {"Clean": "Clean features", "Robust": "Attacked features"}
_MODELS = {"Baseline": VERMILION, "Defended": BLUE}
_CLASS_COLORS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY)
_LONGEST_NAME = 40  # of more letters nothing would be left of the axes
_PATH_COLOURS = {
    "cpu": VERMILION,
    "cpu reference": GREY,
    "cuda": BLUE,
    "cuda reference": LIGHT_GREY,
}


def new_figure(height: float, *, width: float = WIDTH) -> Figure:
    """Return an empty white figure whose parts arrange themselves."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def plain(name: str) -> str:
    r"""Return a name from outside as matplotlib shows it letter by letter, shortened where long.

    A dollar would begin a formula, and what begins with an underscore has no place in a legend.
    """
    shown = harmless(name, keep="")
    if len(shown) > _LONGEST_NAME:
        shown = f"{shown[: _LONGEST_NAME - 13]}…{shown[-12:]}"
    return (f" {shown}" if shown.startswith("_") else shown).replace("$", r"\$")


def style(axes: Axes, *, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Give axes the report's look: no box, faint grid, left title."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _log_scale(axes: Axes) -> None:
    """Set a logarithmic y axis with plain numbers at 1, 2 and 5, or powers where it is long."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 200:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def mark(axes: Axes, x: float, label: str) -> None:
    """Draw a dotted vertical line with a place in the legend."""
    axes.axvline(x, color=INK, linewidth=1, linestyle=":", label=label)


def _square(axes: Axes, *, title: str, xlabel: str, margin: float) -> None:
    """Style square axes from 0 to 1 with their diagonal."""
    style(axes, title=title, xlabel=xlabel)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    axes.set_box_aspect(1)
    axes.set_xlim(-margin, 1 + margin)
    axes.set_ylim(-margin, 1 + margin)


def _legend_below(axes: Axes) -> None:
    """Set the legend under the axes: attacked curves go through every corner."""
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def components_figure(components: NDArray[Any], selector: ComponentSelector) -> Figure:
    """Draw each component (height, width) as an image, from 0 to its largest value."""
    n = len(components)
    columns = min(n, 5)
    n_rows = math.ceil(n / columns)
    figure = new_figure(1.95 * n_rows * WIDTH / (1.75 * columns) * 0.92)
    grid = figure.subplots(n_rows, columns, squeeze=False).ravel()
    ranks = {int(c): i + 1 for i, c in enumerate(selector.ranking_)}
    for axes in grid:
        axes.axis("off")
    for index, (axes, image) in enumerate(zip(grid, components, strict=False)):
        axes.imshow(image, cmap="gray", vmin=0, interpolation="nearest")
        left_out = "" if index in selector.selected_ else ", left out"
        axes.set_title(f"{index}   rank {ranks[index]}{left_out}", fontsize=9, color=INK)
    return figure


def class_means_figure(
    class_means: NDArray[Any], label_names: Sequence[str], selected: Sequence[int] | NDArray[Any]
) -> Figure:
    """Draw the mean of each feature in each class, (n_classes, n_features), as a heat map."""
    n_classes, n_features = class_means.shape
    figure = new_figure(1.3 + 0.55 * n_classes)
    axes = figure.subplots()
    image = axes.imshow(class_means, cmap="viridis", aspect="auto", vmin=0)
    style(axes, xlabel="component")
    axes.grid(visible=False)
    axes.set_yticks(range(n_classes), list(map(plain, label_names)))
    step = max(1, math.ceil(n_features / 30))
    axes.set_xticks(range(0, n_features, step), [str(c) for c in selected[::step]])
    if n_features <= 20:
        middle = float(np.nanmax(class_means)) * 0.6
        for (row, column), value in np.ndenumerate(class_means):
            color = INK if value > middle else "white"
            looks: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": color}
            axes.text(column, row, f"{value:.2f}", **looks)
    figure.colorbar(image, ax=axes, label="mean feature", pad=0.01)
    return figure


def selection_figure(selector: ComponentSelector) -> Figure:
    """Draw AUC, Cohen's d and Welch's p of each component, best ranked first."""
    ranking = selector.ranking_
    kept = np.isin(ranking, selector.selected_)
    smallest = np.finfo(np.float64).tiny  # Welch's p underflows to 0 on clear differences
    strength = -np.log10(np.maximum(selector.p_value_, smallest))
    figure = new_figure(1.2 + 0.24 * len(ranking))
    panels = figure.subplots(1, 3, sharey=True)
    columns = (
        ("ROC-AUC", selector.auc_, 0.5),
        ("Cohen's d", selector.cohens_d_, 0.0),
        ("Welch's test, -log10 p", strength, 0.0),
    )
    places = np.arange(len(ranking))
    for axes, (title, values, origin) in zip(panels, columns, strict=True):
        style(axes, title=title)
        colors = np.where(kept, BLUE, FAINT)
        axes.barh(places, values[ranking] - origin, left=origin, color=list(colors), height=0.7)
        axes.axvline(origin, color=INK, linewidth=0.8)
    panels[0].set_yticks(places, [str(c) for c in ranking])
    panels[0].set_ylabel("component, best ranked first")
    panels[0].invert_yaxis()
    if not kept.all():
        figure.supxlabel("pale: left out", fontsize=9, color=INK)
    return figure


def training_figure(
    history: Mapping[str, Sequence[float]], *, best_epoch: int | None = None
) -> Figure:
    """Draw training curves: names that end in "loss" on one axis, the others on another.

    Each has one value an epoch; `best_epoch`, counted from 0, is marked.
    """
    losses = {name: values for name, values in history.items() if name.endswith("loss")}
    others = {name: values for name, values in history.items() if name not in losses}
    groups = [(title, group) for title, group in (("loss", losses), ("", others)) if group]
    figure = new_figure(3.2)
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (title, group) in zip(panels, groups, strict=True):
        style(axes, title=title or ", ".join(n.replace("_", " ") for n in group), xlabel="epoch")
        for (name, values), color in zip(
            group.items(), (BLUE, VERMILION, GREEN, GREY) * len(group), strict=False
        ):
            epochs = np.arange(1, len(values) + 1)
            axes.plot(epochs, values, color=color, linewidth=1.6, label=name.replace("_", " "))
        if title and all(min(values) > 0 for values in group.values()):
            _log_scale(axes)
        if best_epoch is not None:
            mark(axes, best_epoch + 1, f"kept: epoch {best_epoch + 1}")
        axes.legend(frameon=False, fontsize=9)
    return figure


def denoising_figure(error: DenoisingError, *, purify_t: int | None = None) -> Figure:
    """Draw the mean squared error before and after denoising against the noise level.

    The defence's timestep `purify_t` is marked.
    """
    figure = new_figure(3.6)
    axes = figure.subplots()
    level = "noise level sigma = sqrt(1 - alphas_cumprod[t])"
    style(axes, xlabel=level, ylabel="mean squared error")
    for values, label, color, line in (
        (error.mse_noisy, "noisy, only rescaled", VERMILION, "-"),
        (error.mse_denoised, "denoised in one shot", BLUE, "-"),
        (error.mse_mean, "always the mean feature", GREY, "--"),
    ):
        axes.plot(error.sigma, values, color=color, linestyle=line, label=label)
    if purify_t is not None:
        at = float(np.interp(purify_t, error.t, error.sigma))
        mark(axes, at, f"the defence: t = {purify_t}")
    _log_scale(axes)
    # Rescaled, pure noise has an error in the thousands, which would flatten everything else.
    axes.set_ylim(top=10 * float(max(error.mse_denoised.max(), error.mse_mean.max())))
    axes.legend(frameon=False, fontsize=9)
    return figure


def stage_times_figure(timings: Timings, *, paper: bool) -> Figure:
    """Draw the seconds of the paper's five stages and their total, the paper's beside or not."""
    measured = {row.stage: row.seconds for row in timings.rows}
    series = [(f"this run ({timings.device})", BLUE, [measured.get(s) for s in _STAGES])]
    for device, color in (("cpu", GREY), ("gpu", LIGHT_GREY)) if paper else ():
        seconds: list[float | None] = [PAPER_TIMINGS[s][device] for s in _STAGES]
        series.append((f"paper, {device.upper()}", color, seconds))
    figure = new_figure(1.0 + 0.19 * len(_STAGES) * (len(series) + 0.6))
    axes = figure.subplots()
    style(axes, xlabel="seconds")
    for i, (label, color, values) in enumerate(series):
        lengths = [0.0 if value is None else value for value in values]
        texts = ["not run" if value is None else f"{value:.1f}" for value in values]
        bars = _stage_bars(axes, lengths, i, len(series), 0.8, color=color, label=label)
        axes.bar_label(bars, texts, padding=3, fontsize=8, color=INK)
    _stage_axis(axes, margin=0.08)
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def _stage_bars(
    axes: Axes, seconds: ArrayLike, index: int, n_series: int, share: float, **looks: Any
) -> BarContainer:
    """Draw a bar a stage: of several series, which fill a share of the space of each stage."""
    height = share / n_series
    places = np.arange(len(_STAGES)) + (index - (n_series - 1) / 2) * height
    return axes.barh(places, seconds, height=0.9 * height, **looks)


def _stage_axis(axes: Axes, *, margin: float, **looks: Any) -> None:
    """Name the stages, the first at the top, with room beside the bars for their labels."""
    axes.set_yticks(range(len(_STAGES)), [STAGE_TITLES[s] for s in _STAGES], **looks)
    axes.invert_yaxis()
    axes.margins(x=margin)
    axes.grid(visible=False, axis="y")


def stage_benchmark_figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the seconds of each stage, this package's beside those of plain eager torch.

    Each record of `run_stage_benchmarks` gets a panel.
    """
    bars = [len(_STAGES) * (len(record["paths"]) + 1) for record in records]
    figure = new_figure(0.21 * (sum(bars) + 4 * len(records)))
    grid = figure.subplots(len(records), 1, squeeze=False, height_ratios=bars)
    for axes, record in zip(grid[:, 0], records, strict=True):
        _draw_stages(axes, record)
    grid[-1, 0].set_xlabel(
        "seconds: median and range of the runs; in brackets how many times as fast as the reference"
    )
    return figure


def _draw_stages(axes: Axes, record: Mapping[str, Any]) -> None:
    """Draw by stage a bar for each path of the stage benchmark, with the range of its runs."""
    style(axes)
    paths = record["paths"]
    for i, (name, path) in enumerate(paths.items()):
        found = [path["stages"][stage] for stage in _STAGES]
        low, median, high = np.array([[f[f"{n}_s"] for f in found] for n in _OF_RUNS])
        texts = [f"{s:.3g} s" for s in median]
        if not record["smoke"] and not path["reference"]:  # tiny stages have no speed
            theirs = paths[f"{name} reference"]["stages"]
            speeds = [theirs[stage]["median_s"] for stage in _STAGES] / median
            texts = [f"{text} ({speed:.1f} x)" for text, speed in zip(texts, speeds, strict=True)]
        looks = {"color": _PATH_COLOURS[name], "label": name, "error_kw": {"linewidth": 1}}
        ranges, share = [median - low, high - median], len(paths) / (len(paths) + 1)
        bars = _stage_bars(axes, median, i, len(paths), share, xerr=ranges, **looks)
        axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.set_title(plain(record["size"]), loc="left", fontsize=9, fontweight="bold")
    _stage_axis(axes, margin=0.1, fontsize=8)
    axes.legend(frameon=False, fontsize=8)


def _pooled(rows: EvaluatedRows, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Put the predictions of a row one after another, with the labels repeated for each."""
    probabilities = rows.probabilities[name]
    return np.tile(rows.labels, len(probabilities)), np.concatenate(list(probabilities))


def roc_figure(rows: EvaluatedRows, label_names: Sequence[str]) -> Figure:
    """Draw ROC curves: clean and attacked, baseline and defended.

    With more than two classes, one panel a row of the table with one-vs-rest curves. The
    predictions of a defended row are pooled; the area in the legend is the table's.
    """
    if len(label_names) > 2:
        return _roc_one_vs_rest(rows, label_names)
    figure = new_figure(5.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (condition, title) in zip(panels, _PANELS.items(), strict=True):
        _square(axes, title=title, xlabel="false positive rate", margin=0.01)
        for model, color in _MODELS.items():
            name = f"{condition}_{model}"
            y, p = _pooled(rows, name)
            fpr, tpr, _ = roc_curve(y, p[:, 1])
            label = f"{model.lower()}, area {rows.rows[name].roc_auc:.3f}"
            axes.plot(fpr, tpr, color=color, linewidth=1.8, label=label)
        _legend_below(axes)
    panels[0].set_ylabel(f"true positive rate ({plain(label_names[-1])})")
    return figure


def _roc_one_vs_rest(rows: EvaluatedRows, label_names: Sequence[str]) -> Figure:
    figure = new_figure(11.4)
    for axes, name in zip(figure.subplots(2, 2).ravel(), ROW_NAMES, strict=True):
        title = f"{name}, mean area {rows.rows[name].roc_auc:.3f}"
        _square(axes, title=title, xlabel="false positive rate", margin=0.01)
        y, p = _pooled(rows, name)
        for index, label in enumerate(label_names):
            fpr, tpr, _ = roc_curve(y == index, p[:, index])
            color = _CLASS_COLORS[index % len(_CLASS_COLORS)]
            axes.plot(
                fpr, tpr, color=color, linewidth=1.6, label=f"{plain(label)} against the rest"
            )
        axes.set_ylabel("true positive rate")
        _legend_below(axes)
    return figure


def reliability_figure(rows: EvaluatedRows, label_names: Sequence[str]) -> Figure:
    """Draw observed frequency against predicted probability, clean and attacked.

    The area of a point follows the share of predictions in its bin. Predictions of a defended row
    are pooled.
    """
    binary, positive = len(label_names) == 2, plain(label_names[-1])
    figure = new_figure(5.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (condition, title) in zip(panels, _PANELS.items(), strict=True):
        what = f"probability of {positive}" if binary else "probability of the answer"
        _square(axes, title=title, xlabel=f"predicted {what}", margin=0.04)
        for model, color in _MODELS.items():
            y, p = _pooled(rows, f"{condition}_{model}")
            curve = reliability_curve(y, p)
            error = expected_calibration_error(y, p)
            label = f"{model.lower()}, calibration error {error:.3f}"
            axes.plot(curve.predicted, curve.observed, color=color, linewidth=1.2, label=label)
            sizes = 8 + 250 * curve.counts / curve.counts.sum()
            axes.scatter(curve.predicted, curve.observed, s=sizes, color=color, alpha=0.75)
        _legend_below(axes)
    panels[0].set_ylabel(f"share of {positive}" if binary else "share of right answers")
    panels[0].yaxis.label.set_color(INK)
    return figure
