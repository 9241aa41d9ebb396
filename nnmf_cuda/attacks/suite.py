"""The adaptive suite: every attack on one model, and the worst case over them for each sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks._balls import BALLS, Box
from nnmf_cuda.attacks.checks import frozen, isolated
from nnmf_cuda.attacks.objectives import ExpectedLoss, sampled_logits
from nnmf_cuda.attacks.pgd import pgd
from nnmf_cuda.attacks.purification import BPDAIdentity, PurifierShift, surrogate
from nnmf_cuda.attacks.vector_apgd import ascend_objective, vector_apgd
from nnmf_cuda.attacks.vector_square import vector_square
from nnmf_cuda.models import DefendedClassifier

__all__ = [
    "BUDGETS",
    "AttackOutcome",
    "Budget",
    "SuiteResult",
    "fresh_decisions",
    "is_random",
    "run_suite",
]

N_DECISIONS = 20
"""R: fresh decisions of a random model on a point."""

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
    n_cheap_restarts: int = 20
    eot_iter: int = 20
    surrogate_draws: int = 64
    pgd_iter: int = 200
    n_queries: int = 500


BUDGETS: Mapping[str, Budget] = {
    "standard": Budget(),
    "thorough": Budget(
        n_iter=500,
        n_restarts=20,
        n_cheap_restarts=100,
        eot_iter=40,
        surrogate_draws=256,
        pgd_iter=1000,
        n_queries=5000,
    ),
}


@dataclass(frozen=True)
class AttackOutcome:
    """What one attack found.

    Attributes
    ----------
    name : str
        Short name; "clean" is no attack.
    points : Tensor of shape (n, n_features)
        A point for every sample.
    right : Tensor of shape (N_DECISIONS or 1, n)
        bool: fresh decisions on the points; one decision where the model is not random.
    seconds : float
        Time of the attack.
    """

    name: str
    points: Tensor
    right: Tensor
    seconds: float

    @property
    def robust(self) -> Tensor:
        """Who (n,) is right by the majority of decisions."""
        return self.right.float().mean(0) > 0.5

    @property
    def accuracies(self) -> dict[str, float]:
        """Success counted in three ways: "fresh" (mean), "majority" and "all" decisions right."""
        return {
            "fresh": float(self.right.float().mean()),
            "majority": float(self.robust.float().mean()),
            "all": float(self.right.all(0).float().mean()),
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
        """Who (n,) holds against every attack, by majority decisions."""
        return torch.stack([outcome.robust for outcome in self.outcomes]).all(0)

    @property
    def worst_case_accuracy(self) -> float:
        """Share of samples that hold against every attack."""
        return float(self.robust.float().mean())

    @property
    def all_right_accuracy(self) -> float:
        """The same, where every decision on every point must be right."""
        held = torch.stack([outcome.right.all(0) for outcome in self.outcomes]).all(0)
        return float(held.float().mean())

    @property
    def worst_points(self) -> Tensor:
        """Of each sample the point (n, n_features) with the fewest right decisions."""
        shares = torch.stack([outcome.right.float().mean(0) for outcome in self.outcomes])
        points = torch.stack([outcome.points for outcome in self.outcomes])
        return points[shares.argmin(0), torch.arange(points.shape[1], device=points.device)]


def is_random(model: nn.Module, x: Tensor) -> bool:
    """Whether two answers to the same features differ."""
    with frozen(model), torch.no_grad():
        return not torch.equal(model(x), model(x))


def fresh_decisions(model: nn.Module, points: Tensor, y: Tensor, *, seed: int) -> Tensor:
    """Return who is right, bool (n_decisions, n), by fresh decisions of a random model."""
    with frozen(model), isolated(seed), torch.no_grad():
        n_decisions = N_DECISIONS if is_random(model, points) else 1
        return sampled_logits(model, points, n_decisions).argmax(2) == y


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
    seed: int = 0,
    evaluation_seed: int = 1,
    say: Callable[[str], object] = lambda _: None,
) -> SuiteResult:
    """Attack a model in every way that suits it.

    A `DefendedClassifier` is attacked through the gradient averaged over its answers, through a
    surrogate with more draws, past its purifier (BPDA) and at its purifier; every model by APGD on
    cross-entropy, margin and, with three classes, DLR, by PGD with a fixed step, by Square, and by
    the points that break other models.

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
        Other models, whose worst points are tried, by name.
    known_points : mapping of str to Tensor, optional
        Points of other attacks under the same threat model, by name; checked to be in the ball.
    seed, evaluation_seed : int
        Of the attacks, and of the decisions by which they are measured: no attack sees those.
    say : callable, optional
        Takes a line for each attack.

    Returns
    -------
    SuiteResult
    """
    run = _Suite(model, x, y, attack_eps, norm, box, seed, is_random(model, x))
    result = SuiteResult()

    def note(name: str, points: Tensor, seconds: float) -> None:
        right = fresh_decisions(model, points, y, seed=evaluation_seed)
        outcome = AttackOutcome(name, points, right, seconds)
        result.outcomes.append(outcome)
        say(f"{name}: robust {outcome.accuracies['majority']:.4f} ({seconds:.1f} s)")

    note("clean", x, 0.0)
    for name, points in (known_points or {}).items():
        note(name, run.checked(name, points), 0.0)
        # What others have found is climbed from, so that no attack of ours finds less.
        run.starts.append(points)
    for name, attack in () if budget is None else run.attacks(budget, transfer_from or {}):
        started = time.perf_counter()
        points = attack()
        note(name, run.checked(name, points), time.perf_counter() - started)
    return result


@dataclass(frozen=True)
class _Suite:
    model: nn.Module
    x: Tensor
    y: Tensor
    attack_eps: float
    norm: str
    box: Box
    seed: int
    is_random: bool
    starts: list[Tensor] = field(default_factory=list)

    def attacks(
        self, budget: Budget, transfer_from: Mapping[str, nn.Module]
    ) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """Yield the name of each attack with what runs it."""
        eot = budget.eot_iter if self.is_random else 1
        averaged = f", EOT {eot}" if self.is_random else ""
        for name, other in transfer_from.items():
            yield f"transfer from {name}", partial(self._apgd, budget, other, "margin", 1)
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
            selective = partial(self._apgd, budget, self.model, "margin", eot, share=_SELECTED)
            yield f"APGD-margin, selective EOT {eot}", selective
        yield (
            f"PGD-{budget.pgd_iter}{averaged}",
            partial(self._pgd, budget, eot),
        )
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

    def _apgd(
        self, budget: Budget, target: nn.Module, loss: str, eot_iter: int, share: float = 1.0
    ) -> Tensor:
        return vector_apgd(
            target,
            self.x,
            self.y,
            attack_eps=self.attack_eps,
            norm=self.norm,
            box=self.box,
            loss=loss,
            n_iter=budget.n_iter,
            n_restarts=budget.n_restarts if self.is_random else budget.n_cheap_restarts,
            eot_iter=eot_iter,
            eot_share=share,
            starts=self.starts,
            judge=self.model,
            seed=self.seed,
        )

    def _at_purifier(
        self, budget: Budget, defended: DefendedClassifier, *, every_step: bool
    ) -> Tensor:
        shift = PurifierShift(defended.purifier, self.x, self.seed, every_step)
        with frozen(defended), isolated(self.seed):
            return ascend_objective(
                shift,
                self.model,
                self.x,
                self.y,
                attack_eps=self.attack_eps,
                norm=self.norm,
                box=self.box,
                n_iter=budget.n_iter,
                n_restarts=budget.n_restarts,
            )

    def _pgd(self, budget: Budget, eot_iter: int) -> Tensor:
        objective = ExpectedLoss(self.model, self.y, "margin", eot_iter)
        ball = BALLS[self.norm](self.x, self.attack_eps, self.box)
        with frozen(self.model), isolated(self.seed):
            return pgd(objective, ball, ball.random_start(), n_iter=budget.pgd_iter)

    def _square(self, budget: Budget, eot_iter: int) -> Tensor:
        return vector_square(
            self.model,
            self.x,
            self.y,
            attack_eps=self.attack_eps,
            norm=self.norm,
            box=self.box,
            n_queries=budget.n_queries,
            eot_iter=eot_iter,
            seed=self.seed,
        )
