"""The one line of an evaluation: ceiling, attacked and proven share beside clean and constant.

What attacks leave bounds the robust accuracy from above, what is proven from below, and the ceiling
bounds every classifier. The line is made here alone; terminal, pages and summaries show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_UNEQUAL = 1.2
"""Classes are unequal where the largest has this many times its equal share: 0.6 of two."""


class ContradictionError(RuntimeError):
    """A sample is both proven robust and broken: the proof or the attack is wrong."""


@dataclass(frozen=True)
class Proof:
    """What is proven of each sample at the attack's eps.

    Attributes
    ----------
    proven : array of shape (n,) or None
        bool: whether no point of the ball changes the answer; None where nothing was verified.
    by : str
        What proves; where nothing was verified, why.
    is_of_defence : bool
        Whether the proof speaks of the evaluated classifier, so that what attacks leave beyond it
        is undecided. A certificate of smoothing speaks of another one.
    """

    proven: NDArray[np.bool_] | None
    by: str
    is_of_defence: bool = True


@dataclass(frozen=True)
class Balanced:
    """The same shares where every class counts alike: means over classes."""

    attacked: float
    proven: float | None
    clean: float
    constant: float

    @property
    def line(self) -> str:
        """The shares, the larger bound first."""
        proven = "" if self.proven is None else f" >= proven {self.proven:.3f}"
        return (
            f"attacked {self.attacked:.3f}{proven}, clean {self.clean:.3f}, constant answer"
            f" {self.constant:.3f}"
        )


@dataclass(frozen=True)
class Headline:
    """The figures of an evaluation that belong on one line, as shares of the samples.

    Attributes
    ----------
    attacked, clean, constant : float
        Left by every attack that was run; right without one; right of the constant answer.
    ceiling : float or None
        Which no classifier exceeds (`nnmf_cuda.evaluation.ceiling`); None where it was not
        computed.
    proven, undecided : float or None
        Proven robust; left by attacks and not proven. None where nothing was verified.
    proof : str
        What proves; where nothing was verified, why.
    balanced : Balanced or None
        Where the classes are so unequal that these are the figures to read.
    is_worst_case : bool
        Whether adaptive attacks were run, not only the paper's protocol counted.
    """

    attacked: float
    clean: float
    constant: float
    ceiling: float | None
    proven: float | None
    undecided: float | None
    proof: str
    balanced: Balanced | None = None
    is_worst_case: bool = True

    @classmethod
    def of(
        cls,
        robust: NDArray[np.float64],
        clean: NDArray[np.float64],
        labels: NDArray[np.int64],
        proof: Proof,
        *,
        ceiling: float | None,
        is_worst_case: bool = True,
    ) -> Headline:
        """Put the line together from shares of rounds in which each sample is right, (n,) each.

        Raises ContradictionError, naming the sample, where one is proven and not `robust`.
        """
        proven = None if proof.proven is None else proof.proven.astype(np.float64)
        if proven is not None and proof.is_of_defence:
            check_agreement(robust, proof)
        counts = np.bincount(labels)
        shares = {
            "attacked": robust,
            "proven": proven,
            "clean": clean,
            "constant": (labels == counts.argmax()).astype(np.float64),
        }
        means = {name: None if s is None else float(s.mean()) for name, s in shares.items()}
        balanced = None
        if counts.max() > _UNEQUAL * len(labels) / np.count_nonzero(counts):
            weights = 1.0 / (np.count_nonzero(counts) * counts[labels])
            balanced = Balanced(
                **{n: None if s is None else float(s @ weights) for n, s in shares.items()}  # type: ignore[arg-type]
            )
        undecided = None
        if proven is not None and proof.is_of_defence:
            undecided = float((robust - proven).mean())
        return cls(
            **means,  # type: ignore[arg-type]
            ceiling=ceiling,
            undecided=undecided,
            proof=proof.by,
            balanced=balanced,
            is_worst_case=is_worst_case,
        )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Headline:
        """Read it from `robustness.json`, as `as_dict` has written it."""
        balanced = content["balanced"]
        return cls(
            attacked=content["worst_case_accuracy"],
            clean=content["clean_accuracy"],
            constant=content["constant_answer_accuracy"],
            ceiling=content["ceiling"],
            proven=content["proven_accuracy"],
            undecided=content["undecided_accuracy"],
            proof=content["proof"],
            balanced=None if balanced is None else Balanced(**balanced),
            is_worst_case=content["is_worst_case"],
        )

    @classmethod
    def mean(cls, headlines: list[Headline]) -> Headline:
        """Return the means over several evaluations; None where one of them has no such figure."""
        first = headlines[0]

        def mean_of(values: list[float | None]) -> float | None:
            there = [value for value in values if value is not None]
            return float(np.mean(there)) if len(there) == len(values) else None

        def means(name: str) -> float | None:
            return mean_of([getattr(one, name) for one in headlines])

        names = ("attacked", "proven", "clean", "constant")
        every = [one.balanced for one in headlines if one.balanced is not None]
        balanced = None
        if len(every) == len(headlines):
            shares = {name: mean_of([getattr(one, name) for one in every]) for name in names}
            balanced = Balanced(**shares)  # type: ignore[arg-type]
        without = next((one for one in headlines if one.proven is None), first)
        return cls(
            **{name: means(name) for name in (*names, "ceiling", "undecided")},  # type: ignore[arg-type]
            proof=without.proof,
            balanced=balanced,
            is_worst_case=all(one.is_worst_case for one in headlines),
        )

    @property
    def line(self) -> str:
        """The line, bounds from above to below, as every page and terminal shows it.

        Attacks that leave more than the ceiling were too weak, and the line says "<".
        """
        of_all = "" if self.is_worst_case else " (by the paper's protocol alone)"
        attacked = f"attacked {self.attacked:.3f}{of_all}"
        if self.ceiling is not None:
            holds = ">=" if self.attacked <= self.ceiling else "<"
            attacked = f"ceiling {self.ceiling:.3f} {holds} {attacked}"
        bounds = [attacked]
        beside = [f"clean {self.clean:.3f}", f"constant answer {self.constant:.3f}"]
        if self.proven is None:
            beside.append(f"proven none ({self.proof})")
        elif self.undecided is None:
            beside.append(f"certified {self.proven:.3f} ({self.proof})")
        else:
            bounds.append(f"proven {self.proven:.3f}")
            beside.append(f"undecided {self.undecided:.3f}")
        line = ", ".join([" >= ".join(bounds), *beside])
        if self.balanced is None:
            return line
        return f"{line}; each class counted alike: {self.balanced.line}"

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `robustness.json`, as far as it is the line's."""
        return {
            "line": self.line,
            "worst_case_accuracy": self.attacked,
            "clean_accuracy": self.clean,
            "constant_answer_accuracy": self.constant,
            "ceiling": self.ceiling,
            "proven_accuracy": self.proven,
            "undecided_accuracy": self.undecided,
            "proof": self.proof,
            "balanced": None if self.balanced is None else asdict(self.balanced),
            "is_worst_case": self.is_worst_case,
        }


def check_agreement(robust: NDArray[np.float64], proof: Proof) -> None:
    """Raise ContradictionError, naming the sample, where a proven one is not always `robust`."""
    if proof.proven is None:
        return
    both = np.flatnonzero(proof.proven & (robust < 1))
    if len(both):
        named = ", ".join(map(str, both[:10])) + (" and more" if len(both) > 10 else "")
        raise ContradictionError(
            f"test sample {named}: proven robust by {proof.by}, and broken by an attack of the"
            " evaluation. One of the two is wrong, so that no figure of this evaluation can be"
            " believed; please report it, with the model and the attacked points"
        )
