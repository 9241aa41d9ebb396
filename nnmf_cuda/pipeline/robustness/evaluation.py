"""The whole evaluation: every attack, curve, check and certificate on one saved model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnmf_cuda.attacks import BUDGETS, Budget, SuiteResult, run_autoattack, run_suite
from nnmf_cuda.attacks.purification import FixedNoise, NoiseOnly, surrogate
from nnmf_cuda.attacks.suite import is_random
from nnmf_cuda.attacks.vector_apgd import vector_apgd
from nnmf_cuda.evaluation import Certificate, certify
from nnmf_cuda.models import DefendedClassifier, FeatureCNN
from nnmf_cuda.pipeline.config import PRESETS
from nnmf_cuda.pipeline.defences import train_adversarially
from nnmf_cuda.pipeline.robustness import checks, curves
from nnmf_cuda.pipeline.robustness.baselines import LinearDenoiser
from nnmf_cuda.pipeline.robustness.pixels import PixelAttack, attack_pixels
from nnmf_cuda.pipeline.robustness.points import answer_points
from nnmf_cuda.pipeline.robustness.subject import Subject

__all__ = ["EFFORTS", "Effort", "Findings", "Robustness", "evaluate_robustness"]

_TINY_EPS = 1e-9
"""A ball without room: what an attack still "finds" in it is noise."""

_PAPER = "the paper's protocol"
_LIGHT = Budget(n_restarts=1, pgd_iter=50, n_queries=100, n_iter=50)
"""For simple defences that stand beside the one that is asked about."""


@dataclass(frozen=True)
class Effort:
    """How much an evaluation spends; a field of None leaves that part out.

    Attributes
    ----------
    suite : Budget or None
        Of the adaptive suite.
    curve_iter : int
        Steps of the attacks behind curves.
    eps, n_iter, n_restarts, eot_iter : tuple
        Points of the curves.
    pixel_eps_255, pixel_iter, pixel_restarts
        Of the attack on pixels.
    n_estimation : int
        Draws a sample of a certificate.
    """

    suite: Budget | None = None
    curve_iter: int = 50
    eps: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    n_iter: tuple[int, ...] = (25, 50, 100, 200)
    n_restarts: tuple[int, ...] = (1, 2, 5)
    eot_iter: tuple[int, ...] = (1, 8, 20, 64)
    pixel_eps_255: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    pixel_iter: int = 40
    pixel_restarts: int = 1
    n_estimation: int = 10_000


EFFORTS: Mapping[str, Effort] = {
    "paper": Effort(),
    "standard": Effort(suite=BUDGETS["standard"]),
    "thorough": Effort(
        suite=BUDGETS["thorough"],
        curve_iter=100,
        n_iter=(100, 200, 500, 1000),
        n_restarts=(1, 5, 20),
        pixel_iter=200,
        pixel_restarts=5,
        n_estimation=100_000,
    ),
}
"""Presets of `nnmf-cuda evaluate`. `paper` counts again what the run's own attack has found."""


@dataclass(frozen=True)
class Findings:
    """What was measured; None where it was not run.

    Attributes
    ----------
    suites : mapping of str to SuiteResult
        By model: "defended", "undefended", and where attacked "noise only" and "adversarially
        trained".
    curves, gradients, planted, counts_at_zero : mapping or None
        See `nnmf_cuda.pipeline.robustness.curves` and `checks`.
    fixed_noise, transfer_back : float or None
        Robust accuracy where the attacker knows the noise; of the undefended model under the
        defence's worst points.
    certificates : mapping of str to Certificate
    pixels : PixelAttack or None
    seconds : float
    n_calls, n_rows : int
        Calls of models of the defence's kind during all of it, surrogates included, and rows that
        they were asked about.
    """

    suites: Mapping[str, SuiteResult]
    curves: Mapping[str, Any] | None
    gradients: Mapping[str, Any] | None
    planted: Mapping[str, float] | None
    counts_at_zero: Mapping[str, float] | None
    fixed_noise: float | None
    transfer_back: float | None
    certificates: Mapping[str, Certificate]
    pixels: PixelAttack | None
    seconds: float
    n_calls: int
    n_rows: int


@dataclass(frozen=True)
class Robustness:
    """What `evaluate_robustness` returns.

    Attributes
    ----------
    content : dict
        Content of `robustness.json`.
    findings : Findings
        What is behind it.
    """

    content: dict[str, Any]
    findings: Findings

    @property
    def examples(self) -> Mapping[str, NDArray[Any]] | None:
        """Images of the attack on pixels, where it was run."""
        pixels = self.findings.pixels
        return None if pixels is None else pixels.examples

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the attacked features of every attack on the defence, for others to test again."""
        outcomes = self.findings.suites["defended"].outcomes
        return {
            "names": np.array([outcome.name for outcome in outcomes]),
            "points": np.stack([outcome.points.float().cpu().numpy() for outcome in outcomes]),
            "right": np.stack(
                [outcome.right.float().mean(0).cpu().numpy() for outcome in outcomes]
            ),
        }


def evaluate_robustness(
    subject: Subject,
    *,
    preset: str = "standard",
    effort: Effort | None = None,
    images: Tensor | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Robustness:
    """Answer the twenty points for one model.

    Parameters
    ----------
    subject : Subject
        Model, features and threat model.
    preset : {"paper", "standard", "thorough"}, default="standard"
        How much to spend; see `EFFORTS`.
    effort : Effort, optional
        In the preset's place.
    images : Tensor of shape (n_test, height * width), optional
        The test images in [0, 1], for the attack on pixels, which is not run without them.
    say : callable, optional
        Takes a line for each step.

    Returns
    -------
    Robustness

    Raises
    ------
    ValueError
        If the preset is unknown or the images do not fit.
    """
    if preset not in EFFORTS:
        raise ValueError(f"preset must be one of {', '.join(EFFORTS)}; got {preset!r}")
    started = time.perf_counter()
    evaluation = _Evaluation(subject, effort or EFFORTS[preset], say)
    with _Counted(type(subject.defended)) as calls:
        found = evaluation.run(images)
    seconds = time.perf_counter() - started
    findings = Findings(**found, seconds=seconds, n_calls=calls.n_calls, n_rows=calls.n_rows)
    return Robustness(answer_points(subject, findings, preset=preset), findings)


class _Counted:
    """Counts the calls of every model of a kind inside the block, surrogates and copies included.

    Without a hook, which would take the models from the fused path.
    """

    def __init__(self, kind: type[nn.Module]) -> None:
        self.kind, self.n_calls, self.n_rows = kind, 0, 0

    def __enter__(self) -> _Counted:
        self._forward = forward = self.kind.forward

        def counting(model: nn.Module, x: Tensor, *args: Any, **options: Any) -> Any:
            self.n_calls += 1
            self.n_rows += len(x)
            return forward(model, x, *args, **options)

        setattr(self.kind, "forward", counting)  # noqa: B010
        return self

    def __exit__(self, *_: object) -> None:
        setattr(self.kind, "forward", self._forward)  # noqa: B010


class _Evaluation:
    def __init__(self, subject: Subject, effort: Effort, say: Callable[[str], object]) -> None:
        self.subject, self.effort, self.say = subject, effort, say
        self.x, self.y = subject.test
        self.seed = subject.seed
        # Of the decisions: no attack may have seen them.
        self.evaluation_seed = int(np.random.SeedSequence([subject.seed, 2]).generate_state(1)[0])
        self.is_random = is_random(subject.defended, self.x)

    def run(self, images: Tensor | None) -> dict[str, Any]:
        nothing: dict[str, Any] = dict.fromkeys(
            ("curves", "gradients", "planted", "counts_at_zero", "fixed_noise", "transfer_back")
        )
        pixels = None
        if images is not None:
            pixels = self._pixels(images)
        if self.effort.suite is None:
            suites = self._counted_again()
            return {**nothing, "suites": suites, "certificates": {}, "pixels": pixels}
        suites = self._suites(self.effort.suite)
        self.say("curves against eps, steps, restarts and draws")
        return {
            "suites": suites,
            "curves": self._curves(),
            "gradients": self._gradients(),
            "planted": checks.planted_direction(
                self.subject.defended,
                self.x,
                self.y,
                attack_eps=self.subject.attack_eps,
                eot_iter=self.effort.suite.eot_iter if self.is_random else 1,
                seed=self.seed,
            ),
            "counts_at_zero": self._counts_at_zero(),
            "fixed_noise": self._fixed_noise(),
            "transfer_back": self._transfer_back(suites["defended"]),
            "certificates": self._certificates(),
            "pixels": pixels,
        }

    @property
    def _threat(self) -> dict[str, Any]:
        subject = self.subject
        return {
            "attack_eps": subject.attack_eps,
            "norm": subject.norm,
            "seed": self.seed,
            "evaluation_seed": self.evaluation_seed,
        }

    def _counted_again(self) -> dict[str, SuiteResult]:
        """Count by fresh decisions what the paper's protocol found."""
        models = {"defended": self.subject.defended, "baseline": self.subject.model.classifier}
        names = {"defended": "defended", "baseline": "undefended"}
        return {
            names[name]: run_suite(
                model,
                self.x,
                self.y,
                **self._threat,
                budget=None,
                known_points={_PAPER: self.subject.paper[name]["points"]},
                say=self.say,
            )
            for name, model in models.items()
        }

    def _suites(self, budget: Budget) -> dict[str, SuiteResult]:
        defended, plain = self.subject.defended, self.subject.model.classifier
        points = {name: found["points"] for name, found in self.subject.paper.items()}
        suites = {
            "defended": self._attack(
                "the defended model",
                defended,
                budget,
                transfer_from={"the undefended": plain},
                known_points={_PAPER: points["defended"]},
            ),
            "undefended": self._attack(
                "the undefended model", plain, budget, known_points={_PAPER: points["baseline"]}
            ),
        }
        if isinstance(defended, DefendedClassifier):
            noisy = NoiseOnly(defended)
            suites["noise only"] = self._attack("plain noise without the denoiser", noisy, _LIGHT)
            linear = LinearDenoiser(self.subject.x["train"], defended.classifier)
            suites["linear denoiser"] = self._attack("a linear denoiser", linear, _LIGHT)
        trained = self._adversarially_trained()
        if trained is not defended:
            suites["adversarially trained"] = self._attack(
                "an adversarially trained classifier of the same size", trained, budget
            )
        return suites

    def _attack(self, what: str, model: nn.Module, budget: Budget, **known: Any) -> SuiteResult:
        self.say(f"attacking {what}")
        model.eval()
        return run_suite(
            model, self.x, self.y, **self._threat, budget=budget, say=self.say, **known
        )

    def _adversarially_trained(self) -> FeatureCNN:
        """Return the defence's classifier if it is such a one, else one that is trained here."""
        model, settings = self.subject.model, self.subject.model.defence
        own = model.robust_classifier
        if own is not None and settings.kind.startswith("adversarial"):
            return own
        return train_adversarially(
            self.subject.x,
            self.subject.y,
            replace(PRESETS["robust"].defence, train_eps=self.subject.attack_eps),
            norm=self.subject.norm,
            n_classes=len(model.label_names),
            seed=self.seed,
            device=self.x.device,
        ).model

    def _target(self) -> nn.Module:
        """Return what the strongest attack climbs."""
        defended = self.subject.defended
        if isinstance(defended, DefendedClassifier) and self.effort.suite is not None:
            return surrogate(defended, self.effort.suite.surrogate_draws)
        return defended

    def _curves(self) -> dict[str, Any]:
        attacker = curves.Attacker(
            model=self.subject.defended,
            target=self._target(),
            x=self.x,
            y=self.y,
            **self._threat,
        )
        effort, n_iter = self.effort, self.effort.curve_iter
        return {
            "eps": curves.eps_curve(attacker, effort.eps, n_iter=n_iter),
            "steps": curves.step_curve(attacker, effort.n_iter),
            "restarts": curves.restart_curve(attacker, effort.n_restarts, n_iter=n_iter),
            "eot": curves.eot_curve(attacker, effort.eot_iter, n_iter=n_iter),
        }

    def _gradients(self) -> dict[str, Any]:
        model = self.subject.defended
        found = checks.gradient_check(model, self.x, self.y)
        if self.is_random:
            found["agreement"] = curves.gradient_agreement(
                model, self.x, self.y, self.effort.eot_iter, seed=self.seed
            )
        return found

    def _counts_at_zero(self) -> dict[str, float]:
        """AutoAttack's own count where the ball has no room: what its single looks cost."""
        model = self.subject.defended
        result = run_autoattack(
            model, self.x, self.y, attack_eps=_TINY_EPS, norm=self.subject.norm, seed=self.seed,
            attacks=("apgd-ce",) if self.subject.norm == "L2" else ("apgd-ce", "square"),
            n_iter=20, n_restarts=5, n_queries=100,
        )  # fmt: skip
        return {"flags": float(result.robust_flags.float().mean())}

    def _fixed_noise(self) -> float | None:
        defended = self.subject.defended
        if not isinstance(defended, DefendedClassifier):
            return None
        known = FixedNoise(defended, self.seed).eval()
        points = vector_apgd(
            known,
            self.x,
            self.y,
            attack_eps=self.subject.attack_eps,
            norm=self.subject.norm,
            n_restarts=2,
            seed=self.seed,
        )
        with torch.no_grad():
            # A batch keeps its order: each row meets the noise that was attacked.
            right = (known(points).argmax(1) == self.y) & (known(self.x).argmax(1) == self.y)
        return float(right.float().mean())

    def _transfer_back(self, defended: SuiteResult) -> float:
        with torch.no_grad():
            answers = self.subject.model.classifier(defended.worst_points).argmax(1)
        return float((answers == self.y).float().mean())

    def _certificates(self) -> dict[str, Certificate]:
        model, purifier = self.subject.model, self.subject.model.purifier
        if len(purifier.timesteps) != 1:
            return {}
        self.say("certifying by randomised smoothing")
        options: dict[str, Any] = {"n_estimation": self.effort.n_estimation, "seed": self.seed}
        base = model.robust_classifier or model.classifier
        smoothed = certify(DefendedClassifier(purifier, base), self.x, self.y.cpu(), **options)
        plain = certify(base, self.x, self.y.cpu(), sigma=smoothed.sigma, **options)
        return {"denoised": smoothed, "plain noise": plain}

    def _pixels(self, images: Tensor) -> PixelAttack:
        shape = (len(self.x), self.subject.model.extractor.components.shape[1])
        if tuple(images.shape) != shape:
            raise ValueError(
                f"images must have shape {shape}, the test images of the run; got"
                f" {tuple(images.shape)}"
            )
        self.say("attacking pixels, end to end")
        return attack_pixels(
            self.subject.model,
            images,
            self.y,
            eps_255=self.effort.pixel_eps_255,
            n_iter=self.effort.pixel_iter,
            n_restarts=self.effort.pixel_restarts,
            surrogate_draws=64,
            seed=self.seed,
            evaluation_seed=self.evaluation_seed,
        )
