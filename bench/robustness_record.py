"""Collect what `nnmf-cuda evaluate` has found in several runs into one record.

    python bench/robustness_record.py RUN... > bench/results/robustness-DATA.json

Each RUN is a directory of `nnmf-cuda run`, with its robustness.json. Curves and attacked points
stay there; the record holds what docs/reading_the_numbers.md prints.
"""

from __future__ import annotations

import json
import sys
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
    "attacks",
    "others",
    "seconds",
)


def line_of(run: Path) -> dict[str, Any]:
    """Return one run's line."""
    content = json.loads((run / "robustness.json").read_text(encoding="utf-8"))
    model = json.loads((run / "model" / "model.json").read_text(encoding="utf-8"))
    info = model["info"]
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    values = {point["id"]: point["value"] for point in content["points"]}
    return {
        "defence": model["defence"],
        "n_features": model["n_features"],
        "seed": info["seed"],
        "split_by": info["data"]["split_by"],
        "test_fold": info["data"]["test_fold"],
        **{name: content[name] for name in KEPT},
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


if __name__ == "__main__":
    print(json.dumps({"runs": [line_of(Path(run)) for run in sys.argv[1:]]}, indent=1))
