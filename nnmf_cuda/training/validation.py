"""What networks are trained on and watched by: checked samples, and scores of the held-out ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nnmf_cuda.attacks.balls import BALLS, BOX_TOLERANCE, Threat
from nnmf_cuda.attacks.gradient_ascent import pgd
from nnmf_cuda.attacks.objectives import margin_loss

Array = Tensor | NDArray[Any]

Answer = Callable[[Tensor], Tensor]
"""Features (n, n_features) to logits (n, n_classes)."""

_N_STEPS = 20
"""Steps of the attack on validation samples."""


@dataclass(frozen=True)
class Samples:
    """Training and validation samples of a classifier, on one device: rows, and classes from 0."""

    x: Tensor  # (n_samples, n_features), float32, finite
    y: Tensor  # (n_samples,), int64
    valid_x: Tensor
    valid_y: Tensor
    n_classes: int

    @classmethod
    def of(
        cls,
        features: Array,
        labels: Array,
        valid_features: Array,
        valid_labels: Array,
        *,
        n_classes: int,
        device: torch.device | str,
    ) -> Samples:
        """Check arrays and move them to the device; raise if they do not fit each other."""
        x = as_features("features", features, device)
        y = _as_labels("labels", labels, len(x), n_classes, device)
        valid_x = as_features("valid_features", valid_features, device, n_features=x.shape[1])
        valid_y = _as_labels("valid_labels", valid_labels, len(valid_x), n_classes, device)
        return cls(x, y, valid_x, valid_y, n_classes)

    def check_ball(self, attack_eps: float, norm: str) -> None:
        """Raise ValueError unless this is a ball that an attack can stay in around the samples."""
        Threat(attack_eps, norm)  # raises
        for name, x in (("features", self.x), ("valid_features", self.valid_x)):
            low, high = float(x.min()), float(x.max())
            if low < -BOX_TOLERANCE or high > 1 + BOX_TOLERANCE:
                raise ValueError(
                    f"{name} must be within the box [0, 1] of the attack, got values from {low:.6g}"
                    f" to {high:.6g}: L2-normalise non-negative features first"
                )


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


def _as_labels(
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


class RobustScores:
    """Scores of the validation samples, as they are and under a short attack in a ball."""

    def __init__(
        self, samples: Samples, attack_eps: float, norm: str, *, balanced: bool = False
    ) -> None:
        samples.check_ball(attack_eps, norm)
        self._x, self._y = samples.valid_x, samples.valid_y
        self._ball = BALLS[norm](self._x, attack_eps)
        counts = torch.bincount(self._y, minlength=samples.n_classes)
        # Of the classes that validation has: each counts alike, whatever its number of samples.
        self._shares = 1 / (counts[self._y] * (counts > 0).sum())
        self._balanced = balanced

    def of(self, attacked: Answer, judged: Answer | None = None) -> dict[str, Tensor]:
        """Return loss, accuracy and attacked accuracy, these two also as the mean of the classes'.

        `attacked` is whose gradient the attack climbs, `judged` who answers: of a random model with
        noise that the attack has not seen.
        """
        judged = judged or attacked
        points = pgd(
            lambda leaf: margin_loss(attacked(leaf), self._y), self._ball, self._x, n_iter=_N_STEPS
        )
        return self.at(points, judged)

    def at(self, points: Tensor, judged: Answer) -> dict[str, Tensor]:
        """Return the same scores where the attacked samples are these (n, n_features)."""
        with torch.no_grad():
            logits = judged(self._x)
            right = logits.argmax(1) == self._y
            held = right & (judged(points).argmax(1) == self._y)
        return {
            "valid_loss": functional.cross_entropy(logits, self._y),
            "valid_accuracy": right.float().mean(),
            "valid_robust_accuracy": held.float().mean(),
            "valid_balanced_accuracy": (right * self._shares).sum(),
            "valid_balanced_robust_accuracy": (held * self._shares).sum(),
        }

    def rank(self, scores: dict[str, float]) -> tuple[float, ...]:
        """Say how good an epoch is: clean and attacked accuracy count alike."""
        kind = "balanced_" if self._balanced else ""
        clean, attacked = (scores[f"valid_{kind}{name}accuracy"] for name in ("", "robust_"))
        return clean + attacked, -scores["valid_loss"]
