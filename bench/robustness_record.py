"""Collect what `nnmf-cuda evaluate` has found in several runs into one record.

    python -m bench.robustness_record [--trials FILE] RUN... > bench/results/robustness-DATA.json

Each RUN is a directory of `nnmf-cuda run`, with its robustness.json; FILE is a JSON list of trials
on the validation split, which is copied. Attacked points stay with the runs; the record holds what
docs/reading_the_numbers.md prints.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.runs import as_text, made_by, read

KEPT = (
    "preset",
    "clean_accuracy",
    "worst_case_accuracy",
    "worst_case_interval",
    "worst_case_interval_by",
    "worst_case_rounds",
    "all_right_accuracy",
    "constant_answer_accuracy",
    "verdict",
    "warnings",
    "paper_protocol",
    "seconds",
)
_PROOF = ("ceiling", "proven_accuracy", "undecided_accuracy")
"""Of evaluations that tell them."""
_POINTS = {
    "counts": 5,
    "gradient": 6,
    "draws": 7,
    "steps_and_restarts": 8,
    "eps": 9,
    "black_box": 10,
    "transfer": 11,
    "fixed_noise": 12,
    "planted": 15,
}
"""Points that are copied whole, by the name they get here."""


def line_of(run: Path) -> dict[str, Any]:
    """Return one run's line; raise ValueError for a run that no commit can make again."""
    content, model = read(run / "robustness.json"), read(run / "model" / "model.json")
    metrics, made = read(run / "metrics.json"), made_by(run)
    info, values = model["info"], {point["id"]: point["value"] for point in content["points"]}
    return {
        "defence": model["defence"],
        "noise_levels": metrics.get("noise_levels", []),
        "n_features": model["n_features"],
        "seed": info["seed"],
        "split_by": info["data"]["split_by"],
        "test_fold": info["data"]["test_fold"],
        **{name: content[name] for name in KEPT},
        "attacks": majorities(content["attacks"]),
        "others": {
            name: {**other, "attacks": majorities(other["attacks"])}
            for name, other in content["others"].items()
        },
        **{name: values[i] for name, i in _POINTS.items()},
        "pixels": values[1]["pixel_space"],
        **{name: content.get(name) for name in _PROOF},
        "certificate": certificates_of(values[19]),
        "worst_points": on_worst_points(content["worst_points"]),
        "leakage": leakage_of(values[18]),
        **made,
        "threads": content["about"]["threads"],
    }


def majorities(attacks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the accuracy by majority decisions under each attack."""
    return {attack["name"]: attack["majority"] for attack in attacks}


def certificates_of(found: Any) -> dict[str, Any]:
    """Return what randomised smoothing certifies, of what it was applied to."""
    kept = ("clean_accuracy", "certified_at_attack_eps")
    by_name = found if isinstance(found, Mapping) else {}
    return {
        name: {key: one[key] for key in kept}
        for name, one in by_name.items()
        if all(key in one for key in kept)  # branch and bound has its own figures
    }


def leakage_of(found: Any) -> dict[str, Any] | None:
    """Return the figures of the leakage audit, without its pairs of files."""
    if not isinstance(found, Mapping):
        return None
    return {part: found.get(part) for part in ("splits", "patient_folds")}


def on_worst_points(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return metrics and calibration on the worst points, without their intervals."""
    if found is None:
        return None
    return {"rows": found["rows"], "calibration": found["calibration"]}


def main() -> None:
    """Print the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=Path, help="JSON list of trials on the validation split")
    parser.add_argument("runs", nargs="+", type=Path, help="directories of nnmf-cuda run")
    arguments = parser.parse_args()
    record: dict[str, list[Any]] = {"runs": [line_of(run) for run in arguments.runs]}
    if arguments.trials is not None:
        record["validation_trials"] = json.loads(arguments.trials.read_text(encoding="utf-8"))
    print(as_text(record))


if __name__ == "__main__":
    main()
