"""What `nnmf-cuda run` prints when it is done: a table of one row a model, and how to read it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

__all__ = ["Outcome", "Shares", "comparison", "outcome_of", "run_summary"]

_WIDTH = 79
_NOT_RUN = "not run"
_FIRST_LOOK = " That is a first look: honest, which takes minutes, finds more."
_STAGES = {
    "nnmf_feature_extraction": "features",
    "cnn_training": "classifier",
    "denoiser_training": "denoiser",
    "autoattack_baseline": "attack on the undefended",
    "autoattack_defended": "on the defended",
    "robustness_evaluation": "evaluation",
}


@dataclass(frozen=True)
class Shares:
    """Accuracy of one model on the test images.

    Attributes
    ----------
    clean : float
        As they are, mean of fresh predictions.
    attacked : float
        Attacked by the paper's protocol, mean of fresh predictions.
    worst_case : float or None
        On the worst of what all attacks have found, majority of fresh decisions; None where the
        evaluation was not run.
    """

    clean: float
    attacked: float
    worst_case: float | None

    def cells(self) -> list[str]:
        """Return them as three cells of a table."""
        worst = _NOT_RUN if self.worst_case is None else f"{self.worst_case:.3f}"
        return [f"{self.clean:.3f}", f"{self.attacked:.3f}", worst]


@dataclass(frozen=True)
class Outcome:
    """What a finished run has found, as its files say.

    Attributes
    ----------
    undefended, defended : Shares
    constant : float
        Accuracy of always naming the most frequent class.
    n_test, n_predictions : int
        Number of test images, and of fresh predictions of a random model on each.
    protocol : str
        The attack of the paper's protocol and its radius.
    verdict : str
        How the worst case stands to the constant answer; "" where it was not run.
    warnings : tuple of str
        What to doubt in the evaluation.
    seconds : dict
        Of each stage; "total" is that of the paper's five.
    synthetic : bool
        Whether the images are the built-in phantom.
    """

    undefended: Shares
    defended: Shares
    constant: float
    n_test: int
    n_predictions: int
    protocol: str
    verdict: str
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    synthetic: bool

    @property
    def all_seconds(self) -> float:
        """Seconds of the whole run."""
        return sum(seconds for stage, seconds in self.seconds.items() if stage != "total")


def outcome_of(home: Path) -> Outcome:
    """Read what the run in a directory has found."""
    metrics, timings = _read(home / "metrics.json"), _read(home / "timings.json")
    evaluated = home / "robustness.json"
    found = _read(evaluated) if evaluated.exists() else None
    rows, attack = metrics["rows"], metrics["attacks"]["defended"]
    worst: dict[str, float] = {}
    if found is not None:
        worst["Defended"] = found["worst_case_accuracy"]
        worst["Baseline"] = found["others"]["undefended"]["worst_case_accuracy"]
    undefended, defended = (
        Shares(
            rows[f"Clean_{model}"]["accuracy"],
            rows[f"Robust_{model}"]["accuracy"],
            worst.get(model),
        )
        for model in ("Baseline", "Defended")
    )
    return Outcome(
        undefended=undefended,
        defended=defended,
        constant=metrics["majority_class_accuracy"],
        n_test=rows["Clean_Defended"]["n"],
        n_predictions=metrics["n_predictions"],
        protocol=f"{' + '.join(attack['attacks'])}, {attack['norm']} eps {attack['attack_eps']:g}",
        verdict="" if found is None else found["verdict"],
        warnings=() if found is None else tuple(found["warnings"]),
        seconds={row["stage"]: row["seconds"] for row in timings["rows"]},
        synthetic=_read(home / "model" / "model.json")["info"]["synthetic"],
    )


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def run_summary(outcome: Outcome, *, preset: str, evaluation: str, home: Path) -> str:
    """Return what one run has found, for a terminal.

    Parameters
    ----------
    outcome : Outcome
    preset, evaluation : str
        As `run` was given.
    home : path
        Directory of the results.
    """
    constant = f"{outcome.constant:.3f}"
    table = _table(
        ["clean", "attacked", "worst case"],
        {
            "undefended": outcome.undefended.cells(),
            f"defended (preset {preset})": outcome.defended.cells(),
            "the constant answer": [constant] * 3,
        },
    )
    seconds = [
        f"{name} {outcome.seconds[stage]:.1f}"
        for stage, name in _STAGES.items()
        if stage in outcome.seconds
    ]
    return "\n".join(
        [
            *_head(outcome),
            table,
            "",
            *_legend(outcome, evaluation),
            *([_wrapped(outcome.verdict)] if outcome.verdict else []),
            *(_wrapped(f"! {warning}") for warning in outcome.warnings),
            _wrapped(f"Seconds: {', '.join(seconds)}; in all {outcome.all_seconds:.1f}."),
            "",
            f"results: {home}",
            f"report:  {home / 'report.html'} (its tables here: --verbose)",
        ]
    )


def comparison(
    outcomes: Mapping[str, Outcome], *, evaluation: str, homes: Mapping[str, Path]
) -> str:
    """Return what the runs of several presets have found, side by side, for a terminal.

    Parameters
    ----------
    outcomes : mapping of str to Outcome
        By preset.
    evaluation : str
        As `run` was given.
    homes : mapping of str to path
        Directory of each.
    """
    first_preset, first = next(iter(outcomes.items()))
    rows = {
        f"undefended ({first_preset})": [*first.undefended.cells(), f"{first.constant:.3f}", ""]
    }
    for preset, outcome in outcomes.items():
        constant, seconds = f"{outcome.constant:.3f}", f"{outcome.all_seconds:.0f}"
        rows[f"preset {preset}"] = [*outcome.defended.cells(), constant, seconds]
    header = ["clean", "attacked", "worst case", "constant answer", "seconds"]
    reports = {f"preset {name}": str(home / "report.html") for name, home in homes.items()}
    return "\n".join(
        [
            *_head(first),
            _table(header, rows),
            "",
            *_legend(first, evaluation),
            "",
            "Reports (tables, figures, the points of the evaluation):",
            tabulate(reports.items(), tablefmt="plain", disable_numparse=True),
        ]
    )


def _table(header: list[str], rows: Mapping[str, list[str]]) -> str:
    return tabulate(
        [[name, *cells] for name, cells in rows.items()],
        headers=["", *header],
        tablefmt="simple",
        disable_numparse=True,
        colalign=["left", *("right" for _ in header)],
    )


def _head(outcome: Outcome) -> list[str]:
    synthetic = "Synthetic images: this says that the software works, nothing else."
    lines = [synthetic] if outcome.synthetic else []
    return [*lines, f"Accuracy on {outcome.n_test} test images:", ""]


def _legend(outcome: Outcome, evaluation: str) -> list[str]:
    n = outcome.n_predictions
    worst = f"over all attacks of --evaluation {evaluation}, majority of 20 decisions."
    if outcome.defended.worst_case is None:
        worst = "not run; --evaluation honest does, in minutes."
    elif evaluation == "quick":
        worst += _FIRST_LOOK
    return [
        _wrapped(
            f"attacked: the paper's protocol ({outcome.protocol}), each attack once; mean of"
            f" {n} fresh predictions, as clean is."
        ),
        _wrapped(f"worst case: {worst}"),
    ]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ")
