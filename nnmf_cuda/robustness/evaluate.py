"""The whole evaluation: every attack, curve, check and certificate on one saved run."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnmf_cuda.attacks import Budget, SuiteResult, run_autoattack, run_suite
from nnmf_cuda.attacks.gradient_ascent import vector_apgd
from nnmf_cuda.attacks.objectives import is_random
from nnmf_cuda.attacks.surrogates import FixedNoise, surrogate
from nnmf_cuda.distributed.crew import ALONE, Crew
from nnmf_cuda.evaluation import Certificate, certify, evaluate_rows, measure_uncertainty
from nnmf_cuda.evaluation.headline import Proof, check_agreement
from nnmf_cuda.evaluation.robustness import (
    ADVERSARIALLY_TRAINED,
    PAPER_PROTOCOL,
    Curves,
    PixelAttack,
    RobustnessReport,
    WorstPoints,
)
from nnmf_cuda.evaluation.seeds import Purpose, seed_word
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.networks import FeatureClassifier, isolated
from nnmf_cuda.pipeline.config import PRESETS, AttackConfig
from nnmf_cuda.pipeline.defences import train_adversarially
from nnmf_cuda.pipeline.places import reason, write_text
from nnmf_cuda.report.robustness import robustness_page
from nnmf_cuda.robustness import diagnostics
from nnmf_cuda.robustness.baselines import LinearDenoiser, NoiseOnly, WithoutNoise
from nnmf_cuda.robustness.budgets import EVALUATION_BUDGETS, LIGHT, EvaluationBudget
from nnmf_cuda.robustness.diagnostics import AdaptiveMeasurements, Measurements
from nnmf_cuda.robustness.pixels import attack_pixels, certify_chain
from nnmf_cuda.robustness.points import report_of
from nnmf_cuda.robustness.saved_run import SavedRun
from nnmf_cuda.robustness.verification import BRANCH_AND_BOUND, Verification
from nnmf_cuda.robustness.verify import verify

logger = logging.getLogger(__name__)

_TINY_EPS = 1e-9
"""A ball without room: what an attack still "finds" in it is noise."""


@dataclass(frozen=True)
class Robustness:
    """What `evaluate_robustness` returns.

    Attributes
    ----------
    report : RobustnessReport
        What it says.
    measured : Measurements
        What is behind it.
    """

    report: RobustnessReport
    measured: Measurements

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the attacked features of every attack on the defence, for others to test again.

        Where it was verified also the `Status` of each sample, and the lower bound of its margin.
        """
        outcomes, proof = self.measured.suites["defended"].outcomes, self.measured.verification
        proven = {} if proof is None else {"status": proof.status, "bound": proof.lower_bound}
        return {
            **proven,
            "names": np.array([outcome.name for outcome in outcomes]),
            "points": np.stack([outcome.points.float().cpu().numpy() for outcome in outcomes]),
            "right": np.stack(
                [outcome.right.float().mean((0, 1)).cpu().numpy() for outcome in outcomes]
            ),
        }

    def write(self, home: Path, *, named: Path | None = None) -> dict[str, Path]:
        """Write `robustness.json`, `robustness.npz` and `robustness.html`; returns their paths.

        `named` is what the page calls the directory.
        """
        paths = {
            "numbers": home / "robustness.json",
            "points": home / "robustness.npz",
            "page": home / "robustness.html",
        }
        partial = home / ".robustness.partial.npz"
        np.savez(partial, **self.arrays())  # type: ignore[arg-type]
        os.replace(partial, paths["points"])
        write_text(paths["page"], self._page(named))
        write_text(paths["numbers"], json.dumps(self.report.as_dict(), indent=2))
        return paths

    def _page(self, named: Path | None) -> str:
        """Return the page, or one that says why there is none: the numbers must not be lost."""
        try:
            return robustness_page(self.report, home=named)
        except Exception as error:
            logger.warning("the page of the evaluation could not be made (%s)", reason(error))
            return f"<!doctype html><p>No page: {escape(reason(error))}. See robustness.json.</p>\n"


def evaluate_robustness(
    run: SavedRun,
    *,
    preset: str = "standard",
    budget: EvaluationBudget | None = None,
    images: Tensor | None = None,
    say: Callable[[str], object] = lambda _: None,
    crew: Crew = ALONE,
) -> Robustness:
    """Answer the twenty points for one model.

    Parameters
    ----------
    run : SavedRun
        Model, features and threat model.
    preset : {"paper", "quick", "standard", "thorough"}, default="standard"
        How much to spend; see `EVALUATION_BUDGETS`.
    budget : EvaluationBudget, optional
        In the preset's place.
    images : Tensor of shape (n_test, height * width), optional
        The test images in [0, 1], for the attack on pixels, which is not run without them.
    say : callable, optional
        Takes a line for each step.
    crew : Crew, optional
        Processes that are given the same, and do attacks, curves and proofs in turn. All return
        what one process finds.

    Returns
    -------
    Robustness

    Raises
    ------
    ValueError
        If the preset is unknown or the images do not fit.
    """
    if preset not in EVALUATION_BUDGETS:
        raise ValueError(f"preset must be one of {', '.join(EVALUATION_BUDGETS)}; got {preset!r}")
    started = time.perf_counter()
    evaluation = _Evaluation(run, budget or EVALUATION_BUDGETS[preset], say, crew)
    pixels = None if images is None else evaluation.attack_pixels(images)
    suites, verification, adaptive = evaluation.attack()
    if images is not None and pixels is not None and verification is not None:
        proof = certify_chain(run.model, images, verification, pixels)
        pixels = replace(pixels, certified=proof)
    measured = Measurements(
        budget=evaluation.budget,
        evaluation_seed=evaluation.evaluation_seed,
        suites=suites,
        adaptive=adaptive,
        pixels=pixels,
        verification=verification,
        seconds=time.perf_counter() - started,
    )
    return Robustness(report_of(run, measured, preset=preset), measured)


def prove(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacked: SuiteResult,
    *,
    attack: AttackConfig,
    budget: EvaluationBudget,
    seed: int,
    say: Callable[[str], object] = lambda _: None,
    crew: Crew = ALONE,
) -> Verification | None:
    """Verify a defence without noise; points that break it join those of the attacks on it.

    It is told nothing of what these have found, so that each can contradict the other.

    Parameters
    ----------
    model, x, y
        The defence, features (n, n_features) in the box [0, 1] and labels (n,).
    attacked : SuiteResult
        What attacks have found; gets a line more.
    attack : AttackConfig
        Whose ball is meant.
    budget : EvaluationBudget
        How long may be searched.
    seed : int
        Of the evaluation.
    say : callable, optional
        Takes a line for each step.
    crew : Crew, optional
        Processes that are given the same, and search in turn.

    Returns
    -------
    Verification or None
        None where the defence is random, or the budget leaves it out.

    Raises
    ------
    ContradictionError
        If a proven sample is broken.
    """
    if budget.verify_seconds is None or isinstance(model, DefendedClassifier):
        return None
    say(f"proving the defence's answers, up to {budget.verify_seconds:g} s a sample")
    found = verify(
        *(model, x, y),
        eps=attack.radius,
        norm=attack.norm,
        seconds=budget.verify_seconds,
        total_seconds=budget.verify_total_seconds,
        crew=crew,
    )
    say(
        f"  proven {found.proven_accuracy:.4f}, broken {found.broken.mean():.4f}, undecided"
        f" {found.undecided_accuracy:.4f}"
    )
    points = torch.from_numpy(found.counterexample).to(x)
    counted = run_suite(
        *(model, x, y),
        attack_eps=attack.radius,
        norm=attack.norm,
        budget=None,
        known_points={BRANCH_AND_BOUND: torch.where(points.isnan(), x, points)},
        seed=seed,
        evaluation_seed=seed_word(seed, Purpose.DECISIONS),
    )
    attacked.outcomes.append(counted.outcomes[-1])
    check_agreement(attacked.robust_share.cpu().numpy(), Proof(found.proven, BRANCH_AND_BOUND))
    return found


class _Evaluation:
    def __init__(
        self,
        run: SavedRun,
        budget: EvaluationBudget,
        say: Callable[[str], object],
        crew: Crew,
    ) -> None:
        self.run, self.budget, self.say, self.crew = run, budget, say, crew
        self.x, self.y = run.test
        self.seed = run.seed
        self.evaluation_seed = seed_word(run.seed, Purpose.DECISIONS)
        self.seeds: dict[str, Any] = {"seed": self.seed, "evaluation_seed": self.evaluation_seed}
        run.defended.eval()

    def attack(
        self,
    ) -> tuple[dict[str, SuiteResult], Verification | None, AdaptiveMeasurements | None]:
        """Return the suites by model, what is proven, and what else adaptive attacks measure."""
        if self.budget.suite is None:
            return self._counted_again(), None, None
        suites, model = self._suites(self.budget.suite), self.run.defended
        verification = prove(
            model,
            *self.run.test,
            suites["defended"],
            attack=self.run.attack,
            budget=self.budget,
            seed=self.seed,
            say=self.say,
            crew=self.crew,
        )
        self.say("curves against eps, steps, restarts and draws")
        curves = self._curves(self.budget.suite)
        self.say("a copy of the defence with a known weakness")
        known_weakness = diagnostics.find_known_weakness(
            model, self.x, self.run.threat, budget=LIGHT, **self.seeds, crew=self.crew
        )
        self.say("counting at eps 0, on the worst points, with known noise")
        if self._smooths():
            self.say("certifying by randomised smoothing")
        tasks: list[Callable[[], Any]] = [
            self._certificates,
            self._flags_at_zero,
            self._fixed_noise,
            partial(diagnostics.check_gradients, model, self.x, self.y),
            self._gradient_cosines,
            partial(self._on_worst_points, suites),
            partial(self._transfer_back, suites["defended"]),
        ]
        certificates, flags, fixed_noise, gradients, cosines, worst, back = self.crew.each(tasks)
        return (
            suites,
            verification,
            AdaptiveMeasurements(
                curves=curves,
                gradients=gradients,
                gradient_cosines=cosines,
                known_weakness=known_weakness,
                flags_at_zero=flags,
                worst_points=worst,
                fixed_noise=fixed_noise,
                transfer_back=back,
                certificates=certificates,
            ),
        )

    def _gradient_cosines(self) -> list[float] | None:
        model, n_answers = self.run.defended, self.budget.eot_iter
        with isolated(self.seed):
            has_noise = is_random(model, self.x)
        if not has_noise:
            return None
        return diagnostics.gradient_agreement(model, self.x, self.y, n_answers, seed=self.seed)

    def _counted_again(self) -> dict[str, SuiteResult]:
        """Count by fresh decisions what the paper's protocol found."""
        models = {"defended": self.run.defended, "baseline": self.run.model.classifier}
        names = {"defended": "defended", "baseline": "undefended"}
        return {
            names[name]: self._attack(
                f"nothing, but counting what was found on the {names[name]} model",
                model,
                None,
                known_points={PAPER_PROTOCOL: self.run.paper[name].points},
            )
            for name, model in models.items()
        }

    def _suites(self, budget: Budget) -> dict[str, SuiteResult]:
        defended, plain = self.run.defended, self.run.model.classifier
        points = {name: found.points for name, found in self.run.paper.items()}
        of_defended = self._attack(
            "the defended model",
            defended,
            budget,
            transfer_from={"the undefended": plain},
            known_points={PAPER_PROTOCOL: points["defended"]},
        )
        of_plain = self._attack(
            "the undefended model", plain, budget, known_points={PAPER_PROTOCOL: points["baseline"]}
        )
        suites = {"defended": of_defended, "undefended": of_plain}
        for name, simpler in self._simpler_defences().items():
            suites[name] = self._attack(f"a simpler defence: {name}", simpler, LIGHT)
        trained = self._adversarially_trained()
        if trained is not defended:
            suites[ADVERSARIALLY_TRAINED] = self._attack(
                "an adversarially trained classifier of the same size", trained, budget
            )
        return suites

    def _attack(
        self, what: str, model: nn.Module, budget: Budget | None, **known: Any
    ) -> SuiteResult:
        self.say(f"attacking {what}")
        model.eval()
        threat: dict[str, Any] = self.run.threat.as_keywords()
        shared: dict[str, Any] = {**self.seeds, "say": self.say, "crew": self.crew}
        return run_suite(model, self.x, self.y, **threat, **shared, budget=budget, **known)

    def _simpler_defences(self) -> dict[str, nn.Module]:
        """Return what is put before the defence's classifier, at the noise level of the run."""
        behind = self._purified_classifier()
        return {
            "noise only": NoiseOnly(behind),
            "linear denoiser": LinearDenoiser(behind, self.run.x["train"]),
            "denoiser without noise": WithoutNoise(behind),
        }

    def _purified_classifier(self) -> DefendedClassifier:
        """Return the defence's classifier behind the run's purifier, whether it defends or not."""
        model = self.run.model
        return DefendedClassifier(model.purifier, model.robust_classifier or model.classifier)

    def _adversarially_trained(self) -> FeatureClassifier:
        """Return the defence's classifier if it is such a one, else one that is trained here."""
        model, settings = self.run.model, self.run.model.defence
        own = model.robust_classifier
        if own is not None and settings.kind in ("adversarial", "adversarial-purifier"):
            return own
        self.say("training an adversarially trained classifier of the same size")
        trained = self.crew.first(
            lambda: train_adversarially(
                self.run.x,
                self.run.y,
                replace(PRESETS["robust"].defence, train_eps=self.run.attack.attack_eps),
                norm=self.run.attack.norm,
                n_classes=len(model.label_names),
                seed=self.seed,
            ).model.cpu()
        )
        return trained.to(self.x.device)

    def _curves(self, budget: Budget) -> Curves:
        defended = target = self.run.defended
        if isinstance(defended, DefendedClassifier):
            target = surrogate(defended, budget.surrogate_draws)
        attacker = diagnostics.Attacker(
            defended, target, self.x, self.y, self.run.threat, **self.seeds, crew=self.crew
        )
        return diagnostics.draw_curves(attacker, self.budget)

    def _flags_at_zero(self) -> float:
        """Count by AutoAttack's flags where the ball has no room: what its single looks cost."""
        settings = replace(self.run.attack, attack_eps=_TINY_EPS)
        result = run_autoattack(self.run.defended, self.x, self.y, seed=self.seed, **vars(settings))
        return float(result.robust_flags.float().mean())

    def _on_worst_points(self, suites: Mapping[str, SuiteResult]) -> WorstPoints:
        rows = evaluate_rows(
            self.run.model.classifier,
            self.run.defended,
            self.x,
            suites["undefended"].worst_points,
            suites["defended"].worst_points,
            self.y.cpu().numpy(),
            seed=seed_word(self.seed, Purpose.WORST_POINTS),
            random=isinstance(self.run.defended, DefendedClassifier),
        )
        uncertainty = measure_uncertainty(rows, groupings=self.run.groupings, seed=self.seed)
        return WorstPoints(rows, uncertainty)

    def _fixed_noise(self) -> float | None:
        defended = self.run.defended
        if not isinstance(defended, DefendedClassifier):
            return None
        known = FixedNoise(defended, self.seed).eval()
        threat: dict[str, Any] = self.run.threat.as_keywords()
        points = vector_apgd(known, self.x, self.y, **threat, n_restarts=2, seed=self.seed)
        with torch.no_grad():
            # A batch keeps its order: each row meets the noise that was attacked.
            right = (known(points).argmax(1) == self.y) & (known(self.x).argmax(1) == self.y)
        return float(right.float().mean())

    def _transfer_back(self, defended: SuiteResult) -> float:
        with torch.no_grad():
            answers = self.run.model.classifier(defended.worst_points).argmax(1)
        return float((answers == self.y).float().mean())

    def _smooths(self) -> bool:
        """Return whether the purifier is one draw of noise and one step."""
        return len(self.run.model.purifier.timesteps) == 1

    def _certificates(self) -> dict[str, Certificate]:
        """Certify the defence's classifier behind one draw of noise, denoised and as it is."""
        if not self._smooths():
            return {}
        behind = self._purified_classifier()
        options: dict[str, Any] = {"n_estimation": self.budget.n_estimation, "seed": self.seed}
        smoothed = certify(behind, self.x, self.y.cpu(), **options)
        plain = certify(behind.classifier, self.x, self.y.cpu(), sigma=smoothed.sigma, **options)
        return {"denoised": smoothed, "plain noise": plain}

    def attack_pixels(self, images: Tensor) -> PixelAttack:
        """Attack the test images (n, height * width), end to end."""
        shape = (len(self.x), self.run.model.extractor.components.shape[1])
        if tuple(images.shape) != shape:
            raise ValueError(
                f"images must have shape {shape}, the test images of the run; got"
                f" {tuple(images.shape)}"
            )
        self.say("attacking pixels, end to end")
        return attack_pixels(
            *(self.run.model, images, self.y),
            budget=self.budget.pixels,
            **self.seeds,
            crew=self.crew,
        )
