"""Figures of a comparison: what attacks leave of each system, and what transfers between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from nnmf_cuda.evaluation.compared import GRADIENTS, Measured, Transfer
from nnmf_cuda.report.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LIGHT_GREY,
    VERMILION,
    WIDTH,
    new_figure,
    plain,
    style,
)

_COLUMNS = 4
_NAMES_FROM = 12
"""From so many systems on, figures in the cells of the matrix are small."""
_SHARES = LinearSegmentedColormap.from_list("shares", [VERMILION, "#f7f3ee", BLUE])


def curves_figure(runs: Sequence[Measured]) -> Figure:
    """Draw accuracy against the radius, a panel for each system with all others in grey."""
    n_rows = math.ceil(len(runs) / _COLUMNS)
    columns = min(_COLUMNS, len(runs))
    figure = new_figure(1.75 * n_rows + 0.6)
    grid = figure.subplots(n_rows, columns, squeeze=False, sharex=True, sharey=True)
    panels = grid.ravel()
    # Equal steps: radii double.
    places = np.arange(len(runs[0].robust.eps_255))
    for axes, run in zip(panels, runs, strict=False):
        style(axes)
        axes.set_title(plain(run.system), loc="left", fontsize=9, color=INK)
        for other in runs:
            shares = [share.estimate for share in other.robust.accuracy]
            axes.plot(places, shares, color=LIGHT_GREY, linewidth=0.8)
        robust = run.robust
        colour = BLUE if robust.how == GRADIENTS else VERMILION
        low, high = ([getattr(s, end) for s in robust.accuracy] for end in ("low", "high"))
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        shares = [share.estimate for share in robust.accuracy]
        axes.plot(places, shares, color=colour, marker="o", markersize=3.5, linewidth=1.6)
        if robust.certified is not None:
            axes.plot(places, robust.certified, color=GREEN, marker="s", markersize=3, linewidth=1)
        axes.axhline(run.constant, color=GREY, linestyle="--", linewidth=1)
    for axes in panels[len(runs) :]:
        axes.axis("off")
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy", color=INK, fontsize=9)
    for axes in panels[max(len(runs) - columns, 0) : len(runs)]:
        axes.set_xticks(places, [f"{eps:g}" for eps in runs[0].robust.eps_255], fontsize=8)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("eps, 1/255", color=INK, fontsize=9)
    panels[0].set_ylim(-0.04, 1.04)
    return figure


def transfer_figure(matrix: Transfer) -> Figure:
    """Draw a matrix of transfer as a heat map with its figures."""
    n = len(matrix.sources)
    side = min(WIDTH - 2.5, max(3.0, 0.42 * n + 1.2))
    figure = new_figure(side + 1.4)
    axes = figure.subplots()
    shares = np.array(matrix.accuracy)
    shown = axes.imshow(shares, cmap=_SHARES, vmin=0, vmax=1)
    size = 9 if n < _NAMES_FROM else 6.5
    for (row, column), share in np.ndenumerate(shares):
        # White on the strong colours at both ends.
        ink = "white" if abs(share - 0.5) > 0.35 else INK
        text = f"{share:.2f}".removeprefix("0") if share < 1 else "1"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)
    axes.set_xticks(range(n), [plain(name) for name in matrix.targets], rotation=60, ha="right")
    axes.set_yticks(range(n), [plain(name) for name in matrix.sources])
    axes.tick_params(labelsize=8, colors=INK, length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("judged by", color=INK)
    axes.set_ylabel("found against", color=INK)
    axes.set_title(
        f"{matrix.attack}, {matrix.eps_255:g}/255",
        loc="left",
        fontsize=11,
        color=INK,
        fontweight="bold",
    )
    figure.colorbar(shown, ax=axes, shrink=0.7, label="accuracy")
    return figure
