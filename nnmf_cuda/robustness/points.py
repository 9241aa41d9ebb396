"""The twenty points of an honest evaluation, each with what was found or "not run"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from nnmf_cuda.attacks import AttackKind, SuiteResult
from nnmf_cuda.attacks.objectives import N_DECISIONS
from nnmf_cuda.evaluation import Certificate, wilson_interval
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.pipeline.environment import describe_environment
from nnmf_cuda.robustness.budgets import Effort
from nnmf_cuda.robustness.pixels import PixelAttack
from nnmf_cuda.robustness.saved_run import Subject
from nnmf_cuda.robustness.verdict import Standing, cautions, standing_of, verdict

__all__ = ["Findings", "NOT_RUN", "PAPER", "POINTS", "answer_points"]


NOT_RUN = "not run"

PAPER = "the paper's protocol"
"""Name of what the run's own attack has found."""


def answer_points(subject: Subject, findings: Findings, *, preset: str) -> dict[str, Any]:
    """Return the content of `robustness.json`."""
    writer = _Points(subject, findings)
    values = {i: answer(writer) for i, (_, answer) in enumerate(POINTS, start=1)}
    suite, others = findings.suites["defended"], dict(findings.suites)
    del others["defended"]
    stands = writer.standing
    return {
        "worst_case_accuracy": suite.worst_case_accuracy,
        "worst_case_interval": [stands.low, stands.high],
        "worst_case_interval_by": stands.drawn,
        "worst_case_rounds": writer.rounds(),
        "all_right_accuracy": suite.all_right_accuracy,
        "clean_accuracy": suite.outcomes[0].accuracies["majority"],
        "constant_answer_accuracy": stands.constant,
        "verdict": verdict(stands, is_worst_case=writer.ran_suite),
        "warnings": cautions(values),
        "paper_protocol": writer.paper_protocol(),
        "preset": preset,
        "about": writer.about(preset),
        "threat_model": writer.threat_model(),
        "points": [
            {"id": i, "name": name, "value": NOT_RUN if values[i] is None else values[i]}
            for i, (name, _) in enumerate(POINTS, start=1)
        ],
        "attacks": attack_lines(suite),
        "others": {name: other_line(other) for name, other in others.items()},
        "others_notes": writer.notes_on_others(),
        "worst_points": findings.worst_points,
        "seconds": findings.seconds,
    }


def attack_lines(suite: SuiteResult) -> list[dict[str, Any]]:
    """Return a line for each attack, "clean" first."""
    return [
        {"name": outcome.name, **outcome.accuracies, "seconds": outcome.seconds}
        for outcome in suite.outcomes
    ]


def other_line(suite: SuiteResult) -> dict[str, Any]:
    """Return what is said of a model that stands beside the defence."""
    return {
        "clean_accuracy": suite.outcomes[0].accuracies["majority"],
        "worst_case_accuracy": suite.worst_case_accuracy,
        "attacks": attack_lines(suite),
    }


class _Points:
    """Answers the points; a method returns None where it was not run."""

    def __init__(self, subject: Subject, findings: Findings) -> None:
        self.subject, self.found = subject, findings
        self.suite = findings.suites["defended"]
        self.x, self.y = subject.test
        self.n = len(self.y)
        self.attacked = {o.name: o.accuracies["majority"] for o in self.suite.outcomes}
        self.standing: Standing = standing_of(
            self.suite.robust_share.cpu().numpy(),
            self.y.cpu().numpy(),
            groupings=subject.groupings,
            seed=subject.seed,
        )

    @property
    def is_purifying(self) -> bool:
        return isinstance(self.subject.defended, DefendedClassifier)

    @property
    def ran_suite(self) -> bool:
        return self.found.curves is not None

    def threat_model(self) -> dict[str, Any]:
        purifies = self.is_purifying
        return {
            "space": "selected, L2-normalised NNMF features",
            "norm": self.subject.norm,
            "attack_eps": self.subject.attack_eps,
            "box": [0.0, 1.0],
            "noise": "fresh at every decision, unknown to the attacker" if purifies else "none",
            "knowledge": "white box: weights, purifier and schedule"
            if purifies
            else "white box: weights",
            "robust_if": f"on the point of every attack the majority of {N_DECISIONS} fresh"
            " decisions is right"
            if purifies
            else "on the point of every attack the answer is right",
        }

    def about(self, preset: str) -> dict[str, Any]:
        """Return whose figures these are."""
        info = self.subject.model.info
        return {
            "source": info.get("source"),
            "synthetic": bool(info.get("synthetic")),
            "defence": self.subject.model.defence.kind,
            "preset": preset,
            "run_seed": self.subject.seed,
            "device": str(self.x.device),
            "threads": torch.get_num_threads(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        }

    def rounds(self) -> dict[str, Any]:
        """Return how far the worst case moves with the noise of the decisions alone."""
        found = self.suite.worst_case_accuracies
        return {
            "n": len(found),
            "std": float(found.std()) if len(found) > 1 else 0.0,
            "low": float(found.min()),
            "high": float(found.max()),
        }

    def notes_on_others(self) -> list[str]:
        """Return what must be known of the models that stand beside the defence."""
        if not self.ran_suite:
            return []
        notes = [
            "Noise only, the linear denoiser and the denoiser without noise stand before the"
            " defence's classifier, at the run's noise level; they are attacked with less effort"
            " than the defence, so their figures are rather too high."
        ]
        if "adversarially trained" not in self.found.suites:
            notes.append("The adversarially trained classifier is the defence itself.")
        return notes

    def paper_protocol(self) -> dict[str, Any]:
        """Return the reproduction's row, for reading beside the worst case."""
        rows = self.subject.findings["rows"]
        return {
            "name": "APGD-CE + Square, AutoAttack's custom version",
            "robust_baseline": rows["Robust_Baseline"]["accuracy"],
            "robust_defended": rows["Robust_Defended"]["accuracy"],
            "robust_defended_by_majority": self.attacked[PAPER],
        }

    def threat(self) -> dict[str, Any]:
        x, eps = self.subject.x["train"].float(), self.subject.attack_eps
        spans, stds = x.amax(0) - x.amin(0), x.std(0)
        pixels: Any = NOT_RUN
        if self.found.pixels is not None:
            pixels = self.found.pixels.curves
        return {
            **self.threat_model(),
            "eps_in_feature_ranges": (eps / spans.clamp_min(1e-9)).tolist(),
            "eps_in_feature_stds": (eps / stds.clamp_min(1e-9)).tolist(),
            "pixel_space": pixels,
        }

    def box(self) -> dict[str, Any]:
        order = float("inf") if self.subject.norm == "Linf" else 2.0
        moves = [float((o.points - self.x).norm(p=order, dim=1).max()) for o in self.suite.outcomes]
        clean = self.subject.x["test"]
        return {
            "lowest": float(clean.min()),
            "highest": float(clean.max()),
            "largest_move": max(moves),
            "attack_eps": self.subject.attack_eps,
        }

    def layout(self) -> dict[str, Any]:
        value = {PAPER: self.subject.findings["attacks"]["defended"]["layout"]}
        if self.ran_suite:
            value["adaptive suite"] = "none: vectors; Square chooses among all features"
        return value

    def classes(self) -> dict[str, Any]:
        n_classes = len(self.subject.model.label_names)
        dlr = "run" if self.ran_suite else NOT_RUN
        return {
            "n_classes": n_classes,
            "dlr": dlr if n_classes > 2 else "does not exist for two classes: margin instead",
            "autoattack_standard": "does not exist for two classes" if n_classes < 3 else NOT_RUN,
            "attacks": [name for name in self.attacked if name != "clean"],
        }

    def counts(self) -> dict[str, Any]:
        clean, last = self.suite.outcomes[0], self._named(PAPER)
        flags = self.subject.paper["defended"]["flags"]
        zero: Mapping[str, Any] = self.found.counts_at_zero or {"flags": NOT_RUN}
        low, high = wilson_interval(last.accuracies["fresh"] * self.n, self.n)
        return {
            PAPER: {
                "flags": float(flags.float().mean()),
                **last.accuracies,
                "fresh_interval": [low, high],
            },
            "at eps 0": {**zero, **clean.accuracies},
            "worst case": {
                "majority": self.suite.worst_case_accuracy,
                "all": self.suite.all_right_accuracy,
                "over rounds of decisions": self.rounds(),
            },
        }

    def gradient(self) -> dict[str, Any] | None:
        if self.found.gradients is None:
            return None
        bpda = next(
            iter(self.suite.where(lambda attack: attack.kind is AttackKind.BPDA).values()), NOT_RUN
        )
        return {
            **{name: v for name, v in self.found.gradients.items() if name != "agreement"},
            "bpda_identity": bpda,
        }

    def draws(self) -> dict[str, Any] | None:
        if self.found.curves is None or self.found.gradients is None:
            return None
        value = dict(self.found.curves["eot"])
        if "agreement" in self.found.gradients:
            value["cosine_of_two_gradients"] = self.found.gradients["agreement"]["cosine"]
        if self.is_purifying:
            value["draws_of_the_defence"] = self.subject.model.purifier.n_draws
        return value

    def steps(self) -> dict[str, Any] | None:
        if self.found.curves is None:
            return None
        steps, restarts = self.found.curves["steps"], self.found.curves["restarts"]
        return {
            "steps": steps,
            "restarts": restarts,
            "converged": steps["converged"] and restarts["converged"],
        }

    def sweep(self) -> dict[str, Any] | None:
        return None if self.found.curves is None else dict(self.found.curves["eps"])

    def black_box(self) -> dict[str, Any] | None:
        white = self.suite.where(lambda attack: attack.kind.is_white_box).values()
        if not white:
            return None
        black = min(self.suite.where(lambda attack: attack.kind.is_black_box).values())
        return {
            "black_box": black,
            "white_box": min(white),
            "black_box_is_stronger": black < min(white) - 0.002,
        }

    def transfer(self) -> dict[str, Any] | None:
        to = self.suite.where(lambda attack: attack.kind is AttackKind.TRANSFER)
        if self.found.transfer_back is None:
            return None
        return {**to, "back to the undefended": self.found.transfer_back}

    def fixed_noise(self) -> dict[str, Any] | None:
        if self.found.fixed_noise is None:
            return {"note": "the defence has no noise"} if self.ran_suite else None
        return {"robust_accuracy": self.found.fixed_noise}

    def purifier(self) -> dict[str, Any] | None:
        if not self.ran_suite:
            return None
        if not self.is_purifying:
            return {"note": "there is no purifier"}
        kinds = (AttackKind.BPDA, AttackKind.PURIFIER)
        is_chain = len(self.subject.model.purifier.timesteps) > 1
        return {
            **self.suite.where(lambda attack: attack.kind in kinds),
            "margin of the label": min(
                self.suite.where(lambda attack: attack.loss == "margin").values()
            ),
            **({} if is_chain else {"loss at every step of a chain": "one step only"}),
        }

    def baselines(self) -> dict[str, Any] | None:
        if not self.ran_suite:
            return None
        value = {
            name: {
                "clean": suite.outcomes[0].accuracies["majority"],
                "worst_case": suite.worst_case_accuracy,
            }
            for name, suite in self.found.suites.items()
        }
        return {**value, "constant answer": self.standing.constant}

    def planted(self) -> dict[str, Any] | None:
        return None if self.found.planted is None else dict(self.found.planted)

    def sample_size(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "worst_case_less_constant_answer": asdict(self.standing.less_constant),
            "interval_95": [self.standing.low, self.standing.high],
            "method": self.standing.method,
            "drawn_as_a_whole": self.standing.drawn,
            "seeds_of_training": "one; run --seeds trains several",
        }

    def autoattack_checks(self) -> dict[str, Any]:
        attacks = self.subject.findings["attacks"]
        return {name: found["warnings"] or "no warning" for name, found in attacks.items()}

    def leakage(self) -> Any:
        return self.subject.findings.get("audit")

    def certificate(self) -> dict[str, Any] | None:
        if not self.found.certificates:
            return None
        t = int(self.subject.model.purifier.timesteps[0])
        before = {
            "denoised": f"one draw of noise at t = {t} and the denoiser",
            "plain noise": "plain noise of the same level",
        }
        return {
            name: {
                "certifies": f"hard votes of the defence's classifier behind {before[name]}, which"
                " is not the evaluated defence",
                **{k: v for k, v in found.as_dict().items() if k not in ("predictions", "radii")},
                "certified_at_attack_eps": float(self._certified(found)),
            }
            for name, found in self.found.certificates.items()
        }

    def _certified(self, found: Certificate) -> float:
        eps, is_linf = self.subject.attack_eps, self.subject.norm == "Linf"
        share = found.certified_accuracy_linf(eps) if is_linf else found.certified_accuracy(eps)
        return float(share)

    def record(self) -> dict[str, Any]:
        environment = describe_environment(
            self.x.device, data_sha256=str(self.subject.model.info.get("data_sha256"))
        )
        effort = asdict(self.found.effort)
        return {
            "seed": self.subject.seed,
            "evaluation_seed": self.found.evaluation_seed,
            "effort": effort,
            "model_calls": self.found.n_calls,
            "rows_asked": self.found.n_rows,
            "seconds": self.found.seconds,
            "points": "robustness.npz",
            "environment": {k: v for k, v in environment.items() if k not in ("ops", "extension")},
        }

    def _named(self, name: str) -> Any:
        return next(outcome for outcome in self.suite.outcomes if outcome.name == name)


POINTS: tuple[tuple[str, Callable[[_Points], Any]], ...] = (
    ("Threat model", _Points.threat),
    ("Box", _Points.box),
    ("Layout", _Points.layout),
    ("Classes and losses", _Points.classes),
    ("Success counted four ways", _Points.counts),
    ("Gradient", _Points.gradient),
    ("Expectation over transformation", _Points.draws),
    ("Steps and restarts", _Points.steps),
    ("Sweep of eps", _Points.sweep),
    ("Black box against white box", _Points.black_box),
    ("Transfer", _Points.transfer),
    ("Fixed noise", _Points.fixed_noise),
    ("Attacks on the purifier", _Points.purifier),
    ("Baselines", _Points.baselines),
    ("Planted weakness", _Points.planted),
    ("Sample size", _Points.sample_size),
    ("AutoAttack's own checks", _Points.autoattack_checks),
    ("Leakage", _Points.leakage),
    ("Certificate", _Points.certificate),
    ("Record", _Points.record),
)
"""What each point is about, from 1 on, and what answers it."""


# What an evaluation has measured, before it is put into words.


@dataclass(frozen=True)
class Findings:
    """What was measured; None where it was not run.

    Attributes
    ----------
    effort : Effort
        What was spent.
    evaluation_seed : int
        Of the decisions.
    suites : mapping of str to SuiteResult
        By model: "defended", "undefended", and where attacked the simpler defences and
        "adversarially trained".
    curves, gradients, planted, counts_at_zero : mapping or None
        See `nnmf_cuda.robustness.diagnostics` and `checks`.
    worst_points : mapping or None
        Rows of nine metrics, with their intervals, comparisons and calibration, on the worst point
        of every sample, as `metrics.json` holds them of the paper's protocol.
    fixed_noise, transfer_back : float or None
        Robust accuracy where the attacker knows the noise; of the undefended model under the
        defence's worst points.
    certificates : mapping of str to Certificate
    pixels : PixelAttack or None
    seconds : float
    n_calls, n_rows : int
        Calls of the defence and its surrogates by the suite, and rows that they were asked about.
    """

    effort: Effort
    evaluation_seed: int
    suites: Mapping[str, SuiteResult]
    curves: Mapping[str, Any] | None
    gradients: Mapping[str, Any] | None
    planted: Mapping[str, float] | None
    counts_at_zero: Mapping[str, float] | None
    worst_points: Mapping[str, Any] | None
    fixed_noise: float | None
    transfer_back: float | None
    certificates: Mapping[str, Certificate]
    pixels: PixelAttack | None
    seconds: float
    n_calls: int
    n_rows: int
