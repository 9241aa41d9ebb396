"""Robust accuracy against what an attack may spend: flat where it has spent enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.checks import frozen, isolated
from nnmf_cuda.attacks.decisions import N_ROUNDS, fresh_decisions, majority
from nnmf_cuda.attacks.objectives import ExpectedLoss, is_random
from nnmf_cuda.attacks.vector_apgd import vector_apgd

__all__ = [
    "Attacker",
    "eot_curve",
    "eps_curve",
    "gradient_agreement",
    "restart_curve",
    "step_curve",
]

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
