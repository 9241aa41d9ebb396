"""The twenty points of an honest evaluation, each with what was found or "not run"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nnmf_cuda import __version__
from nnmf_cuda.attacks import SuiteResult
from nnmf_cuda.evaluation import bootstrap_interval, majority_class_accuracy, wilson_interval
from nnmf_cuda.models import DefendedClassifier
from nnmf_cuda.pipeline.robustness.subject import Subject

if TYPE_CHECKING:
    from nnmf_cuda.pipeline.robustness.evaluation import Findings

__all__ = ["NOT_RUN", "POINT_NAMES", "answer_points"]

NOT_RUN = "not run"

POINT_NAMES = (
    "Threat model",
    "Box",
    "Layout",
    "Classes and losses",
    "Success counted four ways",
    "Gradient",
    "Expectation over transformation",
    "Steps and restarts",
    "Sweep of eps",
    "Black box against white box",
    "Transfer",
    "Fixed noise",
    "Attacks on the purifier",
    "Baselines",
    "Planted direction",
    "Sample size",
    "AutoAttack's own checks",
    "Leakage",
    "Certificate",
    "Record",
)
"""What each point is about, from 1 on."""


def answer_points(subject: Subject, findings: Findings, *, preset: str) -> dict[str, Any]:
    """Return the content of `robustness.json`."""
    writer = _Points(subject, findings)
    values = [getattr(writer, f"point_{i}")() for i in range(1, len(POINT_NAMES) + 1)]
    points = [
        {"id": i, "name": name, "value": NOT_RUN if value is None else value}
        for i, (name, value) in enumerate(zip(POINT_NAMES, values, strict=True), start=1)
    ]
    suite = findings.suites["defended"]
    worst, constant = suite.worst_case_accuracy, writer.constant
    low, high = wilson_interval(worst * writer.n, writer.n)
    return {
        "worst_case_accuracy": worst,
        "worst_case_interval": [low, high],
        "all_right_accuracy": suite.all_right_accuracy,
        "clean_accuracy": suite.outcomes[0].accuracies["majority"],
        "constant_answer_accuracy": constant,
        "verdict": verdict(worst, low, high, constant),
        "paper_protocol": writer.paper_protocol(),
        "preset": preset,
        "threat_model": writer.threat_model(),
        "points": points,
        "attacks": attack_lines(suite),
        "others": {
            name: {
                "clean_accuracy": other.outcomes[0].accuracies["majority"],
                "worst_case_accuracy": other.worst_case_accuracy,
                "attacks": attack_lines(other),
            }
            for name, other in findings.suites.items()
            if name != "defended"
        },
        "seconds": findings.seconds,
    }


def verdict(worst: float, low: float, high: float, constant: float) -> str:
    """Say how the worst case stands to the constant answer."""
    figures = f"{worst:.4f} (95 % interval {low:.3f}-{high:.3f})"
    if low > constant:
        return f"The worst case, {figures}, beats the constant answer, {constant:.4f}."
    if high < constant:
        return f"The worst case, {figures}, is below the constant answer, {constant:.4f}."
    return (
        f"The worst case, {figures}, does not beat the constant answer, {constant:.4f}: the"
        " interval holds it."
    )


def attack_lines(suite: SuiteResult) -> list[dict[str, Any]]:
    """Return a line for each attack, "clean" first."""
    return [
        {"name": outcome.name, **outcome.accuracies, "seconds": outcome.seconds}
        for outcome in suite.outcomes
    ]


class _Points:
    """Answers the points; a method returns None where it was not run."""

    def __init__(self, subject: Subject, findings: Findings) -> None:
        self.subject, self.found = subject, findings
        self.suite = findings.suites["defended"]
        self.x, self.y = subject.test
        self.n = len(self.y)
        self.constant = majority_class_accuracy(self.y.cpu().numpy())
        self.attacked = {o.name: o.accuracies["majority"] for o in self.suite.outcomes}

    @property
    def is_purifying(self) -> bool:
        return isinstance(self.subject.defended, DefendedClassifier)

    @property
    def ran_suite(self) -> bool:
        return self.found.curves is not None

    def threat_model(self) -> dict[str, Any]:
        noise = "fresh at every decision, unknown to the attacker" if self.is_purifying else "none"
        return {
            "space": "selected, L2-normalised NNMF features",
            "norm": self.subject.norm,
            "attack_eps": self.subject.attack_eps,
            "box": [0.0, 1.0],
            "noise": noise,
            "knowledge": "white box: weights, purifier and schedule",
            "robust_if": "on the point of every attack the majority of 20 fresh decisions is right"
            if self.is_purifying
            else "on the point of every attack the answer is right",
        }

    def paper_protocol(self) -> dict[str, Any]:
        """Return the reproduction's row, for reading beside the worst case."""
        rows = self.subject.findings["rows"]
        return {
            "name": "APGD-CE + Square, AutoAttack's custom version",
            "robust_baseline": rows["Robust_Baseline"]["accuracy"],
            "robust_defended": rows["Robust_Defended"]["accuracy"],
        }

    def point_1(self) -> dict[str, Any]:
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

    def point_2(self) -> dict[str, Any]:
        order = float("inf") if self.subject.norm == "Linf" else 2.0
        moves = [float((o.points - self.x).norm(p=order, dim=1).max()) for o in self.suite.outcomes]
        clean = self.subject.x["test"]
        return {
            "lowest": float(clean.min()),
            "highest": float(clean.max()),
            "largest_move": max(moves),
            "attack_eps": self.subject.attack_eps,
        }

    def point_3(self) -> dict[str, Any]:
        value = {"the paper's protocol": self.subject.findings["attacks"]["defended"]["layout"]}
        if self.ran_suite:
            value["adaptive suite"] = "none: vectors; Square chooses among all features"
        return value

    def point_4(self) -> dict[str, Any]:
        n_classes = len(self.subject.model.label_names)
        return {
            "n_classes": n_classes,
            "dlr": "run" if n_classes > 2 else "does not exist for two classes: margin instead",
            "autoattack_standard": "does not exist for two classes" if n_classes < 3 else NOT_RUN,
            "attacks": [name for name in self.attacked if name != "clean"],
        }

    def point_5(self) -> dict[str, Any]:
        clean, last = self.suite.outcomes[0], self._named("the paper's protocol")
        flags = self.subject.paper["defended"]["flags"]
        zero = self.found.counts_at_zero
        low, high = wilson_interval(last.accuracies["fresh"] * self.n, self.n)
        return {
            "the paper's protocol": {
                "flags": float(flags.float().mean()),
                **last.accuracies,
                "fresh_interval": [low, high],
            },
            "at eps 0": {
                "flags": NOT_RUN if zero is None else zero["flags"],
                **clean.accuracies,
            },
            "worst case": {
                "majority": self.suite.worst_case_accuracy,
                "all": self.suite.all_right_accuracy,
            },
        }

    def point_6(self) -> dict[str, Any] | None:
        if self.found.gradients is None:
            return None
        bpda = self.attacked.get("APGD-margin, BPDA identity", NOT_RUN)
        return {
            **{name: v for name, v in self.found.gradients.items() if name != "agreement"},
            "bpda_identity": bpda,
        }

    def point_7(self) -> dict[str, Any] | None:
        if self.found.curves is None or self.found.gradients is None:
            return None
        value = dict(self.found.curves["eot"])
        if "agreement" in self.found.gradients:
            value["cosine_of_two_gradients"] = self.found.gradients["agreement"]["cosine"]
        if self.is_purifying:
            value["draws_of_the_defence"] = self.subject.model.purifier.n_draws
        return value

    def point_8(self) -> dict[str, Any] | None:
        if self.found.curves is None:
            return None
        steps, restarts = self.found.curves["steps"], self.found.curves["restarts"]
        return {
            "steps": steps,
            "restarts": restarts,
            "converged": steps["converged"] and restarts["converged"],
        }

    def point_9(self) -> dict[str, Any] | None:
        return None if self.found.curves is None else dict(self.found.curves["eps"])

    def point_10(self) -> dict[str, Any] | None:
        square = [v for name, v in self.attacked.items() if name.startswith("Square")]
        white = [v for name, v in self.attacked.items() if name.startswith(("APGD", "PGD"))]
        if not square or not white:
            return None
        transfer = [v for name, v in self.attacked.items() if name.startswith("transfer")]
        black = min(square + transfer)
        return {
            "black_box": black,
            "white_box": min(white),
            "black_box_is_stronger": black < min(white) - 0.002,
        }

    def point_11(self) -> dict[str, Any] | None:
        to = {n: v for n, v in self.attacked.items() if n.startswith("transfer")}
        if self.found.transfer_back is None:
            return None
        return {**to, "back to the undefended": self.found.transfer_back}

    def point_12(self) -> dict[str, Any] | None:
        if self.found.fixed_noise is None:
            return {"note": "the defence has no noise"} if self.ran_suite else None
        return {"robust_accuracy": self.found.fixed_noise}

    def point_13(self) -> dict[str, Any] | None:
        if not self.ran_suite:
            return None
        if not self.is_purifying:
            return {"note": "there is no purifier"}
        starts = ("APGD on the purifier's", "APGD-margin, BPDA", "APGD-margin, selective")
        is_chain = len(self.subject.model.purifier.timesteps) > 1
        return {
            **{name: v for name, v in self.attacked.items() if name.startswith(starts)},
            "margin of the label": min(v for n, v in self.attacked.items() if "margin" in n),
            **({} if is_chain else {"loss at every step of a chain": "one step only"}),
        }

    def point_14(self) -> dict[str, Any] | None:
        if not self.ran_suite:
            return None
        value = {
            name: {
                "clean": suite.outcomes[0].accuracies["majority"],
                "worst_case": suite.worst_case_accuracy,
            }
            for name, suite in self.found.suites.items()
        }
        return {**value, "constant answer": self.constant}

    def point_15(self) -> dict[str, Any] | None:
        return None if self.found.planted is None else dict(self.found.planted)

    def point_16(self) -> dict[str, Any]:
        robust = self.suite.robust.cpu().numpy()
        low, high = wilson_interval(float(robust.sum()), self.n)
        value: dict[str, Any] = {"n": self.n, "wilson_95": [low, high], "seeds": 1}
        if self.subject.groups is not None:
            found = _cluster_interval(
                robust, self.y.cpu().numpy(), self.subject.groups, self.subject.seed
            )
            value[f"bootstrap_95_by_{self.subject.groups_name}"] = found
        return value

    def point_17(self) -> dict[str, Any]:
        attacks = self.subject.findings["attacks"]
        return {name: found["warnings"] or "no warning" for name, found in attacks.items()}

    def point_18(self) -> Any:
        return self.subject.findings.get("audit")

    def point_19(self) -> dict[str, Any] | None:
        if not self.found.certificates:
            return None
        left_out = ("predictions", "radii")
        return {
            name: {
                **{k: v for k, v in found.as_dict().items() if k not in left_out},
                "certified_at_attack_eps": float(
                    found.certified_accuracy_linf(self.subject.attack_eps)
                ),
            }
            for name, found in self.found.certificates.items()
        }

    def point_20(self) -> dict[str, Any]:
        return {
            "seed": self.subject.seed,
            "nnmf_cuda": __version__,
            "torch": torch.__version__,
            "device": str(self.x.device),
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "model_calls": self.found.n_calls,
            "rows_asked": self.found.n_rows,
            "seconds": self.found.seconds,
            "points": "robustness.npz",
        }

    def _named(self, name: str) -> Any:
        return next(outcome for outcome in self.suite.outcomes if outcome.name == name)


def _cluster_interval(right: Any, labels: Any, groups: Any, seed: int) -> list[float]:
    """Return the bootstrap interval of a share of right answers, over whole groups."""
    answers = np.where(right, labels, (labels + 1) % (labels.max() + 1))
    probabilities = np.eye(labels.max() + 1)[answers]
    found = bootstrap_interval(labels, probabilities, "accuracy", groups=groups, seed=seed)
    return [found.metrics["accuracy"].low, found.metrics["accuracy"].high]
