"""Whether the attacks could have succeeded: gradients, boxes, and a weakness planted on purpose."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks import gradient_report
from nnmf_cuda.attacks.planted import PlantedDirection
from nnmf_cuda.attacks.purification import FixedNoise
from nnmf_cuda.attacks.suite import fresh_decisions
from nnmf_cuda.attacks.vector_apgd import vector_apgd
from nnmf_cuda.attacks.vector_square import vector_square
from nnmf_cuda.models import DefendedClassifier

__all__ = ["gradient_check", "planted_direction"]

_STEP = 1e-6


def gradient_check(model: nn.Module, x: Tensor, y: Tensor, *, n_rows: int = 16) -> dict[str, Any]:
    """Compare gradients with central differences, in float64 and with the noise held.

    Returns
    -------
    dict
        "grad_norm_mean" and "zero_gradient_share" on all rows, and "largest_error": over `n_rows`
        rows, of the directional derivative, relative to the gradient's length.
    """
    found: dict[str, Any] = dict(gradient_report(model, x, y))
    held = copy.deepcopy(model).double().eval()
    still = FixedNoise(held, 0) if isinstance(held, DefendedClassifier) else held
    leaf = x[:n_rows].double().requires_grad_()
    (gradient,) = torch.autograd.grad(still(leaf)[:, 0].sum(), leaf)
    direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0))
    direction = torch.nn.functional.normalize(direction.to(leaf), dim=1)
    with torch.no_grad():
        ahead, behind = (still(leaf + s * _STEP * direction)[:, 0] for s in (1, -1))
    difference = (ahead - behind) / (2 * _STEP)
    error = (difference - (gradient * direction).sum(1)).abs() / gradient.norm(dim=1).clamp_min(
        1e-9
    )
    # A kink of a ReLU between the two points shows as one large error: the middle one is telling.
    return found | {"median_error": float(error.median()), "largest_error": float(error.max())}


def planted_direction(
    model: nn.Module, x: Tensor, y: Tensor, *, attack_eps: float, eot_iter: int, seed: int
) -> dict[str, Any]:
    """Attack a copy of the model with a known weakness; every sample must be broken.

    Returns
    -------
    dict
        For each attack the share of samples that it broke.
    """
    generator = torch.Generator().manual_seed(seed)
    signs = torch.where(torch.rand(x.shape, generator=generator) < 0.5, -1.0, 1.0).to(x)
    direction = ((x + attack_eps * signs).clamp(0, 1) - x) * 0.9
    planted = PlantedDirection(model, x, y, direction).eval()
    options: dict[str, Any] = {"attack_eps": attack_eps, "eot_iter": eot_iter, "seed": seed}
    found = {
        "APGD-margin": vector_apgd(planted, x, y, n_iter=30, n_restarts=1, **options),
        "APGD-CE": vector_apgd(planted, x, y, loss="ce", n_iter=30, n_restarts=1, **options),
        "Square": vector_square(planted, x, y, n_queries=300, **options),
    }
    return {
        name: float(
            (fresh_decisions(planted, p, y, seed=seed + 1).float().mean(0) <= 0.5).float().mean()
        )
        for name, p in found.items()
    }
