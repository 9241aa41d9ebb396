"""What `nnmf-cuda run` prints when it is done: a table of one row a model, and how to read it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnmf_cuda.pipeline.run_directory import read_json

_WIDTH = 79
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
    """Accuracy of one model on the test images."""

    clean: float  # as they are, mean of fresh predictions
    attacked: float  # by the paper's protocol, the same mean
    worst_case: float | None  # of all attacks, by majority of fresh decisions; None where not run

    def cells(self) -> list[str]:
        """Return them as three cells of a table."""
        worst = "not run" if self.worst_case is None else f"{self.worst_case:.3f}"
        return [f"{self.clean:.3f}", f"{self.attacked:.3f}", worst]


@dataclass(frozen=True)
class Outcome:
    """What a finished run has found, as its files say."""

    undefended: Shares
    defended: Shares
    constant: float  # accuracy of always naming the most frequent class
    n_test: int
    n_predictions: int  # fresh ones of a random model on each image
    protocol: str  # the attacks of the paper's protocol and their radius
    line: str  # the evaluation's headline; "" where it was not run
    verdict: str  # how the worst case stands to the constant answer; "" where it was not run
    warnings: tuple[str, ...]  # what to doubt in the evaluation
    seconds: dict[str, float]  # of each stage; "total" is that of the paper's five
    synthetic: bool  # whether the images are the built-in phantom

    @property
    def all_seconds(self) -> float:
        """Seconds of the whole run."""
        return sum(seconds for stage, seconds in self.seconds.items() if stage != "total")


def outcome_of(home: Path) -> Outcome:
    """Read what the run in a directory has found."""
    metrics, timings = read_json(home / "metrics.json"), read_json(home / "timings.json")
    evaluated = home / "robustness.json"
    found = read_json(evaluated) if evaluated.exists() else {}
    others = found.get("others", {}).get("undefended", {})
    rows, attack = metrics["rows"], metrics["attacks"]["defended"]
    undefended, defended = (
        Shares(
            rows[f"Clean_{model}"]["accuracy"],
            rows[f"Robust_{model}"]["accuracy"],
            evaluation.get("worst_case_accuracy"),
        )
        for model, evaluation in (("Baseline", others), ("Defended", found))
    )
    return Outcome(
        undefended=undefended,
        defended=defended,
        constant=metrics["majority_class_accuracy"],
        n_test=rows["Clean_Defended"]["n"],
        n_predictions=metrics["n_predictions"],
        protocol=f"{' + '.join(attack['attacks'])}, {attack['norm']} eps {attack['attack_eps']:g}",
        line=found.get("line", ""),
        verdict=found.get("verdict", ""),
        warnings=(*metrics.get("warnings", ()), *found.get("warnings", ())),
        seconds={row["stage"]: row["seconds"] for row in timings["rows"]},
        synthetic=read_json(home / "model" / "model.json")["info"]["synthetic"],
    )


def run_summary(outcome: Outcome, *, preset: str, evaluation: str, home: Path) -> str:
    """Return what the run in `home` has found, for a terminal; options are as `run` was given."""
    rows = {
        "undefended": outcome.undefended.cells(),
        f"defended (preset {preset})": outcome.defended.cells(),
        "the constant answer": [f"{outcome.constant:.3f}"] * 3,
    }
    seconds = ", ".join(
        f"{name} {outcome.seconds[stage]:.1f}"
        for stage, name in _STAGES.items()
        if stage in outcome.seconds
    )
    notes = [
        *filter(None, [outcome.line, outcome.verdict]),
        *(f"! {warning}" for warning in outcome.warnings),
        f"Seconds: {seconds}; in all {outcome.all_seconds:.1f}.",
    ]
    places = [f"results: {home}", f"report:  {home / 'report.html'} (its tables here: --verbose)"]
    return _screen(outcome, evaluation, ["clean", "attacked", "worst\ncase"], rows, notes, places)


def comparison(
    outcomes: Mapping[str, Outcome], *, evaluation: str, homes: Mapping[str, Path]
) -> str:
    """Return what the runs of several presets have found, side by side; both maps are by preset."""
    preset, first = next(iter(outcomes.items()))
    constant = f"{first.constant:.3f}"  # of the test images, which are the same
    rows = {f"undefended ({preset})": [*first.undefended.cells(), constant, ""]}
    rows |= {
        f"preset {name}": [*outcome.defended.cells(), constant, f"{outcome.all_seconds:.0f}"]
        for name, outcome in outcomes.items()
    }
    header = ["clean", "attacked", "worst\ncase", "constant\nanswer", "seconds"]
    places = [f"report: {home / 'report.html'}" for home in homes.values()]
    lines = [f"{name}: {outcome.line}" for name, outcome in outcomes.items() if outcome.line]
    return _screen(first, evaluation, header, rows, lines, places)


def _screen(
    outcome: Outcome,
    evaluation: str,
    header: Sequence[str],
    rows: Mapping[str, Sequence[str]],
    notes: Iterable[str],
    places: Iterable[str],
) -> str:
    """Set the table, how to read it, and where the rest lies."""
    from nnmf_cuda.report.tables import plain_table

    synthetic = "Synthetic images: this says that the software works, nothing else."
    worst = f"over all attacks of --evaluation {evaluation}, majority of 20 decisions."
    if evaluation == "paper":
        worst = "not run; --evaluation honest does, in minutes."
    elif evaluation == "quick":
        worst += " That is a first look: honest, which takes minutes, may find more."
    legend = [
        f"attacked: the paper's protocol ({outcome.protocol}), each attack once; mean of"
        f" {outcome.n_predictions} fresh predictions, as clean is.",
        f"worst case: {worst}",
    ]
    table = plain_table(["", *header], [[name, *cells] for name, cells in rows.items()])
    wrapped = [textwrap.fill(text, _WIDTH, subsequent_indent="  ") for text in (*legend, *notes)]
    lines = [f"Accuracy on {outcome.n_test} test images:", "", table, "", *wrapped, "", *places]
    return "\n".join([synthetic, *lines] if outcome.synthetic else lines)
