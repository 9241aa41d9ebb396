"""Checks of what networks are trained on and against."""

from __future__ import annotations

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nnmf_cuda.attacks.balls import BALLS
from nnmf_cuda.attacks.checks import BOX_TOLERANCE

Array = Tensor | NDArray[Any]


def as_features(
    name: str, values: Array, device: torch.device | str, *, n_features: int | None = None
) -> Tensor:
    """Return features as float32 on the device; raise unless they are finite rows."""
    x = torch.as_tensor(values).detach().to(device=device, dtype=torch.float32)
    if x.dim() != 2 or x.numel() == 0 or n_features not in (None, x.shape[1]):
        expected = "n_features" if n_features is None else n_features
        raise ValueError(
            f"{name} must have shape (n_samples, {expected}) with at least one sample, "
            f"got {tuple(x.shape)}"
        )
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity: check the features")
    return x


def as_labels(
    name: str, values: Array, n_samples: int, n_classes: int, device: torch.device | str
) -> Tensor:
    """Return labels as int64 on the device; raise unless they are those of `n_samples` samples."""
    y = torch.as_tensor(values)
    if y.is_floating_point() or y.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {y.dtype}")
    if y.shape != (n_samples,):
        raise ValueError(f"{name} must have shape ({n_samples},), got {tuple(y.shape)}")
    if int(y.min()) < 0 or int(y.max()) >= n_classes:
        raise ValueError(
            f"{name} must be within 0..{n_classes - 1} for n_classes={n_classes}, got values "
            f"from {int(y.min())} to {int(y.max())}"
        )
    return y.to(device=device, dtype=torch.int64)


def check_ball(attack_eps: float, norm: str, **features: Tensor) -> None:
    """Raise ValueError unless this is a ball that training can attack in, around such features."""
    if norm not in BALLS:
        raise ValueError(f"norm must be one of {', '.join(BALLS)}; got {norm!r}")
    if not (math.isfinite(attack_eps) and attack_eps > 0):
        raise ValueError(f"attack_eps must be a finite number > 0, got {attack_eps}")
    for name, x in features.items():
        low, high = float(x.min()), float(x.max())
        if low < -BOX_TOLERANCE or high > 1 + BOX_TOLERANCE:
            raise ValueError(
                f"{name} must be within the box [0, 1] of the attack, got values from {low:.6g} to"
                f" {high:.6g}: L2-normalise non-negative features first"
            )
