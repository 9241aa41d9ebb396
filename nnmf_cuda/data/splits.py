"""Dividing images into training, validation and test images: by shares, or by folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.dataset import GROUPS, SPLITS

SplitBy = Literal["split", "patient_fold", "patient", "series", "random"]

FRACTIONS = (0.70, 0.15, 0.15)  # of the three parts
N_FOLDS = 5  # dealt where the source has none
N_TRIALS = 32  # random orders in which whole groups are dealt out, to keep the best deal


def make_split(
    labels: NDArray[np.int64],
    *,
    label_names: Sequence[str],
    split: NDArray[np.str_] | None,
    groups: Mapping[str, NDArray[Any]],
    split_by: str | None,
    test_fold: int | str | None = None,
    seed: int,
    source: str,
) -> tuple[NDArray[np.str_], list[str]]:
    """Say of every image (n_images,) whether it trains, validates or tests, and how it was decided.

    `split` is the source's own and `groups` may hold all of `GROUPS`; `split_by`, `test_fold` and
    `seed` are those of `load_dataset`, `source` is the path, for messages. What cannot be divided
    as asked, for want of images, groups or folds, is a ValueError.
    """
    has = ways_to_split(split, groups)
    if split_by is None:
        split_by = has[0]
    if split_by not in get_args(SplitBy):
        raise ValueError(f"split_by={split_by!r}: choose one of {', '.join(get_args(SplitBy))}")
    if split_by not in has:
        raise ValueError(
            f"split_by={split_by!r} needs {split_by!r} for every image, which {source} does not "
            f"have; choose {', '.join(map(repr, has))}"
        )
    if split_by == "split":
        if test_fold is not None:
            raise ValueError(
                f"test_fold={test_fold}: split_by='split' takes the split of {source} as it is; "
                f"choose split_by={' or '.join(map(repr, has[1:]))}"
            )
        assert split is not None
        patients = groups.get("patient")
        return _complete(split, labels, label_names, patients, seed=seed, source=source)
    if split_by == "patient_fold":
        return _split_by_fold(groups[split_by], test_fold, name=split_by, source=source)
    members = groups.get(split_by)
    if test_fold is not None:
        folds = _deal_folds(labels, members, name=split_by, source=source)
        name = f"{N_FOLDS} folds by {split_by}"
        return _split_by_fold(folds, test_fold, name=name, source=source)
    made = _divide(labels, label_names, members, FRACTIONS, seed=seed, source=source)
    note = f"Split made here: 70/15/15, stratified by class, seed {seed}"
    if members is not None:
        note += f", by {split_by}: none is in two splits ({len(np.unique(members))} of them)"
    elif "patient" in has:
        note += ", image by image: images of one patient may be in several splits"
    else:
        note += "; the source names no patients, so images of one may be in several splits"
    return np.array(SPLITS)[made], [note]


def ways_to_split(split: NDArray[np.str_] | None, groups: Mapping[str, Any]) -> list[str]:
    """Return what `split_by` can be, the one that is taken by default first."""
    of_groups = [name for name in GROUPS if name in groups]
    return [*(["split"] if split is not None else []), *of_groups, "random"]


def fold_names(folds: NDArray[Any], *, source: str) -> list[str]:
    """Return the names of a source's own folds, in order; there must be three."""
    if folds.dtype.kind not in "iuU":
        raise ValueError(f"{source}: patient_fold is {folds.dtype}; give integers or text")
    found = np.unique(folds).tolist()
    if len(found) < 3:
        raise ValueError(
            f"split_by='patient_fold' needs at least 3 folds (test, valid, train), but {source} "
            f"has {len(found)}; choose split_by='random'"
        )
    return [str(fold) for fold in found]


def _split_by_fold(
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


def _deal_folds(
    labels: NDArray[np.int64], groups: NDArray[Any] | None, *, name: str, source: str
) -> NDArray[np.int64]:
    """Deal images (n_images,) into folds 1..N_FOLDS with near the same share of each class.

    Whole groups go together where they are given. The folds depend on the data alone, not on a
    seed, so that runs from several seeds are tested on the same ones.
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


def _complete(
    split: NDArray[np.str_],
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    patients: NDArray[Any] | None,
    *,
    seed: int,
    source: str,
) -> tuple[NDArray[np.str_], list[str]]:
    """Take validation images from the training images where a source has none."""
    if (split == "valid").any() or not (split == "train").any():
        return split, []
    training = np.flatnonzero(split == "train")
    train, valid, _ = FRACTIONS
    made = _divide(
        labels[training],
        label_names,
        None if patients is None else patients[training],
        (train / (train + valid), valid / (train + valid)),
        seed=seed,
        source=source,
    )
    completed = split.astype(f"<U{max(map(len, SPLITS))}")
    completed[training] = np.array(SPLITS)[made]
    return completed, [
        f"The source has no validation images: {int((made == 1).sum())} of its {len(training)} "
        f"training images are taken, stratified by class, seed {seed}"
    ]


def _divide(
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    groups: NDArray[Any] | None,
    fractions: tuple[float, ...],
    *,
    seed: int,
    source: str,
) -> NDArray[np.int64]:
    """Return the part of each image: stratified, and group by group where groups are given."""
    rng = np.random.Generator(np.random.PCG64(seed))
    if groups is not None:
        return _divide_groups(labels, label_names, groups, fractions, rng, source=source)
    parts = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels).tolist():
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) < len(fractions):
            raise ValueError(
                f"{source}: class {label_names[label]!r} has {len(rows)} images, too few for one in"
                f" each of {len(fractions)} splits; give more, or leave the class out or merge it "
                "with another, as in --classes no=no,glioma=tumor,pituitary=tumor"
            )
        begin = 0
        for part, fraction in enumerate(fractions[1:], start=1):
            size = max(1, round(fraction * len(rows)))
            parts[rows[begin : begin + size]] = part
            begin += size
    return parts


def _divide_groups(
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    groups: NDArray[Any],
    fractions: tuple[float, ...],
    rng: np.random.Generator,
    *,
    source: str,
) -> NDArray[np.int64]:
    """Deal out whole groups greedily in several random orders, and keep the best deal.

    A deal is the better, the nearer each part's count of each class is to its share, as a
    proportion of the class, in squares.
    """
    members, group_of = np.unique(groups, return_inverse=True)
    n_classes = int(labels.max()) + 1
    counts = np.zeros((len(members), n_classes))
    np.add.at(counts, (group_of, labels), 1.0)
    shares = counts / np.maximum(counts.sum(axis=0), 1.0)
    targets = np.outer(fractions, np.ones(n_classes))
    best, best_cost = None, np.inf
    for _ in range(N_TRIALS):
        parts = _deal(shares, targets, rng)
        filled = np.stack([shares[parts == part].sum(axis=0) for part in range(len(fractions))])
        cost = float(((filled - targets) ** 2).sum())
        if (filled > 0).all() and cost < best_cost:
            best, best_cost = parts, cost
    if best is None:
        n_with = (counts > 0).sum(axis=0)
        rarest = int(n_with.argmin())
        raise ValueError(
            f"{source}: its {len(members)} patients or series cannot be divided so that each of "
            f"{len(fractions)} splits has every class: {n_with[rarest]} of them have class "
            f"{label_names[rarest]!r}; give more, leave the class out or merge it with another, as "
            "in --classes no=no,glioma=tumor,pituitary=tumor, or choose split_by='random', which "
            "may put one of them into several splits"
        )
    return best[group_of]


def _deal(
    shares: NDArray[np.float64], targets: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Give each group, in random order, to the part whose distance from its target falls most."""
    parts = np.zeros(len(shares), dtype=np.int64)
    lacking = targets.copy()
    for group in rng.permutation(len(shares)):
        # |lacking - share|^2 - |lacking|^2 of each part
        change = ((shares[group] - 2.0 * lacking) * shares[group]).sum(axis=1)
        parts[group] = np.argmin(change)
        lacking[parts[group]] -= shares[group]
    return parts
