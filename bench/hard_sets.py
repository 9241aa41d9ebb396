"""Every preset on features made to be hard: what is said before training, and what is gained.

    python -m bench.hard_sets [PRESET...] > bench/results/hard-sets.json

Two classes that overlap and three classes (`tests/hard_data.py`), each at the paper's radius and at
that of "auto". Two presets are left out: `pixel`, whose attack is on images, where these are
features, and `robust`, which on given features is `trades`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from bench.runs import as_text
from nnmf_cuda.attacks.gradient_ascent import vector_apgd
from nnmf_cuda.attacks.objectives import majority_right
from nnmf_cuda.attacks.surrogates import surrogate
from nnmf_cuda.evaluation.metrics import majority_class_accuracy
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.pipeline.config import PRESETS, ExperimentConfig
from nnmf_cuda.pipeline.defences import fit_defence, noise_schedule
from nnmf_cuda.pipeline.radius import decide_radius
from nnmf_cuda.training import train_classifier, train_denoiser
from tests.hard_data import overlapping, three_classes

SETS = {"two classes that overlap": overlapping, "three classes": three_classes}


def measure(name: str, preset: str, attack_eps: float | Literal["auto"]) -> dict[str, Any]:
    """Train a preset's defence on a set's features, and attack it on its test split."""
    splits = SETS[name]()
    x = {split: torch.from_numpy(rows) for split, (rows, _) in splits.items()}
    y = {split: labels for split, (_, labels) in splits.items()}
    config = PRESETS[preset]
    config = replace(config, attack=replace(config.attack, attack_eps=attack_eps))
    started = time.perf_counter()
    config, prospects = decide_radius(x, y, config)
    n_classes = 1 + int(y["train"].max())
    data = (x["train"], y["train"], x["valid"], y["valid"])
    plain = train_classifier(*data, n_classes=n_classes, seed=0).model
    denoiser = _denoiser(x, config)
    defence = fit_defence(x, y, plain, denoiser, config)
    attacked, clean = _accuracies(defence.model, x["test"], torch.from_numpy(y["test"]), config)
    constant = majority_class_accuracy(y["test"])
    return {
        "set": name,
        "preset": preset,
        "attack_eps": config.attack.radius,
        "decided_by": prospects.decided_by,
        "ceiling": prospects.ceilings["test"],
        "constant": constant,
        "clean": clean,
        "attacked": attacked,
        "gain": attacked - constant,
        "warned_before_training": prospects.warning is not None,
        "attempts": [attempt.sentence for attempt in defence.attempts],
        "seconds": time.perf_counter() - started,
    }


def _denoiser(x: Mapping[str, torch.Tensor], config: ExperimentConfig) -> Any:
    return train_denoiser(
        x["train"], noise_schedule(config.diffusion), valid_features=x["valid"], seed=0
    ).model


def _accuracies(
    model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, config: ExperimentConfig
) -> tuple[float, float]:
    """Return attacked and clean accuracy, by the majority of a random model's answers."""
    model.eval()
    target = surrogate(model, 64) if isinstance(model, DefendedClassifier) else model
    points = vector_apgd(
        *(target, x, y),
        attack_eps=config.attack.radius,
        n_iter=100,
        n_restarts=5,
        judge=model,
        seed=0,
    )
    clean, held = (majority_right(model, rows, y, seed=1) for rows in (x, points))
    return float((clean & held).float().mean()), float(clean.float().mean())


def main(presets: Sequence[str]) -> None:
    """Print the record, and a line a trial on standard error."""
    rows = []
    for name in SETS:
        for preset in presets or sorted(set(PRESETS) - {"pixel", "robust"}):
            radii: tuple[float | Literal["auto"], ...] = (0.10, "auto")
            for attack_eps in radii:
                row = measure(name, preset, attack_eps)
                rows.append(row)
                print(
                    f"{name}, {preset}, eps {row['attack_eps']:g}: clean {row['clean']:.3f},"
                    f" attacked {row['attacked']:.3f}, constant {row['constant']:.3f},"
                    f" ceiling {row['ceiling']:.3f}, warned {row['warned_before_training']}",
                    file=sys.stderr,
                    flush=True,
                )
    print(as_text({"trials": rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
