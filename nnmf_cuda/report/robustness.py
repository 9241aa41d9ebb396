"""The sections on robustness: a page of their own, or parts of the run's report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nnmf_cuda.evaluation import (
    METRIC_NAMES,
    ROW_NAMES,
    AUCComparison,
    Comparison,
    Interval,
    McNemarResult,
)
from nnmf_cuda.report import robustness as evaluated
from nnmf_cuda.report.details import details
from nnmf_cuda.report.pages import Picture, environment
from nnmf_cuda.report.robustness_figures import (
    certificate_figure,
    curves_figure,
    perturbations_figure,
)
from nnmf_cuda.report.tables import METRIC_TITLES, Line, calibration_note, comparison_note

__all__ = [
    "NOT_RUN",
    "PAPER_PROTOCOL",
    "Point",
    "Tile",
    "about_text",
    "count_titles",
    "describe_points",
    "interval_text",
    "is_paper_only",
    "is_random",
    "not_run_parts",
    "one_count",
    "paper_majority",
    "point_values",
    "robustness_page",
    "robustness_parts",
    "statistic_text",
    "tiles",
    "verdict_text",
    "worst_point_lines",
    "worst_point_notes",
    "worst_title",
]


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


# The twenty points: for each its main figure, a sentence that says what good is, and the rest.

Value = Mapping[str, Any]
_HIDDEN = {1: ("pixel_space",), 18: ("most_similar_pairs",)}
"""What has a table of its own, or is too long to be read."""
_SMALL_ERROR = 1e-3
_FOUND = 0.9
"""Share of the planted weaknesses that must be found; both as the evaluation's cautions have it."""


@dataclass(frozen=True)
class Point:
    """One point as the page shows it.

    Attributes
    ----------
    number, name
        Of the point.
    figure : str
        Its main figure, or nothing.
    sentence : str
        What the figure is, and what a good one is.
    state : str
        "good", "bad", "plain" where there is nothing to judge, or "none" where it was not run.
    details : Markup
        All that was found, as tables.
    """

    number: int
    name: str
    figure: str
    sentence: str
    state: str
    details: Markup


@dataclass(frozen=True)
class _Says:
    """A headline: figure, sentence, and whether it is as it should be, where that can be said."""

    figure: str
    sentence: str
    is_good: bool | None = None


def describe_points(content: Mapping[str, Any]) -> list[Point]:
    """Return every point of `robustness.json` for the page."""
    return [_describe(point, content) for point in content["points"]]


def _describe(point: Mapping[str, Any], content: Mapping[str, Any]) -> Point:
    number, value = point["id"], point["value"]
    if value == NOT_RUN:
        return Point(number, point["name"], "", "Not run.", "none", Markup())
    says = _Says("", "")
    if isinstance(value, Mapping):
        says = _note(value) or _headline(number, value, content)
    rest = _rest(number, value, content)
    state = "plain" if says.is_good is None else "good" if says.is_good else "bad"
    return Point(number, point["name"], says.figure, says.sentence, state, rest)


def _headline(number: int, value: Value, content: Value) -> _Says:
    try:
        return _HEADLINES[number](value, content)
    except (AttributeError, IndexError, KeyError, TypeError):
        # A file of another version may lack what the sentence needs; the details show the rest.
        return _Says("", "The details say what was found.")


def _rest(number: int, value: Any, content: Value) -> Markup:
    """Return the details without what has a figure or a table of its own."""
    if not isinstance(value, Mapping):
        return details(value)
    shown = {name: item for name, item in value.items() if name not in _HIDDEN.get(number, ())}
    if number == 5:
        shown = _counts(shown, content)
    if number == 19:
        shown = {
            name: {k: v for k, v in found.items() if k != "curve"}
            for name, found in shown.items()
            if isinstance(found, Mapping)
        }
    return details(shown)


def _counts(value: Value, content: Value) -> dict[str, Any]:
    """Leave out counts that mean nothing here: of 20 decisions without noise, of no worst case.

    How the worst case moves with the noise stands under the verdict.
    """
    dropped = "worst case" if is_paper_only(content) else None
    found = {
        name: {k: v for k, v in counts.items() if not isinstance(v, Mapping)}
        for name, counts in value.items()
        if name != dropped
    }
    if not is_random(content):
        found = {
            name: {k: v for k, v in counts.items() if k not in ("fresh", "all")}
            for name, counts in found.items()
        }
        found = {
            name: {"right" if k == "majority" else k: v for k, v in counts.items()}
            for name, counts in found.items()
        }
    return found


def _note(value: Value) -> _Says | None:
    """Return the headline of a point that does not apply."""
    if "note" not in value:
        return None
    text = str(value["note"])
    return _Says("", f"Does not apply: {text}.")


def _share(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else NOT_RUN


def _percent(value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else NOT_RUN


def _threat(value: Value, content: Value) -> _Says:
    ranges = value.get("eps_in_feature_ranges") or []
    of_range = f", {min(ranges):.2f} to {max(ranges):.2f} of its range" if ranges else ""
    return _Says(
        f"{value['attack_eps']:g}",
        f"{value['norm']}: how far each feature may move in {value['box']}{of_range}."
        f" Noise: {value['noise']}. Knowledge: {value['knowledge']}.",
    )


def _box(value: Value, content: Value) -> _Says:
    eps, move = value["attack_eps"], value["largest_move"]
    return _Says(
        f"{move:.4f}", f"largest move of any attack; good is at most {eps:g}.", move <= eps + 1e-5
    )


def _layout(value: Value, content: Value) -> _Says:
    paper, suite = (value.get(name, NOT_RUN) for name in (PAPER_PROTOCOL, "adaptive suite"))
    return _Says(
        "",
        f"The paper's protocol: {paper}. Good is an attack beside it"
        f" that takes the features as what they are. Adaptive suite: {suite}.",
    )


def _losses(value: Value, content: Value) -> _Says:
    return _Says(
        str(len(value.get("attacks", ()))),
        f"attacks on a model of {value.get('n_classes')} classes. DLR loss: {value.get('dlr')}.",
    )


def _counted(value: Value, content: Value) -> _Says:
    found = value.get(PAPER_PROTOCOL, {})
    if not is_random(content):
        return _Says(
            _share(found.get("majority")),
            "right on the points of the paper's protocol, AutoAttack's own flags"
            f" {_share(found.get('flags'))}. Good is the same figure twice.",
        )
    return _Says(
        _share(found.get("majority")),
        "by the majority of 20 decisions on the points of the paper's protocol; mean of fresh"
        f" decisions {_share(found.get('fresh'))}, all 20 {_share(found.get('all'))}, AutoAttack's"
        f" own flags {_share(found.get('flags'))}. Good is four figures alike.",
    )


def _gradient(value: Value, content: Value) -> _Says:
    error, zero = (
        value.get("median_error", value.get("largest_error")),
        value["zero_gradient_share"],
    )
    good = None if error is None else bool(error < _SMALL_ERROR and zero == 0)
    return _Says(
        NOT_RUN if error is None else f"{error:.0e}",
        f"median error against finite differences, relative; good is below {_SMALL_ERROR:g}. Share"
        f" of samples without a gradient: {zero:.3f}; good is 0.",
        good,
    )


def _draws(value: Value, content: Value) -> _Says:
    shares, draws = value["robust_accuracy"], value["eot_iter"]
    return _Says(
        _share(shares[-1]),
        f"robust with {draws[-1]} draws averaged at each step, {_share(shares[0])} with"
        f" {draws[0]}; good is a curve that is flat at its end.",
        value.get("converged"),
    )


def _steps(value: Value, content: Value) -> _Says:
    steps, restarts = value["steps"], value["restarts"]
    return _Says(
        _share(min(steps["robust_accuracy"][-1], restarts["robust_accuracy"][-1])),
        f"robust after {steps['n_iter'][-1]} steps or {restarts['n_restarts'][-1]} restarts,"
        f" {_share(steps['robust_accuracy'][0])} after {steps['n_iter'][0]} steps; good is curves"
        " that are flat at their ends.",
        value.get("converged"),
    )


def _sweep(value: Value, content: Value) -> _Says:
    shares, eps = value["robust_accuracy"], value["attack_eps"]
    return _Says(
        _share(min(shares)),
        f"robust at the worst eps up to {eps[-1]:g}; good is 0: an attack without bounds must"
        " succeed.",
        value.get("reaches_zero"),
    )


def _black_box(value: Value, content: Value) -> _Says:
    return _Says(
        _share(value["black_box"]),
        f"robust against the best black box, {_share(value['white_box'])} against the best white"
        " box; good is a white box that finds more.",
        not value["black_box_is_stronger"],
    )


def _transfer(value: Value, content: Value) -> _Says:
    shares = [v for name, v in value.items() if name.startswith("transfer")]
    back, worst = value.get("back to the undefended"), content["worst_case_accuracy"]
    return _Says(
        _share(min(shares, default=None)),
        "robust against points that were found on the undefended model; good is no less than the"
        f" worst case, {_share(worst)}. Back: {_share(back)} of the undefended model on the"
        " defence's worst points.",
    )


def _fixed(value: Value, content: Value) -> _Says:
    return _Says(
        _share(value["robust_accuracy"]),
        "robust where the attacker knows the noise beforehand; good is close to the worst case"
        f" with fresh noise, {_share(content['worst_case_accuracy'])}.",
    )


def _purifier(value: Value, content: Value) -> _Says:
    shares = {name: v for name, v in value.items() if isinstance(v, int | float)}
    name = min(shares, key=shares.__getitem__, default="")
    return _Says(
        _share(shares.get(name)),
        f"robust against the strongest attack on the purifier ({name}); good is that the worst case"
        f" counts it: {_share(content['worst_case_accuracy'])}.",
    )


def _baselines(value: Value, content: Value) -> _Says:
    worst = {n: v["worst_case"] for n, v in value.items() if isinstance(v, Mapping)}
    worst["constant answer"] = value["constant answer"]
    mine = worst.pop("defended")
    others = ", ".join(f"{name} {_share(share)}" for name, share in worst.items())
    return _Says(
        _share(mine),
        f"worst case of the defence; {others}. Good is above them all.",
        mine > max(worst.values()),
    )


def _planted(value: Value, content: Value) -> _Says:
    broken = value.get("broken", value)
    shares = {name: v for name, v in broken.items() if isinstance(v, int | float)}
    together = [v for name, v in shares.items() if name.endswith("together")]
    share = min(together or shares.values(), default=None)
    return _Says(
        _share(share),
        "share of the weaknesses planted in a copy of the defence that the attacks found; good"
        " is 1.",
        share is not None and share >= _FOUND,
    )


def _sample(value: Value, content: Value) -> _Says:
    low, high = content["worst_case_interval"]
    constant = content["constant_answer_accuracy"]
    what = PAPER_PROTOCOL if is_paper_only(content) else "the worst case"
    less = value.get("worst_case_less_constant_answer")
    return _Says(
        str(value["n"]),
        f"test images, which leave {what} between {low:.3f} and {high:.3f}; good is clearly above"
        f" the constant answer, {_share(constant)}.",
        None if is_paper_only(content) else (less["low"] > 0 if less else low > constant),
    )


def _own_checks(value: Value, content: Value) -> _Says:
    warnings = [v for v in value.values() if v and v != "no warning"]
    n = sum(1 if isinstance(found, str) else len(found) for found in warnings)
    return _Says(str(n), "warnings of AutoAttack on its own run; good is none.", n == 0)


def _leakage(value: Value, content: Value) -> _Says:
    test = value.get("splits", {}).get("test")
    if test is None:
        return _Says("", "How alike the splits are.")
    near = test["near_share"]
    return _Says(
        _percent(near),
        "of the test images lie near a training image; good is none. The nearest training image"
        f" alone names {_percent(test['nearest_accuracy'])} rightly; good is close to the constant"
        f" answer, {_percent(test['majority_accuracy'])}.",
        not value.get("warnings"),
    )


def _certificate(value: Value, content: Value) -> _Says:
    shares = {name: found.get("certified_at_attack_eps") for name, found in value.items()}
    name, found = next(iter(value.items()))
    others = "".join(f"; {n} {_percent(share)}" for n, share in shares.items() if n != name)
    certified = str(found.get("certifies", "")).rstrip(".")
    what = f" Certified: {certified}." if certified else ""
    return _Says(
        _percent(shares[name]),
        f"certified at the attack's eps ({name}{others}); the more the better. On these no attack"
        f" on the certified classifier can succeed.{what}",
    )


def _record(value: Value, content: Value) -> _Says:
    made = {**value, **value.get("environment", {})}
    torch = made.get("torch") or made.get("packages", {}).get("torch")
    return _Says(
        f"seed {value.get('seed')}",
        f"nnmf-cuda {made.get('nnmf_cuda')}, torch {torch}, on {made.get('device')};"
        f" {value.get('rows_asked', 0):,} samples asked in {value.get('seconds', 0):,.0f} s.",
    )


_HEADLINES: dict[int, Callable[[Value, Value], _Says]] = dict(
    enumerate(
        (
            *(_threat, _box, _layout, _losses, _counted, _gradient, _draws, _steps, _sweep),
            *(_black_box, _transfer, _fixed, _purifier, _baselines, _planted, _sample),
            *(_own_checks, _leakage, _certificate, _record),
        ),
        start=1,
    )
)


# What the page, the tiles and the terminal say of `robustness.json`, each in the same words.

NOT_RUN = "not run"
PAPER_PROTOCOL = "the paper's protocol"

_TRAINED = "adversarially trained"
_OF_PURIFIERS = ("bpda identity",)
"""Parts of points that a defence without noise leaves nothing to run of."""
_GROUPS = {
    "patient": "over whole patients",
    "series": "over whole slice series",
    "image": "images taken as independent",
}


@dataclass(frozen=True)
class Tile:
    """A figure in large type: value, what it is, and a line below."""

    value: str
    title: str
    note: str = ""
    is_main: bool = False


def about_text(about: Mapping[str, Any], home: str | Path | None) -> str:
    """Say of what, when and how something was made, as far as that is known."""
    facts = {
        "Data": about.get("source"),
        "Run": home,
        "Preset": about.get("preset"),
        "Defence": about.get("defence"),
        "Device": about.get("device"),
        "Threads": about.get("threads"),
        "Seed": about.get("run_seed"),
        "Date": about.get("date"),
    }
    return " · ".join(f"{name}: {fact}" for name, fact in facts.items() if fact is not None)


def is_random(content: Mapping[str, Any]) -> bool:
    """Whether the defence draws noise at each decision."""
    return str(content["threat_model"].get("noise", "none")) != "none"


def is_paper_only(content: Mapping[str, Any]) -> bool:
    """Whether nothing but the paper's protocol was counted."""
    return str(content.get("preset")) == "paper"


def one_count(content: Mapping[str, Any]) -> bool:
    """Whether the three ways to count agree on every attack, as they do without noise."""
    return all(line["fresh"] == line["majority"] == line["all"] for line in content["attacks"])


def count_titles(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns that show how many are right, by their key in an attack's line."""
    if one_count(content):
        return {"majority": "right"}
    return {"fresh": "mean of fresh decisions", "majority": "majority of 20", "all": "all 20"}


def worst_title(content: Mapping[str, Any]) -> str:
    """Return what `worst_case_accuracy` is."""
    if is_paper_only(content):
        return "the paper's protocol only, no worst case"
    return "worst case over all attacks"


def paper_majority(content: Mapping[str, Any]) -> float | None:
    """Return what is right on the points of the paper's protocol, counted as the worst case is."""
    for line in content["attacks"]:
        if line["name"] == PAPER_PROTOCOL:
            return float(line["majority"])
    return None


def point_values(content: Mapping[str, Any]) -> dict[int, Any]:
    """Return the value of each point by its number; None where it was not run."""
    return {p["id"]: None if p["value"] == NOT_RUN else p["value"] for p in content["points"]}


def statistic_text(content: Mapping[str, Any]) -> str:
    """Say how the large figures are counted."""
    if not is_random(content):
        return (
            "The defence has no noise: one answer a sample, right or wrong, in every figure here."
        )
    rounds = content.get("worst_case_rounds") or {}
    text = "Large figures: the share of samples that the majority of 20 fresh decisions gets right"
    if rounds.get("n", 1) < 2:
        return f"{text}."
    return (
        f"{text}; the worst case is the mean of {rounds['n']} such rounds, which lie between"
        f" {rounds['low']:.4f} and {rounds['high']:.4f}."
    )


def interval_text(content: Mapping[str, Any]) -> str:
    """Return the interval of the worst case, and over what it was taken."""
    low, high = content["worst_case_interval"]
    by = _GROUPS.get(str(content.get("worst_case_interval_by")), "images taken as independent")
    return f"95 % interval {low:.3f}–{high:.3f}, {by}"


def verdict_text(content: Mapping[str, Any]) -> str:
    """Say how the defence stands to the constant answer."""
    if not is_paper_only(content):
        return str(content["verdict"])
    worst, constant = content["worst_case_accuracy"], content["constant_answer_accuracy"]
    low, high = content["worst_case_interval"]
    return (
        f"This is the paper's protocol only, no worst case: {worst:.4f} (95 % interval {low:.3f}–"
        f"{high:.3f}); the constant answer has {constant:.4f}. Stronger attacks were not run, so"
        " the two are not compared."
    )


def tiles(content: Mapping[str, Any]) -> list[Tile]:
    """Return the large figures, all counted in one way, the most important first."""
    worst, paper = content["worst_case_accuracy"], paper_majority(content)
    low, high = content["worst_case_interval"]
    found = [Tile(f"{worst:.3f}", worst_title(content), f"95 %: {low:.3f}–{high:.3f}", True)]
    if paper is not None and not is_paper_only(content):
        found.append(Tile(f"{paper:.3f}", PAPER_PROTOCOL, "one attack of those in the worst case"))
    trained = content["others"].get(_TRAINED)
    if trained is not None:
        worst = trained["worst_case_accuracy"]
        found.append(Tile(f"{worst:.3f}", f"{_TRAINED}, worst case", "same size, no purifier"))
    constant = content["constant_answer_accuracy"]
    found.append(Tile(f"{constant:.3f}", "constant answer", "always the most frequent class"))
    found.append(Tile(f"{content['clean_accuracy']:.3f}", "clean", "not attacked"))
    return found


def not_run_parts(content: Mapping[str, Any]) -> list[str]:
    """Return the points that were not run, then the parts of others that were not."""
    whole, parts = [], []
    for point in content["points"]:
        name = f"{point['id']} {point['name']}"
        if point["value"] == NOT_RUN:
            whole.append(name)
        else:
            parts += [
                f"{name}: {path}"
                for path in _inside(point["value"])
                if path not in _OF_PURIFIERS or is_random(content)
            ]
    return whole + parts


def _inside(value: Any, path: str = "") -> Iterator[str]:
    """Yield where in a value something was not run."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _inside(item, f"{path}, {key}" if path else str(key).replace("_", " "))
    elif value == NOT_RUN:
        yield path + (" (give --data)" if path == "pixel space" else "")


# The nine metrics on the points of highest loss, beside those of the paper's protocol.


def worst_point_lines(
    content: Mapping[str, Any], paper: Mapping[str, Mapping[str, float]] | None
) -> list[Line]:
    """Return the rows on the worst points, each attacked one above the paper protocol's.

    Parameters
    ----------
    content : mapping
        Content of `robustness.json`.
    paper : mapping, optional
        ``rows`` of ``metrics.json``.
    """
    found = content.get("worst_points")
    if not found:
        return []
    lines = []
    for name in ROW_NAMES:
        lines.append(_line("measured", name, found["rows"][name]))
        if paper is not None and name.startswith("Robust"):
            lines.append(_line("interval", "the paper's protocol", paper[name]))
    return lines


def _line(kind: str, label: str, values: Mapping[str, float]) -> Line:
    return Line(kind, label, tuple(f"{values[metric]:.4f}" for metric in METRIC_NAMES))


def worst_point_notes(content: Mapping[str, Any]) -> list[str]:
    """Return the comparisons and the calibration on the worst points, as sentences."""
    found = content.get("worst_points") or {}
    notes = []
    comparisons = found.get("comparisons") or {}
    for name in ("clean", "robust"):
        if name in comparisons:
            level = comparisons.get("level", 0.95)
            read = _comparison(comparisons[name])
            notes.append(comparison_note(read, name, level=level, is_random=is_random(content)))
    if found.get("calibration"):
        calibration = found["calibration"]
        errors = calibration["expected_calibration_error"]
        notes.append(calibration_note(errors, n_bins=calibration["n_bins"]))
    return notes


def _comparison(found: Mapping[str, Any]) -> Comparison:
    """Read what `Comparison.as_dict` has written."""
    difference, areas = found["difference"], found["delong"]
    return Comparison(
        McNemarResult(**found["mcnemar"]),
        difference and {name: Interval(**ends) for name, ends in difference.items()},
        areas and AUCComparison(**{k: math.nan if v is None else v for k, v in areas.items()}),
    )
