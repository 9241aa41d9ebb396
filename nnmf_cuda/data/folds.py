"""Folds: which part of the images tests, when every image is to be tested once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["N_FOLDS", "deal_folds", "fold_names", "split_by_fold"]

N_FOLDS = 5
"""Folds that are dealt where the source has none."""


def fold_names(folds: NDArray[Any], *, source: str) -> list[str]:
    """Return the names of a source's own folds, in order.

    Raises
    ------
    ValueError
        If they are no integers or text, or fewer than three.
    """
    if folds.dtype.kind not in "iuU":
        raise ValueError(f"{source}: patient_fold is {folds.dtype}; give integers or text")
    found = np.unique(folds).tolist()
    if len(found) < 3:
        raise ValueError(
            f"split_by='patient_fold' needs at least 3 folds (test, valid, train), but {source} "
            f"has {len(found)}; choose split_by='random'"
        )
    return [str(fold) for fold in found]


def split_by_fold(
    folds: NDArray[Any], test_fold: int | str | None, *, name: str, source: str
) -> tuple[NDArray[np.str_], list[str]]:
    """Let one fold test (by default the lowest), the next validate, and the others train."""
    names = fold_names(folds, source=source)
    if test_fold is not None and str(test_fold) not in names:
        raise ValueError(f"test_fold={test_fold}: {source} has the folds {', '.join(names)}")
    first = 0 if test_fold is None else names.index(str(test_fold))
    test, valid, *train = names[first:] + names[:first]
    of_image = folds.astype(np.str_)
    split = np.select([of_image == test, of_image == valid], ["test", "valid"], "train")
    return split.astype(np.str_), [
        f"Split by {name}: {', '.join(train)} train, {valid} validates, {test} tests"
    ]


def deal_folds(
    labels: NDArray[np.int64], groups: NDArray[Any] | None, *, name: str, source: str
) -> NDArray[np.int64]:
    """Deal images into folds 1..N_FOLDS with near the same share of each class.

    Whole groups go together where they are given. The folds depend on the data alone, not on a
    seed, so that runs from several seeds are tested on the same ones.

    Parameters
    ----------
    labels : ndarray of shape (n_images,), int64
    groups : ndarray of shape (n_images,), or None
        Such as patients.
    name, source : str
        What the groups are, and the path, for messages.

    Raises
    ------
    ValueError
        If a fold would lack a class.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    folds = np.zeros(len(labels), dtype=np.int64)
    dealer = StratifiedKFold(N_FOLDS) if groups is None else StratifiedGroupKFold(N_FOLDS)
    n_members = np.bincount(labels).min() if groups is None else len(np.unique(groups))
    if n_members >= N_FOLDS:
        for fold, (_, rows) in enumerate(dealer.split(labels, labels, groups), start=1):
            folds[rows] = fold
    classes = {tuple(np.unique(labels[folds == fold])) for fold in range(1, N_FOLDS + 1)}
    if classes != {tuple(np.unique(labels))}:
        raise ValueError(
            f"{source}: its images cannot be dealt into {N_FOLDS} folds by {name} so that each has"
            " every class: add images, or leave test_fold out"
        )
    return folds
