"""One system on one split: training, clean metrics, time, and what attacks on pixels leave."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnmf_cuda.baselines import ImageClassifier, LabelledImages
from nnmf_cuda.comparison.certified import certified_linf
from nnmf_cuda.comparison.pixels import FGSM, PGD, Spending, attack_pixels, pgd_points
from nnmf_cuda.comparison.victims import Victim
from nnmf_cuda.data import ImageDataset, groupings_of_test
from nnmf_cuda.evaluation import Interval, bootstrap_mean, majority_class_accuracy
from nnmf_cuda.evaluation.compared import GRADIENTS, MASKED, QUERIES, Measured, RobustCurve
from nnmf_cuda.evaluation.headline import Proof, check_agreement
from nnmf_cuda.evaluation.seeds import Purpose, seed_word
from nnmf_cuda.evaluation.uncertainty import resample_by_groups

_TIMED, _ROUNDS = 32, 5
"""Images that are answered at once to measure the time, and how often."""

_N_RESAMPLES = 2000


@dataclass(frozen=True)
class SplitImages:
    """One split as every system of a comparison gets it.

    Attributes
    ----------
    name : str
        "own split", "fold K", or by what the images were divided.
    dataset : ImageDataset
    attacked : ndarray of shape (n_attacked,), int64
        Which of the test images are attacked, the same for all systems.
    """

    name: str
    dataset: ImageDataset
    attacked: NDArray[np.int64]

    @classmethod
    def of(cls, name: str, dataset: ImageDataset, n_attacked: int) -> SplitImages:
        """Draw which of the test images are attacked, in shares of the classes where it can be."""
        attacked = in_turn_of_classes(dataset.labels_of("test"), n_attacked)
        return cls(name, dataset, attacked)

    def images(self, part: str) -> NDArray[Any]:
        """Return the images (n, height, width) of "train", "valid" or "test" as they are."""
        return self.dataset.matrix(part).reshape(-1, *self.dataset.image_shape)

    @property
    def validation(self) -> LabelledImages:
        """The validation images and their labels."""
        return LabelledImages(self.images("valid"), self.dataset.labels_of("valid"))

    def rows(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the attacked images (n, height * width) in [0, 1], and their labels (n,)."""
        images = self.dataset.matrix("test")[self.attacked]
        pixels = torch.from_numpy(images).to(device)
        if images.dtype == np.uint8:
            pixels = pixels.float() / 255
        labels = self.dataset.labels_of("test")[self.attacked]
        return pixels, torch.from_numpy(labels).to(device)

    def groups_of_attacked(self) -> NDArray[Any] | None:
        """Return to what (n_attacked,) each attacked image belongs; None where it is not known."""
        for groups in groupings_of_test(self.dataset).values():
            chosen = groups[self.attacked]
            if len(np.unique(chosen)) > 1:
                return chosen
        return None


@dataclass(frozen=True)
class Finished:
    """A measured system, and what transfer needs of it.

    Attributes
    ----------
    measured : Measured
    held : ndarray of shape (n_attacked,), bool
        Whom its own attacks leave right at the largest radius.
    points : mapping of str to ndarray of shape (n_attacked, height * width)
        Points at the largest radius that were found against it, by what found them: "" the main
        attack.
    """

    measured: Measured
    held: NDArray[np.bool_]
    points: Mapping[str, NDArray[np.float32]]


def fit_system(estimator: ImageClassifier, split: SplitImages) -> float:
    """Train an estimator on a split's training images; returns the seconds that it takes alone."""
    started = time.perf_counter()
    labels = split.dataset.labels_of("train")
    estimator.fit(split.images("train"), labels, validation=split.validation)
    return time.perf_counter() - started + estimator.spared_seconds_


def measure_system(
    name: str,
    estimator: ImageClassifier,
    split: SplitImages,
    *,
    spending: Spending,
    seed: int,
    fit_seconds: float,
    single_steps: bool = False,
) -> Finished:
    """Measure a fitted system on a split's test images.

    With `single_steps` points of FGSM and PGD are found too, where it has a gradient. Raises
    ValueError where its answers are no probabilities of the split's classes.
    """
    dataset = split.dataset
    images, labels = split.images("test"), dataset.labels_of("test")
    probabilities = estimator.predict_proba(images)
    if probabilities.shape != (len(labels), dataset.n_classes):
        raise ValueError(
            f"{name} answered {probabilities.shape} to {len(labels)} images of"
            f" {dataset.n_classes} classes: give a probability for each class of each image"
        )
    groupings = groupings_of_test(dataset)
    resampled = resample_by_groups(
        labels, [probabilities], groupings=groupings, n_resamples=_N_RESAMPLES, seed=seed
    )
    if resampled is None:
        raise ValueError(
            f"{dataset.source}: hardly a resample of its {len(labels)} test images holds every"
            " class: give more of the rarest"
        )
    started = time.perf_counter()
    victim = Victim(estimator, dataset.image_shape, seed=seed_word(seed, Purpose.DECISIONS))
    x, y = split.rows(victim.device)
    how = GRADIENTS if victim.has_gradient else QUERIES
    if victim.has_gradient and not victim.leads(x, y, eps=spending.eps_255[-1] / 255):
        victim.has_gradient, how = False, MASKED
    search = attack_pixels(victim, x, y, spending=spending, seed=seed)
    points = {"": search.points}
    if single_steps and victim.has_gradient:
        eps = spending.eps_255[-1] / 255
        for attack, n_iter in ((FGSM, 1), (PGD, spending.n_iter)):
            points[attack] = pgd_points(victim, x, y, eps=eps, n_iter=n_iter, seed=seed)
    attack_seconds = time.perf_counter() - started
    held = search.held.cpu().numpy()
    eps_255 = (0.0, *spending.eps_255)
    certified, radius = None, None
    if (radii := certified_linf(estimator, x, y)) is not None:
        _check_proofs(radii, held, eps_255, split)
        certified = tuple(float(((radii >= e / 255) & (radii > 0)).mean()) for e in eps_255)
        radius = 255 * float(np.median(radii[radii > 0])) if (radii > 0).any() else 0.0
    measured = Measured(
        system=name,
        split=split.name,
        seed=seed,
        n_train=int((dataset.split == "train").sum()),
        n_test=len(labels),
        constant=majority_class_accuracy(labels),
        metrics=resampled.metrics.intervals(0),
        clustered_by=resampled.clustered_by,
        robust=RobustCurve(
            eps_255=eps_255,
            accuracy=tuple(interval_of(right, split, seed) for right in held),
            broken_by={attack: tuple(counts) for attack, counts in search.broken_by.items()},
            how=how,
            n=len(y),
            is_random=victim.is_random,
            certified=certified,
            certified_radius_255=radius,
        ),
        n_parameters=getattr(estimator, "n_parameters_", None),
        fit_seconds=fit_seconds,
        inference_ms=_inference_ms(estimator, images),
        attack_seconds=attack_seconds,
    )
    found = {name: p.float().cpu().numpy() for name, p in points.items()}
    return Finished(measured, held[-1], found)


def _check_proofs(
    radii: NDArray[np.float64],
    held: NDArray[np.bool_],
    eps_255: Sequence[float],
    split: SplitImages,
) -> None:
    """Raise ContradictionError where an attack broke what is proven.

    `radii` (n_attacked,) are proven in pixels, 0 where nothing is; `held` (n_radii, n_attacked)
    says whom attacks left at each of `eps_255`.
    """
    n_test = len(split.dataset.labels_of("test"))
    for eps, right in zip(eps_255, held, strict=True):
        proven, robust = np.zeros(n_test, bool), np.ones(n_test)
        proven[split.attacked] = (radii > 0) & (radii >= eps / 255)
        robust[split.attacked] = right
        check_agreement(robust, Proof(proven, f"bounds, to {eps:g}/255 in pixels"))


def in_turn_of_classes(labels: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return the places of n labels (or all), drawn once and for all in shares of the classes."""
    order = np.random.default_rng(0).permutation(len(labels))
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        rank[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return np.sort(np.argsort(rank, kind="stable")[:n]).astype(np.int64)


def interval_of(right: NDArray[np.bool_], split: SplitImages, seed: int) -> Interval:
    """Return the share of attacked images that are right, with its interval over groups."""
    word, groups = seed_word(seed, Purpose.RESAMPLING), split.groups_of_attacked()
    return bootstrap_mean(right, groups=groups, n_resamples=_N_RESAMPLES, seed=word)


def _inference_ms(estimator: ImageClassifier, images: NDArray[Any]) -> float:
    """Return the median time of an answer, in milliseconds an image, of a few at once."""
    asked, seconds = images[:_TIMED], []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        estimator.predict_proba(asked)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds)) / len(asked)
