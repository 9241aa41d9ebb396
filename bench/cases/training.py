"""`train_classifier` and `train_denoiser`: whole trainings at the paper's size.

What is compared before timing is the loss on validation data. The truth is that of the plain loop
on the reference path: thousands of steps in float32 magnify the order in which sums are formed, so
that no training in another order or precision could give the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench.case import Call, Case, Inputs, Size, Work
from nnmf_cuda import ops
from nnmf_cuda.models import NoiseSchedule
from nnmf_cuda.training import train_classifier, train_denoiser

_N_CLASSES = 2
Train = Callable[[Inputs], Tensor]


def _inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    """Draw features in [0, 1] of two classes that overlap, and noise to validate a denoiser."""
    n, n_valid, m = (size.shape[name] for name in ("n_samples", "n_valid", "n_features"))
    generator = torch.Generator().manual_seed(seed)
    total = n + n_valid
    labels = torch.randint(_N_CLASSES, (total,), generator=generator)
    centres = 0.5 + 0.15 * torch.randn(_N_CLASSES, m, generator=generator)
    features = centres[labels] + 0.2 * torch.randn(total, m, generator=generator)
    features = features.clamp(0, 1).to(device)
    labels = labels.to(device)
    return {
        "features": features[:n],
        "labels": labels[:n],
        "valid_features": features[n:],
        "valid_labels": labels[n:],
        "timesteps": torch.randint(1000, (n_valid,), generator=generator).to(device),
        "noise": torch.randn(n_valid, m, generator=generator).to(device),
        "settings": {name: size.shape[name] for name in ("epochs", "batch_size")},
    }


def _classifier(inputs: Inputs) -> Tensor:
    """Train, and return the loss on validation data."""
    names = ("features", "labels", "valid_features", "valid_labels")
    device = inputs["features"].device
    result = train_classifier(
        *(inputs[name] for name in names),
        n_classes=_N_CLASSES,
        device=device,
        **inputs["settings"],
    )
    with torch.no_grad():
        logits = result.model(inputs["valid_features"])
    return functional.cross_entropy(logits, inputs["valid_labels"])


def _denoiser(inputs: Inputs) -> Tensor:
    """Train, and return the loss on validation data."""
    x_start, t = inputs["valid_features"], inputs["timesteps"]
    schedule = NoiseSchedule.linear().to(x_start.device)
    result = train_denoiser(
        inputs["features"],
        schedule,
        valid_features=x_start,
        device=x_start.device,
        **inputs["settings"],
    )
    with torch.no_grad():
        pred_x_start = result.model(schedule.q_sample(x_start, t, inputs["noise"]), t)
    return functional.mse_loss(pred_x_start, x_start)


def _plainly(train: Train, inputs: Inputs) -> Tensor:
    with ops.reference_path():
        return train(inputs)


def _case(op: str, train: Train, *, epochs: int, batch_size: int) -> Case:
    def build(function: Train) -> Callable[[Inputs], Call]:
        return lambda inputs: partial(function, inputs)

    plainly: Train = partial(_plainly, train)
    paper: dict[str, Any] = {"n_samples": 1501, "n_valid": 429, "n_features": 15}
    tiny: dict[str, Any] = {"n_samples": 40, "n_valid": 20, "n_features": 4}
    return Case(
        op=op,
        sizes=(Size("paper", {**paper, "epochs": epochs, "batch_size": batch_size}),),
        smoke=(Size("smoke", {**tiny, "epochs": 3, "batch_size": 16}),),
        inputs=_inputs,
        truth=plainly,
        implementations={"reference": build(plainly), "ours": build(train)},
        tolerance={"float32": 0.02},
        work=lambda size: Work(items=size.shape["n_samples"] * size.shape["epochs"]),
    )


TRAIN_CLASSIFIER = _case("train_classifier", _classifier, epochs=100, batch_size=32)
TRAIN_DENOISER = _case("train_denoiser", _denoiser, epochs=300, batch_size=64)

CASES = (
    TRAIN_CLASSIFIER,
    TRAIN_DENOISER,
)
