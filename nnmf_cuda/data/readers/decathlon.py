"""Reader for ``dataset.json``, as the medical decathlon, MONAI and nnU-Net write it.

- decathlon, MONAI, nnU-Net 1: ``training`` is a list of ``{"image": ..., "label": ...}``, where a
  label is a mask or, in MONAI's lists, a class; ``validation`` and ``test`` may follow, and a
  ``fold`` an entry;
- nnU-Net 2: images are ``imagesTr/CASE_0000.nii.gz``, masks ``labelsTr/CASE.nii.gz``.

Of several channels the first is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.images import ImageSource, failing_image
from nnmf_cuda.data.readers.base import SPLIT_ALIASES, Records, refuse_label_key
from nnmf_cuda.data.readers.nifti import (
    Labelled,
    VolumeNotes,
    by_classes,
    by_masks,
    patients_of,
)
from nnmf_cuda.data.readers.volume import is_nifti, open_volume, slices, stem_of
from nnmf_cuda.data.reading import Account, ReadOptions, first_few

NAME = "dataset.json"

_FIRST_CHANNEL = "_0000"
_N_SNIFFED = 2**20
"""Bytes of a dataset.json in which its kind shows."""


@dataclass(frozen=True)
class _Case:
    """One case of the list."""

    image: Path
    mask: Path | None
    label: str | None
    """The case's class, where the list has one in the place of a mask."""
    split: str
    fold: str | None = None


HEEDS = frozenset({"axis", "mask_area", "patient_from", "window"})


def recognises(path: Path) -> bool:
    """Tell a folder by a ``dataset.json`` that lists cases, or any file by the ending .json."""
    if path.suffix.lower() == ".json" and path.is_file():
        return True
    try:
        with (path / NAME).open("rb") as file:
            begin = file.read(_N_SNIFFED)
    except OSError:
        return False
    return any(word in begin for word in (b'"training"', b'"train"', b'"file_ending"'))


def images(path: Path, options: ReadOptions, account: Account) -> Iterator[ImageSource]:
    """Give the slices of all cases, labelled or not; the first channel of each."""
    source, content = _content(path)
    cases = _existing(_cases(source, content), source, options, account)
    account.notes += _channels(content)
    told = VolumeNotes()
    for case in cases:
        try:
            volume = open_volume(case.image)
        except ValueError as error:
            yield failing_image(case.image, str(error))
            continue
        told.meet(volume)
        below = Path(os.path.relpath(case.image, source.parent))
        (patient,) = patients_of([below], [_name(case.image)], options, n_leading=None)
        yield from slices(volume, options, {"patient": patient})
    account.notes += told.notes(options)


def read(
    path: Path, options: ReadOptions, account: Account, *, label_key: str = "labels"
) -> Records:
    """List the labelled slices of all cases; see `nnmf_cuda.data.readers.nifti.read`.

    The split is the list's where it names labelled cases for testing. A case is a patient, unless
    ``patient_from`` says otherwise.
    """
    refuse_label_key(path, label_key)
    source, content = _content(path)
    cases = _existing(_cases(source, content), source, options, account)
    masked = [case for case in cases if case.mask is not None]
    classed = [case for case in cases if case.label is not None]
    if masked and classed:
        raise ValueError(f"{source}: some labels are masks and others classes; give one kind")
    if not (masked or classed):
        raise ValueError(
            f"{source}: no case has a label; list training cases as "
            '{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}'
        )
    for case in cases:
        if case.mask is None and case.label is None:
            account.skip(case.image, "no label in dataset.json")
    root = source.parent
    if masked:
        masks_of = {case.image: [case.mask] for case in masked if case.mask is not None}
        labelled = by_masks([case.image for case in masked], masks_of, root, options, account)
    else:
        classes = [case.label for case in classed if case.label is not None]
        labelled = by_classes([case.image for case in classed], classes, options, account)
        labelled.names.update(_class_names(content, classes))
    return _records(labelled, masked or classed, root, options, _channels(content))


def _records(
    labelled: Labelled,
    cases: Sequence[_Case],
    root: Path,
    options: ReadOptions,
    notes: Sequence[str],
) -> Records:
    of_file = {case.image: case for case in cases}
    of_slice = [of_file[file] for file in labelled.files]
    splits: NDArray[np.str_] | None = np.array([case.split for case in of_slice])
    labelled.notes.extend(notes)
    found = sorted({case.split for case in cases})
    if "test" not in found:
        if len(found) > 1:
            labelled.notes.append(
                "dataset.json has no labelled cases for testing; those for validation are divided "
                "anew with those for training"
            )
        splits = None
    below = [Path(os.path.relpath(file, root)) for file in labelled.files]
    names = [_name(file) for file in labelled.files]
    patients = patients_of(below, names, options, n_leading=None)
    records = labelled.records(below, patients, splits)
    folds = [case.fold for case in of_slice]
    if all(fold is not None for fold in folds) and splits is None:
        return replace(records, groups={**records.groups, "patient_fold": np.array(folds)})
    return records


def _name(image: Path) -> str:
    """Return the case of an image: its stem, without a channel."""
    return stem_of(image).removesuffix(_FIRST_CHANNEL)


def _content(path: Path) -> tuple[Path, Mapping[str, Any]]:
    source = path / NAME if path.is_dir() else path
    try:
        content = json.loads(source.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"cannot read {str(source)!r}: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{source} is no list of cases: {_EXPECTED}")
    return source, content


_EXPECTED = (
    "expected 'training' (a list of image and label) as in the medical decathlon, or "
    "'channel_names' and 'file_ending' as in nnU-Net"
)


def _cases(source: Path, content: Mapping[str, Any]) -> list[_Case]:
    """Return the cases that the file lists or, of nnU-Net 2, that its folders hold."""
    listed = [name for name in SPLIT_ALIASES if isinstance(content.get(name), list)]
    if listed:
        return [
            _listed(source, entry, SPLIT_ALIASES[name])
            for name in listed
            for entry in content[name]
        ]
    if "file_ending" not in content:
        raise ValueError(f"{source} is no list of cases: {_EXPECTED}")
    ending = str(content["file_ending"])
    if not is_nifti(Path(f"x{ending}")):
        raise ValueError(
            f"{source}: its images are {ending}, no NIfTI; name the folders imagesTr and labelsTr "
            f"'images' and 'masks', strip {_FIRST_CHANNEL} from the names, and move {NAME} away"
        )
    if isinstance(content.get("dataset"), dict):
        return [_listed(source, entry, "train") for entry in content["dataset"].values()]
    cases = []
    for images_name, labels_name, split in (
        ("imagesTr", "labelsTr", "train"),
        ("imagesTs", "labelsTs", "test"),
    ):
        folder = source.parent / images_name
        for image in sorted(folder.glob(f"*{_FIRST_CHANNEL}{ending}")):
            mask = source.parent / labels_name / f"{_name(image)}{ending}"
            cases.append(_Case(image, mask if mask.exists() else None, None, split))
    if not cases:
        raise ValueError(f"{source}: there is no imagesTr/CASE{_FIRST_CHANNEL}{ending} beside it")
    return cases


def _listed(source: Path, entry: Any, split: str) -> _Case:
    """Return a case as the list has it: the path of an image, or its parts."""
    parts = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(parts, dict):
        raise ValueError(f"{source}: {_short(entry)} is no case; {_EXPECTED}")
    image = parts.get("image", parts.get("images"))
    if isinstance(image, list) and image:
        image = image[0]
    if not isinstance(image, str):
        raise ValueError(f"{source}: {_short(entry)} names no image")
    label = parts.get("label")
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    mask = None
    if isinstance(label, str) and is_nifti(Path(label)):
        mask, label = _inside(source, label), None
    elif label is not None and (isinstance(label, dict | list | float) or label == ""):
        raise ValueError(f"{source}: label {_short(label)} is neither a mask nor a class")
    fold = parts.get("fold")
    return _Case(
        image=_first_channel(_inside(source, image)),
        mask=mask,
        label=None if label is None else str(label),
        split=split,
        fold=None if fold is None else str(fold),
    )


def _short(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _inside(source: Path, name: str) -> Path:
    """Return a file that is listed; one outside of the source's folder is refused."""
    inside = os.path.normpath(name)
    if os.path.isabs(inside) or inside.split(os.sep)[0] == "..":
        raise ValueError(
            f"{source}: {_short(name)} lies outside of its folder; list paths below it, or "
            "link the data there"
        )
    if not is_nifti(Path(inside)):
        raise ValueError(f"{source}: {_short(name)} is no .nii or .nii.gz")
    return source.parent / inside


def _first_channel(image: Path) -> Path:
    """Return the file of an image: nnU-Net 1 lists CASE.nii.gz and keeps CASE_0000.nii.gz."""
    stem = stem_of(image)
    channel = image.with_name(f"{stem}{_FIRST_CHANNEL}{image.name[len(stem) :]}")
    return channel if not image.exists() and channel.exists() else image


def _existing(
    cases: Sequence[_Case], source: Path, options: ReadOptions, account: Account
) -> list[_Case]:
    """Return the cases whose files exist, all told to the account."""
    kept, missing = [], []
    for case in cases:
        files = [file for file in (case.image, case.mask) if file is not None]
        for file in files:
            account.met(file)
        gone = [file for file in files if not file.is_file()]
        missing += gone
        if gone:
            account.skip(gone[0], "listed in dataset.json, but not there")
        else:
            kept.append(case)
    if missing and (options.on_error == "raise" or not kept):
        raise ValueError(
            f"{source} lists {len(missing)} files that are not there: "
            f"{first_few([os.path.relpath(file, source.parent) for file in missing])}; fetch them, "
            "or skip them with --on_error skip"
        )
    if not kept:
        raise ValueError(f"{source} lists no case")
    return kept


def _channels(content: Mapping[str, Any]) -> list[str]:
    """Return a note on channels that are not read."""
    channels = content.get("channel_names", content.get("modality"))
    if not isinstance(channels, dict) or len(channels) < 2:
        return []
    names = [str(name) for name in channels.values()]
    return [f"Of {len(names)} channels ({first_few(names, 8)}) the first is read"]


def _class_names(content: Mapping[str, Any], classes: Sequence[str]) -> dict[str, str]:
    """Return what dataset.json calls classes that are numbers."""
    labels = content.get("labels")
    if not isinstance(labels, dict):
        return {}
    return {value: str(labels[value]) for value in sorted(set(classes)) if value in labels}
