"""One way in for every kind of source."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.dataset import ImageDataset, Records
from nnmf_cuda.data.images import IMAGE_SHAPE
from nnmf_cuda.data.phantom import phantom
from nnmf_cuda.data.readers.coco import find_coco_splits, read_coco
from nnmf_cuda.data.readers.folders import read_folders
from nnmf_cuda.data.readers.npz import read_npz
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
) -> ImageDataset:
    """Load a data set, or make the built-in synthetic one.

    Parameters
    ----------
    path : path or None
        An ``.npz`` (see `read_npz`), a COCO export (see `read_coco`), or class folders (see
        `read_folders`). None makes the `phantom` with `seed`.
    classes : str, optional
        Which classes to use and in which order, e.g. ``"2=Normal,1=Tumor"``; see `parse_classes`.
        By default every class that has images, in the source's order.
    label_key : str, default="labels"
        The array of labels in an ``.npz``; other sources have none to choose.
    split_by : {"split", "patient_fold", "patient", "series", "random"}, optional
        See `make_split`.
    test_fold : int or str, optional
        See `make_split`.
    seed : int, default=0
        For the splits made here, and for the phantom.
    image_shape : tuple of int, default=(128, 128)
        Height and width to which every image is brought.
    progress : bool, default=False
        Show a progress bar, if standard error is a terminal.

    Returns
    -------
    ImageDataset

    Raises
    ------
    ValueError
        If the source cannot be read, or the arguments do not fit it.
    """
    if path is None:
        if test_fold is not None:
            raise ValueError(f"test_fold={test_fold}: the built-in images have no patient_fold")
        return _load_phantom(classes, label_key, split_by, seed, image_shape)
    source = str(path)
    if classes is not None:
        parse_classes(classes)  # before any image is read
    found = _read(Path(path), label_key=label_key, image_shape=image_shape, progress=progress)
    records, labels, label_names, class_notes = choose_classes(
        found, classes=classes, source=source
    )
    split, split_notes = make_split(
        labels,
        split=records.split,
        groups=records.groups,
        split_by=split_by,
        test_fold=test_fold,
        seed=seed,
        source=source,
    )
    notes = (*class_notes, *records.notes, *split_notes)
    for note in notes:
        logger.info("%s: %s", source, note)
    return ImageDataset(
        images=records.images,
        labels=labels,
        label_names=label_names,
        split=split,
        groups=records.groups,
        files=records.files,
        source=source,
        notes=notes,
    )


def folds_by(path: str | Path, *, label_key: str = "labels") -> dict[str, list[str]]:
    """Return by what a source's images can be split, with the folds of each.

    Parameters
    ----------
    path, label_key
        As for `load_dataset`.

    Returns
    -------
    dict of str to list of str
        For each `split_by`, the first being the default, the values that `test_fold` can take;
        none for "split".
    """
    found = _read(Path(path), label_key=label_key, image_shape=IMAGE_SHAPE, progress=False)
    dealt = [str(fold) for fold in range(1, N_FOLDS + 1)]
    folds = {name: dealt for name in ways_to_split(found.split, found.groups)}
    if "patient_fold" in folds:
        folds["patient_fold"] = fold_names(found.groups["patient_fold"], source=str(path))
    return folds | ({"split": []} if "split" in folds else {})


def _read(path: Path, *, label_key: str, image_shape: tuple[int, int], progress: bool) -> Records:
    if path.is_dir():
        if label_key != "labels":
            raise ValueError(
                f"label_key={label_key!r} picks an array of an .npz, but {path} is a folder; "
                "leave it out"
            )
        reader = read_coco if find_coco_splits(path) else read_folders
        return reader(path, image_shape=image_shape, progress=progress)
    if not path.exists():
        raise ValueError(f"no such file or folder: {str(path)!r}")
    if path.suffix.lower() != ".npz":
        raise ValueError(
            f"{str(path)!r} is neither an .npz nor a folder; give an .npz, a COCO export or class "
            "folders"
        )
    return read_npz(path, label_key=label_key, image_shape=image_shape)


def _load_phantom(
    classes: str | None,
    label_key: str,
    split_by: str | None,
    seed: int,
    image_shape: tuple[int, int],
) -> ImageDataset:
    given = {
        "classes": classes is not None,
        "label_key": label_key != "labels",
        "split_by": split_by not in (None, "split"),
    }
    for name, is_given in given.items():
        if is_given:
            raise ValueError(
                f"{name} is for a data set of yours, but no path was given, which stands for the "
                f"built-in synthetic images; give a path, or leave {name} out"
            )
    return phantom(seed=seed, image_shape=image_shape)


# Which classes of a source are used, and in which order.


def parse_classes(classes: str) -> dict[str, str]:
    """Read a class mapping such as ``"2=Normal,1=Tumor"``.

    Parameters
    ----------
    classes : str
        Comma-separated ``value=name`` in label order, the positive class last. ``value`` is what
        the source calls the class: a COCO category id, a folder's name, a label. ``name`` alone
        stands for ``name=name``.

    Returns
    -------
    dict of str to str
        From value to name, in label order.

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
    """Turn the source's own classes into labels.

    Parameters
    ----------
    records : Records
        What the reader found.
    classes : str or None
        See `parse_classes`; None takes every class that has images, in the source's order.
    source : str
        The path, for messages.

    Returns
    -------
    records : Records
        Without the images of classes that were not chosen.
    labels : ndarray of shape (n_images,), int64
    label_names : tuple of str
    notes : list of str
        The mapping, and how many images it left out.

    Raises
    ------
    ValueError
        If a chosen class has no image, or fewer than two classes are left.
    """
    counts = dict(zip(*_count(records.values), strict=True))
    if classes is None:
        mapping = {value: name for value, name in records.names.items() if value in counts}
    else:
        mapping = parse_classes(classes)
        for value in mapping:
            if value not in counts:
                raise ValueError(
                    f"{source}: classes={classes!r} asks for {value!r}, which no image has; "
                    f"the images have {_listed(records.names, counts)}"
                )
    if len(mapping) < 2:
        raise ValueError(
            f"{source}: only one class, {_listed(records.names, counts)}; "
            "a classifier needs images of at least two"
        )
    index = {value: label for label, value in enumerate(mapping)}
    labels = np.array([index.get(value, -1) for value in records.values.tolist()], dtype=np.int64)
    kept = labels >= 0
    notes = [_mapping_note(mapping, chosen=classes is not None)]
    if not kept.all():
        notes.append(f"{int((~kept).sum())} images of classes not chosen are left out")
    return records.take(kept), labels[kept], tuple(mapping.values()), notes


def _count(values: NDArray[np.str_]) -> tuple[list[str], list[int]]:
    found, counts = np.unique(values, return_counts=True)
    return found.tolist(), counts.tolist()


def _listed(names: Mapping[str, str], counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{value} ({names[value]!r}, {counts[value]} images)" for value in names if value in counts
    )


def _mapping_note(mapping: Mapping[str, str], *, chosen: bool) -> str:
    parts = [
        f"label {label} is {name!r}" + (f" ({value} in the source)" if value != name else "")
        for label, (value, name) in enumerate(mapping.items())
    ]
    how = "As chosen" if chosen else "In the source's order (--classes chooses another)"
    positive = ", the positive class" if len(mapping) == 2 else ""
    return f"{how}, {', '.join(parts)}{positive}"
