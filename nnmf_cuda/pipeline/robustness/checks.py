"""Whether the attacks could have succeeded: gradients, boxes, and a weakness planted on purpose."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks import Budget, gradient_report, run_suite
from nnmf_cuda.attacks.checks import isolated
from nnmf_cuda.attacks.decisions import majority_right
from nnmf_cuda.attacks.planted import RIGHT, plant
from nnmf_cuda.attacks.purification import FixedNoise
from nnmf_cuda.attacks.suite import FROM_WORST
from nnmf_cuda.models import DefendedClassifier

__all__ = ["gradient_check", "planted_points"]

_STEP = 1e-6


def gradient_check(model: nn.Module, x: Tensor, y: Tensor, *, n_rows: int = 16) -> dict[str, Any]:
    """Compare gradients with central differences, in float64 and with the noise held.

    Returns
    -------
    dict
        "grad_norm_mean" and "zero_gradient_share" on all rows; "median_error" and "largest_error"
        over `n_rows` rows, of the directional derivative, relative to the gradient's length.
    """
    with isolated(0):
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


def planted_points(
    model: nn.Module,
    x: Tensor,
    *,
    attack_eps: float,
    norm: str,
    budget: Budget,
    seed: int,
    evaluation_seed: int,
    n_rows: int = 64,
) -> dict[str, Any]:
    """Run the suite on a copy of the defence of which a point that breaks it is known.

    Returns
    -------
    dict
        "n": samples whose known point breaks the copy; "broken": for each attack the share of these
        that it broke too, and of "all attacks together" and "gradient attacks together", the last
        attack left out, which starts from what others have found; None where no point breaks it.
    """
    rows = x[:n_rows]
    planted, points = plant(model, rows, attack_eps=attack_eps, norm=norm, seed=seed)
    y = torch.full((len(rows),), RIGHT, device=x.device)
    known = ~majority_right(planted, points, y, seed=evaluation_seed)
    found = run_suite(
        planted,
        rows,
        y,
        attack_eps=attack_eps,
        norm=norm,
        budget=budget,
        n_rounds=1,
        seed=seed + 1,
        evaluation_seed=evaluation_seed,
    )
    count = int(known.sum())
    broken = {o.name: ~o.robust[0] for o in found.outcomes if o.name != "clean"}
    by_gradient = [b for name, b in broken.items() if "PGD" in name and name != FROM_WORST]
    broken["gradient attacks together"] = torch.stack(by_gradient).any(0)
    broken["all attacks together"] = ~found.robust[0]
    shares = {name: float(b[known].float().mean()) if count else None for name, b in broken.items()}
    return {"n": count, "broken": shares}
