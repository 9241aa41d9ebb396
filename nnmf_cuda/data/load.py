"""Labelled data sets: a source's records, with classes chosen, images decoded, and a split."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.dataset import SPLITS, ImageDataset
from nnmf_cuda.data.decoding import IMAGE_SHAPE, resize_images
from nnmf_cuda.data.images import ArrayImage, ImageSource, failed_images, read_readable
from nnmf_cuda.data.leakage import equal_images
from nnmf_cuda.data.phantom import phantom
from nnmf_cuda.data.readers import Records, note_unheeded, reader_of
from nnmf_cuda.data.reading import DEFAULT_READING, UNREADABLE, Account, ReadOptions
from nnmf_cuda.data.splits import N_FOLDS, fold_names, make_split, ways_to_split

logger = logging.getLogger(__name__)

_PLURAL = {"patient": "patients", "patient_fold": "patient folds", "series": "series"}


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
    n_train_needed: int = 1,
) -> ImageDataset:
    """Load a data set, or make the built-in synthetic one.

    Parameters
    ----------
    path : path or None
        What a module of `nnmf_cuda.data.readers` reads and describes: class folders, a table,
        DICOM, NIfTI, masks beside images, stacks, archives. None makes the `phantom` with `seed`.
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
    n_train_needed : int, default=1
        Training images that every class must have; fewer are an error before any is decoded.

    Raises
    ------
    ValueError
        If the source cannot be read, or the arguments do not fit it.
    """
    if path is None:
        _check_phantom(classes, label_key, split_by, test_fold, reading)
        return phantom(seed=seed, image_shape=image_shape)
    source = str(path)
    if classes is not None:
        parse_classes(classes)  # before any image is read
    account, reader = Account(), reader_of(Path(path))
    note_unheeded(reader, Path(path), reading, account)
    found = reader.read(Path(path), reading, account, label_key=label_key)
    records, labels, label_names, class_notes = choose_classes(
        found, classes=classes, source=source
    )
    split, split_notes = make_split(
        labels,
        label_names=label_names,
        split=records.split,
        groups=records.groups,
        split_by=split_by,
        test_fold=test_fold,
        seed=seed,
        source=source,
    )
    _refuse_rare_classes(labels, label_names, split, needed=n_train_needed, source=source)
    images, rows, image_notes = _decoded(records, image_shape, reading, account, progress=progress)
    if not rows.all():
        records, labels, split = records.take(rows), labels[rows], split[rows]
        _refuse_rare_classes(labels, label_names, split, needed=n_train_needed, source=source)
    account.n_read = len(images)
    dataset = ImageDataset(
        images=images,
        labels=labels,
        label_names=label_names,
        split=split,
        groups=records.groups,
        files=records.files,
        source=source,
    )
    notes = (
        *class_notes,
        *records.notes,
        *image_notes,
        *split_notes,
        *equal_images(dataset),
        *account.lines(),
        _contents(dataset),
    )
    for note in notes:
        logger.info("%s: %s", source, note)
    return replace(dataset, notes=notes)


def _contents(dataset: ImageDataset) -> str:
    """Say how many images, patients and series there are of each kind, in one line."""
    of_label = np.bincount(dataset.labels, minlength=dataset.n_classes).tolist()
    labels = ", ".join(f"{n} {name}" for name, n in zip(dataset.label_names, of_label, strict=True))
    groups = "".join(
        f"; {_PLURAL[name]}: {len(np.unique(members))}" for name, members in dataset.groups.items()
    )
    splits = ", ".join(f"{int((dataset.split == split).sum())} {split}" for split in SPLITS)
    unknown = "" if "patient" in dataset.groups else "; patients: unknown"
    return f"Labels: {labels}{groups}{unknown}; splits: {splits}"


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
    records: Records,
    image_shape: tuple[int, int],
    reading: ReadOptions,
    account: Account,
    *,
    progress: bool,
) -> tuple[NDArray[Any], NDArray[np.bool_], list[str]]:
    """Return images (n, *image_shape), which records they are, and what was done to them."""
    notes = _converted(records.images, image_shape)
    if isinstance(records.images, np.ndarray):
        resized = resize_images(records.images, image_shape)
        return resized, np.ones(len(resized), dtype=bool), notes
    found = read_readable(
        records.images, image_shape=image_shape, reading=reading, progress=progress
    )
    if found.failures and not found.rows.any():
        raise ValueError(failed_images(found.failures, len(records.images)))
    for file, message in found.failures:
        logger.warning("skipped: %s", message)
        account.skip(file, UNREADABLE)
    return found.images, found.rows, notes


def _converted(
    images: Sequence[ImageSource] | NDArray[Any], image_shape: tuple[int, int]
) -> list[str]:
    """Say of images that their source holds as an array what is done to them, if it is much."""
    if isinstance(images, np.ndarray):
        shapes = {images.shape[1:]}
    else:
        shapes = {image.pixels.shape for image in images if isinstance(image, ArrayImage)}
    return [
        f"Images of {height} x {width} pixels{' with colours' if colours else ''} were "
        f"converted to grey images of {image_shape[0]} x {image_shape[1]}"
        for height, width, *colours in shapes - {image_shape}
    ]


def _check_phantom(
    classes: str | None,
    label_key: str,
    split_by: str | None,
    test_fold: int | str | None,
    reading: ReadOptions,
) -> None:
    if test_fold is not None:
        raise ValueError(f"test_fold={test_fold}: the built-in images have no patient_fold")
    left = {"classes": (None,), "label_key": ("labels",), "split_by": (None, "split")}
    given = {name: getattr(reading, name) for name in reading.changed()}
    for name, value in {
        "classes": classes,
        "label_key": label_key,
        "split_by": split_by,
        **given,
    }.items():
        if value not in left.get(name, ()):
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
        stands for ``name=name``. Values of one name become one class, at the place of the first:
        ``"no=no,glioma=tumor,pituitary=tumor"`` has two.

    Raises
    ------
    ValueError
        If an item is empty, a value occurs twice, two names differ in case or spaces alone, or
        there are fewer than two classes.
    """
    mapping: dict[str, str] = {}
    for item in classes.split(","):
        value, _, name = (part.strip() for part in item.partition("="))
        if not value or ("=" in item and not name):
            raise ValueError(f"classes={classes!r}: {item!r} is not value=name, e.g. 2=Normal")
        if value in mapping:
            raise ValueError(f"classes={classes!r}: {value!r} occurs twice")
        mapping[value] = name or value
    names = list(dict.fromkeys(mapping.values()))
    if len(names) < 2:
        raise ValueError(
            f"classes={classes!r} names one class; name at least two, as in "
            "no=no,glioma=tumor,pituitary=tumor"
        )
    if (alike := _alike(names)) is not None:
        first, second = (names[index] for index in alike)
        raise ValueError(
            f"classes={classes!r}: {first!r} and {second!r} differ in case or spaces alone; write "
            "them alike to make one class, or give one another name"
        )
    return mapping


def _alike(names: Sequence[str]) -> tuple[int, int] | None:
    """Return the places of two names that nobody can tell apart; they may be equal."""
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if plain in seen:
            return seen[plain], index
        seen[plain] = index
    return None


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
    if classes is None:
        _refuse_alike(mapping, source=source)
    names = tuple(dict.fromkeys(mapping.values()))
    if len(names) < 2:
        raise ValueError(
            f"{source}: only one class, {listed}; a classifier needs images of at least two"
        )
    index = {value: names.index(name) for value, name in mapping.items()}
    labels = np.array([index.get(value, -1) for value in records.values.tolist()], dtype=np.int64)
    kept = labels >= 0
    parts = []
    for label, name in enumerate(names):
        values = [value for value, called in mapping.items() if called == name]
        in_source = f" ({' and '.join(values)} in the source)" if values != [name] else ""
        parts.append(f"label {label} is {name!r}{in_source}")
    how = "As chosen" if classes else "In the source's order (--classes chooses another)"
    positive = ", the positive class" if len(names) == 2 else ""
    notes = [f"{how}, {', '.join(parts)}{positive}"]
    if not kept.all():
        notes.append(f"{int((~kept).sum())} images of classes not chosen are left out")
    return records.take(kept), labels[kept], names, notes


def _refuse_alike(mapping: Mapping[str, str], *, source: str) -> None:
    """Raise ValueError if a source has two classes whose names nobody can tell apart."""
    values, names = list(mapping), list(mapping.values())
    if (alike := _alike(names)) is None:
        return
    (a, first), (b, second) = ((values[index], names[index]) for index in alike)
    others = "".join(f",{v}={n}" for v, n in mapping.items() if v not in (a, b))
    raise ValueError(
        f"{source}: the classes {a} ({first!r}) and {b} ({second!r}) cannot be told apart by their "
        f"names; make them one with --classes '{a}={first},{b}={first}{others}', or name them: "
        f"--classes '{a}={first} {a},{b}={first} {b}{others}'"
    )


def _refuse_rare_classes(
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    split: NDArray[np.str_],
    *,
    needed: int,
    source: str,
) -> None:
    """Raise ValueError where a class has too few images to train or to test, by its name.

    Before any image is decoded; a part without any image is for the data set to refuse.
    """
    for part, least in (("train", needed), ("test", 1)):
        of_part = labels[split == part]
        counts = np.bincount(of_part, minlength=len(label_names)).tolist()
        n = min(counts)
        if not len(of_part) or n >= least:
            continue
        found = ", ".join(f"{name} {k}" for name, k in zip(label_names, counts, strict=True))
        raise ValueError(
            f"{source}: class {label_names[counts.index(n)]!r} has {n} {part} image{'s' * (n != 1)}"
            f" of {least} needed ({found}); give more, leave the class out, or merge it with "
            "another, as in --classes no=no,glioma=tumor,pituitary=tumor, or let the images be "
            "divided anew with --split_by random"
        )
