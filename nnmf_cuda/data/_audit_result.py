"""What an audit of leakage has found, as figures, sentences and a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["LeakageAudit", "Neighbours"]

_NEGLIGIBLE_SHARE = 0.01
_ALARM_EXCESS = 0.5


@dataclass(frozen=True)
class Neighbours:
    """How near a part of the images comes to the images that it is compared with.

    Attributes
    ----------
    n : int
        Images of the part.
    near_share : float
        Share whose most similar image on the other side correlates above the threshold.
    nearest_accuracy : float
        Accuracy of giving each image the label of its most similar one on the other side: what
        memory alone scores.
    majority_accuracy : float
        Accuracy of always naming the most frequent label of the part itself, as everywhere else:
        the best that an answer which does not look can score.
    identical : int
        Images with an equal one, byte for byte, on the other side.
    same_hash : int
        Images with one of nearly the same perceptual hash on the other side.
    parted_by : str or None, default=None
        What is known to stand on one side only: a group of the data set, or a drawn image.
    """

    n: int
    near_share: float
    nearest_accuracy: float
    majority_accuracy: float
    identical: int
    same_hash: int
    parted_by: str | None = None

    @property
    def many_near(self) -> bool:
        """Whether clearly more than 1 % of the images are near or equal to training images."""
        n_near = max(round(self.near_share * self.n), self.identical)
        return _at_least(n_near, self.n) > _NEGLIGIBLE_SHARE

    @property
    def memory_answers(self) -> bool:
        """Whether memory clearly closes half of what a constant answer lacks."""
        lowest = _at_least(round(self.nearest_accuracy * self.n), self.n)
        lacking = 1 - self.majority_accuracy
        return lowest - self.majority_accuracy > _ALARM_EXCESS * lacking


def _at_least(k: int, n: int) -> float:
    """Return the lower end of Wilson's 95 % interval of a share of k in n."""
    from scipy.stats import binomtest

    return float(binomtest(k, n).proportion_ci(method="wilson").low)


@dataclass(frozen=True)
class LeakageAudit:
    """What `audit_dataset` found.

    Attributes
    ----------
    splits : mapping of str to Neighbours
        "valid" and "test" against the training images.
    folds : mapping of str to Neighbours
        Each patient fold against all others, where the source has folds.
    counts : mapping of str to mapping of str to int
        Images of each class in each split.
    duplicates : int
        Images that have an equal one anywhere in the data set.
    pairs : list of tuple
        Up to ten of the most similar pairs across the split: correlation, evaluated file, its
        split, training file.
    resolution : int
        Side of the grid of block means that are compared.
    threshold : float
        Correlation above which two images count as near.
    """

    splits: Mapping[str, Neighbours]
    folds: Mapping[str, Neighbours]
    counts: Mapping[str, Mapping[str, int]]
    duplicates: int
    pairs: list[tuple[float, str, str, str]]
    resolution: int
    threshold: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "resolution": self.resolution,
            "threshold": self.threshold,
            "splits": {name: vars(found) for name, found in self.splits.items()},
            "patient_folds": {name: vars(found) for name, found in self.folds.items()},
            "counts": {split: dict(counts) for split, counts in self.counts.items()},
            "duplicates": self.duplicates,
            "most_similar_pairs": [list(pair) for pair in self.pairs],
            "warnings": self.warnings(),
        }

    def warnings(self) -> list[str]:
        """Return a sentence for each evaluated split about which a reader must be warned.

        It speaks of leakage only where many images are near or equal to training images, and
        nothing is known to keep the sides apart.
        """
        found = (self._warning(name, part) for name, part in self.splits.items())
        return [text for text in found if text is not None]

    def _warning(self, name: str, found: Neighbours) -> str | None:
        near = (
            f"{found.near_share:.1%} of {name} correlate above {self.threshold:g} with a training"
            f" image ({self.resolution}x{self.resolution} block means), {found.identical} are equal"
            " to one"
        )
        memory = (
            f"the nearest training image alone names {found.nearest_accuracy:.1%} of {name} rightly"
            f" (constant answer {found.majority_accuracy:.1%})"
        )
        apart = f"no {found.parted_by} stands on both sides"
        if found.many_near and found.parted_by is None:
            return (
                f"Leakage: {near}, and {memory}: figures on {name} say little about new patients."
            )
        if found.many_near:
            return f"Near images: {near}, and {memory}; but {apart}: the images are that alike."
        if found.memory_answers and found.parted_by is None:
            return f"Memory: {memory}: the task is easy, or the split asks for memory."
        if found.memory_answers:
            return f"Memory: {memory}; but {apart}: the task is that easy."
        return None

    def text(self) -> str:
        """Return a table for a terminal."""
        side = f"{self.resolution}x{self.resolution}"
        lines = [
            f"Correlation of {side} block means; near: above {self.threshold:g}.",
            "1-NN: rightly named by the nearest image of the other side alone; constant: by always",
            "naming their most frequent class; equal: byte for byte; hash: nearly the same.",
            f"{'':<14}{'images':>8}{'near':>8}{'1-NN':>8}{'constant':>10}{'equal':>7}{'hash':>6}",
        ]
        for title, part in (("against train", self.splits), ("fold against others", self.folds)):
            lines += [title] if part else []
            for name, found in part.items():
                lines.append(
                    f"  {name:<12}{found.n:>8}{found.near_share:>8.1%}"
                    f"{found.nearest_accuracy:>8.1%}{found.majority_accuracy:>10.1%}"
                    f"{found.identical:>7}{found.same_hash:>6}"
                )
        for split, counts in self.counts.items():
            shown = ", ".join(f"{name} {n}" for name, n in counts.items())
            lines.append(f"{split}: {shown}")
        lines.append(f"images with an equal one anywhere: {self.duplicates}")
        if self.pairs:
            lines.append("most similar pairs across the split:")
            lines += [f"  {r:.4f}  {a} ({split})  {b}" for r, a, split, b in self.pairs]
        return "\n".join([*lines, *self.warnings()])
