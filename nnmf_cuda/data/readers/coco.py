"""Reader for COCO exports: a folder a split, each with ``_annotations.coco.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from nnmf_cuda.data.images import name_of, walk_images
from nnmf_cuda.data.readers.base import SPLIT_ALIASES, Records, parts_of, refuse_label_key
from nnmf_cuda.data.readers.folders import images as images  # every file, with a box or without
from nnmf_cuda.data.reading import Account, ReadOptions, first_few

ANNOTATIONS = "_annotations.coco.json"


HEEDS = frozenset({"decode", "patient_from", "window"})


def recognises(path: Path) -> bool:
    """Tell whether a folder for a split has annotations."""
    try:
        return any((folder / ANNOTATIONS).is_file() for folder in _split_folders(path))
    except OSError:  # no folder, or one that the reader of image files cannot read either
        return False


def read(
    path: Path, options: ReadOptions, account: Account, *, label_key: str = "labels"
) -> Records:
    """List the images of ``path/{train,valid,test}/_annotations.coco.json``, which lie beside it.

    An image's class, in the values its category's id as text, is that of its largest box. An image
    without a box is left out, and counted in the notes. Patients come from paths, by
    ``patient_from``. The json may begin with a UTF-8 byte order mark.
    """
    refuse_label_key(path, label_key)
    parts = {
        split: _read_part(split, file, account) for split, file in _annotation_files(path).items()
    }
    if not parts:
        raise ValueError(f"{path} has no train, valid or test folder with {ANNOTATIONS}")
    files = [file for part in parts.values() for file in part.images]
    if not files:
        raise ValueError(f"{path}: no image has an annotation; a class comes from an image's box")
    names: dict[str, str] = {}
    for split, part in parts.items():
        for category, name in part.names.items():
            if names.setdefault(category, name) != name:
                raise ValueError(
                    f"{path}: category {category} is {names[category]!r} in one split and "
                    f"{name!r} in {split}; export the splits together"
                )
    inside = {folder.name for folder in _split_folders(path)}
    for other in sorted(path.iterdir()):
        if other.name not in inside:
            account.skip(other, "beside the splits")
    groups = parts_of([name_of(file).relative_to(path) for file in files], options.pattern)
    groups.pop("label", None)  # which a box has told
    values = np.concatenate([part.values for part in parts.values()])
    return Records(
        images=files,
        values=values,
        names={value: names.get(value, value) for value in sorted(set(values.tolist()), key=int)},
        split=np.repeat(list(parts), [len(part.images) for part in parts.values()]),
        files=np.array([file.name for file in files]),
        groups=groups,
        notes=tuple(note for part in parts.values() for note in part.notes),
    )


def _split_folders(root: Path) -> list[Path]:
    return sorted(
        path for path in root.iterdir() if path.name.lower() in SPLIT_ALIASES and path.is_dir()
    )


def _annotation_files(root: Path) -> dict[str, Path]:
    """Return the annotation files below `root`, by split; empty if it is no COCO export."""
    folders = _split_folders(root)
    bare = [folder.name for folder in folders if not (folder / ANNOTATIONS).is_file()]
    if len(bare) == len(folders):
        return {}
    if bare:
        raise ValueError(
            f"{root / bare[0]} has no {ANNOTATIONS}, though other splits of {root} do; fetch it, "
            "or move the folder away"
        )
    found: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_ALIASES[folder.name.lower()]
        if split in found:
            raise ValueError(
                f"{root} has two folders for the {split} split: {found[split].parent.name!r} and "
                f"{folder.name!r}; keep one"
            )
        found[split] = folder / ANNOTATIONS
    return found


def _read_part(split: str, path: Path, account: Account) -> Records:
    """Return the labelled files of one split, and the names of all its categories."""
    content = _read_json(path)
    try:
        names = {str(int(item["id"])): str(item["name"]) for item in content["categories"]}
        largest, n_several = _largest_boxes(content)
        listed = {
            int(item["id"]): _below(path.parent, str(item["file_name"]))
            for item in content["images"]
        }
        n_entries = len(content["images"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} is not a COCO file: {type(error).__name__} {error}; expected 'images' (id, "
            "file_name), 'annotations' (image_id, category_id, bbox) and 'categories' (id, name)"
        ) from error
    if len(listed) < n_entries:
        raise ValueError(f"{path}: two images have the same id; export the data set anew")
    strangers = sorted(set(largest) - set(listed))
    if strangers:
        raise ValueError(
            f"{path}: an annotation belongs to image id {strangers[0]}, which 'images' does not "
            "list; export the data set anew"
        )
    missing = [file.name for file in listed.values() if not file.is_file()]
    if missing:
        raise ValueError(
            f"{path} names {len(missing)} images that are not in {path.parent}: "
            f"{first_few(missing)}; fetch them, or export the data set anew"
        )
    named = set(listed.values())
    for file in walk_images(path.parent, account):
        if file not in named:
            account.skip(file, f"not named in {ANNOTATIONS}")
    account.skipped = [skipped for skipped in account.skipped if skipped.file != path]
    labelled = [image_id for image_id in listed if image_id in largest]
    notes = {
        "images without annotation are left out": len(listed) - len(labelled),
        "images have several boxes; the largest gives the class": n_several,
    }
    files = [listed[image_id] for image_id in labelled]
    return Records(
        images=files,
        values=np.array([str(largest[image_id]) for image_id in labelled], dtype=np.str_),
        names=names,
        split=None,
        files=np.array([file.name for file in files]),
        notes=tuple(f"{split}: {n} {what}" for what, n in notes.items() if n),
    )


def _below(folder: Path, name: str) -> Path:
    """Return the path of a file that must lie in a folder, as an export has it."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"file_name {name!r} leads out of the folder")
    return folder / name


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are
        raise ValueError(f"{path} is not JSON: {error}; fetch or export it anew") from error


def _largest_boxes(content: Any) -> tuple[dict[int, int], int]:
    """Return the category of each image's largest box, and how many images have several boxes."""
    areas: dict[int, float] = {}
    categories: dict[int, int] = {}
    several: set[int] = set()
    for item in content["annotations"]:
        image_id = int(item["image_id"])
        _, _, width, height = (float(side) for side in item["bbox"])
        if image_id in areas:
            several.add(image_id)
        if width * height > areas.get(image_id, -1.0):
            areas[image_id] = width * height
            categories[image_id] = int(item["category_id"])
    return categories, len(several)
