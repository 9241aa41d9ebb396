"""What a comparison of systems found: the hand-over from whoever measures to tables and pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nnmf_cuda.evaluation.bootstrap import Interval

GRADIENTS, QUERIES = "gradients", "queries"
"""How a system was attacked in pixels: through its derivatives, or by its answers alone."""

MASKED = "queries (its gradient leads nowhere)"
"""The same of a network through which no derivative comes, or zeros: by its answers alone."""

RANDOM_LABELS = "random labels"
"""What stands for a split where a system failed on labels that were drawn."""


@dataclass(frozen=True)
class SystemFacts:
    """Whose a system is and what is known of it; the fields are those of `baselines.System`."""

    name: str
    title: str
    authors: str
    source: str = ""
    described: str = ""
    really: str = ""
    reported: str = ""
    proof: str | None = None


@dataclass(frozen=True)
class RobustCurve:
    """Who is still right when pixels move by at most eps.

    Attributes
    ----------
    eps_255 : tuple of float
        Radii in 1/255 of the pixels' range, growing, 0 the first.
    accuracy : tuple of Interval
        At each radius: the share of images that no attack of this or a smaller radius breaks.
    broken_by : mapping of str to tuple of int
        For each attack, in the order in which they ran, how many images it was the first to break
        at each radius; at radius 0 none.
    how : str
        `GRADIENTS`, `QUERIES` or `MASKED`.
    n : int
        Images that were attacked.
    is_random : bool
        Whether the system draws its answers, so that a majority of fresh ones decides.
    certified : tuple of float or None
        At each radius, the share that is proven, at 0 that which is at any; None where there is no
        proof in pixels.
    certified_radius_255 : float or None
        Median radius of those that are proven at any, in 1/255; 0 where none is.
    """

    eps_255: tuple[float, ...]
    accuracy: tuple[Interval, ...]
    broken_by: Mapping[str, tuple[int, ...]]
    how: str
    n: int
    is_random: bool = False
    certified: tuple[float, ...] | None = None
    certified_radius_255: float | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RobustCurve:
        """Return the curve that `dataclasses.asdict` has made JSON of."""
        certified = content["certified"]
        return cls(
            eps_255=tuple(content["eps_255"]),
            accuracy=tuple(Interval(**found) for found in content["accuracy"]),
            broken_by={name: tuple(n) for name, n in content["broken_by"].items()},
            how=content["how"],
            n=content["n"],
            is_random=content["is_random"],
            certified=None if certified is None else tuple(certified),
            certified_radius_255=content["certified_radius_255"],
        )


@dataclass(frozen=True)
class Measured:
    """One system that was trained on one split from one seed.

    Attributes
    ----------
    system, split : str
        The system's name; "own split", "fold K", or how else the images were divided.
    seed : int
    n_train, n_test : int
        Images that it learned from, and on which `metrics` are.
    constant : float
        Share of the test images' most frequent class.
    metrics : mapping of str to Interval
        By the metric's name, on clean test images.
    clustered_by : str
        What the intervals draw as a whole: "patient", "series" or "image".
    robust : RobustCurve
    n_parameters : int or None
        Numbers that were learned; None where it is not known.
    fit_seconds, attack_seconds : float
        Of the training (0 where nothing was trained), and of all attacks.
    inference_ms : float
        Median time of an answer, in milliseconds an image.
    commit : str
        Of the source checkout that measured it, with a "+" where files differed; without one
        "version" and the package's.
    """

    system: str
    split: str
    seed: int
    n_train: int
    n_test: int
    constant: float
    metrics: Mapping[str, Interval]
    clustered_by: str
    robust: RobustCurve
    n_parameters: int | None
    fit_seconds: float
    inference_ms: float
    attack_seconds: float
    commit: str = ""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Measured:
        """Return what `dataclasses.asdict` has made JSON of."""
        metrics = {name: Interval(**found) for name, found in content["metrics"].items()}
        robust = RobustCurve.from_dict(content["robust"])
        return cls(**{**content, "metrics": metrics, "robust": robust})


@dataclass(frozen=True)
class Failed:
    """One system that has no result on one split from one seed, and why."""

    system: str
    split: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Transfer:
    """How systems answer to points that were found against others, all at one radius.

    Attributes
    ----------
    attack : str
        What found the points.
    eps_255 : float
        Its radius, in 1/255.
    split : str
    seed : int
    n : int
        Images, the same for all.
    sources, targets : tuple of str
        Against whom the points were found, and who judged them.
    accuracy : tuple of tuple of float
        A row a source, a column a target.
    worst : mapping of str to Interval
        Of each target, the share that its own attacks and every source's points leave; empty for
        attacks beside the main one.
    """

    attack: str
    eps_255: float
    split: str
    seed: int
    n: int
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    accuracy: tuple[tuple[float, ...], ...]
    worst: Mapping[str, Interval] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Transfer:
        """Return what `dataclasses.asdict` has made JSON of."""
        return cls(
            **{
                **content,
                "sources": tuple(content["sources"]),
                "targets": tuple(content["targets"]),
                "accuracy": tuple(map(tuple, content["accuracy"])),
                "worst": {name: Interval(**found) for name, found in content["worst"].items()},
            }
        )


@dataclass(frozen=True)
class RandomLabels:
    """What a training scores on labels that were drawn, which nothing can predict.

    Attributes
    ----------
    system : str
    labels_by : str
        What was given one label: "image", or a group such as "patient" or "series".
    split_by : str
        What was divided into training and test: "image", a group, or "the given split",
        which is not made anew.
    n_draws : int
        Draws of labels and split, each with a training of its own.
    accuracy : Interval
        On the drawn labels of test images.
    chance : float
        1 / number of classes, which an answer scores that does not depend on the labels.
    shared : float
        Share of test images whose group has images in training.
    """

    system: str
    labels_by: str
    split_by: str
    n_draws: int
    accuracy: Interval
    chance: float
    shared: float

    @property
    def above(self) -> Interval:
        """How far the accuracy is above chance: leakage."""
        found, c = self.accuracy, self.chance
        return Interval(found.estimate - c, found.low - c, found.high - c)

    @property
    def leaks(self) -> bool:
        """Whether it is above chance, by its interval."""
        return self.above.low > 0

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RandomLabels:
        """Return what `dataclasses.asdict` has made JSON of."""
        return cls(**{**content, "accuracy": Interval(**content["accuracy"])})


@dataclass(frozen=True)
class Subject:
    """What was compared, on what, and how.

    Attributes
    ----------
    source : str
        The data's path as it was given, or "phantom".
    synthetic : bool
    label_names : tuple of str
    image_shape : tuple of int
        Height and width.
    data_sha256 : mapping of str to str
        Fingerprint of images, labels and split, by the split's name.
    spending : mapping of str to number or list of numbers
        What attacks may spend.
    smoke : bool
        Whether systems were made as small as can be: figures then say that it runs.
    device, device_name, date, version : str
    threads : int
    commit : str
        Of the source checkout; "" where there is none.
    uncommitted_changes : bool
        Whether files differed from it.
    """

    source: str
    synthetic: bool
    label_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    data_sha256: Mapping[str, str]
    spending: Mapping[str, float | list[float]]
    smoke: bool
    device: str
    device_name: str
    threads: int
    date: str
    version: str
    commit: str
    uncommitted_changes: bool

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Subject:
        """Return what `dataclasses.asdict` has made JSON of."""
        shape, names = tuple(content["image_shape"]), tuple(content["label_names"])
        return cls(**{**content, "image_shape": shape, "label_names": names})


@dataclass(frozen=True)
class Compared:
    """The content of `compare.json`."""

    subject: Subject
    systems: Sequence[SystemFacts]
    measured: Sequence[Measured]
    failed: Sequence[Failed]
    transfer: Sequence[Transfer]
    random_labels: Sequence[RandomLabels]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in order."""
        found = dict.fromkeys(one.split for one in self.measured)
        found |= dict.fromkeys(one.split for one in self.failed)
        return tuple(name for name in found if name != RANDOM_LABELS)

    @property
    def eps_255(self) -> tuple[float, ...]:
        """The radii of the attacks, without 0; empty where nothing was measured."""
        return self.measured[0].robust.eps_255[1:] if self.measured else ()

    def of(self, system: str, split: str) -> list[Measured]:
        """Return what was measured of a system on a split, a seed each."""
        return [one for one in self.measured if (one.system, one.split) == (system, split)]

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Compared:
        """Return the comparison that `as_dict` wrote; raises KeyError or TypeError for others."""
        return cls(
            subject=Subject.from_dict(content["subject"]),
            systems=[SystemFacts(**found) for found in content["systems"]],
            measured=[Measured.from_dict(found) for found in content["measured"]],
            failed=[Failed(**found) for found in content["failed"]],
            transfer=[Transfer.from_dict(found) for found in content["transfer"]],
            random_labels=[RandomLabels.from_dict(found) for found in content["random_labels"]],
        )
