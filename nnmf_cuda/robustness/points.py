"""The twenty points of an honest evaluation: of each its value, its sentence and its warnings.

A method of `_Points` makes one point whole, from what was measured; pages and JSON only show it.
All twenty stand in this one file, long as it is: nobody has to ask where a point is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import torch

from nnmf_cuda.attacks import Attack, AttackKind, SuiteResult
from nnmf_cuda.attacks.objectives import N_DECISIONS
from nnmf_cuda.evaluation import wilson_interval
from nnmf_cuda.evaluation.ceiling import Ceiling, ceiling
from nnmf_cuda.evaluation.headline import Headline, Proof
from nnmf_cuda.evaluation.robustness import (
    ADVERSARIALLY_TRAINED,
    NOT_RUN,
    PAPER_PROTOCOL,
    About,
    AttackLine,
    Certified,
    Curve,
    ModelLine,
    PaperProtocol,
    PixelAttack,
    Point,
    RobustnessReport,
    Rounds,
    State,
    ThreatModel,
    Verdict,
)
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.pipeline.environment import describe_environment
from nnmf_cuda.robustness.diagnostics import AdaptiveMeasurements, Measurements
from nnmf_cuda.robustness.saved_run import SavedRun
from nnmf_cuda.robustness.verification import BRANCH_AND_BOUND

_ENOUGH = 0.9
"""Share of the planted weaknesses that the attacks together, and those by gradients, must find."""

_TRUE_GRADIENT = 1e-3
"""Largest median error of a directional derivative, relative to the gradient's length."""

_NEAR_SHARE = 0.05
"""Share of test images with a near copy in training above which a figure asks for memory."""

_STRONGER = 0.002
"""A black box that leaves so much less than a white box shows that gradients are masked."""


def report_of(run: SavedRun, measured: Measurements, *, preset: str) -> RobustnessReport:
    """Put what was measured on a run, by the budget of that name, into words."""
    made = _Points(run, measured, preset)
    adaptive, others = measured.adaptive, dict(measured.suites)
    del others["defended"]
    return RobustnessReport(
        preset=preset,
        about=made.about,
        threat_model=made.threat_model,
        headline=made.headline,
        verdict=made.verdict,
        rounds=made.rounds,
        defence=_line(made.suite),
        all_right_accuracy=made.suite.all_right_accuracy,
        others={name: _line(suite) for name, suite in others.items()},
        others_notes=made.notes_on_others,
        paper_protocol=PaperProtocol(
            "APGD-CE + Square, AutoAttack's custom version",
            robust_baseline=run.paper["baseline"].accuracy,
            robust_defended=run.paper["defended"].accuracy,
            robust_defended_by_majority=made.by_paper["majority"],
        ),
        points=[_point(i, name, answer(made)) for i, (name, answer) in enumerate(_POINTS, start=1)],
        seconds=measured.seconds,
        curves=None if adaptive is None else adaptive.curves,
        pixels=measured.pixels,
        certificates=made.certified,
        fixed_noise=None if adaptive is None else adaptive.fixed_noise,
        worst_points=None if adaptive is None else adaptive.worst_points,
    )


def _line(suite: SuiteResult) -> ModelLine:
    lines = [AttackLine(o.name, **o.accuracies, seconds=o.seconds) for o in suite.outcomes]
    return ModelLine(lines[0].majority, suite.worst_case_accuracy, lines)


@dataclass(frozen=True)
class _Answer:
    """What a point says; `is_good` is None where there is nothing to judge.

    `shown` is what the page shows of `value` where that is not all of it.
    """

    value: Any
    figure: str = ""
    sentence: str = ""
    is_good: bool | None = None
    warnings: tuple[str, ...] = ()
    shown: Any = None
    missing: tuple[str, ...] = ()


def _point(number: int, name: str, answer: _Answer | None) -> Point:
    if answer is None:
        return Point(number, name)
    state = {None: State.PLAIN, True: State.GOOD, False: State.BAD}[answer.is_good]
    shown = answer.value if answer.shown is None else answer.shown
    texts = (answer.figure, answer.sentence, answer.warnings)
    return Point(number, name, answer.value, state, *texts, shown, answer.missing)


def _does_not_apply(note: str, **value: Any) -> _Answer:
    return _Answer({**value, "note": note}, sentence=f"Does not apply: {note}.")


def _not_converged(what: str, curve: Curve) -> Iterator[str]:
    if not curve.converged:
        before, last = curve.robust_accuracy[-2:]
        yield (
            f"The attack has not converged in {what}: robust accuracy goes from {before:.4f} to"
            f" {last:.4f} at the last increase, and more may find more."
        )


def _if_attacked(
    answer: Callable[[_Points, AdaptiveMeasurements], _Answer],
) -> Callable[[_Points], _Answer | None]:
    """Leave a point out where only the paper's protocol was counted."""
    return lambda points: None if points.adaptive is None else answer(points, points.adaptive)


class _Points:
    """Answers the points; a method returns None where its point was not run."""

    def __init__(self, run: SavedRun, measured: Measurements, preset: str) -> None:
        self.run, self.measured, self.preset = run, measured, preset
        self.adaptive, self.suite = measured.adaptive, measured.suites["defended"]
        self.x, self.y = run.test
        self.is_purifying = isinstance(run.defended, DefendedClassifier)
        self.worst_case = f"{self.suite.worst_case_accuracy:.3f}"
        by_name = {outcome.name: outcome.accuracies for outcome in self.suite.outcomes}
        self.by_paper, self.clean = by_name[PAPER_PROTOCOL], by_name["clean"]

    def under(self, belongs: Callable[[Attack], bool]) -> dict[str, float]:
        """Return the robust accuracy under each attack that belongs."""
        return self.suite.where(belongs)

    @cached_property
    def verdict(self) -> Verdict:
        return Verdict.of(
            self.suite.robust_share.cpu().numpy(),
            self.y.cpu().numpy(),
            groupings=self.run.groupings,
            seed=self.run.seed,
            is_worst_case=self.adaptive is not None,
        )

    @cached_property
    def ceiling(self) -> Ceiling:
        """What no classifier exceeds on the test features, within the attack's ball."""
        attack = self.run.attack
        return ceiling(self.x, self.y, attack.radius, attack.norm)

    @cached_property
    def proof(self) -> Proof:
        """What is proven of each sample, or certified where the defence is random."""
        if self.measured.verification is not None:
            return Proof(self.measured.verification.proven, BRANCH_AND_BOUND)
        if not self.is_purifying:
            return Proof(None, f"not verified by preset {self.preset}")
        why = "random answers have no proof"
        if not self.certified:
            return Proof(None, why)
        name, first = next(iter(self.certified.items()))
        attack = self.run.attack
        is_certified = first.certificate.holds_within(attack.radius, attack.norm)
        by = f"by smoothing, hard votes, {name}; {why}"
        return Proof(is_certified, by, is_of_defence=False)

    @cached_property
    def headline(self) -> Headline:
        clean = self.suite.outcomes[0].robust.double().mean(0)
        return Headline.of(
            self.suite.robust_share.cpu().numpy(),
            clean.cpu().numpy(),
            self.y.cpu().numpy(),
            self.proof,
            ceiling=self.ceiling.accuracy,
            is_worst_case=self.adaptive is not None,
        )

    @cached_property
    def threat_model(self) -> ThreatModel:
        attack, random = self.run.attack, self.is_purifying
        condition = "the answer is right"
        if random:
            condition = f"the majority of {N_DECISIONS} fresh decisions is right"
        return ThreatModel(
            norm=attack.norm,
            attack_eps=attack.radius,
            noise="fresh at every decision, unknown to the attacker" if random else "none",
            knowledge=f"white box: weights{', purifier and schedule' if random else ''}",
            robust_if=f"on the point of every attack {condition}",
            is_random=random,
        )

    @property
    def about(self) -> About:
        info = self.run.model.info
        return About(
            source=info.source,
            synthetic=info.synthetic,
            defence=self.run.model.defence.kind,
            preset=self.preset,
            run_seed=self.run.seed,
            device=str(self.x.device),
            threads=torch.get_num_threads(),
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )

    @cached_property
    def rounds(self) -> Rounds:
        found = self.suite.worst_case_accuracies
        std = float(found.std()) if len(found) > 1 else 0.0
        return Rounds(len(found), std, float(found.min()), float(found.max()))

    @property
    def notes_on_others(self) -> list[str]:
        """What must be known of the models that stand beside the defence."""
        if self.adaptive is None:
            return []
        notes = [
            "Noise only, the linear denoiser and the denoiser without noise stand before the"
            " defence's classifier, at the run's noise level; they are attacked with less effort"
            " than the defence, so their figures are rather too high."
        ]
        if ADVERSARIALLY_TRAINED not in self.measured.suites:
            notes.append("The adversarially trained classifier is the defence itself.")
        return notes

    @cached_property
    def certified(self) -> dict[str, Certified]:
        if self.adaptive is None or not self.adaptive.certificates:
            return {}
        t, attack = int(self.run.model.purifier.timesteps[0]), self.run.attack
        before = {
            "denoised": f"one draw of noise at t = {t} and the denoiser",
            "plain noise": "plain noise of the same level",
        }
        return {
            name: Certified(
                f"hard votes of the defence's classifier behind {before[name]}, which is not the"
                " evaluated defence",
                found,
                float(found.holds_within(attack.radius, attack.norm).mean()),
            )
            for name, found in self.adaptive.certificates.items()
        }

    def threat(self) -> _Answer:
        x, threat, pixels = self.run.x["train"].float(), self.threat_model, self.measured.pixels
        ranges, stds = (
            (threat.attack_eps / spread.clamp_min(1e-9)).tolist()
            for spread in (x.amax(0) - x.amin(0), x.std(0))
        )
        shown = {
            **threat.as_dict(),
            "eps_in_feature_ranges": ranges,
            "eps_in_feature_stds": stds,
        }
        return _Answer(
            {**shown, "pixel_space": NOT_RUN if pixels is None else pixels.as_dict()},
            f"{threat.attack_eps:g}",
            f"{threat.norm}: how far each feature may move in [0.0, 1.0], {min(ranges):.2f} to"
            f" {max(ranges):.2f} of its range. Noise: {threat.noise}. Knowledge:"
            f" {threat.knowledge}.",
            warnings=() if pixels is None else tuple(self._pixels_not_converged(pixels)),
            shown=shown,
            missing=("pixel space (give --data)",) if pixels is None else (),
        )

    def _pixels_not_converged(self, pixels: PixelAttack) -> Iterator[str]:
        for name, curve in pixels.chains.items():
            if not curve.converged:
                yield (
                    f"The attack on pixels of the {name} chain has not converged:"
                    f" {curve.robust_accuracy[-1]:.4f} at {pixels.eps_255[-1]:g}/255,"
                    f" {curve.after_twice_the_steps:.4f} after as many steps again."
                )

    def box(self) -> _Answer:
        threat, clean = self.run.threat, self.run.x["test"]
        moves = [float(threat.distances(o.points, self.x).max()) for o in self.suite.outcomes]
        value = {
            "lowest": float(clean.min()),
            "highest": float(clean.max()),
            "largest_move": max(moves),
            "attack_eps": threat.single_eps,
        }
        return _Answer(
            value,
            f"{max(moves):.4f}",
            f"largest move of any attack; good is at most {threat.single_eps:g}.",
            max(moves) <= threat.single_eps + 1e-5,
        )

    def layout(self) -> _Answer:
        layout, suite = self.run.paper["defended"].layout, NOT_RUN
        value = {PAPER_PROTOCOL: layout}
        if self.adaptive is not None:
            suite = "none: vectors; Square chooses among all features"
            value["adaptive suite"] = suite
        return _Answer(
            value,
            sentence=f"The paper's protocol: {layout}. Good is an attack beside it that takes the"
            f" features as what they are. Adaptive suite: {suite}.",
        )

    def classes(self) -> _Answer:
        n_classes = len(self.run.model.label_names)
        attacks = list(self.under(lambda attack: attack.kind is not AttackKind.CLEAN))
        dlr, standard = (
            "does not exist for two classes: margin instead",
            "does not exist for two classes",
        )
        missing: tuple[str, ...] = ()
        if n_classes > 2:
            dlr, standard = NOT_RUN if self.adaptive is None else "run", NOT_RUN
            missing = (*(("dlr",) if self.adaptive is None else ()), "autoattack standard")
        return _Answer(
            {
                "n_classes": n_classes,
                "dlr": dlr,
                "autoattack_standard": standard,
                "attacks": attacks,
            },
            str(len(attacks)),
            f"attacks on a model of {n_classes} classes. DLR loss: {dlr}.",
            missing=missing,
        )

    def counts(self) -> _Answer:
        paper, flags = self.by_paper, float(self.run.paper["defended"].flags.float().mean())
        at_zero = None if self.adaptive is None else self.adaptive.flags_at_zero
        n = len(self.y)
        low, high = wilson_interval(paper["fresh"] * n, n)
        worst = {
            "majority": self.suite.worst_case_accuracy,
            "all": self.suite.all_right_accuracy,
        }
        value: dict[str, Mapping[str, Any]] = {
            PAPER_PROTOCOL: {"flags": flags, **paper, "fresh_interval": [low, high]},
            "at eps 0": {"flags": NOT_RUN if at_zero is None else at_zero, **self.clean},
            "worst case": {**worst, "over rounds of decisions": asdict(self.rounds)},
        }
        # How the worst case moves with the noise stands under the verdict.
        shown: dict[str, Mapping[str, Any]] = {**value, "worst case": worst}
        if self.adaptive is None:
            del shown["worst case"]
        if self.is_purifying:
            sentence = (
                "by the majority of 20 decisions on the points of the paper's protocol; mean of"
                f" fresh decisions {paper['fresh']:.3f}, all 20 {paper['all']:.3f}, AutoAttack's"
                f" own flags {flags:.3f}. Good is four figures alike."
            )
        else:  # one decision: the ways to count are one
            shown = {
                name: {
                    "right" if key == "majority" else key: share
                    for key, share in counts.items()
                    if key not in ("fresh", "all")
                }
                for name, counts in shown.items()
            }
            sentence = (
                f"right on the points of the paper's protocol, AutoAttack's own flags {flags:.3f}."
                " Good is the same figure twice."
            )
        missing = ("at eps 0, flags",) if at_zero is None else ()
        return _Answer(value, f"{paper['majority']:.3f}", sentence, shown=shown, missing=missing)

    @_if_attacked
    def gradient(self, measured: AdaptiveMeasurements) -> _Answer:
        found, report = measured.gradients, measured.gradients.report
        error, zero = found.median_error, report.zero_gradient_share
        bpda = list(self.under(lambda attack: attack.kind is AttackKind.BPDA).values())
        warnings = []
        if zero > 0:
            warnings.append(
                f"{zero:.1%} of the samples have a gradient of zero, which no white-box attack can"
                " follow."
            )
        if error > _TRUE_GRADIENT:
            warnings.append(
                f"Gradients differ from finite differences by {error:.2g} of their length: they"
                " are not those of the defence."
            )
        return _Answer(
            {
                **asdict(report),
                "median_error": error,
                "largest_error": found.largest_error,
                "bpda_identity": bpda[0] if bpda else NOT_RUN,
            },
            f"{error:.0e}",
            f"median error against finite differences, relative; good is below {_TRUE_GRADIENT:g}."
            f" Share of samples without a gradient: {zero:.3f}; good is 0.",
            not warnings,
            tuple(warnings),
            missing=("bpda identity",) if self.is_purifying and not bpda else (),
        )

    @_if_attacked
    def draws(self, measured: AdaptiveMeasurements) -> _Answer:
        curve, more = measured.curves.draws, dict[str, Any]()
        if measured.gradient_cosines is not None:
            more["cosine_of_two_gradients"] = measured.gradient_cosines
        if self.is_purifying:
            more["draws_of_the_defence"] = self.run.model.purifier.n_draws
        if curve is None:
            note = "the model has no noise to average over"
            return _does_not_apply(note, eot_iter=[1], **more)
        shares, draws = curve.robust_accuracy, curve.values
        return _Answer(
            {**curve.as_dict(), "converged": curve.converged, **more},
            f"{shares[-1]:.3f}",
            f"robust with {draws[-1]} draws averaged at each step, {shares[0]:.3f} with"
            f" {draws[0]}; good is a curve that is flat at its end.",
            curve.converged,
            tuple(_not_converged("draws averaged", curve)),
        )

    @_if_attacked
    def steps(self, measured: AdaptiveMeasurements) -> _Answer:
        curves = {"steps": measured.curves.steps, "restarts": measured.curves.restarts}
        steps, restarts = curves.values()
        converged = steps.converged and restarts.converged
        return _Answer(
            {
                **{n: {**c.as_dict(), "converged": c.converged} for n, c in curves.items()},
                "converged": converged,
            },
            f"{min(steps.robust_accuracy[-1], restarts.robust_accuracy[-1]):.3f}",
            f"robust after {steps.values[-1]} steps or {restarts.values[-1]} restarts,"
            f" {steps.robust_accuracy[0]:.3f} after {steps.values[0]} steps; good is curves that"
            " are flat at their ends.",
            converged,
            tuple(w for what, curve in curves.items() for w in _not_converged(what, curve)),
        )

    @_if_attacked
    def sweep(self, measured: AdaptiveMeasurements) -> _Answer:
        curve, lowest = measured.curves.eps, min(measured.curves.eps.robust_accuracy)
        warning = (
            f"An attack without a bound leaves {lowest:.4f} of the samples, where it must leave"
            " none: gradients are masked or the attack is too weak."
        )
        return _Answer(
            {**curve.as_dict(), "reaches_zero": lowest == 0},
            f"{lowest:.3f}",
            f"robust at the worst eps up to {curve.values[-1]:g}; good is 0: an attack without"
            " bounds must succeed.",
            lowest == 0,
            () if lowest == 0 else (warning,),
        )

    def black_box(self) -> _Answer | None:
        white_boxes = self.under(lambda attack: attack.kind.is_white_box).values()
        if not white_boxes:
            return None
        white = min(white_boxes)
        black = min(self.under(lambda attack: attack.kind.is_black_box).values())
        is_stronger = black < white - _STRONGER
        warning = (
            f"Black-box attacks leave less ({black:.4f}) than white-box attacks ({white:.4f}):"
            " gradients are masked."
        )
        return _Answer(
            {"black_box": black, "white_box": white, "black_box_is_stronger": is_stronger},
            f"{black:.3f}",
            f"robust against the best black box, {white:.3f} against the best white box; good is a"
            " white box that finds more.",
            not is_stronger,
            (warning,) if is_stronger else (),
        )

    @_if_attacked
    def transfer(self, measured: AdaptiveMeasurements) -> _Answer:
        shares = self.under(lambda attack: attack.kind is AttackKind.TRANSFER)
        back = measured.transfer_back
        return _Answer(
            {**shares, "back to the undefended": back},
            f"{min(shares.values()):.3f}",
            "robust against points that were found on the undefended model; good is no less than"
            f" the worst case, {self.worst_case}. Back: {back:.3f} of the undefended model on the"
            " defence's worst points.",
        )

    @_if_attacked
    def fixed_noise(self, measured: AdaptiveMeasurements) -> _Answer:
        found = measured.fixed_noise
        if found is None:
            return _does_not_apply("the defence has no noise")
        return _Answer(
            {"robust_accuracy": found},
            f"{found:.3f}",
            "robust where the attacker knows the noise beforehand; good is close to the worst case"
            f" with fresh noise, {self.worst_case}.",
        )

    @_if_attacked
    def purifier(self, measured: AdaptiveMeasurements) -> _Answer:
        if not self.is_purifying:
            return _does_not_apply("there is no purifier")
        kinds = (AttackKind.BPDA, AttackKind.PURIFIER)
        shares = self.under(lambda attack: attack.kind in kinds)
        shares["margin of the label"] = min(
            self.under(lambda attack: attack.loss == "margin").values()
        )
        strongest = min(shares, key=shares.__getitem__)
        value: dict[str, Any] = {**shares}
        if len(self.run.model.purifier.timesteps) == 1:
            value["loss at every step of a chain"] = "one step only"
        return _Answer(
            value,
            f"{shares[strongest]:.3f}",
            f"robust against the strongest attack on the purifier ({strongest}); good is that the"
            f" worst case counts it: {self.worst_case}.",
        )

    @_if_attacked
    def baselines(self, measured: AdaptiveMeasurements) -> _Answer:
        lines = {name: _line(suite) for name, suite in self.measured.suites.items()}
        worst = {name: line.worst_case_accuracy for name, line in lines.items()}
        mine, worst["constant answer"] = worst.pop("defended"), self.verdict.constant
        others = ", ".join(f"{name} {share:.3f}" for name, share in worst.items())
        ceiling = self.ceiling.accuracy
        warnings = [
            f"The attacks leave {line.worst_case_accuracy:.4f} of {name}, more than any classifier"
            f" can have on these features, {ceiling:.4f}: they were too weak."
            for name, line in lines.items()
            if line.worst_case_accuracy > ceiling
        ]
        return _Answer(
            {
                **{
                    name: {"clean": line.clean_accuracy, "worst_case": line.worst_case_accuracy}
                    for name, line in lines.items()
                },
                "constant answer": self.verdict.constant,
                "ceiling of any classifier": self.ceiling.as_dict(),
            },
            f"{mine:.3f}",
            f"worst case of the defence; {others}. Good is above them all. No classifier exceeds"
            f" {ceiling:.3f} on these features.",
            mine > max(worst.values()) and not warnings,
            tuple(warnings),
        )

    @_if_attacked
    def known_weakness(self, measured: AdaptiveMeasurements) -> _Answer:
        found = measured.known_weakness
        together = {
            "gradient attacks together": found.by_gradients,
            "all attacks together": found.together,
        }
        shares = {name: share for name, share in together.items() if share is not None}
        warnings = [
            f"Of the weaknesses planted in a copy of the defence {shares[name]:.1%} were found by"
            f" {name}: the worst case may be too high."
            for name in reversed(shares)
            if shares[name] < _ENOUGH
        ]
        if not shares:
            warnings = [
                "No weakness could be planted in a copy of the defence: the attacks were not"
                " tested."
            ]
        return _Answer(
            {"n": found.n, "broken": {**found.broken, **together}},
            f"{min(shares.values()):.3f}" if shares else NOT_RUN,
            "share of the weaknesses planted in a copy of the defence that the attacks found; good"
            " is 1.",
            not warnings,
            tuple(warnings),
        )

    def sample_size(self) -> _Answer:
        verdict = self.verdict
        what = "the worst case" if verdict.is_worst_case else PAPER_PROTOCOL
        return _Answer(
            {
                "n": len(self.y),
                "worst_case_less_constant_answer": asdict(verdict.less_constant),
                "interval_95": [verdict.low, verdict.high],
                "method": verdict.method,
                "drawn_as_a_whole": verdict.drawn,
                "seeds_of_training": "one; run --seeds trains several",
            },
            str(len(self.y)),
            f"test images, which leave {what} between {verdict.low:.3f} and {verdict.high:.3f};"
            f" good is clearly above the constant answer, {verdict.constant:.3f}.",
            verdict.less_constant.low > 0 if verdict.is_worst_case else None,
        )

    def autoattack_checks(self) -> _Answer:
        warnings = {name: list(found.warnings) for name, found in self.run.paper.items()}
        n = sum(map(len, warnings.values()))
        return _Answer(
            {name: found or "no warning" for name, found in warnings.items()},
            str(n),
            "warnings of AutoAttack on its own run; good is none.",
            n == 0,
        )

    def leakage(self) -> _Answer | None:
        audit = self.run.audit
        if audit is None:
            return None
        value, test = audit.as_dict(), audit.splits.get("test")
        shown = {name: found for name, found in value.items() if name != "most_similar_pairs"}
        if test is None:
            return _Answer(value, sentence="How alike the splits are.", shown=shown)
        warning = (
            f"{test.near_share:.1%} of the test images have a near copy among the training images:"
            " the figures ask for memory too (run --cross_validate keeps patients apart)."
        )
        warns = test.parted_by is None and test.near_share > _NEAR_SHARE
        return _Answer(
            value,
            f"{100 * test.near_share:.1f} %",
            "of the test images lie near a training image; good is none. The nearest training image"
            f" alone names {100 * test.nearest_accuracy:.1f} % rightly; good is close to the"
            f" constant answer, {100 * test.majority_accuracy:.1f} %.",
            not audit.warnings(),
            (warning,) if warns else (),
            shown=shown,
        )

    def certificate(self) -> _Answer | None:
        proof = self._proof() if self.measured.verification is not None else None
        if not self.certified:
            return proof
        (name, first), *others = self.certified.items()
        beside = "".join(f"; {n} {100 * found.at_attack_eps:.1f} %" for n, found in others)
        value = {name: found.as_dict() for name, found in self.certified.items()}
        shown = {n: {k: v for k, v in found.items() if k != "curve"} for n, found in value.items()}
        if proof is not None:
            return replace(proof, value={**proof.value, **value}, shown={**proof.shown, **shown})
        return _Answer(
            value,
            f"{100 * first.at_attack_eps:.1f} %",
            f"certified at the attack's eps ({name}{beside}); the more the better. On these no"
            f" attack on the certified classifier can succeed. Certified: {first.certifies}.",
            shown=shown,
        )

    def _proof(self) -> _Answer:
        """Say what branch and bound has proven of the defence itself."""
        found, line = self.measured.verification, self.headline
        assert found is not None
        every = found.as_dict()
        kept = ("eps", "norm", "n", "proven_accuracy", "undecided_accuracy", "broken_share")
        shown = {key: every[key] for key in kept}
        shown |= {
            "boxes": int(found.n_boxes.sum()),
            "seconds": {phase: float(spent.sum()) for phase, spent in found.seconds.items()},
        }
        return _Answer(
            {BRANCH_AND_BOUND: shown},
            f"{100 * found.proven_accuracy:.1f} %",
            "proven: no point of the ball changes the answer of the network, its rounding counted;"
            f" {100 * (line.undecided or 0):.1f} % are neither proven nor broken by an attack, good"
            " is none.",
            not line.undecided,
            shown={BRANCH_AND_BOUND: shown},
        )

    def record(self) -> _Answer:
        environment = describe_environment(
            self.x.device, data_sha256=self.run.model.info.data_sha256
        )
        # To count what the run's own attack found takes no attack.
        calls = asdict(self.suite.calls) if self.adaptive is not None else {}
        n_calls, n_rows = calls.get("n_calls", 0), calls.get("n_rows", 0)
        return _Answer(
            {
                "seed": self.run.seed,
                "evaluation_seed": self.measured.evaluation_seed,
                "effort": asdict(self.measured.budget),
                "model_calls": n_calls,
                "rows_asked": n_rows,
                "seconds": self.measured.seconds,
                "points": "robustness.npz",
                "environment": {
                    k: v for k, v in environment.items() if k not in ("ops", "extension")
                },
            },
            f"seed {self.run.seed}",
            f"nnmf-cuda {environment['nnmf_cuda']}, torch {environment['packages']['torch']}, on"
            f" {environment['device']}; {n_rows:,} samples asked in"
            f" {self.measured.seconds:,.0f} s.",
        )


_POINTS: tuple[tuple[str, Callable[[_Points], _Answer | None]], ...] = (
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
    ("Planted weakness", _Points.known_weakness),
    ("Sample size", _Points.sample_size),
    ("AutoAttack's own checks", _Points.autoattack_checks),
    ("Leakage", _Points.leakage),
    ("Certificate", _Points.certificate),
    ("Record", _Points.record),
)
