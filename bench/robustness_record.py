"""Collect what `nnmf-cuda evaluate` has found in several runs into one record.

    python bench/robustness_record.py [--trials FILE] RUN... > bench/results/robustness-DATA.json

Each RUN is a directory of `nnmf-cuda run`, with its robustness.json; FILE is a JSON list of trials
on the validation split, which is copied. Curves and attacked points stay with the runs; the record
holds what docs/reading_the_numbers.md prints.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KEPT = (
    "preset",
    "clean_accuracy",
    "worst_case_accuracy",
    "worst_case_interval",
    "all_right_accuracy",
    "constant_answer_accuracy",
    "paper_protocol",
    "seconds",
)


def line_of(run: Path) -> dict[str, Any]:
    """Return one run's line."""
    content = json.loads((run / "robustness.json").read_text(encoding="utf-8"))
    model = json.loads((run / "model" / "model.json").read_text(encoding="utf-8"))
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
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
        "fixed_noise": values[12],
        "pixels": values[1]["pixel_space"],
        "converged": values[8]["converged"] if isinstance(values[8], dict) else None,
        "certificate": {
            name: {key: found[key] for key in ("clean_accuracy", "certified_at_attack_eps")}
            for name, found in (values[19] if isinstance(values[19], dict) else {}).items()
        },
        "data_sha256": environment["data_sha256"],
        "commit": environment["commit"],
    }


def majorities(attacks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the accuracy by majority decisions under each attack."""
    return {attack["name"]: attack["majority"] for attack in attacks}


def main() -> None:
    """Print the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=Path, help="JSON list of trials on the validation split")
    parser.add_argument("runs", nargs="+", type=Path, help="directories of nnmf-cuda run")
    arguments = parser.parse_args()
    record: dict[str, Any] = {"runs": [line_of(run) for run in arguments.runs]}
    if arguments.trials is not None:
        record["validation_trials"] = json.loads(arguments.trials.read_text(encoding="utf-8"))
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
