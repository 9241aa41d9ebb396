"""The twenty points: for each its main figure, a sentence that says what good is, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from nnmf_cuda.report.details import details
from nnmf_cuda.report.evaluated import NOT_RUN, PAPER_PROTOCOL, is_paper_only, is_random

__all__ = ["Point", "describe_points"]

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
