"""What an evaluation found, as plain text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tabulate import tabulate

from nnmf_cuda.evaluation.robustness import NOT_RUN, RobustnessReport
from nnmf_cuda.report.robustness import is_one_count

_WIDTH = 100
_COUNTS = {"fresh": "fresh", "majority": "majority", "all": "all 20"}
_LEGEND = (
    "fresh: mean of fresh decisions; majority: of 20 of them, as in the verdict; all 20: every one"
    " right."
)


def summary_table(report: RobustnessReport) -> str:
    """Return the attacks, what stands beside them, the verdict and its warnings as plain text."""
    verdict = [_wrapped(report.headline.line), _wrapped(report.verdict.sentence)]
    verdict += [_wrapped(warning, "! ") for warning in report.warnings]
    parts = [
        _attacks(report),
        _beside(report),
        _columns([_pixels(report), _known_noise(report), _certified(report)]),
        "\n".join(verdict),
    ]
    if report.not_run:
        parts.append(_wrapped(f"Not run: {', '.join(report.not_run)}."))
    return "\n\n".join(parts)


def _attacks(report: RobustnessReport) -> str:
    is_one = is_one_count(report)
    titles = {"majority": "right"} if is_one else _COUNTS
    rows = [["attack on the defence", *titles.values(), "s"]]
    for line in report.defence.attacks:
        shares = {"fresh": line.fresh, "majority": line.majority, "all": line.all}
        rows.append([line.name, *(f"{shares[n]:.4f}" for n in titles), f"{line.seconds:.1f}"])
    if report.is_worst_case:
        worst = {
            "fresh": "",
            "majority": f"{report.defence.worst_case_accuracy:.4f}",
            "all": f"{report.all_right_accuracy:.4f}",
        }
        rows.append(["worst case over all", *(worst[name] for name in titles), ""])
    table = _columns(rows)
    return table if is_one else f"{table}\n{_wrapped(_LEGEND)}"


def _beside(report: RobustnessReport) -> str:
    rows = [["beside it", "clean", "worst case" if report.is_worst_case else "protocol"]]
    for name, model in {"the defence": report.defence, **report.others}.items():
        rows.append([name, f"{model.clean_accuracy:.4f}", f"{model.worst_case_accuracy:.4f}"])
    constant = f"{report.verdict.constant:.4f}"
    rows.append(["the constant answer", constant, constant])
    return "\n".join([_columns(rows), *map(_wrapped, report.others_notes)])


def _pixels(report: RobustnessReport) -> list[str]:
    pixels = report.pixels
    if pixels is None:
        return ["pixels", f"{NOT_RUN} (give --data)"]
    shares = (f"{name} {curve.robust_accuracy[-1]:.4f}" for name, curve in pixels.chains.items())
    certified = []
    if pixels.certified is not None:
        certified = [f"certified {pixels.certified.robust_accuracy[-1]:.4f}"]
    return [f"pixels, {pixels.eps_255[-1]:g}/255", ", ".join([*shares, *certified])]


def _known_noise(report: RobustnessReport) -> list[str]:
    says = NOT_RUN if report.is_random else "the defence has no noise"
    if report.fixed_noise is not None:
        says = f"{report.fixed_noise:.4f}"
    return ["noise known to the attacker", says]


def _certified(report: RobustnessReport) -> list[str]:
    shares = (f"{name} {found.at_attack_eps:.4f}" for name, found in report.certificates.items())
    title = f"certified at {report.threat_model.attack_eps:g}"
    return [title, ", ".join(shares) or NOT_RUN]


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Set the first column to the left, numbers to the right, and text where it begins."""
    numbers = ["left" if any(len(row) == 2 for row in rows) else "right"] * (len(rows[0]) - 1)
    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=("left", *numbers))


def _wrapped(text: str, start: str = "") -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
