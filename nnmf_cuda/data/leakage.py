"""Leakage audit: images that stand, or nearly stand, on both sides of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.dataset import GROUPS, SPLITS, ImageDataset

_ROWS = 1024
"""Images compared at a time, so that memory does not grow with the square of their number."""

_SYNTHETIC = "drawn image"

_HASH_BITS = 4
"""Two of a perceptual hash's 63 bits that differ at most this often mean the same picture."""

_NEGLIGIBLE_SHARE = 0.01
_ALARM_EXCESS = 0.5

_N_PAIRS = 10


@dataclass(frozen=True)
class Neighbours:
    """How near a part of the images comes to the images that it is compared with."""

    n: int
    near_share: float
    """Share whose most similar image on the other side correlates above the threshold."""
    nearest_accuracy: float
    """Of giving each image the label of its most similar one: what memory alone scores."""
    majority_accuracy: float
    """Of the part's most frequent label: the best that an answer which does not look can score."""
    identical: int
    """Images with an equal one, byte for byte, on the other side."""
    same_hash: int
    """Images with one of nearly the same perceptual hash on the other side."""
    parted_by: str | None = None
    """What is known to stand on one side only: a group of the data set, or a drawn image."""

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


class SimilarPair(NamedTuple):
    """Two of the most similar images, one evaluated ("valid" or "test"), and one of training."""

    correlation: float  # of their block means
    file: str
    split: str
    training_file: str


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
    pairs : list of SimilarPair
        Up to ten of the most similar pairs across the split, the most similar first.
    resolution : int
        Side of the grid of block means that are compared.
    threshold : float
        Correlation above which two images count as near.
    """

    splits: Mapping[str, Neighbours]
    folds: Mapping[str, Neighbours]
    counts: Mapping[str, Mapping[str, int]]
    duplicates: int
    pairs: list[SimilarPair]
    resolution: int
    threshold: float

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LeakageAudit:
        """Return the audit that `as_dict` wrote."""
        return cls(
            splits={name: Neighbours(**found) for name, found in content["splits"].items()},
            folds={name: Neighbours(**found) for name, found in content["patient_folds"].items()},
            counts=content["counts"],
            duplicates=content["duplicates"],
            pairs=[SimilarPair(*pair) for pair in content["most_similar_pairs"]],
            resolution=content["resolution"],
            threshold=content["threshold"],
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "resolution": self.resolution,
            "threshold": self.threshold,
            "splits": {name: asdict(found) for name, found in self.splits.items()},
            "patient_folds": {name: asdict(found) for name, found in self.folds.items()},
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


def audit_dataset(
    dataset: ImageDataset, *, resolution: int = 32, threshold: float = 0.95
) -> LeakageAudit:
    """Compare every evaluated image with every training image, and fold with fold.

    Parameters
    ----------
    dataset : ImageDataset
        Images with their split.
    resolution : int, default=32
        Side of the grid of block means.
    threshold : float, default=0.95
        Correlation above which two images count as near.

    Raises
    ------
    ValueError
        If the resolution is below 2 or above the images', or the threshold outside (0, 1].

    Notes
    -----
    A high nearest-neighbour accuracy is no proof of leakage: a task may be that easy.
    """
    check_audit(resolution=resolution, threshold=threshold)
    images = _Compared(
        standardised_means(dataset.images, resolution),
        dataset.labels,
        np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in dataset.images]),
        perceptual_hashes(dataset.images),
    )
    train = dataset.split == "train"
    splits: dict[str, Neighbours] = {}
    pairs: list[SimilarPair] = []
    for name in SPLITS[1:]:
        rows = dataset.split == name
        if not rows.any():
            continue
        found, best, nearest = images.compare(rows, train, threshold)
        splits[name] = replace(found, parted_by=_parted_by(dataset, rows, train))
        order = np.argsort(-best)[:_N_PAIRS]
        files, known = dataset.files[rows], dataset.files[train]
        pairs += [
            SimilarPair(float(best[i]), str(files[i]), name, str(known[nearest[i]])) for i in order
        ]
    folds = {}
    if "patient_fold" in dataset.groups:
        fold_of = dataset.groups["patient_fold"]
        for fold in np.unique(fold_of).tolist():
            inside = fold_of == fold
            if not inside.all():
                folds[str(fold)], _, _ = images.compare(inside, ~inside, threshold)
    _, counted = np.unique(images.digests, return_counts=True)
    return LeakageAudit(
        splits=splits,
        folds=folds,
        counts={
            split: {
                name: int((dataset.labels_of(split) == label).sum())
                for label, name in enumerate(dataset.label_names)
            }
            for split in SPLITS
        },
        duplicates=int(counted[counted > 1].sum()),
        pairs=sorted(pairs, reverse=True)[:_N_PAIRS],
        resolution=resolution,
        threshold=threshold,
    )


def equal_images(dataset: ImageDataset) -> list[str]:
    """Return a warning where images of two classes, or of training and evaluation, are equal.

    They are compared as they were read: grey, and of one size. Those of one grey value are equal
    whatever they show, and are warned of by themselves.
    """
    blank: list[int] = []
    first: dict[bytes, int] = {}
    of_class: list[tuple[int, int]] = []
    of_split: list[tuple[int, int]] = []
    order = np.argsort(dataset.split != "train", kind="stable")  # training images come first
    for index in order.tolist():
        if dataset.images[index].min() == dataset.images[index].max():
            blank.append(index)
            continue
        digest = hashlib.blake2b(dataset.images[index].tobytes(), digest_size=16).digest()
        known = first.setdefault(digest, index)
        if dataset.labels[known] != dataset.labels[index]:
            of_class.append((known, index))
        if dataset.split[index] != "train" and dataset.split[known] == "train":
            of_split.append((known, index))
    names, files = dataset.label_names, dataset.files
    notes = []
    if blank:
        notes.append(
            f"Warning: {len(blank)} images are of one grey value, as {files[min(blank)]}: nothing"
            " is on them, or --window does not fit"
        )
    if of_class:
        a, b = of_class[0]
        notes.append(
            f"Warning: {len(of_class)} images equal one of another class, as {files[b]} "
            f"({names[dataset.labels[b]]}) does {files[a]} ({names[dataset.labels[a]]}): a label is"
            " wrong, or a folder is a copy"
        )
    if of_split:
        a, b = of_split[0]
        notes.append(
            f"Warning: {len(of_split)} images of valid and test equal a training image, as "
            f"{files[b]} ({dataset.split[b]}) does {files[a]}"
        )
    return notes


def check_audit(*, resolution: int, threshold: float) -> None:
    """Raise ValueError for options of an audit that fit no images."""
    if resolution < 2:
        raise ValueError(
            f"resolution must be at least 2, got {resolution}: one mean an image correlates with"
            " nothing"
        )
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")


def _parted_by(
    dataset: ImageDataset, rows: NDArray[np.bool_], train: NDArray[np.bool_]
) -> str | None:
    """Return what is known to stand on one side only; of known patients nothing else counts."""
    if dataset.synthetic:
        return _SYNTHETIC
    known = [name for name in GROUPS if name in dataset.groups]
    for name in known[:1] if "patient" in known else known:
        groups = dataset.groups[name]
        if not np.isin(groups[rows], groups[train]).any():
            return name
    return None


@dataclass(frozen=True)
class _Compared:
    """All images as they are compared: unit vectors, labels, digests, hashes."""

    vectors: NDArray[np.float64]
    labels: NDArray[np.int64]
    digests: NDArray[np.str_]
    hashes: NDArray[np.bool_]

    def compare(
        self, rows: NDArray[np.bool_], others: NDArray[np.bool_], threshold: float
    ) -> tuple[Neighbours, NDArray[np.float64], NDArray[np.int64]]:
        """Return what was found, each row's highest correlation, and with which of the others."""
        theirs, known, labels = self.vectors[others].T, self.labels[others], self.labels[rows]
        signs = np.where(self.hashes, 1.0, -1.0)
        chosen, parts = np.flatnonzero(rows), []
        for start in range(0, len(chosen), _ROWS):
            part = chosen[start : start + _ROWS]
            correlations = self.vectors[part] @ theirs
            differing = (signs.shape[1] - (signs[part] @ signs[others].T).max(1)) / 2
            parts.append((correlations.max(1), correlations.argmax(1), differing <= _HASH_BITS))
        best, nearest, close = map(np.concatenate, zip(*parts, strict=True))
        found = Neighbours(
            n=int(rows.sum()),
            near_share=float((best > threshold).mean()),
            nearest_accuracy=float((known[nearest] == labels).mean()),
            majority_accuracy=float(np.bincount(labels).max() / len(labels)),
            identical=int(np.isin(self.digests[rows], self.digests[others]).sum()),
            same_hash=int(close.sum()),
        )
        return found, best, nearest


def standardised_means(images: NDArray[Any], resolution: int) -> NDArray[np.float64]:
    """Return block means of images (n, height, width) as rows whose products are correlations.

    Rows (n, resolution**2) have mean 0 and length 1; that of an image of one grey is 0, as it
    correlates with nothing.
    """
    flat = block_means(images, resolution).reshape(len(images), -1)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(
        flat, length, out=np.zeros_like(flat), where=length > 1e-9
    )
    return unit


def block_means(images: NDArray[Any], resolution: int) -> NDArray[np.float64]:
    """Return the means (n, resolution, resolution) of a grid of blocks as equal as can be."""
    height, width = images.shape[1:]
    if not 1 <= resolution <= min(height, width):
        raise ValueError(
            f"resolution must be from 1 to the images' smaller side, {min(height, width)}; got"
            f" {resolution}"
        )
    rows, columns = (np.arange(resolution) * side // resolution for side in (height, width))
    heights, widths = np.diff(np.append(rows, height)), np.diff(np.append(columns, width))
    sums = np.empty((len(images), resolution, resolution))
    for start in range(0, len(images), _ROWS):
        block = images[start : start + _ROWS].astype(np.float64)
        block = np.add.reduceat(np.add.reduceat(block, rows, axis=1), columns, axis=2)
        sums[start : start + _ROWS] = block
    sums /= np.outer(heights, widths)
    return sums


def perceptual_hashes(images: NDArray[Any]) -> NDArray[np.bool_]:
    """Return 63 bits for each image: whether low frequencies of its cosine transform are high.

    The DCT hash of an image's 32x32 block means (its own pixels, where it has fewer): the 8x8
    lowest coefficients but the first, against their median.
    """
    from scipy.fft import dctn

    side = min(32, *images.shape[1:])
    low = dctn(block_means(images, side), axes=(1, 2))[:, :8, :8].reshape(len(images), -1)[:, 1:]
    bits: NDArray[np.bool_] = low > np.median(low, axis=1, keepdims=True)
    return bits
