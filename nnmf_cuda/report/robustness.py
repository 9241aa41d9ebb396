"""The sections on robustness: a page of their own, or parts of the run's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nnmf_cuda.report import evaluated
from nnmf_cuda.report.pictures import Picture
from nnmf_cuda.report.robustness_figures import (
    certificate_figure,
    curves_figure,
    perturbations_figure,
)
from nnmf_cuda.report.tables import METRIC_TITLES
from nnmf_cuda.report.templates import environment
from nnmf_cuda.report.twenty_points import describe_points
from nnmf_cuda.report.worst_points import worst_point_lines, worst_point_notes

__all__ = ["robustness_page", "robustness_parts"]


def robustness_page(
    content: Mapping[str, Any],
    *,
    examples: Mapping[str, Any] | None = None,
    home: str | Path | None = None,
) -> str:
    """Return a page of HTML that needs nothing else.

    Parameters
    ----------
    content : mapping
        Content of `robustness.json`.
    examples : mapping, optional
        "clean" and "attacked" images (m, height, width), optionally "titles" and "eps_255".
    home : path, optional
        Directory of the run, named at the top.
    """
    parts = robustness_parts(content, examples=examples)
    about = content.get("about") or {}
    page: str = (
        environment()
        .get_template("page.html")
        .render(
            title="How robust the classifier is",
            lead=evaluated.about_text({"preset": content.get("preset"), **about}, home),
            synthetic=about.get("synthetic", False),
            section=Markup().join(parts.values()),
        )
    )
    return page


def robustness_parts(
    content: Mapping[str, Any],
    *,
    examples: Mapping[str, Any] | None = None,
    rows: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Markup]:
    """Return sections for a page that has the report's style.

    Parameters
    ----------
    content, examples
        As for `robustness_page`.
    rows : mapping, optional
        The metric table of the paper's protocol, for reading beside the worst points.

    Returns
    -------
    dict of str to Markup
        "robustness", "spent" (figures; missing where there are none) and "points".
    """
    env = environment()
    pictures = _pictures(content, examples)
    parts = {"robustness": "robustness.html", "spent": "spent.html", "points": "points.html"}
    if not pictures:
        parts.pop("spent")
    values = {
        "content": {"others_notes": (), "warnings": (), **content},
        "evaluated": evaluated,
        "metric_titles": tuple(METRIC_TITLES.values()),
        "pictures": pictures,
        "pixels": _pixels(content),
        "points": describe_points(content),
        "worst_point_lines": worst_point_lines(content, rows),
        "worst_point_notes": worst_point_notes(content),
    }
    return {name: Markup(env.get_template(file).render(values)) for name, file in parts.items()}


def _pixels(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what the attack on pixels found, with "after_twice_the_steps" by model."""
    found = (evaluated.point_values(content).get(1) or {}).get("pixel_space")
    if not isinstance(found, Mapping):
        return None
    after = {
        name: found[name]["after_twice_the_steps"]
        for name in ("undefended", "defended")
        if "after_twice_the_steps" in found[name]
    }
    return {"after_twice_the_steps": after, **found}


def _pictures(content: Mapping[str, Any], examples: Mapping[str, Any] | None) -> list[Picture]:
    pictures = []
    curves = _curves(content)
    if curves:
        pictures.append(_curves_picture(content, curves))
    certificates = {
        name: found
        for name, found in (evaluated.point_values(content).get(19) or {}).items()
        if isinstance(found, Mapping) and "curve" in found
    }
    if certificates:
        threat = content["threat_model"]
        figure = certificate_figure(
            certificates, attack_eps=threat["attack_eps"], norm=threat["norm"]
        )
        pictures.append(
            Picture.of(figure, "Certified accuracy against the radius", _certifies(certificates))
        )
    if examples is not None and len(examples.get("clean", ())):
        pictures.append(_examples_picture(examples, content))
    return pictures


def _curves_picture(content: Mapping[str, Any], curves: Mapping[str, Any]) -> Picture:
    random = evaluated.is_random(content)
    attack = "APGD on the margin, one setting varied at a time"
    figure = curves_figure(curves, constant=content["constant_answer_accuracy"], attack=attack)
    counted = (
        "by the majority of 20 fresh decisions" if random else "by its one answer to each sample"
    )
    caption = (
        "Robust accuracy of the defence under one attack, APGD on the margin, of which each panel"
        f" varies one setting and holds the others; counted {counted}."
    )
    if "Draws averaged" in curves:
        caption += (
            " It climbs a surrogate that averages many draws, but under draws averaged the defence"
            " itself."
        )
    if "Pixels" in curves:
        caption += " In the panel on pixels the same attack moves images, end to end."
    return Picture.of(figure, "Robust accuracy against what an attack spends", caption)


def _certifies(certificates: Mapping[str, Mapping[str, Any]]) -> str:
    says = [f"{name}: {c['certifies']}" for name, c in certificates.items() if c.get("certifies")]
    what = (
        "Share of samples that are right and certified to stay so within the radius, by randomised"
        " smoothing: no attack on the certified classifier can go below its line."
    )
    return " ".join([what, *says])


def _examples_picture(examples: Mapping[str, Any], content: Mapping[str, Any]) -> Picture:
    largest = (_pixels(content) or {}).get("eps_255", [None])[-1]
    eps = examples.get("eps_255", largest)
    ball = "" if eps is None else f" at {float(eps):g}/255"
    caption = (
        f"The first samples that the attack on pixels broke{ball}, of those that the defence had"
        " named rightly: the image, what was added to it, and what came out. The model under attack"
        " is the defended one, from image to answer. Above: true class → answer under attack."
    )
    if "titles" not in examples:
        caption = caption.partition(" Above:")[0]
    return Picture.of(
        perturbations_figure(examples), "Images, perturbations and attacked images", caption
    )


def _curves(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what there is to draw, by the panel's title."""
    values = evaluated.point_values(content)
    steps = values.get(8) or {}
    made: dict[str, dict[str, Any]] = {}
    for title, curve, key, xlabel in (
        ("Size of the ball", values.get(9), "attack_eps", "eps"),
        ("Steps", steps.get("steps"), "n_iter", "steps"),
        ("Restarts", steps.get("restarts"), "n_restarts", "random starts"),
        ("Draws averaged", values.get(7), "eot_iter", "draws averaged a step (EOT)"),
    ):
        if isinstance(curve, Mapping) and "robust_accuracy" in curve:
            lines = {"defended": curve["robust_accuracy"]}
            made[title] = {"x": curve[key], "lines": lines, "xlabel": xlabel}
    if "Size of the ball" in made:
        made["Size of the ball"] |= {"mark": content["threat_model"]["attack_eps"]}
    pixels = _pixels(content)
    if pixels is not None:
        lines = {name: pixels[name]["robust_accuracy"] for name in ("undefended", "defended")}
        made["Pixels"] = {"x": pixels["eps_255"], "lines": lines, "xlabel": "eps, 1/255"}
    return made
