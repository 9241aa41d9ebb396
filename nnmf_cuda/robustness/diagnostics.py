"""Whether attacks could have succeeded: gradients, curves, and a weakness planted on purpose."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks import Budget, GradientReport, Threat, gradient_report, run_suite
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
from nnmf_cuda.evaluation.robustness import Curve
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.modes import frozen, isolated

__all__ = [
    "Attacker",
    "GradientCheck",
    "KnownWeakness",
    "check_gradients",
    "draws_curve",
    "eps_curve",
    "find_known_weakness",
    "gradient_agreement",
    "restarts_curve",
    "steps_curve",
]


_STEP = 1e-6


@dataclass(frozen=True)
class GradientCheck:
    """How the gradients of a model stand to central differences.

    Attributes
    ----------
    report : GradientReport
        Of the gradients of all rows.
    median_error, largest_error : float
        Over some rows, of the directional derivative, relative to the gradient's length.
    """

    report: GradientReport
    median_error: float
    largest_error: float


def check_gradients(model: nn.Module, x: Tensor, y: Tensor, *, n_rows: int = 16) -> GradientCheck:
    """Compare gradients with central differences, in float64 and with the noise held."""
    with isolated(0):
        report = gradient_report(model, x, y)
    held = copy.deepcopy(model).double().eval()
    still = FixedNoise(held, 0) if isinstance(held, DefendedClassifier) else held
    leaf = x[:n_rows].double().requires_grad_()
    (gradient,) = torch.autograd.grad(still(leaf)[:, 0].sum(), leaf)
    direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0))
    direction = torch.nn.functional.normalize(direction.to(leaf), dim=1)
    with torch.no_grad():
        ahead, behind = (still(leaf + s * _STEP * direction)[:, 0] for s in (1, -1))
    difference = (ahead - behind) / (2 * _STEP)
    length = gradient.norm(dim=1).clamp_min(1e-9)
    error = (difference - (gradient * direction).sum(1)).abs() / length
    # A kink of a ReLU between the two points shows as one large error: the middle one is telling.
    return GradientCheck(report, float(error.median()), float(error.max()))


def gradient_agreement(
    model: nn.Module, x: Tensor, y: Tensor, n_answers: Sequence[int], *, seed: int
) -> list[float]:
    """Return the mean cosine of two independent gradients, each averaged over so many answers."""

    def gradient(objective: ExpectedLoss) -> Tensor:
        leaf = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(objective(leaf).sum(), leaf)
        return found

    cosines = []
    with frozen(model), isolated(seed):
        for n in n_answers:
            objective = ExpectedLoss(model, y, "margin", n)
            first, second = gradient(objective), gradient(objective)
            cosines.append(float(torch.cosine_similarity(first, second, dim=1).mean()))
    return cosines


@dataclass(frozen=True)
class KnownWeakness:
    """What the suite found of the points that are known to break a copy of the defence.

    Attributes
    ----------
    n : int
        Samples whose known point breaks the copy.
    broken : mapping of str to float
        For each attack the share of these that it broke too; nothing where `n` is 0.
    by_gradients, together : float or None
        The same of all white-box attacks, and of all attacks, together.
    """

    n: int
    broken: Mapping[str, float | None]
    by_gradients: float | None
    together: float | None


def find_known_weakness(
    model: nn.Module,
    x: Tensor,
    threat: Threat,
    *,
    budget: Budget,
    seed: int,
    evaluation_seed: int,
    n_rows: int = 64,
) -> KnownWeakness:
    """Run the suite on a copy of the defence of which a point that breaks it is known."""
    rows = x[:n_rows]
    planted, points = plant(model, rows, threat, seed=seed)
    y = torch.full((len(rows),), RIGHT, device=x.device)
    known = ~majority_right(planted, points, y, seed=evaluation_seed)
    found = run_suite(
        planted,
        rows,
        y,
        **threat.as_keywords(),
        budget=budget,
        n_rounds=1,
        seed=seed + 1,
        evaluation_seed=evaluation_seed,
    )

    def share(broken: Tensor) -> float | None:
        return float(broken[known].float().mean()) if bool(known.any()) else None

    attacks = found.outcomes[1:]
    by_gradients = [~o.robust[0] for o in attacks if o.attack.kind.is_white_box]
    return KnownWeakness(
        n=int(known.sum()),
        broken={o.name: share(~o.robust[0]) for o in attacks},
        by_gradients=share(torch.stack(by_gradients).any(0)),
        together=share(~found.robust[0]),
    )


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
    threat : Threat
    seed, evaluation_seed : int
        Of the attack and of the decisions.
    """

    model: nn.Module
    target: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
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

    def robust_accuracy(self, **settings: Any) -> float:
        """Return the accuracy under APGD on the margin, one start if `settings` give no other."""
        arguments = {
            **self.threat.as_keywords(),
            "n_restarts": 1,
            "judge": self.model,
            "seed": self.seed,
            **settings,
        }
        return self.accuracy(vector_apgd(self.target, self.x, self.y, **arguments))


def _curve(setting: str, values: Sequence[float], accuracy: Callable[[Any], float]) -> Curve:
    return Curve(setting, values, [accuracy(value) for value in values])


def eps_curve(attacker: Attacker, values: Sequence[float], *, n_iter: int) -> Curve:
    """Robust accuracy against eps, and without a bound but the box: it must fall to nothing."""

    def accuracy(eps: float) -> float:
        if eps == 0:
            return attacker.accuracy(attacker.x)
        return attacker.robust_accuracy(attack_eps=eps, n_iter=n_iter)

    return _curve("attack_eps", values, accuracy)


def steps_curve(attacker: Attacker, values: Sequence[int]) -> Curve:
    """Robust accuracy against the number of steps."""
    return _curve("n_iter", values, lambda n: attacker.robust_accuracy(n_iter=n))


def restarts_curve(attacker: Attacker, values: Sequence[int], *, n_iter: int) -> Curve:
    """Robust accuracy against the number of random starts."""
    return _curve(
        "n_restarts", values, lambda n: attacker.robust_accuracy(n_restarts=n, n_iter=n_iter)
    )


def draws_curve(attacker: Attacker, values: Sequence[int], *, n_iter: int) -> Curve | None:
    """Robust accuracy against the answers averaged at each step, without a surrogate.

    None of a model without noise.
    """
    with isolated(attacker.seed):
        if not is_random(attacker.model, attacker.x):
            return None
    itself = replace(attacker, target=attacker.model)
    return _curve("eot_iter", values, lambda n: itself.robust_accuracy(eot_iter=n, n_iter=n_iter))
