"""The control with random labels: what a training scores on labels that nobody can predict.

Whoever scores above chance on them has seen the test images' groups in training. Yagis et al.
(2021), Effect of data leakage in brain MRI classification using 2D convolutional neural networks,
Scientific Reports 11, 22544: with random labels, 96 % by slices and 50 % by subjects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.baselines import ImageClassifier, LabelledImages
from nnmf_cuda.comparison.features import FeatureClassifier
from nnmf_cuda.comparison.references import NearestNeighbour
from nnmf_cuda.data import ImageDataset
from nnmf_cuda.evaluation import Interval, wilson_interval
from nnmf_cuda.evaluation.compared import RandomLabels

IMAGE, GIVEN_SPLIT = "image", "the given split"

_GROUPS = ("patient", "series", "patient_fold")
"""What may get one label, the best first."""

_SHARE = 0.15
"""Of validation and of test images, as of a split that is made for a training."""

_MOST_DRAWS = 1000


@dataclass(frozen=True)
class _Cell:
    """Who got one label, and how training and test were divided."""

    labels_by: str
    split_by: str


def random_label_control(
    dataset: ImageDataset,
    make: Callable[[int], ImageClassifier],
    *,
    name: str,
    n_draws: int,
    seed: int,
    each: Callable[[], object] = lambda: None,
) -> list[RandomLabels]:
    """Train on labels that are drawn, evenly and apart from the images, and score them.

    Parameters
    ----------
    dataset : ImageDataset
        Images, their groups and the split at hand; its labels are not looked at.
    make : callable
        Takes a seed, returns an estimator that is not fitted.
    name : str
        Of the system, for the result.
    n_draws : int
        Draws of labels and split, each trained on anew.
    seed : int
    each : callable, optional
        Called after each training.

    Returns
    -------
    list of RandomLabels
        Labels by image, on a split by image: nothing can be learned, which checks the control.
        Where patients, series or folds are known, and are two more than the classes at least,
        labels by these: on a split by image, on one by them, and on the split at hand. Of the
        interval (Wilson's), what got one label is one trial; of groups that differ in size, as many
        trials as equal ones of the same spread would be.
    """
    group = _group_of(dataset)
    cells = [_Cell(IMAGE, IMAGE)]
    if group is not None:
        cells += [_Cell(group, IMAGE), _Cell(group, group), _Cell(group, GIVEN_SPLIT)]
    return [
        _score(dataset, make, name, cell, number, n_draws, seed, each)
        for number, cell in enumerate(cells)
    ]


def quick_controls(
    dataset: ImageDataset, *, seed: int, each: Callable[[], object] = lambda: None
) -> list[RandomLabels]:
    """Run the control of an audit: with memory alone, and with the light CNN of NNMF features."""
    return [
        line
        for name, make, n_draws in _QUICK
        for line in random_label_control(
            dataset, make, name=name, n_draws=n_draws, seed=seed, each=each
        )
    ]


def n_quick_trainings(dataset: ImageDataset) -> int:
    """Return how many trainings `quick_controls` takes."""
    return sum(n_trainings(dataset, n_draws) for _, _, n_draws in _QUICK)


_QUICK: tuple[tuple[str, Callable[[int], ImageClassifier], int], ...] = (
    ("nearest neighbour", lambda seed: NearestNeighbour(), 10),
    ("NNMF and light CNN", lambda seed: FeatureClassifier(max_iter=30, random_state=seed), 3),
)


def n_trainings(dataset: ImageDataset, n_draws: int) -> int:
    """Return how many trainings the control of one system takes."""
    return n_draws * (1 if _group_of(dataset) is None else 4)


def _group_of(dataset: ImageDataset) -> str | None:
    """Return what may get one label: the first of which validation, test and each class have one.

    None where nothing is known, or too few of it.
    """
    needed = dataset.n_classes + 2
    known = (name for name in _GROUPS if name in dataset.groups)
    return next((name for name in known if len(np.unique(dataset.groups[name])) >= needed), None)


def _score(
    dataset: ImageDataset,
    make: Callable[[int], ImageClassifier],
    name: str,
    cell: _Cell,
    number: int,
    n_draws: int,
    seed: int,
    each: Callable[[], object],
) -> RandomLabels:
    n = len(dataset.images)
    units = np.arange(n)
    if cell.labels_by != IMAGE:
        units = np.unique(dataset.groups[cell.labels_by], return_inverse=True)[1]
    right, weights, shared = [], [], []
    for draw in range(n_draws):
        rng = np.random.default_rng([seed, number, draw])
        split = _split(dataset, cell.split_by, units, rng)
        labels = _labels(units, split, dataset.n_classes, rng)
        train, valid, test = (split == part for part in ("train", "valid", "test"))
        estimator = make(int(rng.integers(2**31)))
        # A class that validation lacks is no reason to stop.
        validation = LabelledImages(dataset.images[valid], labels[valid])
        estimator.fit(dataset.images[train], labels[train], validation=validation)
        right.append(estimator.predict(dataset.images[test]) == labels[test])
        weights.append(np.unique(units[test], return_counts=True)[1])
        shared.append(np.isin(units[test], units[train]))
        each()
    accuracy = float(np.concatenate(right).mean())
    counts = np.concatenate(weights).astype(np.float64)
    n_trials = counts.sum() ** 2 / (counts**2).sum()
    low, high = wilson_interval(accuracy * n_trials, n_trials)
    return RandomLabels(
        system=name,
        labels_by=cell.labels_by,
        split_by=cell.split_by,
        n_draws=n_draws,
        accuracy=Interval(accuracy, low, high),
        chance=1 / dataset.n_classes,
        shared=float(np.concatenate(shared).mean()) if cell.labels_by != IMAGE else 0.0,
    )


def _split(
    dataset: ImageDataset, split_by: str, units: NDArray[Any], rng: np.random.Generator
) -> NDArray[np.str_]:
    """Return "train", "valid" or "test" of each image (n_images,), which no label has a say in.

    Dealt again while training has fewer units than there are classes, which labels could not name.
    """
    if split_by == GIVEN_SPLIT:
        return dataset.split
    dealt = np.arange(len(units)) if split_by == IMAGE else units
    split = _dealt(dealt, rng)
    for _ in range(_MOST_DRAWS):
        if len(np.unique(units[split == "train"])) >= dataset.n_classes:
            break
        split = _dealt(dealt, rng)
    return split


def _dealt(dealt: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.str_]:
    """Deal what has the same number to one part; return the part of each image (n_images,)."""
    order = rng.permutation(np.unique(dealt))
    sizes = np.bincount(dealt)[order]
    # Whole units go to test, then to validation, until each has its share; one of each at least.
    ends = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    place = np.where(ends < _SHARE, 2, np.where(ends < 2 * _SHARE, 1, 0))
    place[0], place[1] = 2, max(place[1], 1)
    if not (place == 1).any():  # the second is a test unit then, and the last never is
        place[np.flatnonzero(place == 2)[-1]] = 1
    of_unit = np.empty(dealt.max() + 1, dtype=np.int64)
    of_unit[order] = place
    return np.array(["train", "valid", "test"])[of_unit[dealt]]


def _labels(
    units: NDArray[Any], split: NDArray[np.str_], n_classes: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a label for each unit, evenly, until the training images have every class.

    Only what training sees is looked at: of units that it does not see, chance stays what it is.
    """
    for _ in range(_MOST_DRAWS):
        labels: NDArray[np.int64] = rng.integers(n_classes, size=int(units.max()) + 1)[units]
        if len(np.unique(labels[split == "train"])) == n_classes:
            return labels
    raise ValueError(
        f"random labels of {len(np.unique(units[split == 'train']))} training groups hardly have"
        f" {n_classes} classes: give images of more patients or series"
    )
