"""The section on robustness: a page of its own, or a part of the run's report."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["curves_figure", "perturbations_figure", "robustness_page", "robustness_section"]

_DPI = 130


def robustness_page(
    content: Mapping[str, Any], *, examples: Mapping[str, NDArray[Any]] | None = None
) -> str:
    """Return a page of HTML that needs nothing else.

    Parameters
    ----------
    content : mapping
        Content of `robustness.json`.
    examples : mapping, optional
        "clean" and "attacked" images (m, height, width).
    """
    section = robustness_section(content, examples=examples)
    page: str = (
        environment()
        .get_template("page.html")
        .render(
            title="How robust the classifier is",
            lead="Features or pixels are attacked as each part says.",
            section=Markup(section),
        )
    )
    return page


def robustness_section(
    content: Mapping[str, Any], *, examples: Mapping[str, NDArray[Any]] | None = None
) -> str:
    """Return the section as HTML, for a page that has the report's style."""
    pictures = []
    curves = _curves(content)
    if curves:
        pictures.append((_uri(curves_figure(curves)), "Robust accuracy against what is spent"))
    if examples is not None and len(examples.get("clean", ())):
        caption = "Images, what was added to them (gray is nothing), and what came out"
        pictures.append((_uri(perturbations_figure(examples)), caption))
    section: str = (
        environment()
        .get_template("robustness.html")
        .render(content=content, pictures=pictures, shown=_shown)
    )
    return section


def curves_figure(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw robust accuracy against each thing that an attack spends.

    Parameters
    ----------
    curves : mapping of str to mapping
        By label of the axis: "x" and "robust_accuracy", and optionally "clean_line".
    """
    figure = Figure(figsize=(3.1 * len(curves), 2.8), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for ax, (label, curve) in zip(axes, curves.items(), strict=True):
        for name, values in curve["lines"].items():
            ax.plot(curve["x"], values, marker="o", markersize=4, label=name)
        ax.set_xlabel(label)
        ax.set_ylim(-0.02, 1.02)
        ax.grid(alpha=0.3)
        if len(curve["lines"]) > 1:
            ax.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("robust accuracy")
    return figure


def perturbations_figure(examples: Mapping[str, NDArray[Any]]) -> Figure:
    """Draw images, their perturbations and the attacked images, a column for each."""
    clean, attacked = np.asarray(examples["clean"]), np.asarray(examples["attacked"])
    moves = attacked - clean
    reach = max(float(np.abs(moves).max()), 1e-9)
    figure = Figure(figsize=(2.2 * len(clean), 6.2), layout="constrained")
    axes = figure.subplots(3, len(clean), squeeze=False)
    for i in range(len(clean)):
        axes[0, i].imshow(clean[i], cmap="gray", vmin=0, vmax=1)
        axes[1, i].imshow(moves[i], cmap="gray", vmin=-reach, vmax=reach)
        axes[2, i].imshow(attacked[i], cmap="gray", vmin=0, vmax=1)
    titles = ("clean", f"change, up to {255 * reach:.1f}/255", "attacked")
    for row, title in zip(axes, titles, strict=True):
        row[0].set_ylabel(title)
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
    return figure


def _curves(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what there is to draw, by the axis' label."""
    values = {point["id"]: point["value"] for point in content["points"]}
    made: dict[str, dict[str, Any]] = {}

    def add(label: str, curve: Any, key: str) -> None:
        if isinstance(curve, Mapping) and "robust_accuracy" in curve:
            made[label] = {"x": curve[key], "lines": {"defended": curve["robust_accuracy"]}}

    add("eps", values[9], "attack_eps")
    if isinstance(values[8], Mapping):
        add("steps", values[8]["steps"], "n_iter")
        add("restarts", values[8]["restarts"], "n_restarts")
    add("draws averaged (EOT)", values[7], "eot_iter")
    pixels = values[1]["pixel_space"]
    if isinstance(pixels, Mapping):
        lines = {name: pixels[name]["robust_accuracy"] for name in ("undefended", "defended")}
        made["pixels: eps in 1/255"] = {"x": pixels["eps_255"], "lines": lines}
    return made


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def environment() -> Environment:
    """Return the templates' environment."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: Any) -> str:
    """Set a point's value as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_shown(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return str(value)
