"""Figures of an evaluation: what attacks spend, what is certified, and attacked images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from numpy.typing import NDArray

from nnmf_cuda.report.figures import BLUE, GREEN, GREY, INK, VERMILION, WIDTH, new_figure, style

__all__ = ["certificate_figure", "curves_figure", "perturbations_figure"]

_COLOURS = {"undefended": VERMILION, "defended": BLUE}
_CERTIFIED = {"denoised": BLUE, "plain noise": GREY}
_COLUMNS = 3
_MOVES = LinearSegmentedColormap.from_list("moves", [BLUE, "white", VERMILION])


def curves_figure(
    curves: Mapping[str, Mapping[str, Any]], *, constant: float, attack: str
) -> Figure:
    """Draw robust accuracy against each thing that an attack spends.

    Parameters
    ----------
    curves : mapping of str to mapping
        By title of the panel: "x", "lines" (robust accuracies by model), "xlabel", and optionally
        "mark", the value that the evaluation's attacks have.
    constant : float
        Accuracy of the constant answer, dashed.
    attack : str
        What is varied, for the title.
    """
    n_rows = 2 if len(curves) > 1 else 1
    columns = min(_COLUMNS, math.ceil(len(curves) / n_rows))
    figure = new_figure(2.9 * n_rows + 0.7)
    figure.suptitle(attack, x=0.01, ha="left", fontsize=11, color=INK)
    grid = figure.subplots(n_rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (title, curve) in zip(grid, curves.items(), strict=False):
        _draw_curve(axes, title, curve, constant)
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


def _draw_curve(axes: Axes, title: str, curve: Mapping[str, Any], constant: float) -> None:
    """Draw one panel; numbers of steps and the like on a log scale, an eps on a cube root's."""
    style(axes, title=title, xlabel=curve["xlabel"])
    x = list(curve["x"])
    for name, values in curve["lines"].items():
        axes.plot(
            x, values, color=_COLOURS[name], marker="o", markersize=5, label=name, clip_on=False
        )
    axes.axhline(constant, color=GREY, linestyle="--", linewidth=1.2, label="constant answer")
    if curve.get("mark") is not None:
        axes.axvline(
            curve["mark"], color=INK, linestyle=":", linewidth=1.2, label="the attack's eps"
        )
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
    certificates: Mapping[str, Mapping[str, Any]], *, attack_eps: float, norm: str
) -> Figure:
    """Draw the share that is certified against the radius: L2 below, its Linf equivalent above.

    Parameters
    ----------
    certificates : mapping of str to mapping
        Each with "curve" and "n_features".
    attack_eps, norm : float, str
        The attacks' ball, marked.
    """
    figure = new_figure(4.2)
    axes = figure.subplots()
    style(axes, xlabel="certified radius, L2", ylabel="certified accuracy")
    others = iter((GREEN, VERMILION) * len(certificates))
    for name, found in certificates.items():
        curve, color = found["curve"], _CERTIFIED.get(name) or next(others)
        axes.plot(curve["radius"], curve["certified_accuracy"], color=color, label=name, lw=1.8)
    root = math.sqrt(next(iter(certificates.values()))["n_features"])
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


def perturbations_figure(examples: Mapping[str, Any]) -> Figure:
    """Draw images, their perturbations and the attacked images, a column for each.

    Parameters
    ----------
    examples : mapping
        "clean" and "attacked" images (m, height, width), optionally "titles" and "eps_255".
    """
    clean, attacked = np.asarray(examples["clean"]), np.asarray(examples["attacked"])
    moves = 255 * (attacked - clean)
    reach = _reach(moves, examples.get("eps_255"))
    n = max(len(clean), 2)
    side = (WIDTH - 1.2) / max(n, 4)
    figure = new_figure(3 * side + 0.5, width=side * n + 1.2)
    grid = figure.subplots(3, len(clean), squeeze=False)
    titles = [str(title).replace("->", "→") for title in examples.get("titles", ())]
    for i, column in enumerate(grid.T):
        column[0].imshow(clean[i], cmap="gray", vmin=0, vmax=1)
        shown = column[1].imshow(moves[i], cmap=_MOVES, vmin=-reach, vmax=reach)
        column[2].imshow(attacked[i], cmap="gray", vmin=0, vmax=1)
        column[0].set_title(titles[i] if i < len(titles) else "", fontsize=10, color=INK)
    for row, name in zip(grid, ("clean", "change", "attacked"), strict=True):
        row[0].set_ylabel(name, color=INK, fontsize=10)
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
    figure.colorbar(shown, ax=list(grid[1]), label="change, 1/255", pad=0.01, shrink=0.9)
    return figure


def _reach(moves: NDArray[Any], eps_255: Any) -> float:
    """Return where the colour scale ends, in 1/255."""
    largest = float(np.abs(moves).max())
    return max(largest if eps_255 is None else float(eps_255), 1e-6)
