"""What an evaluation of robustness says: its twenty points, its attacks, curves and verdict.

These types are filled by `nnmf_cuda.robustness`, shown by `nnmf_cuda.report`, and written to
`robustness.json` by `RobustnessReport.as_dict` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.evaluation.bootstrap import Interval, bootstrap_mean
from nnmf_cuda.evaluation.certificates import Certificate
from nnmf_cuda.evaluation.headline import Headline
from nnmf_cuda.evaluation.metrics import wilson_interval
from nnmf_cuda.evaluation.rows import EvaluatedRows
from nnmf_cuda.evaluation.uncertainty import Uncertainty

NOT_RUN = "not run"

PAPER_PROTOCOL = "the paper's protocol"
"""Name of what the run's own attack has found."""

ADVERSARIALLY_TRAINED = "adversarially trained"
"""Name of the classifier of the same size that is attacked beside a defence."""

FLAT = 0.01
"""A curve has converged where its last value is at most this far from the one before."""

_ORDER_OF_WARNINGS = (14, 8, 7, 9, 1, 10, 15, 6, 18)
"""Points that may warn: first whether attacks were strong enough, then gradients, then data."""


class State(Enum):
    """How a point came out."""

    GOOD = "good"
    BAD = "bad"
    PLAIN = "plain"
    """Answered, and nothing to judge."""
    NOT_RUN = "none"


@dataclass(frozen=True)
class Point:
    """One of the twenty points of an honest evaluation, numbered from 1."""

    number: int
    name: str
    value: Any = NOT_RUN  # all that was found, as JSON holds it
    state: State = State.NOT_RUN
    figure: str = ""  # the main one, or nothing
    sentence: str = "Not run."  # what the figure is, and what a good one is
    warnings: tuple[str, ...] = ()  # what speaks against believing the evaluation
    shown: Any = None  # what of `value` is worth a table below the sentence
    missing: tuple[str, ...] = ()  # parts of `value` that were not run


@dataclass(frozen=True)
class Curve:
    """Robust accuracy at each value of one setting of an attack, the others held."""

    setting: str  # the argument of the attack that varies, such as "n_iter"
    values: Sequence[float]
    robust_accuracy: Sequence[float]

    @property
    def converged(self) -> bool:
        """Whether the last increase of the setting changed next to nothing."""
        found = self.robust_accuracy
        return len(found) > 1 and abs(found[-2] - found[-1]) <= FLAT

    def as_dict(self) -> dict[str, Any]:
        """Return the two columns, for JSON."""
        columns = {self.setting: self.values, "robust_accuracy": self.robust_accuracy}
        return {name: list(column) for name, column in columns.items()}


@dataclass(frozen=True)
class Curves:
    """The curves of one attack: against its ball, steps, random starts and averaged draws.

    `draws` is None where the defence has no noise to average over.
    """

    eps: Curve
    steps: Curve
    restarts: Curve
    draws: Curve | None


@dataclass(frozen=True)
class PixelCurve:
    """What moving pixels does to one chain from image to answer, at each of `PixelAttack.eps_255`.

    `after_twice_the_steps` is the robust accuracy at the largest radius after as many steps again.
    """

    robust_accuracy: Sequence[float]
    mean_largest_feature_move: Sequence[float]
    after_twice_the_steps: float

    @property
    def converged(self) -> bool:
        """Whether the second half of the steps found next to nothing."""
        return self.robust_accuracy[-1] - self.after_twice_the_steps <= FLAT


@dataclass(frozen=True)
class PixelExamples:
    """Images (m, height, width), in [0, 1], that the attack on pixels broke at its largest radius.

    `titles` say what each is and what it is taken for.
    """

    clean: NDArray[Any]
    attacked: NDArray[Any]
    titles: Sequence[str]


@dataclass(frozen=True)
class PixelProof:
    """What proofs about features say of images: no attack on pixels, of any kind, can do more.

    `robust_accuracy` is the share of samples that are certified at each of `PixelAttack.eps_255`,
    `median_radius_255` the median radius of those whose features are proven, None without any.
    """

    robust_accuracy: Sequence[float]
    median_radius_255: float | None


@dataclass(frozen=True)
class PixelAttack:
    """The attack on images, end to end, at growing radii."""

    eps_255: Sequence[float]  # of the Linf ball in 1/255 of the range, the first 0
    undefended: PixelCurve
    defended: PixelCurve
    examples: PixelExamples  # of the defended chain
    certified: PixelProof | None = None  # of the defended chain, where its features were verified
    held: NDArray[np.bool_] | None = None  # (n_radii, n): whom the defended chain kept; not in JSON

    @property
    def chains(self) -> dict[str, PixelCurve]:
        """Both curves by name."""
        return {"undefended": self.undefended, "defended": self.defended}

    def as_dict(self) -> dict[str, Any]:
        """Return radii and curves, for JSON."""
        return {
            "eps_255": list(self.eps_255),
            **{name: asdict(curve) for name, curve in self.chains.items()},
            "certified": None if self.certified is None else asdict(self.certified),
        }


@dataclass(frozen=True)
class AttackLine:
    """One attack: its success counted in three ways, as shares of samples, and its seconds."""

    name: str
    fresh: float
    majority: float
    all: float
    seconds: float


@dataclass(frozen=True)
class ModelLine:
    """A model under all its attacks, "clean" first: a share of samples each."""

    clean_accuracy: float
    worst_case_accuracy: float
    attacks: Sequence[AttackLine]


@dataclass(frozen=True)
class Rounds:
    """How far the worst case moves over `n` rounds with the noise of the decisions alone."""

    n: int
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class PaperProtocol:
    """Accuracies under the run's own attack: of the two rows, and by majority decisions."""

    name: str
    robust_baseline: float
    robust_defended: float
    robust_defended_by_majority: float


@dataclass(frozen=True)
class Certified:
    """A certificate, what is certified by it, and the share of samples certified at attack_eps."""

    certifies: str
    certificate: Certificate
    at_attack_eps: float

    def as_dict(self) -> dict[str, Any]:
        """Return settings and curve, for JSON."""
        found = self.certificate.as_dict()
        kept = {name: v for name, v in found.items() if name not in ("predictions", "radii")}
        return {"certifies": self.certifies, **kept, "certified_at_attack_eps": self.at_attack_eps}


@dataclass(frozen=True)
class Verdict:
    """A robust accuracy beside the accuracy of always naming the larger class."""

    robust: float
    low: float  # ends of its 95 % interval
    high: float
    method: str  # "bootstrap" or "Wilson"
    drawn: str  # what is drawn as a whole: "patient", "series" or "image"
    constant: float  # accuracy of the constant answer, on the same samples
    less_constant: Interval  # robust less constant, each sample with itself
    is_worst_case: bool = True  # under adaptive attacks; else it is not compared

    @classmethod
    def of(
        cls,
        robust: NDArray[np.float64],
        labels: NDArray[np.int64],
        *,
        groupings: Mapping[str, NDArray[Any]],
        seed: int,
        is_worst_case: bool = True,
    ) -> Verdict:
        """Compare with the constant answer, by a bootstrap of whole groups where they are known.

        `robust` is for each sample (n,) the share of rounds in which it is robust; the first of the
        `groupings` is drawn as a whole.
        """
        drawn, groups = next(iter(groupings.items()), ("image", None))
        constant = (labels == np.bincount(labels).argmax()).astype(np.float64)
        accuracy = float(robust.mean())
        if groups is None or accuracy in (0, 1):
            # A bootstrap of zeros or ones alone knows no error; Wilson's interval does.
            method, n = "Wilson", len(robust) if groups is None else len(np.unique(groups))
            low, high = wilson_interval(accuracy * n, n)
        else:
            found = bootstrap_mean(robust, groups=groups, seed=seed)
            method, low, high = "bootstrap", found.low, found.high
        less = bootstrap_mean(robust - constant, groups=groups, seed=seed)
        return cls(accuracy, low, high, method, drawn, float(constant.mean()), less, is_worst_case)

    @property
    def sentence(self) -> str:
        """How the robust accuracy stands to the constant answer."""
        figures = (
            f"{self.robust:.4f} (95 % {self.method} interval by {self.drawn}"
            f" {self.low:.3f}-{self.high:.3f})"
        )
        if not self.is_worst_case:
            return (
                f"Only the paper's protocol was counted: {figures} is no worst case, and no"
                f" comparison with the constant answer, {self.constant:.4f}."
            )
        less = self.less_constant
        says = "does not beat"
        if less.low > 0:
            says = "beats"
        elif less.high < 0:
            says = "is below"
        return (
            f"The worst case, {figures}, {says} the constant answer, {self.constant:.4f}:"
            f" difference {less.estimate:+.3f} (95 % {less.low:+.3f} to {less.high:+.3f})."
        )


@dataclass(frozen=True)
class WorstPoints:
    """The nine metrics where every sample is at its worst point."""

    rows: EvaluatedRows
    uncertainty: Uncertainty

    def as_dict(self) -> dict[str, Any]:
        """Return rows, spread and uncertainty, as `metrics.json` has them of the run's attack."""
        rows = {name: row.as_dict() for name, row in self.rows.rows.items()}
        return {"rows": rows, "spread": self.rows.spread, **self.uncertainty.as_dict()}


@dataclass(frozen=True)
class ThreatModel:
    """What the attacker may do, in words and figures; `is_random` says whether there is noise."""

    norm: str
    attack_eps: float
    noise: str
    knowledge: str
    robust_if: str
    is_random: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the threat model, for JSON."""
        return {
            "space": "selected, L2-normalised NNMF features",
            "norm": self.norm,
            "attack_eps": self.attack_eps,
            "box": [0.0, 1.0],
            "noise": self.noise,
            "knowledge": self.knowledge,
            "robust_if": self.robust_if,
        }


@dataclass(frozen=True)
class About:
    """Of what, when and how an evaluation was made."""

    source: str | None = None
    synthetic: bool = False
    defence: str | None = None
    preset: str | None = None
    run_seed: int | None = None
    device: str | None = None
    threads: int | None = None
    date: str | None = None


@dataclass(frozen=True)
class RobustnessReport:
    """All that an evaluation says; None where only the paper's protocol was counted."""

    preset: str  # how much it was allowed to spend
    about: About
    threat_model: ThreatModel
    headline: Headline  # ceiling, attacked, proven, clean and constant on one line
    verdict: Verdict  # of the worst case, or of the paper's protocol where no more was run
    rounds: Rounds  # of the worst case
    defence: ModelLine
    all_right_accuracy: float  # worst case where every decision on every point must be right
    others: Mapping[str, ModelLine]  # models that stand beside the defence
    others_notes: Sequence[str]
    paper_protocol: PaperProtocol
    points: Sequence[Point]  # twenty, in order
    seconds: float
    curves: Curves | None
    pixels: PixelAttack | None
    certificates: Mapping[str, Certified]
    fixed_noise: float | None  # robust accuracy where the attacker knows the noise
    worst_points: WorstPoints | None

    @property
    def is_worst_case(self) -> bool:
        """Whether adaptive attacks were run, not only the paper's protocol counted."""
        return self.verdict.is_worst_case

    @property
    def is_random(self) -> bool:
        """Whether the defence draws noise at each decision."""
        return self.threat_model.is_random

    @property
    def warnings(self) -> list[str]:
        """What speaks against believing the evaluation, sentence by sentence."""
        return [w for number in _ORDER_OF_WARNINGS for w in self.points[number - 1].warnings]

    @property
    def not_run(self) -> list[str]:
        """The points that were not run, then the parts of others that were not."""
        whole = [f"{p.number} {p.name}" for p in self.points if p.state is State.NOT_RUN]
        return whole + [f"{p.number} {p.name}: {part}" for p in self.points for part in p.missing]

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `robustness.json`."""
        return {
            **self.headline.as_dict(),
            "worst_case_interval": [self.verdict.low, self.verdict.high],
            "worst_case_interval_by": self.verdict.drawn,
            "worst_case_rounds": asdict(self.rounds),
            "all_right_accuracy": self.all_right_accuracy,
            "verdict": self.verdict.sentence,
            "warnings": self.warnings,
            "paper_protocol": asdict(self.paper_protocol),
            "preset": self.preset,
            "about": asdict(self.about),
            "threat_model": self.threat_model.as_dict(),
            "points": [{"id": p.number, "name": p.name, "value": p.value} for p in self.points],
            "attacks": [asdict(line) for line in self.defence.attacks],
            "others": {name: asdict(line) for name, line in self.others.items()},
            "others_notes": list(self.others_notes),
            "worst_points": None if self.worst_points is None else self.worst_points.as_dict(),
            "seconds": self.seconds,
        }
