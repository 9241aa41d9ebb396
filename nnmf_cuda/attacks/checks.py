"""What must hold before an attack: data in the box, labels, a gradient to follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nnmf_cuda.attacks.balls import BOX_TOLERANCE

Array = Tensor | NDArray[Any]

# The DLR loss divides by the gap to the third largest logit, its targeted form by one that
# needs the fourth.
MIN_CLASSES = {
    "apgd-ce": 2,
    "apgd-dlr": 3,
    "apgd-t": 4,
    "fab": 2,
    "fab-t": 2,
    "square": 2,
}
_VERSIONS = ("standard", "plus", "rand")


@dataclass(frozen=True)
class GradientReport:
    """How long the gradients of a model's cross-entropy with respect to its features are.

    Attributes
    ----------
    grad_norm_mean : float
        Mean L2 norm of the gradients of the samples.
    zero_gradient_share : float
        Share of samples whose gradient is exactly zero.
    """

    grad_norm_mean: float
    zero_gradient_share: float


def gradient_report(
    model: nn.Module, x: Array, y: Array, *, batch_size: int = 250
) -> GradientReport:
    """Say whether the cross-entropy has a gradient that an attack can follow.

    Parameters
    ----------
    model : nn.Module
        Maps features (n_samples, n_features) to logits (n_samples, n_classes).
    x : array of shape (n_samples, n_features)
        Features.
    y : array of shape (n_samples,)
        Labels.
    batch_size : int, default=250
        Samples per pass.

    Returns
    -------
    GradientReport

    Raises
    ------
    ValueError
        If the output does not depend differentiably on x, or a gradient is not finite.
    """
    features = torch.as_tensor(x).detach()
    labels = torch.as_tensor(y)
    norms = [
        _gradient_norms(model, features[i : i + batch_size], labels[i : i + batch_size])
        for i in range(0, len(features), batch_size)
    ]
    norm = torch.cat(norms)
    if not bool(norm.isfinite().all()):
        raise ValueError(
            f"{int((~norm.isfinite()).sum())} of {len(norm)} gradients of the model are not "
            "finite: an attack cannot follow them"
        )
    return GradientReport(
        grad_norm_mean=float(norm.mean()),
        zero_gradient_share=float((norm == 0).float().mean()),
    )


def _gradient_norms(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        logits = model(x)
        gradient = None
        if logits.requires_grad:
            loss = functional.cross_entropy(logits, y.to(logits.device), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    if gradient is None:
        raise ValueError(
            "the model's logits have no gradient with respect to its input: something on the way "
            "detaches it (detach, no_grad, argmax, NumPy), and an attack without it says nothing"
        )
    norms: Tensor = torch.linalg.vector_norm(gradient.double(), dim=1)
    return norms


def check_features(x: Array) -> tuple[Tensor, int]:
    """Return x as float32 in [0, 1], and how many entries were rounded into the box."""
    features = torch.as_tensor(x).detach()
    if features.dim() != 2 or features.numel() == 0:
        raise ValueError(
            "x must have shape (n_samples, n_features) with at least one sample, "
            f"got {tuple(features.shape)}"
        )
    if not features.is_floating_point():
        raise TypeError(f"x must be floating point, got {features.dtype}")
    if not bool(features.isfinite().all()):
        raise ValueError("x must be finite, got NaN or infinity")
    low, high = float(features.min()), float(features.max())
    if low < -BOX_TOLERANCE or high > 1 + BOX_TOLERANCE:
        raise ValueError(
            f"x must be within the box [0, 1], got values from {low:.6g} to {high:.6g}: the attack "
            "clips to the box, which would move such features by more than attack_eps; "
            "L2-normalise non-negative features first"
        )
    n_clamped = int(((features < 0) | (features > 1)).sum())
    return features.float().clamp(0, 1), n_clamped


def check_labels(y: Array, n_samples: int) -> Tensor:
    """Return y as int64 (n_samples,); the upper bound is checked once the logits are known."""
    labels = torch.as_tensor(y).detach()
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"y must be integers, got {labels.dtype}")
    if labels.shape != (n_samples,):
        raise ValueError(f"y must have shape ({n_samples},), got {tuple(labels.shape)}")
    if int(labels.min()) < 0:
        raise ValueError(f"y must not be negative, got {int(labels.min())}")
    return labels.long()


def check_settings(attacks: Sequence[str], *, norm: str, seed: int, **counts: int) -> None:
    """Raise unless AutoAttack's attacks exist for feature vectors and the numbers make sense."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    names = (attacks,) if isinstance(attacks, str) else tuple(attacks)
    for name in names:
        if name in _VERSIONS:
            raise ValueError(
                f"attacks must not contain {name!r}: AutoAttack's fixed versions use the DLR loss, "
                "which does not exist for two classes; name single attacks, such as "
                "('apgd-ce', 'square')"
            )
        if name not in MIN_CLASSES:
            raise ValueError(f"attacks must be of {', '.join(MIN_CLASSES)}; got {name!r}")
    if isinstance(attacks, str):
        raise TypeError(f"attacks must be a sequence of names, got {attacks!r}: write it as a list")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"attacks must name at least one attack, each once, got {names}")
    if norm == "L2" and "square" in names:
        raise ValueError("attacks: 'square' for norm='L2' needs two-dimensional images; drop it")


def check_classes(attacks: Sequence[str], n_classes: int) -> None:
    """Raise ValueError unless every attack works on so many classes."""
    for name in attacks:
        if n_classes < MIN_CLASSES[name]:
            raise ValueError(
                f"attacks: {name!r} needs at least {MIN_CLASSES[name]} classes because of its DLR "
                f"loss, the model has {n_classes}; use 'apgd-ce' and 'square'"
            )


def check_logits(logits: object, n_samples: int, attacks: Sequence[str], y: Tensor) -> int:
    """Return the number of classes; raise unless logits, labels and attacks agree on it."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"model must return a tensor of logits, got {type(logits).__name__}")
    if logits.dim() != 2 or len(logits) != n_samples or logits.shape[1] < 2:
        raise ValueError(
            "model must return logits of shape (n_samples, n_classes) with at least two classes, "
            f"got {tuple(logits.shape)} for {n_samples} samples"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError("model returned logits that are not finite on the clean features")
    n_classes = logits.shape[1]
    check_classes(attacks, n_classes)
    if int(y.max()) >= n_classes:
        raise ValueError(
            f"y must be within 0..{n_classes - 1} for a model of {n_classes} classes, "
            f"got {int(y.max())}"
        )
    return n_classes
