"""Nested values of an evaluation as small tables with readable names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

_FEW = 12
"""Up to so many numbers are shown one by one."""

_NONE = "–"

_NAMES = {
    "all": "all 20 decisions right",
    "alpha": "a certificate is wrong with at most this probability",
    "attack_eps": "attack's eps",
    "autoattack_standard": "AutoAttack's standard version",
    "bpda_identity": "BPDA, the purifier as identity",
    "certified_at_attack_eps": "certified at the attack's eps",
    "converged": "flat at its end",
    "cosine": "cosine of two gradients",
    "cosine_of_two_gradients": "cosine of two independent gradients",
    "dlr": "DLR loss",
    "duplicates": "identical images",
    "draws_of_the_defence": "draws that the defence averages",
    "effort": "what the evaluation may spend",
    "eot_iter": "draws averaged (EOT)",
    "eps_255": "eps, 1/255",
    "eps_in_feature_ranges": "eps in ranges of a feature",
    "eps_in_feature_stds": "eps in standard deviations of a feature",
    "flags": "AutoAttack's own flags",
    "fresh": "mean of fresh decisions",
    "fresh_interval": "95 % Wilson interval of the mean",
    "grad_norm_mean": "mean length of the gradient",
    "identical": "identical to a training image",
    "interval_95": "95 % interval of the worst case",
    "largest_error": "largest error against finite differences",
    "majority": "majority of 20 decisions right",
    "majority_accuracy": "constant answer",  # as the leakage audit calls it
    "max_linf_equivalent": "largest Linf equivalent of a radius",
    "max_radius": "largest L2 radius possible",
    "mean_certified_radius": "mean certified L2 radius",
    "median_error": "median error against finite differences",
    "n": "samples",
    "n_classes": "classes",
    "n_estimation": "draws to estimate with",
    "n_features": "features",
    "n_iter": "steps",
    "n_restarts": "restarts",
    "n_selection": "draws to choose the class with",
    "near_share": "share near a training image",
    "nearest_accuracy": "accuracy of the nearest training image",
    "nnmf_cuda": "nnmf-cuda",
    "rows_asked": "samples asked",
    "same_hash": "same perceptual hash as a training image",
    "seeds_of_training": "seeds of the training",
    "worst_case_less_constant_answer": "worst case less the constant answer, 95 % interval",
    "zero_gradient_share": "share of zero gradients",
}


def readable(key: object) -> str:
    """Return a key of `robustness.json` in words."""
    text = str(key)
    return _NAMES.get(text) or text.replace("_", " ")


def details(value: Any) -> Markup:
    """Return a value as HTML: tables for mappings and curves, a list for texts."""
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, list | tuple):
        return _list(value)
    return escape(_scalar(value))


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return "–".join(map(_scalar, value))
    return "none" if value is None else str(value)


def _number(value: float) -> str:
    if value == 0 or 0.001 <= abs(value) < 10:
        digits = f"{value:.4f}"
        # A setting such as 0.05 is short, a finding such as 0.5070 keeps its digits.
        return digits.rstrip("0").rstrip(".") if digits.endswith("00") else digits
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _list(values: Sequence[Any]) -> Markup:
    if not values:
        return Markup("none")
    if _is_interval(values):
        return escape(_scalar(values))
    if all(map(_is_number, values)):
        if len(values) > _FEW:
            low, high = _number(min(values)), _number(max(values))
            return Markup("{} values, {} to {}").format(len(values), low, high)
        return escape(", ".join(map(_scalar, values)))
    items = Markup().join(Markup("<li>{}</li>").format(details(value)) for value in values)
    return Markup("<ul>{}</ul>").format(items)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_interval(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))


def _is_record(value: Any) -> bool:
    """Whether a value is a mapping to single values only."""
    return isinstance(value, Mapping) and all(
        _is_interval(item) or not isinstance(item, Mapping | list | tuple)
        for item in value.values()
    )


def _mapping(value: Mapping[str, Any]) -> Markup:
    """Return curves and records as tables, single values as facts, the rest under headings."""
    curve = _curve(value)
    records = {name: item for name, item in value.items() if _is_record(item)}
    if len(records) < 2:
        records = {}
    rest = {name: item for name, item in value.items() if name not in {*curve, *records}}
    nested = {name: item for name, item in rest.items() if isinstance(item, Mapping)}
    parts = []
    if curve:
        first, *others = curve
        header = [readable(first), *map(_scalar, curve[first])]
        parts.append(_table(header, [(name, curve[name]) for name in others]))
    if records:
        parts.append(_records(records))
    parts.append(_facts({name: item for name, item in rest.items() if name not in nested}))
    parts += [
        Markup("<h4>{}</h4>{}").format(readable(name), _mapping(item))
        for name, item in nested.items()
    ]
    return Markup().join(parts)


def _records(records: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Return records as one table, with the more numerous of names and keys down the side."""
    keys = list(dict.fromkeys(key for record in records.values() for key in record))
    if len(keys) < len(records):
        rows = [(name, [r.get(key, _NONE) for key in keys]) for name, r in records.items()]
        return _table(["", *map(readable, keys)], rows)
    rows = [(key, [record.get(key, _NONE) for record in records.values()]) for key in keys]
    return _table(["", *map(readable, records)], rows)


def _facts(facts: Mapping[str, Any]) -> Markup:
    if not facts:
        return Markup()
    rows = (
        Markup('<tr><th scope="row">{}</th><td>{}</td></tr>').format(readable(name), details(item))
        for name, item in facts.items()
    )
    return Markup('<table class="facts"><tbody>{}</tbody></table>').format(Markup().join(rows))


def _curve(value: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    lists: dict[str, Sequence[float]] = {
        name: item
        for name, item in value.items()
        if isinstance(item, list | tuple) and len(item) > 2 and all(map(_is_number, item))
    }
    lengths = {len(item) for item in lists.values()}
    is_curve = "robust_accuracy" in lists and len(lists) > 1
    return lists if is_curve and len(lengths) == 1 and max(lengths) <= _FEW else {}


def _table(header: Sequence[str], rows: Sequence[tuple[str, Any]]) -> Markup:
    titles = Markup().join(Markup('<th scope="col">{}</th>').format(title) for title in header)
    body = Markup().join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            readable(name),
            Markup().join(Markup("<td>{}</td>").format(_scalar(value)) for value in values),
        )
        for name, values in rows
    )
    return Markup(
        '<div class="scroll"><table class="narrow"><thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(titles, body)
