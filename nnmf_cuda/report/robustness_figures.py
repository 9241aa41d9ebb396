"""Figures of an evaluation: what attacks spend, what is certified, and attacked images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from nnmf_cuda.evaluation import Certificate
from nnmf_cuda.evaluation.robustness import PixelExamples
from nnmf_cuda.report.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    VERMILION,
    WIDTH,
    new_figure,
    plain,
    style,
)

_COLOURS = {"undefended": VERMILION, "defended": BLUE, "certified": GREEN}
_CERTIFIED = {"denoised": BLUE, "plain noise": GREY}
_COLUMNS = 3
_N_RADII = 21
_MOVES = LinearSegmentedColormap.from_list("moves", [BLUE, "white", VERMILION])


@dataclass(frozen=True)
class Panel:
    """Robust accuracies by model against x, values of one thing that an attack spends.

    `mark` is the value that the evaluation's attacks have.
    """

    title: str
    xlabel: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    mark: float | None = None


def curves_figure(curves: Sequence[Panel], *, constant: float, attack: str) -> Figure:
    """Draw robust accuracy against each thing that an attack spends, the constant answer's dashed.

    `attack` says in the title what is varied.
    """
    n_rows = 2 if len(curves) > 1 else 1
    columns = min(_COLUMNS, math.ceil(len(curves) / n_rows))
    figure = new_figure(2.9 * n_rows + 0.7)
    figure.suptitle(attack, x=0.01, ha="left", fontsize=11, color=INK)
    grid = figure.subplots(n_rows, columns, squeeze=False, sharey=True).ravel()
    for axes, panel in zip(grid, curves, strict=False):
        _draw_panel(axes, panel, constant)
    for axes in grid[::columns]:
        axes.set_ylabel("robust accuracy", color=INK)
    for axes in grid[len(curves) :]:
        axes.axis("off")
    handles = {
        label: handle
        for axes in grid
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    names = list(handles)
    lines = [handles[name] for name in names]
    if len(curves) < len(grid):  # the cell that is left over
        grid[-1].legend(lines, names, loc="center", frameon=False, fontsize=10)
    else:
        figure.legend(lines, names, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_panel(axes: Axes, panel: Panel, constant: float) -> None:
    """Draw one panel; numbers of steps and the like on a log scale, an eps on a cube root's."""
    style(axes, title=panel.title, xlabel=panel.xlabel)
    x = list(panel.x)
    for name, values in panel.lines.items():
        axes.plot(
            x, values, color=_COLOURS[name], marker="o", markersize=5, label=name, clip_on=False
        )
    axes.axhline(constant, color=GREY, linestyle="--", linewidth=1.2, label="constant answer")
    if panel.mark is not None:
        axes.axvline(panel.mark, color=INK, linestyle=":", linewidth=1.2, label="the attack's eps")
    if min(x) > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("function", functions=(np.cbrt, lambda value: value**3))
        axes.set_xlim(left=0)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(x, [f"{value:g}" for value in x], fontsize=8)
    axes.set_ylim(-0.03, 1.03)


def certificate_figure(
    certificates: Mapping[str, Certificate], *, attack_eps: float, norm: str
) -> Figure:
    """Draw the share that is certified against the radius: L2 below, its Linf equivalent above.

    At least one certificate, all of the same features; the radius of the attacks is marked.
    """
    figure = new_figure(4.2)
    axes = figure.subplots()
    style(axes, xlabel="certified radius, L2", ylabel="certified accuracy")
    others = iter((GREEN, VERMILION) * len(certificates))
    for name, found in certificates.items():
        radii = np.linspace(0, max(found.max_radius, 0.0), _N_RADII)
        color = _CERTIFIED.get(name) or next(others)
        axes.plot(radii, found.certified_accuracy(radii), color=color, label=name, lw=1.8)
    root = math.sqrt(next(iter(certificates.values())).n_features)
    above = axes.secondary_xaxis("top", functions=(_times(1 / root), _times(root)))
    above.set_xlabel("equivalent in Linf: radius / sqrt(number of features)", color=INK)
    above.tick_params(colors=INK, labelsize=9)
    at = attack_eps * (root if norm == "Linf" else 1)
    axes.axvline(at, color=INK, linestyle=":", linewidth=1.2, label=f"attack_eps {attack_eps:g}")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda values: factor * np.asarray(values)


def perturbations_figure(examples: PixelExamples, *, eps_255: float) -> Figure:
    """Draw images, their perturbations and the attacked images, a column for each of at least one.

    Colours of perturbations end at the radius of the ball, `eps_255` in 1/255.
    """
    clean, attacked = np.asarray(examples.clean), np.asarray(examples.attacked)
    moves = 255 * (attacked - clean)
    n = max(len(clean), 2)
    side = (WIDTH - 1.2) / max(n, 4)
    figure = new_figure(3 * side + 0.5, width=side * n + 1.2)
    grid = figure.subplots(3, len(clean), squeeze=False)
    for i, column in enumerate(grid.T):
        column[0].imshow(clean[i], cmap="gray", vmin=0, vmax=1)
        shown = column[1].imshow(moves[i], cmap=_MOVES, vmin=-eps_255, vmax=eps_255)
        column[2].imshow(attacked[i], cmap="gray", vmin=0, vmax=1)
        column[0].set_title(plain(examples.titles[i]), fontsize=10, color=INK)
    for row, name in zip(grid, ("clean", "change", "attacked"), strict=True):
        row[0].set_ylabel(name, color=INK, fontsize=10)
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
    figure.colorbar(shown, ax=list(grid[1]), label="change, 1/255", pad=0.01, shrink=0.9)
    return figure
