"""Whether the attacks could have succeeded: gradients, boxes, and a weakness planted on purpose."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks import Budget, gradient_report, run_suite
from nnmf_cuda.attacks.balls import Threat
from nnmf_cuda.attacks.gradient_ascent import vector_apgd
from nnmf_cuda.attacks.known_weakness import RIGHT, plant
from nnmf_cuda.attacks.objectives import (
    N_ROUNDS,
    ExpectedLoss,
    fresh_decisions,
    is_random,
    majority,
    majority_right,
)
from nnmf_cuda.attacks.surrogates import FixedNoise
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.modes import frozen, isolated

__all__ = [
    "Attacker",
    "eot_curve",
    "eps_curve",
    "gradient_agreement",
    "gradient_check",
    "planted_points",
    "restart_curve",
    "step_curve",
]


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
        found: dict[str, Any] = asdict(gradient_report(model, x, y))
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
    planted, points = plant(model, rows, Threat(attack_eps, norm), seed=seed)
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
    by_gradient = [~o.robust[0] for o in found.outcomes if o.attack.kind.is_white_box]
    broken["gradient attacks together"] = torch.stack(by_gradient).any(0)
    broken["all attacks together"] = ~found.robust[0]
    shares = {name: float(b[known].float().mean()) if count else None for name, b in broken.items()}
    return {"n": count, "broken": shares}


# Robust accuracy against what an attack may spend: flat where it has spent enough.

FLAT = 0.01
"""A curve has converged where its last value is at most this far from the one before."""


@dataclass(frozen=True)
class Attacker:
    """The strongest single attack, with everything fixed but what a curve varies.

    Attributes
    ----------
    model : nn.Module
        What is attacked and judged.
    target : nn.Module
        What is climbed: the model, or a surrogate.
    x, y : Tensor
        Samples.
    attack_eps, norm : float, str
        The ball.
    seed, evaluation_seed : int
        Of the attack and of the decisions.
    """

    model: nn.Module
    target: nn.Module
    x: Tensor
    y: Tensor
    attack_eps: float
    norm: str
    seed: int
    evaluation_seed: int

    def accuracy(self, points: Tensor) -> float:
        """Return the share that is right by the majority of fresh decisions, a mean of rounds.

        A single round of a random model moves by more than what is called flat.
        """
        right, _ = fresh_decisions(
            self.model, points, self.y, seed=self.evaluation_seed, n_rounds=N_ROUNDS
        )
        return float(majority(right).double().mean())

    def robust_accuracy(self, **changes: Any) -> float:
        """Return the accuracy under APGD on the margin, with settings changed."""
        settings: dict[str, Any] = {
            "attack_eps": self.attack_eps,
            "n_iter": 100,
            "n_restarts": 1,
            "eot_iter": 1,
            "seed": self.seed,
            **changes,
        }
        target = settings.pop("target", self.target)
        points = vector_apgd(target, self.x, self.y, norm=self.norm, judge=self.model, **settings)
        return self.accuracy(points)


def _curve(
    name: str,
    values: Sequence[float],
    accuracy: Callable[[Any], float],
    *,
    must_settle: bool = True,
) -> dict[str, Any]:
    found = [accuracy(value) for value in values]
    curve: dict[str, Any] = {name: list(values), "robust_accuracy": found}
    if must_settle:
        curve["converged"] = len(found) > 1 and abs(found[-2] - found[-1]) <= FLAT
    return curve


def eps_curve(attacker: Attacker, values: Sequence[float], *, n_iter: int) -> dict[str, Any]:
    """Robust accuracy against eps, and without a bound but the box: it must fall to nothing."""
    curve = _curve(
        "attack_eps",
        values,
        lambda eps: (
            attacker.robust_accuracy(attack_eps=eps, n_iter=n_iter)
            if eps > 0
            else attacker.accuracy(attacker.x)
        ),
        must_settle=False,
    )
    return curve | {"reaches_zero": min(curve["robust_accuracy"]) == 0}


def step_curve(attacker: Attacker, values: Sequence[int]) -> dict[str, Any]:
    """Robust accuracy against the number of steps."""
    return _curve("n_iter", values, lambda n: attacker.robust_accuracy(n_iter=n))


def restart_curve(attacker: Attacker, values: Sequence[int], *, n_iter: int) -> dict[str, Any]:
    """Robust accuracy against the number of random starts."""
    return _curve(
        "n_restarts",
        values,
        lambda n: attacker.robust_accuracy(n_restarts=n, n_iter=n_iter),
    )


def eot_curve(attacker: Attacker, values: Sequence[int], *, n_iter: int) -> dict[str, Any]:
    """Robust accuracy against the answers averaged at each step, without a surrogate."""
    with isolated(attacker.seed):
        has_noise = is_random(attacker.model, attacker.x)
    if not has_noise:
        return {"eot_iter": [1], "note": "the model has no noise to average over"}
    return _curve(
        "eot_iter",
        values,
        lambda n: attacker.robust_accuracy(target=attacker.model, eot_iter=n, n_iter=n_iter),
    )


def gradient_agreement(
    model: nn.Module, x: Tensor, y: Tensor, values: Sequence[int], *, seed: int
) -> dict[str, Any]:
    """Mean cosine between two independent gradients, each averaged over so many answers."""
    cosines = []
    with frozen(model), isolated(seed):
        for n in values:
            objective = ExpectedLoss(model, y, "margin", n)
            first, second = _gradient(objective, x), _gradient(objective, x)
            cosines.append(float(torch.cosine_similarity(first, second, dim=1).mean()))
    return {"eot_iter": list(values), "cosine": cosines}


def _gradient(objective: ExpectedLoss, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(leaf).sum(), leaf)
    return gradient
