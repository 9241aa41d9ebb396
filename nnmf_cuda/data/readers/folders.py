"""Reader for class folders: ``root/split/class/*.png`` or ``root/class/*.png``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnmf_cuda.data.dataset import SPLIT_ALIASES, Records
from nnmf_cuda.data.images import IMAGE_SHAPE, IMAGE_SUFFIXES, find_images, is_image, read_images


def read_folders(
    root: str | Path,
    *,
    image_shape: tuple[int, int] = IMAGE_SHAPE,
    progress: bool = False,
) -> Records:
    """Read images whose folder is their class.

    Folders ``train``, ``valid`` (or ``val``) and ``test`` below `root` are taken for splits if
    all folders there are called so; otherwise every folder is a class.

    Parameters
    ----------
    root : path
    image_shape : tuple of int, default=(128, 128)
        Height and width to which every image is brought.
    progress : bool, default=False
        Show a progress bar, if standard error is a terminal.

    Returns
    -------
    Records
        Its `values` are folder names, its `names` those in alphabetical order.

    Raises
    ------
    ValueError
        If there are no class folders with images, split and class folders are mixed, or an image
        cannot be read.
    """
    root = Path(root)
    files: list[Path] = []
    values: list[str] = []
    splits: list[str] = []
    for split, folder in _split_folders(root):
        for class_folder in _subfolders(folder):
            found = _images_in(class_folder)
            files += found
            values += [class_folder.name] * len(found)
            splits += [split] * len(found)
    if not files:
        raise ValueError(
            f"{root} holds no data set: expected class folders with images "
            f"({', '.join(IMAGE_SUFFIXES)}), as root/class/*.png or root/split/class/*.png, or "
            "root/{train,valid,test}/_annotations.coco.json"
        )
    images, _, _ = read_images(files, image_shape=image_shape, progress=progress)
    return Records(
        images=images,
        values=np.array(values),
        names={name: name for name in sorted(set(values))},
        split=np.array(splits) if all(splits) else None,
        files=np.array([file.relative_to(root).as_posix() for file in files]),
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


def _images_in(folder: Path) -> list[Path]:
    # find_images refuses a folder without images; an empty class folder is only left out here.
    return find_images(folder) if any(is_image(path) for path in folder.rglob("*")) else []
