"""The adaptive suite: every attack on one model, and the worst case over them for each sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.balls import SPHERE_TOLERANCE, Box, Threat
from nnmf_cuda.attacks.checks import check_labels
from nnmf_cuda.attacks.gradient_ascent import N_JUDGED, ascend_objective, pgd, vector_apgd
from nnmf_cuda.attacks.objectives import (
    N_ROUNDS,
    ExpectedLoss,
    fresh_decisions,
    is_random,
    majority,
    wrongness,
)
from nnmf_cuda.attacks.random_search import vector_square
from nnmf_cuda.attacks.surrogates import BPDAIdentity, PurifierShift, surrogate
from nnmf_cuda.distributed.crew import ALONE, Crew
from nnmf_cuda.graphs import count_on_host
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.networks import frozen, isolated

_SELECTED = 0.6
"""Share of a random model's answers that a selective attack pushes: a majority, and some more."""

CONSTRAINED = "APGD-margin, on the unit sphere"
"""Name of the attack whose points are what features are: non-negative and of length 1."""

_TITLES = {"margin": "APGD-margin", "ce": "APGD-CE", "dlr": "APGD-DLR"}
"""Of APGD by the loss that it climbs."""


class AttackKind(Enum):
    """Where an attack takes its points from."""

    CLEAN = "no attack"
    KNOWN_POINTS = "points that were known beforehand"
    TRANSFER = "points found on another model"
    GRADIENT = "gradients of the model or of a surrogate"
    PURIFIER = "gradients, with a loss made for purifying or random defences"
    BPDA = "gradients past the purifier, which is taken for the identity"
    SEARCH = "random search, without gradients"
    CONSTRAINED = "gradients of the model, among the points of the ball that features can be"
    FROM_WORST = "gradients, from the worst points of all other attacks"

    @property
    def is_white_box(self) -> bool:
        """Whether gradients of the attacked model are climbed, from starts of the attack's own."""
        return self in (AttackKind.GRADIENT, AttackKind.PURIFIER, AttackKind.BPDA)

    @property
    def is_black_box(self) -> bool:
        """Whether no gradient of the attacked model is asked for."""
        return self in (AttackKind.TRANSFER, AttackKind.SEARCH)


@dataclass(frozen=True)
class Attack:
    """One attack of the suite.

    Attributes
    ----------
    name : str
        What a reader sees.
    kind : AttackKind
        By which checks take it into account.
    run : callable
        Takes a seed; returns a point for every sample, (n, n_features).
    loss : str or None
        Of `LOSSES`, which APGD climbs on the attacked model; None of other attacks.
    """

    name: str
    kind: AttackKind
    run: Callable[[int], Tensor]
    loss: str | None = None


@dataclass
class CallCount:
    """How often a model and its surrogates were called, and about how many rows in all."""

    n_calls: int = 0
    n_rows: int = 0

    def add(self, n_rows: int) -> None:
        """Count one more call."""
        self.n_calls += 1
        self.n_rows += n_rows

    def add_all(self, others: CallCount) -> None:
        """Count the calls of another."""
        self.n_calls += others.n_calls
        self.n_rows += others.n_rows


class _Counted(nn.Module):
    """The model, whose calls are counted."""

    def __init__(self, model: nn.Module, count: CallCount) -> None:
        super().__init__()
        self.model, self.count = model, count

    def forward(self, x: Tensor) -> Tensor:
        count_on_host(partial(self.count.add, len(x)))
        logits: Tensor = self.model(x)
        return logits


@dataclass(frozen=True)
class AttackOutcome:
    """What one attack found.

    Attributes
    ----------
    attack : Attack
    points : Tensor of shape (n, n_features)
        A point for every sample.
    right : Tensor of shape (n_rounds, N_DECISIONS, n)
        bool: rounds of fresh decisions on the points; (1, 1, n) where the model is not random.
    margins : Tensor of shape (n,)
        Mean margin loss of these decisions: the larger, the worse for the defence.
    seconds : float
        Time of the attack.
    """

    attack: Attack
    points: Tensor
    right: Tensor
    margins: Tensor
    seconds: float

    @property
    def name(self) -> str:
        """The attack's name; "clean" is no attack."""
        return self.attack.name

    @property
    def robust(self) -> Tensor:
        """Who (n_rounds, n) is right by the majority of decisions of a round."""
        return majority(self.right)

    @property
    def robust_accuracy(self) -> float:
        """Share of samples that the majority gets right, the mean over rounds."""
        return float(self.robust.double().mean())

    @property
    def accuracies(self) -> dict[str, float]:
        """Success counted in three ways: "fresh" (mean), "majority" and "all" decisions right."""
        return {
            "fresh": float(self.right.double().mean()),
            "majority": self.robust_accuracy,
            "all": float(self.right.all(1).double().mean()),
        }


@dataclass(frozen=True)
class SuiteResult:
    """What all attacks found.

    Attributes
    ----------
    outcomes : list of AttackOutcome
        The first is "clean".
    calls : CallCount
        Of the attacked model and its surrogates; models that points are transferred from are
        others, and BPDA goes around the model's own way.
    """

    outcomes: list[AttackOutcome] = field(default_factory=list)
    calls: CallCount = field(default_factory=CallCount)

    def where(self, belongs: Callable[[Attack], bool]) -> dict[str, float]:
        """Return the robust accuracy under each attack that belongs, by its name."""
        return {o.name: o.robust_accuracy for o in self.outcomes if belongs(o.attack)}

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
    attack_eps: float | Tensor,
    norm: str = "Linf",
    box: Box = (0.0, 1.0),
    budget: Budget | None = BUDGETS["standard"],
    transfer_from: Mapping[str, nn.Module] | None = None,
    known_points: Mapping[str, Tensor] | None = None,
    n_rounds: int = N_ROUNDS,
    seed: int = 0,
    evaluation_seed: int = 1,
    say: Callable[[str], object] = lambda _: None,
    crew: Crew = ALONE,
) -> SuiteResult:
    """Attack a model in every way that suits it.

    A `DefendedClassifier` is attacked through the gradient averaged over its answers, through a
    surrogate with more draws, past its purifier (BPDA) and at its purifier; every model by APGD on
    cross-entropy, margin and, with three classes, DLR, by PGD with a fixed step, by Square, and by
    the points that break other models; then APGD climbs on from the worst point of all these. Where
    samples are non-negative and of length 1, as features are, one more APGD keeps to such points:
    its line stands for the weaker attacker who can only make features. As its points are in the
    ball, they count like all others.

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
    crew : Crew, optional
        Processes that are given the same, and do the attacks in turn: each finds what it finds on
        one, as it has random numbers of its own. All return all.

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
    threat = Threat(attack_eps, norm, box)
    threat.check_features(x)
    y = check_labels(y, len(x))
    result = SuiteResult()
    with frozen(model), isolated(seed):
        mine = CallCount()
        asked = _Counted(model, mine)
        has_noise = is_random(asked, x)
        attacks = [
            Attack("clean", AttackKind.CLEAN, lambda _: x),
            *(
                Attack(name, AttackKind.KNOWN_POINTS, partial(_known, points))
                for name, points in (known_points or {}).items()
            ),
        ]
        last: Iterable[Attack] = ()
        if budget is not None:
            suite = _Suite(model, asked, result, mine, x, y, threat, budget, has_noise)
            attacks += suite.attacks(transfer_from or {})
            last = suite.last_attacks()
        result.calls.add_all(mine)  # what all have asked alike

        def done(attack: Attack, number: int) -> _Done:
            started, before = time.perf_counter(), replace(mine)
            # Each attack has random starts of its own.
            points = attack.run(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
            seconds = time.perf_counter() - started
            threat.check_points(points, x, attack=attack.name)
            right, margins = fresh_decisions(
                asked, points, y, seed=evaluation_seed, n_rounds=n_rounds
            )
            calls = CallCount(mine.n_calls - before.n_calls, mine.n_rows - before.n_rows)
            return _Done(points.cpu(), right.cpu(), margins.cpu(), seconds, calls)

        def take(attacks: Sequence[Attack], first: int) -> None:
            tasks = [partial(done, attack, first + i) for i, attack in enumerate(attacks)]
            for attack, found in zip(attacks, crew.each(tasks), strict=True):
                points, right, margins = (
                    t.to(x.device) for t in (found.points, found.right, found.margins)
                )
                outcome = AttackOutcome(attack, points, right, margins, found.seconds)
                result.outcomes.append(outcome)
                result.calls.add_all(found.calls)
                say(
                    f"  {attack.name}: robust {outcome.robust_accuracy:.4f} ({found.seconds:.1f} s)"
                )

        take(attacks, 0)
        for attack in last:
            take([attack], len(result.outcomes))
    return result


class _Done(NamedTuple):
    """What an attack has found, as processes tell each other."""

    points: Tensor
    right: Tensor
    margins: Tensor
    seconds: float
    calls: CallCount


def _known(points: Tensor, _: int) -> Tensor:
    return points


@dataclass(frozen=True)
class _Suite:
    """The attacks on one model: `asked` is `model`, its calls counted into `calls`."""

    model: nn.Module
    asked: nn.Module
    result: SuiteResult
    calls: CallCount
    x: Tensor
    y: Tensor
    threat: Threat
    budget: Budget
    has_noise: bool

    def attacks(self, transfer_from: Mapping[str, nn.Module]) -> Iterator[Attack]:
        """Yield the attacks that need nothing of each other."""
        kind, eot = AttackKind, self.budget.eot_iter if self.has_noise else 1
        for name, other in transfer_from.items():
            run = partial(self._apgd, other, "margin", judge=other)
            yield Attack(f"transfer from {name}", kind.TRANSFER, run)
        if isinstance(self.model, DefendedClassifier):
            yield from self._on_a_purifier(self.model)
        averaged = f", EOT {eot}" if self.has_noise else ""
        with torch.no_grad():
            n_classes = self.asked(self.x[:1]).shape[1]
        for loss in ("margin", "ce", *(("dlr",) if n_classes > 2 else ())):
            name = _TITLES[loss] + averaged
            yield self._climb(name, kind.GRADIENT, self.asked, loss, eot_iter=eot)
        if eot > 1:
            name, selected = f"APGD-margin, selective EOT {eot}", {"eot_share": _SELECTED}
            yield self._climb(name, kind.PURIFIER, self.asked, "margin", eot_iter=eot, **selected)
        name = f"PGD-{self.budget.pgd_iter}{averaged}"
        yield Attack(name, kind.GRADIENT, partial(self._pgd, eot))
        name = f"Square, {self.budget.n_queries} queries"
        yield Attack(name, kind.SEARCH, partial(self._square, eot))

    def last_attacks(self) -> Iterator[Attack]:
        """Yield the attacks that begin where those before have ended, as they are then."""
        kind, eot = AttackKind, self.budget.eot_iter if self.has_noise else 1
        found = [outcome.points for outcome in self.result.outcomes]
        run = partial(self._from_worst, found, eot)
        yield Attack("APGD-margin from the worst points", kind.FROM_WORST, run, "margin")
        if self._on_the_sphere():
            run = partial(self._along_the_sphere, eot)
            yield Attack(CONSTRAINED, kind.CONSTRAINED, run, "margin")

    def _on_a_purifier(self, defended: DefendedClassifier) -> Iterator[Attack]:
        kind, wide = AttackKind, self._wide(defended)
        through = f", {self.budget.surrogate_draws}-draw surrogate"
        for loss in ("margin", "ce"):
            yield self._climb(_TITLES[loss] + through, kind.GRADIENT, wide, loss)
        past = BPDAIdentity(defended)
        yield self._climb("APGD-margin, BPDA identity", kind.BPDA, past, "margin", eot_iter=4)
        run = partial(self._shift_purifier, defended, False)
        yield Attack("APGD on the purifier's output", kind.PURIFIER, run)
        if len(defended.purifier.timesteps) > 1:
            run = partial(self._shift_purifier, defended, True)
            yield Attack("APGD on the purifier's every step", kind.PURIFIER, run)

    def _wide(self, defended: DefendedClassifier) -> nn.Module:
        return _Counted(surrogate(defended, self.budget.surrogate_draws), self.calls)

    def _climb(
        self, name: str, kind: AttackKind, target: nn.Module, loss: str, **settings: Any
    ) -> Attack:
        return Attack(name, kind, partial(self._apgd, target, loss, **settings), loss)

    def _apgd(self, target: nn.Module, loss: str, seed: int, **changes: Any) -> Tensor:
        budget = self.budget
        settings: dict[str, Any] = {
            "n_iter": budget.n_iter,
            "n_restarts": budget.n_restarts if self.has_noise else budget.n_cheap_restarts,
            "judge": self.asked,
            **self.threat.as_keywords(),
            **changes,
        }
        return vector_apgd(target, self.x, self.y, loss=loss, seed=seed, **settings)

    def _shift_purifier(self, defended: DefendedClassifier, every_step: bool, seed: int) -> Tensor:
        shift = PurifierShift(defended.purifier, self.x, seed, every_step)
        with frozen(defended), isolated(seed):
            return ascend_objective(
                shift,
                self.asked,
                self.x,
                self.y,
                threat=self.threat,
                n_iter=self.budget.n_iter,
                n_restarts=self.budget.n_restarts,
                asked=defended.purifier,
            )

    def _pgd(self, eot_iter: int, seed: int) -> Tensor:
        objective = ExpectedLoss(self.asked, self.y, "margin", eot_iter)
        ball = self.threat.ball(self.x)
        with frozen(self.model), isolated(seed):
            start = ball.random_start()
            return pgd(objective, ball, start, n_iter=self.budget.pgd_iter, asked=self.asked)

    def _square(self, eot_iter: int, seed: int) -> Tensor:
        settings: dict[str, Any] = {**self.threat.as_keywords(), "eot_iter": eot_iter}
        n_queries = self.budget.n_queries
        return vector_square(self.asked, self.x, self.y, n_queries=n_queries, seed=seed, **settings)

    def _on_the_sphere(self) -> bool:
        """Whether the samples are non-negative and of length 1 (or 0), as features are."""
        low, high = (torch.as_tensor(edge) for edge in self.threat.box)
        lengths = torch.linalg.vector_norm(self.x.double(), dim=1)
        off = torch.minimum((lengths - 1).abs(), lengths)
        return bool((low == 0).all() and (high >= 1).all() and (off <= SPHERE_TOLERANCE).all())

    def _along_the_sphere(self, eot_iter: int, seed: int) -> Tensor:
        """Climb among points that are features: from the worst of all, put there, and at random."""
        found = [outcome.points for outcome in self.result.outcomes]
        settings = {"n_restarts": self.budget.n_restarts, "keeps_length": True}
        points = self._from_worst(found, eot_iter, seed, **settings)
        replace(self.threat, keeps_length=True).check_points(points, self.x, attack=CONSTRAINED)
        return points

    def _from_worst(
        self, found: Sequence[Tensor], eot_iter: int, seed: int, **changes: Any
    ) -> Tensor:
        """Climb on from the worst points of other attacks, by answers that are asked for anew."""
        with isolated(seed):
            wrong = [wrongness(self.asked, points, self.y, N_JUDGED) for points in found]
        chosen = torch.stack(wrong).argmax(0)
        worst = torch.stack(list(found))[chosen, torch.arange(len(self.x), device=self.x.device)]
        target = self.asked
        if isinstance(self.model, DefendedClassifier):
            target, eot_iter = self._wide(self.model), 1
        settings = {"eot_iter": eot_iter, "starts": [worst], "n_restarts": 0, **changes}
        return self._apgd(target, "margin", seed, **settings)
