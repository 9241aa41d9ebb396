"""The adaptive suite: every attack on one model, and the worst case over them for each sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.balls import BALLS, Box
from nnmf_cuda.attacks.checks import check_ball
from nnmf_cuda.attacks.gradient_ascent import N_JUDGED, ascend_objective, pgd, vector_apgd
from nnmf_cuda.attacks.objectives import (
    N_ROUNDS,
    ExpectedLoss,
    fresh_decisions,
    is_random,
    majority,
    standing,
)
from nnmf_cuda.attacks.random_search import vector_square
from nnmf_cuda.attacks.surrogates import BPDAIdentity, PurifierShift, surrogate
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.modes import frozen, isolated

__all__ = ["AttackOutcome", "BUDGETS", "Budget", "FROM_WORST", "SuiteResult", "run_suite"]


FROM_WORST = "APGD-margin from the worst points"
"""Name of the last attack, which starts from what all others have found."""

_SELECTED = 0.6
"""Share of a random model's answers that a selective attack pushes: a majority, and some more."""


@dataclass(frozen=True)
class Budget:
    """How much the suite spends.

    Attributes
    ----------
    n_iter, n_restarts : int
        Steps of APGD, and its random starts on a random model.
    n_cheap_restarts : int
        Random starts on a model without noise, whose answers cost a fraction.
    eot_iter : int
        Answers of a random model that a step or a query averages.
    surrogate_draws : int
        Draws of the surrogate of a purifying defence.
    pgd_iter : int
        Steps of PGD with a fixed step.
    n_queries : int
        Queries of Square.
    """

    n_iter: int = 100
    n_restarts: int = 3
    n_cheap_restarts: int = 50
    eot_iter: int = 20
    surrogate_draws: int = 64
    pgd_iter: int = 200
    n_queries: int = 500


BUDGETS: Mapping[str, Budget] = {
    "standard": Budget(),
    "thorough": Budget(
        n_iter=300,
        n_restarts=5,
        n_cheap_restarts=200,
        eot_iter=40,
        surrogate_draws=128,
        pgd_iter=500,
        n_queries=2000,
    ),
}


def run_suite(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attack_eps: float,
    norm: str = "Linf",
    box: Box = (0.0, 1.0),
    budget: Budget | None = BUDGETS["standard"],
    transfer_from: Mapping[str, nn.Module] | None = None,
    known_points: Mapping[str, Tensor] | None = None,
    n_rounds: int = N_ROUNDS,
    seed: int = 0,
    evaluation_seed: int = 1,
    say: Callable[[str], object] = lambda _: None,
) -> SuiteResult:
    """Attack a model in every way that suits it.

    A `DefendedClassifier` is attacked through the gradient averaged over its answers, through a
    surrogate with more draws, past its purifier (BPDA) and at its purifier; every model by APGD on
    cross-entropy, margin and, with three classes, DLR, by PGD with a fixed step, by Square, and by
    the points that break other models. At last APGD climbs on from the worst point of all these.

    Parameters
    ----------
    model : nn.Module
        Maps features (n, n_features) to logits (n, n_classes), differentiably.
    x : Tensor of shape (n, n_features)
        Clean features, inside the box.
    y : Tensor of shape (n,)
        int64 labels.
    attack_eps, norm, box
        The threat model; see `vector_apgd`.
    budget : Budget or None
        How much to spend; None only counts `known_points`.
    transfer_from : mapping of str to nn.Module, optional
        Other models, whose worst points are tried, by name; they are found without a question to
        `model`.
    known_points : mapping of str to Tensor, optional
        Points of other attacks under the same threat model, by name; checked to be in the ball.
    n_rounds : int, default=10
        Rounds of `N_DECISIONS` fresh decisions of a random model on each point.
    seed, evaluation_seed : int
        Of the attacks, and of the decisions by which they are measured: no attack sees those.
    say : callable, optional
        Takes a line for each attack.

    Returns
    -------
    SuiteResult

    Raises
    ------
    ValueError
        If x leaves the box, settings do not fit, or logits are not finite.
    RuntimeError
        If points have left ball or box.
    """
    check_ball(x, attack_eps=attack_eps, norm=norm, box=box)
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape ({len(x)},), a label a sample; got {tuple(y.shape)}")
    result = SuiteResult()
    with frozen(model), isolated(seed):
        run = _Suite(model, x, y, attack_eps, norm, box, is_random(model, x))

        def note(name: str, points: Tensor, seconds: float) -> None:
            right, margins = fresh_decisions(
                model, points, y, seed=evaluation_seed, n_rounds=n_rounds
            )
            outcome = AttackOutcome(name, run.checked(name, points), right, margins, seconds)
            result.outcomes.append(outcome)
            say(f"  {name}: robust {outcome.accuracies['majority']:.4f} ({seconds:.1f} s)")

        def attack(name: str, find: Callable[[int], Tensor]) -> None:
            started = time.perf_counter()
            points = find(_seed_of_attack(seed, len(result.outcomes)))
            note(name, points, time.perf_counter() - started)

        note("clean", x, 0.0)
        for name, points in (known_points or {}).items():
            note(name, points, 0.0)
        if budget is not None:
            for name, find in run.attacks(budget, transfer_from or {}):
                attack(name, find)
            found = [outcome.points for outcome in result.outcomes]
            attack(FROM_WORST, partial(run.from_worst, budget, found))
    return result


def _seed_of_attack(seed: int, index: int) -> int:
    """Return a seed for each attack, so that each has random starts of its own."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


@dataclass(frozen=True)
class _Suite:
    model: nn.Module
    x: Tensor
    y: Tensor
    attack_eps: float
    norm: str
    box: Box
    is_random: bool

    def attacks(
        self, budget: Budget, transfer_from: Mapping[str, nn.Module]
    ) -> Iterator[tuple[str, Callable[[int], Tensor]]]:
        """Yield the name of each attack with what runs it from a seed."""
        eot = budget.eot_iter if self.is_random else 1
        averaged = f", EOT {eot}" if self.is_random else ""
        for name, other in transfer_from.items():
            yield f"transfer from {name}", partial(self._transfer, budget, other)
        if isinstance(self.model, DefendedClassifier):
            defended = self.model
            wide = surrogate(defended, budget.surrogate_draws)
            through = f", {budget.surrogate_draws}-draw surrogate"
            yield "APGD-margin" + through, partial(self._apgd, budget, wide, "margin", 1)
            yield "APGD-CE" + through, partial(self._apgd, budget, wide, "ce", 1)
            past = BPDAIdentity(defended)
            yield "APGD-margin, BPDA identity", partial(self._apgd, budget, past, "margin", 4)
            at_purifier = partial(self._at_purifier, budget, defended)
            yield "APGD on the purifier's output", partial(at_purifier, every_step=False)
            if len(defended.purifier.timesteps) > 1:
                yield "APGD on the purifier's every step", partial(at_purifier, every_step=True)
        with torch.no_grad():
            n_classes = self.model(self.x[:1]).shape[1]
        titles = {"margin": "APGD-margin", "ce": "APGD-CE", "dlr": "APGD-DLR"}
        for loss in ("margin", "ce", *(("dlr",) if n_classes > 2 else ())):
            yield titles[loss] + averaged, partial(self._apgd, budget, self.model, loss, eot)
        if eot > 1:
            selective = partial(self._apgd, budget, self.model, "margin", eot, eot_share=_SELECTED)
            yield f"APGD-margin, selective EOT {eot}", selective
        yield f"PGD-{budget.pgd_iter}{averaged}", partial(self._pgd, budget, eot)
        yield f"Square, {budget.n_queries} queries", partial(self._square, budget, eot)

    def checked(self, name: str, points: Tensor) -> Tensor:
        """Return points, or raise RuntimeError if they have left ball or box."""
        order = float("inf") if self.norm == "Linf" else 2.0
        distance = float((points.double() - self.x.double()).norm(p=order, dim=1).max())
        low, high = (torch.as_tensor(edge).to(points) for edge in self.box)
        inside = bool(((points >= low) & (points <= high)).all())
        if not (distance <= self.attack_eps + 1e-6 and inside):
            raise RuntimeError(
                f"{name}: the points broke the bound: largest {self.norm} distance {distance:.6g}"
                f" for attack_eps {self.attack_eps}, inside the box: {inside}"
            )
        return points

    def from_worst(self, budget: Budget, found: Sequence[Tensor], seed: int) -> Tensor:
        """Climb on from the worst points of other attacks, by answers that are asked for anew."""
        with isolated(seed):
            standings = [standing(self.model, points, self.y, N_JUDGED) for points in found]
        chosen = torch.stack(standings).argmax(0)
        worst = torch.stack(list(found))[chosen, torch.arange(len(self.x), device=self.x.device)]
        target, eot_iter = self.model, budget.eot_iter if self.is_random else 1
        if isinstance(target, DefendedClassifier):
            target, eot_iter = surrogate(target, budget.surrogate_draws), 1
        return self._apgd(budget, target, "margin", eot_iter, seed, starts=[worst], n_restarts=0)

    def _apgd(
        self,
        budget: Budget,
        target: nn.Module,
        loss: str,
        eot_iter: int,
        seed: int,
        **changes: Any,
    ) -> Tensor:
        settings: dict[str, Any] = {
            "loss": loss,
            "n_iter": budget.n_iter,
            "n_restarts": budget.n_restarts if self.is_random else budget.n_cheap_restarts,
            "eot_iter": eot_iter,
            "judge": self.model,
            "seed": seed,
            **self._threat,
            **changes,
        }
        return vector_apgd(target, self.x, self.y, **settings)

    @property
    def _threat(self) -> dict[str, Any]:
        return {"attack_eps": self.attack_eps, "norm": self.norm, "box": self.box}

    def _transfer(self, budget: Budget, other: nn.Module, seed: int) -> Tensor:
        return self._apgd(budget, other, "margin", 1, seed, judge=other)

    def _at_purifier(
        self, budget: Budget, defended: DefendedClassifier, seed: int, *, every_step: bool
    ) -> Tensor:
        shift = PurifierShift(defended.purifier, self.x, seed, every_step)
        with frozen(defended), isolated(seed):
            return ascend_objective(
                shift,
                self.model,
                self.x,
                self.y,
                **self._threat,
                n_iter=budget.n_iter,
                n_restarts=budget.n_restarts,
            )

    def _pgd(self, budget: Budget, eot_iter: int, seed: int) -> Tensor:
        objective = ExpectedLoss(self.model, self.y, "margin", eot_iter)
        ball = BALLS[self.norm](self.x, self.attack_eps, self.box)
        with frozen(self.model), isolated(seed):
            return pgd(objective, ball, ball.random_start(), n_iter=budget.pgd_iter)

    def _square(self, budget: Budget, eot_iter: int, seed: int) -> Tensor:
        return vector_square(
            self.model,
            self.x,
            self.y,
            **self._threat,
            n_queries=budget.n_queries,
            eot_iter=eot_iter,
            seed=seed,
        )


# What attacks have found, and the worst case over them for each sample.


@dataclass(frozen=True)
class AttackOutcome:
    """What one attack found.

    Attributes
    ----------
    name : str
        Short name; "clean" is no attack.
    points : Tensor of shape (n, n_features)
        A point for every sample.
    right : Tensor of shape (n_rounds, N_DECISIONS, n)
        bool: rounds of fresh decisions on the points; (1, 1, n) where the model is not random.
    margins : Tensor of shape (n,)
        Mean margin loss of these decisions: the larger, the worse for the defence.
    seconds : float
        Time of the attack.
    """

    name: str
    points: Tensor
    right: Tensor
    margins: Tensor
    seconds: float

    @property
    def robust(self) -> Tensor:
        """Who (n_rounds, n) is right by the majority of decisions of a round."""
        return majority(self.right)

    @property
    def accuracies(self) -> dict[str, float]:
        """Success counted in three ways: "fresh" (mean), "majority" and "all" decisions right."""
        return {
            "fresh": float(self.right.double().mean()),
            "majority": float(self.robust.double().mean()),
            "all": float(self.right.all(1).double().mean()),
        }


@dataclass(frozen=True)
class SuiteResult:
    """What all attacks found.

    Attributes
    ----------
    outcomes : list of AttackOutcome
        The first is "clean".
    """

    outcomes: list[AttackOutcome] = field(default_factory=list)

    @property
    def robust(self) -> Tensor:
        """Who (n_rounds, n) holds against every attack, by majority decisions."""
        return torch.stack([outcome.robust for outcome in self.outcomes]).all(0)

    @property
    def robust_share(self) -> Tensor:
        """In which share (n,) of the rounds a sample holds against every attack."""
        return self.robust.double().mean(0)

    @property
    def worst_case_accuracies(self) -> Tensor:
        """Share of samples that hold against every attack, in each round (n_rounds,)."""
        return self.robust.double().mean(1)

    @property
    def worst_case_accuracy(self) -> float:
        """Their mean: a single round of a random model is a matter of luck."""
        return float(self.worst_case_accuracies.mean())

    @property
    def all_right_accuracy(self) -> float:
        """The same, where every decision on every point must be right."""
        held = torch.stack([outcome.right.all(1) for outcome in self.outcomes]).all(0)
        return float(held.double().mean())

    @property
    def worst_points(self) -> Tensor:
        """Of each sample the point (n, n_features) with the fewest right decisions.

        Among equals the one of largest mean margin loss, so that of a sample which holds it is the
        point that came nearest to breaking it. The clean point is none, if there is another.
        """
        attacked = self.outcomes[1:] or self.outcomes
        shares = torch.stack([o.right.double().mean((0, 1)) for o in attacked])
        margins = torch.stack([o.margins for o in attacked]).double()
        margins = margins.where(shares == shares.amin(0), float("-inf"))
        points = torch.stack([o.points for o in attacked])
        return points[margins.argmax(0), torch.arange(points.shape[1], device=points.device)]
