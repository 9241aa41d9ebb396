"""Labelled data sets: a source's records, with classes chosen, images decoded, and a split."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.dataset import ImageDataset
from nnmf_cuda.data.decoding import IMAGE_SHAPE, resize_images
from nnmf_cuda.data.images import read_images
from nnmf_cuda.data.phantom import phantom
from nnmf_cuda.data.readers import Records, reader_of
from nnmf_cuda.data.reading import DEFAULT_READING, Account, ReadOptions
from nnmf_cuda.data.splits import N_FOLDS, fold_names, make_split, ways_to_split

logger = logging.getLogger(__name__)


def load_dataset(
    path: str | Path | None,
    *,
    classes: str | None = None,
    label_key: str = "labels",
    split_by: str | None = None,
    test_fold: int | str | None = None,
    seed: int = 0,
    image_shape: tuple[int, int] = IMAGE_SHAPE,
    progress: bool = False,
    reading: ReadOptions = DEFAULT_READING,
) -> ImageDataset:
    """Load a data set, or make the built-in synthetic one.

    Parameters
    ----------
    path : path or None
        An ``.npz``, a COCO export or class folders: what a module of `nnmf_cuda.data.readers`
        reads and describes. None makes the `phantom` with `seed`.
    classes : str, optional
        Which classes to use and in which order, e.g. ``"2=Normal,1=Tumor"``; see `parse_classes`.
        By default every class that has images, in the source's order.
    label_key : str, default="labels"
        The array of labels in an ``.npz``; other sources have none to choose.
    split_by : {"split", "patient_fold", "patient", "series", "random"}, optional
        - "split": the source's own. Without validation images, 15/85 of its training images are
          taken for them, by patient where given.
        - "patient_fold": `test_fold` tests, the next fold validates (after the last the first),
          the others train.
        - "patient", "series": 70/15/15, near the same share of each class, no patient or series in
          two splits.
        - "random": 70/15/15 of each class, whoever the images belong to.
        - None: the first of "split", "patient", "patient_fold", "series" that the source has, or
          "random".
    test_fold : int or str, optional
        Of "patient_fold"; by default the lowest. With "patient", "series" or "random": one of five
        folds, 1 to 5, that are dealt by it, in the place of 70/15/15.
    seed : int, default=0
        For shares of 70/15/15, and for the phantom.
    image_shape : tuple of int, default=(128, 128)
        Height and width to which every image is brought.
    progress : bool, default=False
        Show a progress bar, if standard error is a terminal.
    reading : ReadOptions, optional
        How the source is read.

    Raises
    ------
    ValueError
        If the source cannot be read, or the arguments do not fit it.
    """
    if path is None:
        _check_phantom(classes, label_key, split_by, test_fold)
        return phantom(seed=seed, image_shape=image_shape)
    source = str(path)
    if classes is not None:
        parse_classes(classes)  # before any image is read
    account = Account()
    found = reader_of(Path(path)).read(Path(path), reading, account, label_key=label_key)
    records, labels, label_names, class_notes = choose_classes(
        found, classes=classes, source=source
    )
    images, image_notes = _decoded(records, image_shape, reading, progress=progress)
    split, split_notes = make_split(
        labels,
        split=records.split,
        groups=records.groups,
        split_by=split_by,
        test_fold=test_fold,
        seed=seed,
        source=source,
    )
    notes = (*class_notes, *records.notes, *image_notes, *split_notes)
    for note in notes:
        logger.info("%s: %s", source, note)
    return ImageDataset(
        images=images,
        labels=labels,
        label_names=label_names,
        split=split,
        groups=records.groups,
        files=records.files,
        source=source,
        notes=notes,
    )


def folds_by(
    path: str | Path, *, label_key: str = "labels", reading: ReadOptions = DEFAULT_READING
) -> dict[str, list[str]]:
    """Return by what a source's images can be split, with the folds of each.

    Parameters
    ----------
    path, label_key, reading
        As for `load_dataset`.

    Returns
    -------
    dict of str to list of str
        For each `split_by`, the first being the default, the values that `test_fold` can take;
        none for "split".
    """
    found = reader_of(Path(path)).read(Path(path), reading, Account(), label_key=label_key)
    dealt = [str(fold) for fold in range(1, N_FOLDS + 1)]
    folds = {name: dealt for name in ways_to_split(found.split, found.groups)}
    if "patient_fold" in folds:
        folds["patient_fold"] = fold_names(found.groups["patient_fold"], source=str(path))
    return folds | ({"split": []} if "split" in folds else {})


def _decoded(
    records: Records, image_shape: tuple[int, int], reading: ReadOptions, *, progress: bool
) -> tuple[NDArray[Any], list[str]]:
    """Return images (n, *image_shape), and what was done to pixels that the source held."""
    if not isinstance(records.images, np.ndarray):
        read = read_images(
            records.images, image_shape=image_shape, reading=reading, progress=progress
        )
        return read, []
    resized = resize_images(records.images, image_shape)
    if records.images.shape[1:] == image_shape:
        return resized, []
    height, width, *colours = records.images.shape[1:]
    return resized, [
        f"Images of {height} x {width} pixels{' with colours' if colours else ''} were converted to"
        f" grey images of {image_shape[0]} x {image_shape[1]}"
    ]


def _check_phantom(
    classes: str | None, label_key: str, split_by: str | None, test_fold: int | str | None
) -> None:
    if test_fold is not None:
        raise ValueError(f"test_fold={test_fold}: the built-in images have no patient_fold")
    left = {"classes": (None,), "label_key": ("labels",), "split_by": (None, "split")}
    for (name, allowed), value in zip(left.items(), (classes, label_key, split_by), strict=True):
        if value not in allowed:
            raise ValueError(
                f"{name} is for a data set of yours, but no path was given, which stands for the "
                f"built-in synthetic images; give a path, or leave {name} out"
            )


def parse_classes(classes: str) -> dict[str, str]:
    """Read a class mapping such as ``"2=Normal,1=Tumor"``: from value to name, in label order.

    Parameters
    ----------
    classes : str
        Comma-separated ``value=name`` in label order, the positive class last. ``value`` is what
        the source calls the class: a COCO category id, a folder's name, a label. ``name`` alone
        stands for ``name=name``.

    Raises
    ------
    ValueError
        If an item is empty, a value or name occurs twice, or there are fewer than two.
    """
    mapping: dict[str, str] = {}
    for item in classes.split(","):
        value, _, name = (part.strip() for part in item.partition("="))
        if not value or ("=" in item and not name):
            raise ValueError(f"classes={classes!r}: {item!r} is not value=name, e.g. 2=Normal")
        if value in mapping:
            raise ValueError(f"classes={classes!r}: {value!r} occurs twice")
        mapping[value] = name or value
    if len(mapping) < 2:
        raise ValueError(f"classes={classes!r} names one class; name at least two")
    if len(set(mapping.values())) < len(mapping):
        raise ValueError(f"classes={classes!r} gives two classes the same name")
    return mapping


def choose_classes(
    records: Records, *, classes: str | None, source: str
) -> tuple[Records, NDArray[np.int64], tuple[str, ...], list[str]]:
    """Return the chosen classes' records, labels (n_images,), label names, and notes on both.

    `classes` is read by `parse_classes`; None takes every class that has images, in the source's
    order. `source` is the path, for messages.
    """
    counts = Counter(records.values.tolist())
    found = {value: name for value, name in records.names.items() if value in counts}
    listed = ", ".join(
        f"{value} ({name!r}, {counts[value]} images)" for value, name in found.items()
    )
    mapping = found if classes is None else parse_classes(classes)
    for value in mapping:
        if value not in counts:
            raise ValueError(
                f"{source}: classes={classes!r} asks for {value!r}, which no image has; the images "
                f"have {listed}"
            )
    if len(mapping) < 2:
        raise ValueError(
            f"{source}: only one class, {listed}; a classifier needs images of at least two"
        )
    index = {value: label for label, value in enumerate(mapping)}
    labels = np.array([index.get(value, -1) for value in records.values.tolist()], dtype=np.int64)
    kept = labels >= 0
    parts = [
        f"label {label} is {name!r}" + (f" ({value} in the source)" if value != name else "")
        for label, (value, name) in enumerate(mapping.items())
    ]
    how = "As chosen" if classes else "In the source's order (--classes chooses another)"
    positive = ", the positive class" if len(mapping) == 2 else ""
    notes = [f"{how}, {', '.join(parts)}{positive}"]
    if not kept.all():
        notes.append(f"{int((~kept).sum())} images of classes not chosen are left out")
    return records.take(kept), labels[kept], tuple(mapping.values()), notes
