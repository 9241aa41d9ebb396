"""Reader for image files: class folders, and files and folders of them without classes.

Class folders are ``root/split/class/*.png`` or ``root/class/*.png``. This reader is the last of the
list: whatever no other recognises is taken for an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nnmf_cuda.data.images import IMAGE_SUFFIXES, ImageSource, is_image, walk_images
from nnmf_cuda.data.readers.base import SPLIT_ALIASES, Records, refuse_label_key
from nnmf_cuda.data.reading import Account, ReadOptions


def recognises(path: Path) -> bool:
    """Take every file and folder."""
    return path.exists()


def images(path: Path, options: ReadOptions, account: Account) -> Iterator[ImageSource]:
    """Give a file, or the image files of a folder; see `nnmf_cuda.data.images.walk_images`."""
    if not path.is_dir():
        yield path
        return
    empty = True
    for file in walk_images(path):
        yield file
        empty = False
    if empty:
        raise ValueError(
            f"no images in folder {str(path)!r}; looked for {', '.join(IMAGE_SUFFIXES)}"
        )


def read(
    path: Path, options: ReadOptions, account: Account, *, label_key: str = "labels"
) -> Records:
    """List images whose folder is their class.

    Folders ``train``, ``valid`` (or ``val``) and ``test`` below the path are taken for splits if
    all folders there are called so; otherwise every folder is a class, in alphabetical order.
    """
    if not path.is_dir():
        raise ValueError(
            f"{str(path)!r} is neither an .npz nor a folder; give an .npz, a COCO export or class "
            "folders"
        )
    refuse_label_key(path, label_key)
    files: list[Path] = []
    values: list[str] = []
    splits: list[str] = []
    for split, folder in _split_folders(path):
        for class_folder in _subfolders(folder):
            found = list(walk_images(class_folder))
            files += found
            values += [class_folder.name] * len(found)
            splits += [split] * len(found)
    if not files:
        raise ValueError(
            f"{path} holds no data set: expected class folders with images "
            f"({', '.join(IMAGE_SUFFIXES)}), as root/class/*.png or root/split/class/*.png, or "
            "root/{train,valid,test}/_annotations.coco.json"
        )
    return Records(
        images=files,
        values=np.array(values),
        names={name: name for name in sorted(set(values))},
        split=np.array(splits) if all(splits) else None,
        files=np.array([file.relative_to(path).as_posix() for file in files]),
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _split_folders(root: Path) -> list[tuple[str, Path]]:
    """Return (split, folder) pairs; the split is "" where the classes lie in `root` itself."""
    folders = _subfolders(root)
    splits = [SPLIT_ALIASES.get(folder.name.lower(), "") for folder in folders]
    if not any(splits):
        return [("", root)]
    if not all(splits):
        stranger = folders[splits.index("")].name
        raise ValueError(
            f"{root} mixes split folders and others, e.g. {stranger!r}; keep either only "
            "train, valid, test, or only class folders"
        )
    for split, folder in zip(splits, folders, strict=True):
        loose = [path.name for path in folder.iterdir() if is_image(path)]
        if loose:
            raise ValueError(
                f"{folder} holds images outside class folders, e.g. {sorted(loose)[0]!r}; move "
                f"them into {split}/class/, or add _annotations.coco.json for a COCO data set"
            )
    return list(zip(splits, folders, strict=True))
