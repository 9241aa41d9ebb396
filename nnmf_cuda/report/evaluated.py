"""What the page, the tiles and the terminal say of `robustness.json`, each in the same words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "NOT_RUN",
    "PAPER_PROTOCOL",
    "Tile",
    "about_text",
    "count_titles",
    "interval_text",
    "is_paper_only",
    "is_random",
    "not_run_parts",
    "one_count",
    "paper_majority",
    "point_values",
    "statistic_text",
    "tiles",
    "verdict_text",
    "worst_title",
]

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
