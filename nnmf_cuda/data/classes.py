"""Which classes of a source are used, and in which order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data._records import Records


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
