"""What an evaluation found, as plain text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from nnmf_cuda.report.robustness import (
    is_paper_only,
    not_run_parts,
    one_count,
    point_values,
    verdict_text,
)

__all__ = ["summary_table"]

_WIDTH = 100
_COUNTS = {"fresh": "fresh", "majority": "majority", "all": "all 20"}
_LEGEND = (
    "fresh: mean of fresh decisions; majority: of 20 of them, as in the verdict; all 20: every one"
    " right."
)


def summary_table(content: Mapping[str, Any]) -> str:
    """Return the attacks, what stands beside them, the verdict and its warnings as plain text.

    Parameters
    ----------
    content : mapping
        Content of `robustness.json`.

    Returns
    -------
    str
        No newline at the end.
    """
    verdict = [_wrapped(verdict_text(content))]
    verdict += [_wrapped(warning, "! ") for warning in content.get("warnings", ())]
    parts = [
        _attacks(content),
        _beside(content),
        _columns(_also(content)),
        "\n".join(verdict),
    ]
    not_run = not_run_parts(content)
    if not_run:
        parts.append(_wrapped(f"Not run: {', '.join(not_run)}."))
    return "\n\n".join(parts)


def _attacks(content: Mapping[str, Any]) -> str:
    keys = {"majority": "right"} if one_count(content) else _COUNTS
    worst = {
        "fresh": "",
        "majority": f"{content['worst_case_accuracy']:.4f}",
        "all": f"{content['all_right_accuracy']:.4f}",
    }
    rows = [["attack on the defence", *keys.values(), "s"]]
    for line in content["attacks"]:
        shares = (f"{line[key]:.4f}" for key in keys)
        rows.append([line["name"], *shares, f"{line['seconds']:.1f}"])
    if not is_paper_only(content):
        rows.append(["worst case over all", *(worst[key] for key in keys), ""])
    table = _columns(rows)
    return table if one_count(content) else f"{table}\n{_wrapped(_LEGEND)}"


def _beside(content: Mapping[str, Any]) -> str:
    rows = [["beside it", "clean", "protocol" if is_paper_only(content) else "worst case"]]
    models = {"the defence": content, **content["others"]}
    for name, model in models.items():
        shares = (model["clean_accuracy"], model["worst_case_accuracy"])
        rows.append([name, *(f"{share:.4f}" for share in shares)])
    constant = f"{content['constant_answer_accuracy']:.4f}"
    rows.append(["the constant answer", constant, constant])
    return "\n".join([_columns(rows), *map(_wrapped, content.get("others_notes", ()))])


def _also(content: Mapping[str, Any]) -> list[list[str]]:
    """Return the lines on pixels, known noise and the certificate."""
    values = point_values(content)
    return [
        _pixels((values.get(1) or {}).get("pixel_space")),
        ["noise known to the attacker", _known_noise(values.get(12))],
        _certified(content, values.get(19)),
    ]


def _pixels(found: Any) -> list[str]:
    if not isinstance(found, Mapping):
        return ["pixels", "not run (give --data)"]
    shares = (
        f"{name} {found[name]['robust_accuracy'][-1]:.4f}" for name in ("undefended", "defended")
    )
    return [f"pixels, {found['eps_255'][-1]:g}/255", ", ".join(shares)]


def _known_noise(found: Any) -> str:
    if not isinstance(found, Mapping):
        return "not run"
    return f"{found['robust_accuracy']:.4f}" if "robust_accuracy" in found else found["note"]


def _certified(content: Mapping[str, Any], found: Any) -> list[str]:
    title = f"certified at {content['threat_model']['attack_eps']:g}"
    if not isinstance(found, Mapping):
        return [title, "not run"]
    shares = (
        f"{name} {c['certified_at_attack_eps']:.4f}"
        for name, c in found.items()
        if isinstance(c, Mapping)
    )
    return [title, ", ".join(shares)]


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Set the first column to the left, numbers to the right, and text where it begins."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_text = any(len(row) == 2 for row in rows)
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [
            cell if is_text else cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _wrapped(text: str, start: str = "") -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
