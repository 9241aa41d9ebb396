"""Reader for NIfTI: slices of volumes, labelled by masks beside them or by folders.

A mask is known by its name: ``case_seg.nii.gz`` beside ``case.nii.gz`` or ``case_t1.nii.gz``
(BraTS), ``masks/case.nii.gz`` beside ``images/case.nii.gz``, or BIDS with equal entities,
``derivatives`` included. Where volumes have masks, slices of the chosen axis are positive or
negative; otherwise all slices of a volume have the class of its folder or, in BIDS, of its
participant.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data.images import ImageSource, LazyImage, failing_image, is_image, walk_files
from nnmf_cuda.data.readers.base import Records, classes_of, parts_of, refuse_label_key, splits_of
from nnmf_cuda.data.readers.masks import NAMES
from nnmf_cuda.data.readers.volume import (
    Volume,
    is_nifti,
    open_volume,
    shares_in_masks,
    slices,
    stem_of,
)
from nnmf_cuda.data.reading import Account, ReadOptions, first_few, reason

NEGATIVE, POSITIVE = NAMES

_N_SNIFFED = 512
"""Files of a folder that are looked at to tell what it holds."""
_MASK = re.compile(
    r"(?:^|(?P<base>.+?)[_-])(?:mask|seg|segmentation|label|labels|lesion|roi|dseg|gt|annotation)s?"
    r"(?:[_-]?\d+)?",
    re.IGNORECASE,
)
"""What the stem of a mask is called: its volume's, or the beginning of that, and a word behind."""
_IMAGE_FOLDERS = ("images", "image", "imgs", "volumes", "scans", "imagestr", "imagests")
_MASK_FOLDERS = ("masks", "mask", "labels", "labelstr", "labelsts", "segmentations", "seg", "segs")
_ENTITY = re.compile(r"([a-z]+)-([A-Za-z0-9+]+)")
_OF_TISSUE = ("brain", "gm", "wm", "csf", "aseg", "aparcaseg")
"""What BIDS calls masks of a brain and its tissues, which label no slice."""
_CASES_OF_PATIENT = 8
"""Volumes, or masks, of which a folder is still taken for one patient's."""
_PATIENT = re.compile(r"sub-[A-Za-z0-9+]+")


HEEDS = frozenset({"axis", "columns", "mask_area", "patient_from", "window"})

_PARTICIPANTS = "participants.tsv"


def recognises(path: Path) -> bool:
    """Tell a file by its name, and a folder by those of its first files."""
    if path.is_file():
        return is_nifti(path)
    try:
        files = list(islice(walk_files(path), _N_SNIFFED))
    except ValueError:  # a folder that cannot be read, which is told by who reads it
        return False
    n_volumes = sum(map(is_nifti, files))
    return n_volumes > 0 and n_volumes >= sum(map(is_image, files))


def images(path: Path, options: ReadOptions, account: Account) -> Iterator[ImageSource]:
    """Give the slices of every volume that is no mask, volume by volume.

    A volume that cannot be read is given as an image that raises.
    """
    root, files = _files(path, account)
    masks = [] if path.is_file() else [file for file in files if _is_mask(file, root)]
    for mask in masks:
        account.skip(mask, "a mask")
    volumes = _of_anatomy([file for file in files if file not in set(masks)], root, account)
    if not volumes:
        raise ValueError(f"no NIfTI volumes in {str(path)!r}: {_what_else(files, masks)}")
    told = VolumeNotes()
    for file in volumes:
        try:
            volume = open_volume(file)
        except ValueError as error:
            yield failing_image(file, str(error))
            continue
        told.meet(volume)
        # Without a name that says so the patient would take all other files to tell.
        (patient,) = patients_of([file.relative_to(root)], [""], options, n_leading=None)
        yield from slices(volume, options, {"patient": patient} if patient else {})
    account.notes += told.notes(options)


def read(
    path: Path, options: ReadOptions, account: Account, *, label_key: str = "labels"
) -> Records:
    """List the labelled slices of a source; see the module. Masks are read, volumes are not.

    The patient is what ``patient_from`` says, BIDS's ``sub-*``, or else the volume's folder or,
    where folders hold many, the volume.
    """
    refuse_label_key(path, label_key)
    root, files = _files(path, account)
    masks = [file for file in files if _is_mask(file, root)]
    volumes = _of_anatomy([file for file in files if file not in set(masks)], root, account)
    if not volumes:
        raise ValueError(f"no NIfTI volumes in {str(path)!r}: {_what_else(files, masks)}")
    masks_of = _matched(volumes, masks, root, account)
    by_path = options.takes("label")
    if "label" in options.column_names and (root / _PARTICIPANTS).is_file():
        masks, masks_of = [], {}  # a column that is asked for goes before masks
    if masks_of and not by_path:
        labelled = by_masks(volumes, masks_of, root, options, account)
    elif masks and not by_path:
        raise ValueError(
            f"{root}: no volume belongs to the masks {first_few([m.name for m in masks])}; "
            "name them alike, as in case.nii.gz and case_mask.nii.gz"
        )
    else:
        labelled = _by_folders(volumes, root, options, account)
    below = [file.relative_to(root) for file in labelled.files]
    splits = splits_of(below)
    cases = [_case(file, masks_of) for file in labelled.files]
    n_leading = (splits is not None) + (not masks_of)
    return labelled.records(below, patients_of(below, cases, options, n_leading=n_leading), splits)


def _case(file: Path, masks_of: Mapping[Path, Sequence[Path]]) -> str:
    """Return what the volumes of one mask have in common; without masks, each its own."""
    if file not in masks_of:
        return "/".join([file.parent.name, stem_of(file)])
    stem = stem_of(masks_of[file][0])
    match = _MASK.fullmatch(stem)
    return (match["base"] if match else None) or stem


class VolumeNotes:
    """What is said of volumes, when all have been met."""

    def __init__(self) -> None:
        self._several: list[str] = []
        self._oblique: list[str] = []

    def meet(self, volume: Volume) -> None:
        """Remember what is odd about a volume."""
        if volume.n_volumes > 1:
            self._several.append(volume.path.name)
        if volume.oblique:
            self._oblique.append(volume.path.name)

    def notes(self, options: ReadOptions) -> list[str]:
        """Return sentences on what was met."""
        notes = []
        if self._several:
            notes.append(
                f"{len(self._several)} files hold several volumes (4D), of which the first is read:"
                f" {first_few(self._several)}"
            )
        if self._oblique:
            notes.append(
                f"{len(self._oblique)} volumes lie oblique; slices are along the voxels' axis that "
                f"is nearest to {options.axis}: {first_few(self._oblique)}"
            )
        return notes


@dataclass(frozen=True)
class Labelled:
    """Slices with labels, volume by volume."""

    files: list[Path]
    """Of each slice."""
    images: list[LazyImage]
    labels: list[str]
    names: dict[str, str]
    notes: list[str]

    def records(
        self, below: Sequence[Path], patients: Sequence[str], splits: NDArray[np.str_] | None
    ) -> Records:
        """Return these slices as a reader does; arguments are one a slice."""
        groups: dict[str, NDArray[Any]] = {}
        if len(set(patients)) > 1:
            groups["patient"] = np.array(patients)
        groups["series"] = np.array([path.as_posix() for path in below])
        return Records(
            images=self.images,
            values=np.array(self.labels),
            names=self.names,
            split=splits,
            files=np.array(
                [
                    path.with_name(image.name.name).as_posix()
                    for path, image in zip(below, self.images, strict=True)
                ]
            ),
            groups=groups,
            notes=tuple(self.notes),
        )


def by_masks(
    volumes: Iterable[Path],
    masks_of: Mapping[Path, Sequence[Path]],
    root: Path,
    options: ReadOptions,
    account: Account,
) -> Labelled:
    """Label slices by the masks of their volumes; volumes without one are left out and counted."""
    files: list[Path] = []
    found: list[LazyImage] = []
    labels: list[str] = []
    told, remarks = VolumeNotes(), Counter[str]()
    errors: list[str] = []
    for file in volumes:
        if not masks_of.get(file):
            account.skip(file, "no mask, as other volumes have; give an empty one where nothing is")
            continue
        try:
            volume = open_volume(file)
            opened = [open_volume(mask) for mask in masks_of[file]]
            shares, remark = shares_in_masks(volume, opened, options.axis)
        except ValueError as error:
            errors.append(str(error))
            account.skip(file, "unreadable, or its mask does not fit")
            continue
        told.meet(volume)
        remarks[remark] += bool(remark)
        of_volume = slices(volume, options)
        files += [file] * len(of_volume)
        found += of_volume
        labels += np.where(shares > options.mask_area, POSITIVE, NEGATIVE).tolist()
    _refuse(errors, options)
    if not found:
        raise ValueError(f"{root}: no volume with a mask can be read; {first_few(errors, 1)}")
    share = f"more than {options.mask_area:g} of its pixels" if options.mask_area else "any pixel"
    notes = [
        f"{options.axis.capitalize()} slices are positive where {share} is in a mask"
        " (--mask_area sets the share, --axis the direction)"
    ]
    notes += [f"{remark}: {n} volumes" for remark, n in remarks.items() if remark]
    return Labelled(files, found, labels, dict(NAMES), notes + told.notes(options))


def by_classes(
    volumes: Sequence[Path], classes: Sequence[str], options: ReadOptions, account: Account
) -> Labelled:
    """Give every slice of a volume the volume's class."""
    files: list[Path] = []
    found: list[LazyImage] = []
    labels: list[str] = []
    errors: list[str] = []
    told = VolumeNotes()
    for file, label in zip(volumes, classes, strict=True):
        try:
            volume = open_volume(file)
        except ValueError as error:
            errors.append(str(error))
            account.skip(file, "unreadable")
            continue
        told.meet(volume)
        of_volume = slices(volume, options)
        files += [file] * len(of_volume)
        found += of_volume
        labels += [label] * len(of_volume)
    _refuse(errors, options)
    if not found:
        raise ValueError(f"no volume can be read; {first_few(errors, 1)}")
    names = {name: name for name in sorted(set(classes))}
    notes = ["Every slice has the class of its volume; masks would tell slices apart"]
    return Labelled(files, found, labels, names, notes + told.notes(options))


def _refuse(errors: Sequence[str], options: ReadOptions) -> None:
    if errors and options.on_error == "raise":
        more = f"; and {len(errors) - 1} more volumes" if len(errors) > 1 else ""
        raise ValueError(errors[0] + more)


def _files(path: Path, account: Account) -> tuple[Path, list[Path]]:
    """Return the root of names, and all NIfTI files."""
    if path.is_file():
        account.met(path)
        return path.parent, [path]
    files = []
    for file in walk_files(path, account):
        if is_nifti(file):
            files.append(file)
        else:
            account.skip(file, "no NIfTI file")
    return path, files


def _what_else(files: Sequence[Path], masks: Sequence[Path]) -> str:
    return f"its {len(masks)} files are masks" if files else "there is no .nii and no .nii.gz"


def _is_mask(file: Path, root: Path) -> bool:
    if _MASK.fullmatch(stem_of(file)):
        return True
    folder = file.parent
    return (
        folder != root
        and folder.name.lower() in _MASK_FOLDERS
        and any((folder.parent / name).is_dir() for name in _spellings(folder, _IMAGE_FOLDERS))
    )


def _spellings(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the folders beside one whose names are of a list, in whatever case."""
    return [path.name for path in folder.parent.iterdir() if path.name.lower() in names]


def _of_anatomy(volumes: Sequence[Path], root: Path, account: Account) -> list[Path]:
    """Leave out of BIDS what is no picture of the anatomy: functional series, derivatives."""
    below = {file: file.relative_to(root).parts for file in volumes}
    if not any(part == "anat" for parts in below.values() for part in parts[:-1]):
        return list(volumes)
    kept = []
    for file, parts in below.items():
        if "derivatives" in parts[:-1]:
            account.skip(file, "derived from other volumes (BIDS derivatives)")
        elif parts[-2:-1] != ("anat",):
            account.skip(file, f"BIDS data of another kind ({parts[-2] if parts[1:] else 'none'})")
        else:
            kept.append(file)
    return kept


def _matched(
    volumes: Sequence[Path], masks: Sequence[Path], root: Path, account: Account
) -> dict[Path, list[Path]]:
    """Return the masks of each volume that has some."""
    by_folder: dict[Path, list[Path]] = {}
    by_patient: dict[str, list[Path]] = {}
    for file in volumes:
        by_folder.setdefault(file.parent, []).append(file)
        by_patient.setdefault(_entities(file).get("sub", ""), []).append(file)
    masks_of: dict[Path, list[Path]] = {}
    for mask in masks:
        entities = _entities(mask)
        kind = {entities.get("desc", "").lower(), entities.get("label", "").lower()}
        if kind & set(_OF_TISSUE):
            account.skip(mask, "a mask of the brain or its tissues")
            continue
        if "sub" in entities:
            found = _of_entities(entities, by_patient.get(entities["sub"], []))
        else:
            found = _beside(mask, by_folder)
        if not found:
            account.skip(mask, "a mask without a volume")
        for file in found:
            masks_of.setdefault(file, []).append(mask)
    return masks_of


def _entities(file: Path) -> dict[str, str]:
    """Return the BIDS entities of a name such as sub-01_ses-2_T1w; empty if it has none."""
    parts = stem_of(file).split("_")
    matches = (_ENTITY.fullmatch(part) for part in parts)
    found = {match[1]: match[2] for match in matches if match}
    return found if "sub" in found else {}


def _of_entities(entities: Mapping[str, str], volumes: Sequence[Path]) -> list[Path]:
    """Return the volumes that a mask's entities fit; what it is a mask of counts for nothing."""
    wanted = {name: value for name, value in entities.items() if name not in ("label", "desc")}
    return [file for file in volumes if wanted.items() <= _entities(file).items()]


def _beside(mask: Path, by_folder: Mapping[Path, Sequence[Path]]) -> list[Path]:
    """Return the volumes to which a mask belongs by its name."""
    match = _MASK.fullmatch(stem_of(mask))
    base = stem_of(mask) if match is None else match["base"] or ""
    folders = [mask.parent]
    if mask.parent.name.lower() in _MASK_FOLDERS:
        names = _spellings(mask.parent, _IMAGE_FOLDERS)
        folders += [mask.parent.parent / name for name in names]
    there = [file for folder in folders for file in by_folder.get(folder, ())]
    stems = {base, stem_of(mask)} - {""}
    exact = [file for file in there if stem_of(file) in stems]
    if exact or not there:
        return exact
    if not stems - {stem_of(mask)} and match is not None:  # mask.nii.gz alone: of its folder
        return [file for file in there if file.parent == mask.parent]
    return [f for f in there if any(stem_of(f).startswith((s + "_", s + "-")) for s in stems)]


def _by_folders(
    volumes: Sequence[Path], root: Path, options: ReadOptions, account: Account
) -> Labelled:
    """Label volumes by their folders, or participants of BIDS by a table's column."""
    below = [file.relative_to(root) for file in volumes]
    by_path = options.takes("label")
    participants = root / _PARTICIPANTS
    subjects = [_PATIENT.search(path.as_posix()) for path in below]
    if not by_path and participants.is_file() and all(subjects):
        labels = _of_participants(participants, options)
        kept = [
            (file, labels[subject[0]])
            for file, subject in zip(volumes, subjects, strict=True)
            if subject is not None and subject[0] in labels
        ]
        for file in set(volumes) - {file for file, _ in kept}:
            account.skip(file, "no label in participants.tsv")
        if not kept:
            raise ValueError(f"{participants} has no row for {first_few([s.name for s in below])}")
        return by_classes([f for f, _ in kept], [label for _, label in kept], options, account)
    if not by_path and all(path.parts[0].startswith("sub-") for path in below):
        raise ValueError(
            f"{root} is BIDS without lesion masks and without participants.tsv: nothing tells the "
            "classes; add masks (sub-*_mask.nii.gz), or a participants.tsv with a column of them"
        )
    classes = classes_of(below, root, options, otherwise="give masks (case_mask.nii.gz), ")
    return by_classes(volumes, classes, options, account)


def _of_participants(path: Path, options: ReadOptions) -> dict[str, str]:
    """Return the label of each participant, from the column that the options name."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            header = list(reader.fieldnames or ())
            rows = [row for row in reader if row.get("participant_id")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {str(path)!r}: {reason(error)}") from error
    column = options.column_names.get("label", "label")
    if column not in header:
        others = [name for name in header if name and name != "participant_id"]
        raise ValueError(
            f"{path} has no column {column!r}; name the one of classes, as in --columns "
            f"label={others[0] if others else 'diagnosis'} (it has {first_few(others, 8)})"
        )
    known = {row["participant_id"]: (row.get(column) or "").strip() for row in rows}
    prefixed = {k if k.startswith("sub-") else f"sub-{k}": value for k, value in known.items()}
    return {k: value for k, value in prefixed.items() if value and value != "n/a"}


def patients_of(
    below: Sequence[Path],
    cases: Sequence[str],
    options: ReadOptions,
    *,
    n_leading: int | None,
) -> list[str]:
    """Return the patient of each volume: see `read`.

    `cases` are what volumes of one mask have in common, `n_leading` the folders that are no
    patients: of a split, of a class; with None no folder is.
    """
    if options.takes("patient"):
        patients: list[str] = parts_of(below, options.pattern)["patient"].tolist()
        return patients
    subjects = [_PATIENT.search(path.as_posix()) for path in below]
    if all(subjects):
        return [subject[0] for subject in subjects if subject is not None]
    if n_leading is None:
        return list(cases)
    cases_in: dict[Path, set[str]] = {}
    for path, case in zip(below, cases, strict=True):
        cases_in.setdefault(path.parent, set()).add(case)
    found = []
    for path, case in zip(below, cases, strict=True):
        parts = [p for p in path.parent.parts[n_leading:] if p.lower() not in _IMAGE_FOLDERS]
        few = len(cases_in[path.parent]) <= _CASES_OF_PATIENT
        found.append("/".join(parts) if parts and few else case)
    return found
