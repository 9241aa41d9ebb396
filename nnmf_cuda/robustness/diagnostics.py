"""What an evaluation measures: whether attacks could have succeeded, and all that is found.

Gradients are compared with finite differences, curves drawn against what an attack spends, and a
weakness planted on purpose must be found.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks import (
    Budget,
    GradientReport,
    SuiteResult,
    Threat,
    gradient_report,
    run_suite,
)
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
from nnmf_cuda.distributed.crew import ALONE, Crew
from nnmf_cuda.evaluation import Certificate
from nnmf_cuda.evaluation.robustness import Curve, Curves, PixelAttack, WorstPoints
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.networks import frozen, isolated
from nnmf_cuda.robustness.budgets import EvaluationBudget
from nnmf_cuda.robustness.verification import Verification

_STEP = 1e-6


@dataclass(frozen=True)
class GradientCheck:
    """How the gradients of a model stand to central differences.

    The report is of all rows, the errors are of some: of the directional derivative, relative to
    the gradient's length.
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
    """What the suite found of the `n` points that are known to break a copy of the defence.

    `broken` says for each attack which share of these it broke too, None where `n` is 0;
    `by_gradients` and `together` say the same of all white-box attacks, and of all attacks,
    together.
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
    crew: Crew = ALONE,
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
        crew=crew,
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

    `target` is climbed, the model or a surrogate of it; the model is attacked and judged. The
    processes of `crew` do the values of a curve in turn.
    """

    model: nn.Module
    target: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    seed: int
    evaluation_seed: int
    crew: Crew = ALONE

    def accuracy(self, points: Tensor) -> float:
        """Return the share that is right by the majority of fresh decisions, a mean of rounds.

        A single round of a random model moves by more than what is called flat.
        """
        right, _ = fresh_decisions(
            self.model, points, self.y, seed=self.evaluation_seed, n_rounds=N_ROUNDS
        )
        return float(majority(right).double().mean())

    def curve(self, setting: str, values: Sequence[float], **held: Any) -> Curve:
        """Return the robust accuracy under APGD on the margin against one of its settings.

        `setting` is the argument of `vector_apgd` that takes each of the values, where an
        "attack_eps" of 0 is no attack, and `held` are others; `n_restarts` is 1 if they do not name
        it.
        """
        arguments = {
            **self.threat.as_keywords(),
            "n_restarts": 1,
            "judge": self.model,
            "seed": self.seed,
            **held,
        }

        def accuracy_at(value: float) -> float:
            points, settings = self.x, {**arguments, setting: value}
            if settings["attack_eps"] > 0:
                points = vector_apgd(self.target, self.x, self.y, **settings)
            return self.accuracy(points)

        accuracies = list(self.crew.each([partial(accuracy_at, value) for value in values]))
        return Curve(setting, values, accuracies)


def draw_curves(attacker: Attacker, budget: EvaluationBudget) -> Curves:
    """Return robust accuracy against eps, steps, random starts and answers averaged at each step.

    A curve against eps goes on until nothing bounds points but the box. To average answers needs no
    surrogate: there the model itself is climbed.
    """
    n_iter, itself = budget.curve_iter, replace(attacker, target=attacker.model)
    with isolated(attacker.seed):
        has_noise = is_random(attacker.model, attacker.x)
    return Curves(
        eps=attacker.curve("attack_eps", budget.attack_eps, n_iter=n_iter),
        steps=attacker.curve("n_iter", budget.n_iter),
        restarts=attacker.curve("n_restarts", budget.n_restarts, n_iter=n_iter),
        draws=itself.curve("eot_iter", budget.eot_iter, n_iter=n_iter) if has_noise else None,
    )


@dataclass(frozen=True)
class AdaptiveMeasurements:
    """What only an evaluation with adaptive attacks measures, as shares of the test samples.

    `gradient_cosines` are of two gradients for each number of averaged answers, None without noise;
    `flags_at_zero` is the robust accuracy by AutoAttack's flags in a ball without room;
    `fixed_noise` that where the attacker knows the noise, None where there is none; `transfer_back`
    the accuracy of the undefended model on the defence's worst points. `certificates` are
    "denoised" and "plain noise", none for a chain of several steps.
    """

    curves: Curves
    gradients: GradientCheck
    gradient_cosines: list[float] | None
    known_weakness: KnownWeakness
    flags_at_zero: float
    worst_points: WorstPoints
    fixed_noise: float | None
    transfer_back: float
    certificates: Mapping[str, Certificate]


@dataclass(frozen=True)
class Measurements:
    """All that an evaluation has measured.

    `suites` are by model: "defended", "undefended", and where attacked the simpler defences and
    "adversarially trained"; `adaptive` is None where only the paper's protocol was counted,
    `verification` where nothing was verified.
    """

    budget: EvaluationBudget
    evaluation_seed: int
    suites: Mapping[str, SuiteResult]
    adaptive: AdaptiveMeasurements | None
    pixels: PixelAttack | None
    seconds: float
    verification: Verification | None = None
