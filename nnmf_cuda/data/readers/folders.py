"""Reader for image files: class folders, and files and folders of them without classes.

Class folders are ``root/split/class/*.png`` or ``root/class/*.png``. With ``patient_from`` a path's
patient, series and class come from a pattern: ``root/patient/class/*.png`` is
``{patient}/{label}/{name}``. This reader is the last of the list: whatever no other recognises is
taken for an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnmf_cuda.data.images import IMAGE_SUFFIXES, ImageSource, is_hidden, is_image, walk_images
from nnmf_cuda.data.readers import tiff
from nnmf_cuda.data.readers.base import (
    SPLIT_ALIASES,
    Records,
    parts_of,
    refuse_label_key,
    refuse_mixed_splits,
)
from nnmf_cuda.data.reading import Account, ReadOptions, first_few

_MOST_CLASSES = 10
"""More class folders than these, each with a number in its name, look like patients."""


class _Found(NamedTuple):
    """An image of a class folder."""

    file: Path
    split: str  # "" where the source has none
    label: str


HEEDS = frozenset({"decode", "patient_from", "window"})


def recognises(path: Path) -> bool:
    """Take every file and folder."""
    return path.exists()


def images(path: Path, options: ReadOptions, account: Account) -> Iterator[ImageSource]:
    """Give a file, or the image files of a folder; see `nnmf_cuda.data.images.walk_images`."""
    if not path.is_dir():
        account.met(path)
        yield from tiff.frames(path, options)
        return
    empty = True
    for file in walk_images(path, account):
        yield from tiff.frames(file, options)
        empty = False
    if empty:
        raise ValueError(f"no images in folder {str(path)!r}; {_looked_for(account)}")


def read(
    path: Path, options: ReadOptions, account: Account, *, label_key: str = "labels"
) -> Records:
    """List images whose folder is their class.

    Folders ``train``, ``valid`` (or ``val``) and ``test`` below the path are taken for splits if
    all folders there are called so; otherwise every folder is a class, in alphabetical order. A
    folder that holds folders of the other classes' names is taken for a copy, and left out.
    """
    if not path.is_dir():
        raise ValueError(
            f"{str(path)!r} is no data set, but one file of no kind that holds many images; give "
            "class folders, a table (CSV), an .npz or another of what docs/from_your_files.md lists"
        )
    refuse_label_key(path, label_key)
    labelled_by_pattern = options.takes("label")
    found = list(_anywhere(path, account) if labelled_by_pattern else _in_classes(path, account))
    if not found:
        raise ValueError(
            f"{path} holds no data set: expected class folders with images, as root/class/*.png or "
            "root/split/class/*.png, or root/{train,valid,test}/_annotations.coco.json; "
            f"{_looked_for(account)}"
        )
    below = [file.relative_to(path).as_posix() for file, _, _ in found]
    groups = parts_of(below, options.pattern)
    values = groups.pop("label", np.array([image.label for image in found])).tolist()
    if options.pattern is None:
        _refuse_patients_as_classes(path, sorted(set(values)))
    if not labelled_by_pattern and groups.get("patient", np.array([])).tolist() == values:
        raise ValueError(
            f"patient_from={options.patient_from!r} takes the class folders of {path} for patients:"
            " say where a path names the class, as in '{patient}/{label}/{name}', or give a table"
        )
    frames = tiff.expanded([image.file for image in found], options)
    rows, notes = [at for at, _ in frames], []
    files = np.array(below)[rows]
    if len(frames) > len(found):
        notes.append(f"{len(found)} files hold {len(frames)} images: pages of TIFF are images")
        # Pages of a file are alike: none of it may be in two splits.
        groups.setdefault("series", np.array(below))
        numbers = np.arange(len(rows)) - np.searchsorted(rows, rows)
        files = np.array(
            [
                name if isinstance(image, Path) else f"{name}[{number}]"
                for name, number, (_, image) in zip(files, numbers, frames, strict=True)
            ]
        )
    return Records(
        images=[image for _, image in frames],
        values=np.array(values)[rows],
        names={name: name for name in sorted(set(values))},
        split=np.array([f.split for f in found])[rows] if all(f.split for f in found) else None,
        files=files,
        groups={name: group[rows] for name, group in groups.items()},
        notes=tuple(notes),
    )


def _looked_for(account: Account) -> str:
    """Say what endings an image may have, and what was there instead."""
    there = [file.name for file, _ in account.skipped]
    instead = f"; there are {first_few(there)}" if there else ""
    return f"looked for {', '.join(IMAGE_SUFFIXES)}{instead}"


def _in_classes(path: Path, account: Account) -> Iterator[_Found]:
    """Give the images of class folders; what else is there is told to the account."""
    splits = _split_folders(path, account)
    if splits:
        _leave_out_files(path, account)
    for folder, split in splits.items() or [(path, "")]:
        loose = [file.name for file in _files(folder) if is_image(file)]
        if loose and split:
            raise ValueError(
                f"{folder} holds images outside class folders, e.g. {loose[0]!r}; move them into "
                f"{split}/class/, or add _annotations.coco.json for a COCO data set"
            )
        _leave_out_files(folder, account)
        for class_folder in _without_copies(_subfolders(folder, account), account):
            empty = True
            for file in walk_images(class_folder, account):
                yield _Found(file, split, class_folder.name)
                empty = False
            if empty:
                account.notes.append(f"Folder {class_folder} holds no image: it is no class")


def _anywhere(path: Path, account: Account) -> Iterator[_Found]:
    """Give all images, whose classes a pattern tells, with their split."""
    splits = _split_folders(path, Account())
    for file in walk_images(path, account):
        split = next((splits[above] for above in file.parents if above in splits), "")
        yield _Found(file, split, "")


def _leave_out_files(folder: Path, account: Account) -> None:
    for file in _files(folder):
        account.met(file)
        account.skip(file, "beside the class folders")


def _subfolders(folder: Path, account: Account) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not is_hidden(path):
            found.append(path)
        elif path.is_dir() or is_hidden(path):
            account.skip(path, "hidden")
        elif path.is_symlink() and not path.exists():
            account.skip(path, "a link that leads nowhere")
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Give the files of a folder itself."""
    yield from (p for p in sorted(folder.iterdir()) if p.is_file() and not is_hidden(p))


def _without_copies(classes: Sequence[Path], account: Account) -> Iterator[Path]:
    """Leave out folders in which all other class folders occur again, as after a double unpack."""
    names = {folder.name for folder in classes}
    for folder in classes:
        others = names - {folder.name}
        inside = {path.name for path in folder.iterdir() if path.is_dir()}
        if len(others) > 1 and others <= inside:
            account.skip(folder, "a nested copy of the class folders")
        else:
            yield folder


def _refuse_patients_as_classes(path: Path, names: Sequence[str]) -> None:
    """Raise ValueError where folders look like one a patient: many, and with numbers."""
    if len(names) <= _MOST_CLASSES:
        return
    if all(any(character.isdigit() for character in name) for name in names):
        raise ValueError(
            f"{path} has {len(names)} folders, such as {first_few([repr(n) for n in names])}, which"
            " look like patients, not classes; where their folders have the class, give"
            " --patient_from '{patient}/{label}/{name}'; else give a table (CSV) with the columns"
            " file, label and patient, or masks beside the images (x.png and x_mask.png); if they"
            " are classes, --patient_from '{label}/{name}'"
        )


def _split_folders(root: Path, account: Account) -> dict[Path, str]:
    """Return the split of each folder of `root`; empty where its folders are none."""
    folders = _subfolders(root, Account())
    refuse_mixed_splits(root, [folder.name for folder in folders])
    splits = {folder: SPLIT_ALIASES.get(folder.name.lower(), "") for folder in folders}
    if not any(splits.values()):
        return {}
    _subfolders(root, account)  # which is told of what is none
    return splits
