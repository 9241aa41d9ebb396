"""The whole evaluation: every attack, curve, check and certificate on one saved model."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
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
from nnmf_cuda.data import ImageDataset, load_dataset
from nnmf_cuda.evaluation import Certificate, certify, evaluate_rows, measure_uncertainty
from nnmf_cuda.evaluation.seeds import Purpose, seed_word
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.modes import isolated
from nnmf_cuda.models.networks import FeatureCNN
from nnmf_cuda.pipeline.artifacts import TrainedModel
from nnmf_cuda.pipeline.config import PRESETS
from nnmf_cuda.pipeline.defences import train_adversarially
from nnmf_cuda.pipeline.run_directory import write_text
from nnmf_cuda.robustness import diagnostics as checks
from nnmf_cuda.robustness import diagnostics as curves
from nnmf_cuda.robustness.baselines import LinearDenoiser, NoiseOnly, WithoutNoise
from nnmf_cuda.robustness.budgets import EFFORTS, LIGHT, Effort
from nnmf_cuda.robustness.pixels import PixelAttack, attack_pixels
from nnmf_cuda.robustness.points import PAPER, Findings, answer_points
from nnmf_cuda.robustness.saved_run import Subject

__all__ = ["Robustness", "evaluate_robustness", "pixels_of_test", "test_images", "write_results"]


_TINY_EPS = 1e-9
"""A ball without room: what an attack still "finds" in it is noise."""


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
    def examples(self) -> Mapping[str, Any] | None:
        """Images of the attack on pixels, and their titles, where it was run."""
        pixels = self.findings.pixels
        return None if pixels is None else pixels.examples

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the attacked features of every attack on the defence, for others to test again."""
        outcomes = self.findings.suites["defended"].outcomes
        return {
            "names": np.array([outcome.name for outcome in outcomes]),
            "points": np.stack([outcome.points.float().cpu().numpy() for outcome in outcomes]),
            "right": np.stack(
                [outcome.right.float().mean((0, 1)).cpu().numpy() for outcome in outcomes]
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
    found = _Evaluation(subject, effort or EFFORTS[preset], say).run(images)
    findings = Findings(**found, seconds=time.perf_counter() - started)
    return Robustness(answer_points(subject, findings, preset=preset), findings)


class _Evaluation:
    def __init__(self, subject: Subject, effort: Effort, say: Callable[[str], object]) -> None:
        self.subject, self.effort, self.say = subject, effort, say
        self.x, self.y = subject.test
        self.seed = subject.seed
        self.evaluation_seed = seed_word(subject.seed, Purpose.DECISIONS)
        subject.defended.eval()
        with isolated(self.seed):
            self.is_random = is_random(subject.defended, self.x)

    def run(self, images: Tensor | None) -> dict[str, Any]:
        found: dict[str, Any] = {
            "effort": self.effort,
            "evaluation_seed": self.evaluation_seed,
            "pixels": None if images is None else self._pixels(images),
        }
        if self.effort.suite is None:
            parts = ("curves", "gradients", "planted", "counts_at_zero", "worst_points")
            nothing = dict.fromkeys((*parts, "fixed_noise", "transfer_back"))
            found |= {**nothing, "suites": self._counted_again(), "certificates": {}}
            return {**found, "n_calls": 0, "n_rows": 0}  # no attack was run
        suites = self._suites(self.effort.suite)
        found |= {"suites": suites, **asdict(suites["defended"].calls)}
        self.say("curves against eps, steps, restarts and draws")
        found |= {"curves": self._curves(), "gradients": self._gradients()}
        self.say("a copy of the defence with a known weakness")
        found["planted"] = checks.planted_points(
            self.subject.defended, self.x, **self._threat, budget=LIGHT
        )
        self.say("counting at eps 0, on the worst points, with known noise")
        return {
            **found,
            "counts_at_zero": self._counts_at_zero(),
            "worst_points": self._rows_on_worst_points(suites),
            "fixed_noise": self._fixed_noise(),
            "transfer_back": self._transfer_back(suites["defended"]),
            "certificates": self._certificates(),
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
            names[name]: self._attack(
                f"nothing, but counting what was found on the {names[name]} model",
                model,
                None,
                known_points={PAPER: self.subject.paper[name]["points"]},
            )
            for name, model in models.items()
        }

    def _suites(self, budget: Budget) -> dict[str, SuiteResult]:
        defended, plain = self.subject.defended, self.subject.model.classifier
        points = {name: found["points"] for name, found in self.subject.paper.items()}
        of_defended = self._attack(
            "the defended model",
            defended,
            budget,
            transfer_from={"the undefended": plain},
            known_points={PAPER: points["defended"]},
        )
        of_plain = self._attack(
            "the undefended model", plain, budget, known_points={PAPER: points["baseline"]}
        )
        suites = {"defended": of_defended, "undefended": of_plain}
        for name, simpler in self._simpler_defences().items():
            suites[name] = self._attack(f"a simpler defence: {name}", simpler, LIGHT)
        trained = self._adversarially_trained()
        if trained is not defended:
            suites["adversarially trained"] = self._attack(
                "an adversarially trained classifier of the same size", trained, budget
            )
        return suites

    def _attack(
        self, what: str, model: nn.Module, budget: Budget | None, **known: Any
    ) -> SuiteResult:
        self.say(f"attacking {what}")
        model.eval()
        return run_suite(
            model, self.x, self.y, **self._threat, budget=budget, say=self.say, **known
        )

    def _simpler_defences(self) -> dict[str, nn.Module]:
        """Return what is put before the defence's classifier, at the noise level of the run."""
        behind = self._purified_classifier()
        return {
            "noise only": NoiseOnly(behind),
            "linear denoiser": LinearDenoiser(behind, self.subject.x["train"]),
            "denoiser without noise": WithoutNoise(behind),
        }

    def _purified_classifier(self) -> DefendedClassifier:
        """Return the defence's classifier behind the run's purifier, whether it defends or not."""
        model = self.subject.model
        return DefendedClassifier(model.purifier, model.robust_classifier or model.classifier)

    def _adversarially_trained(self) -> FeatureCNN:
        """Return the defence's classifier if it is such a one, else one that is trained here."""
        model, settings = self.subject.model, self.subject.model.defence
        own = model.robust_classifier
        if own is not None and settings.kind.startswith("adversarial"):
            return own
        self.say("training an adversarially trained classifier of the same size")
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
            "eps": curves.eps_curve(attacker, effort.attack_eps, n_iter=n_iter),
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
        """Count by AutoAttack's flags where the ball has no room: what its single looks cost."""
        run = self.subject.findings["attacks"]["defended"]
        names = ("attacks", "norm", "n_iter", "n_restarts", "n_queries", "eot_iter", "batch_size")
        settings = {name: run[name] for name in names}
        result = run_autoattack(
            self.subject.defended, self.x, self.y, attack_eps=_TINY_EPS, seed=self.seed, **settings
        )
        return {"flags": float(result.robust_flags.float().mean())}

    def _rows_on_worst_points(self, suites: Mapping[str, SuiteResult]) -> dict[str, Any]:
        """Return the nine metrics where every sample is at its worst point."""
        rows = evaluate_rows(
            self.subject.model.classifier,
            self.subject.defended,
            self.x,
            suites["undefended"].worst_points,
            suites["defended"].worst_points,
            self.y.cpu().numpy(),
            seed=seed_word(self.seed, Purpose.WORST_POINTS),
            random=isinstance(self.subject.defended, DefendedClassifier),
        )
        uncertainty = measure_uncertainty(rows, groupings=self.subject.groupings, seed=self.seed)
        return {
            "rows": {name: row.as_dict() for name, row in rows.rows.items()},
            "spread": rows.spread,
            **uncertainty.as_dict(),
        }

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
        """Certify the defence's classifier behind one draw of noise, denoised and as it is."""
        behind = self._purified_classifier()
        if len(behind.purifier.timesteps) != 1:
            return {}
        self.say("certifying by randomised smoothing")
        options: dict[str, Any] = {"n_estimation": self.effort.n_estimation, "seed": self.seed}
        smoothed = certify(behind, self.x, self.y.cpu(), **options)
        plain = certify(behind.classifier, self.x, self.y.cpu(), sigma=smoothed.sigma, **options)
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
            budget=self.effort.pixels,
            seed=self.seed,
            evaluation_seed=self.evaluation_seed,
        )


# What an evaluation writes beside a run, and the images that it attacks.


def test_images(home: Path, data: str | None, subject: Subject) -> Tensor:
    """Return the run's test images (n, height * width) in [0, 1], on the model's device.

    `data` is a path, or None for the built-in phantom.

    Raises
    ------
    ValueError
        If the images are not those of the run.
    """
    settings: dict[str, Any] = subject.model.info.get("data", {})
    names = ("classes", "label_key", "split_by", "test_fold")
    dataset = load_dataset(
        data,
        seed=subject.seed,
        image_shape=subject.model.image_shape,
        **{name: settings[name] for name in names if name in settings},
    )
    if dataset.sha256() != subject.model.info["data_sha256"]:
        raise ValueError(
            f"--data {data} does not hold the images, labels and split that the model in {home} was"
            f" trained and tested on ({subject.model.info['source']}): give the same data"
        )
    return pixels_of_test(dataset, subject.model)


def pixels_of_test(dataset: ImageDataset, model: TrainedModel) -> Tensor:
    """Return the test images (n, height * width) in [0, 1], float32 on the model's device."""
    pixels = torch.from_numpy(dataset.matrix("test"))
    if pixels.dtype == torch.uint8:
        pixels = pixels.float() / 255
    return pixels.to(model.device, torch.float32)


def write_results(home: Path, result: Robustness, *, named: Path | None = None) -> dict[str, Path]:
    """Write `robustness.json`, `robustness.npz` and `robustness.html`; returns their paths.

    `named` is what the page calls the directory.
    """
    from nnmf_cuda.report.robustness import robustness_page

    page = robustness_page(result.content, examples=result.examples, home=named)
    texts = {"robustness.html": page, "robustness.json": json.dumps(result.content, indent=2)}
    arrays = home / "robustness.npz"
    partial = arrays.with_name(".robustness.partial.npz")
    np.savez(partial, **result.arrays())  # type: ignore[arg-type]
    os.replace(partial, arrays)
    for name, text in texts.items():
        write_text(home / name, text)
    return {
        "numbers": home / "robustness.json",
        "points": arrays,
        "page": home / "robustness.html",
    }
