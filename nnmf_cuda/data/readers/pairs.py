"""Reader for images with masks beside them: an image is positive if its mask is not empty.

``x.png`` and ``x_mask.png`` (or ``_seg``, ``_segmentation``; several may be numbered,
``x_mask_1.png``) in one folder, or folders ``images`` and ``masks`` side by side with equal names.
An image's folder is its patient; ``--patient_from`` names another part of the path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnmf_cuda.data.images import ImageSource, is_image, walk_images
from nnmf_cuda.data.readers import masks, tiff
from nnmf_cuda.data.readers.base import Records, parts_of, refuse_label_key, splits_of
from nnmf_cuda.data.reading import Account, ReadOptions, first_few

_MASK = re.compile(r"(?P<stem>.+?)[_-](mask|seg|segmentation)s?([_-]?\d+)?", re.IGNORECASE)
"""What a mask is called: the name of its image, and a word behind it."""

_SHAPE_TOLERANCE = 0.05
"""By how much the sides of a mask may stand to each other as those of its image do not."""
_IMAGE_FOLDERS = ("images", "image", "imgs", "img")
_MASK_FOLDERS = ("masks", "mask", "segmentations", "segmentation")


class Pair(NamedTuple):
    """An image, or None where masks have none, and its masks."""

    image: Path | None
    masks: tuple[Path, ...]


HEEDS = frozenset({"decode", "mask_area", "patient_from", "window"})


def recognises(path: Path) -> bool:
    """Tell a folder in which some image has a mask."""
    try:
        return _has_mask_names(path) and any(
            pair.image and pair.masks for pair in _pairs(path, Account())
        )
    except (OSError, ValueError):  # which the reader of folders will say
        return False


def images(path: Path, options: ReadOptions, account: Account) -> Iterator[ImageSource]:
    """Give the images, with a mask or without; the masks are none.

    Nothing is asked of a mask here: every page of a TIFF is an image, as in a folder without masks.
    """
    n_masks, empty = 0, True
    for pair in _pairs(path, account):
        n_masks += len(pair.masks)
        if pair.image is not None:
            yield from tiff.frames(pair.image, options)
            empty = False
    if empty:
        raise ValueError(f"no images in folder {str(path)!r}: all files there are masks")
    account.notes.append(f"{n_masks} masks in {path} are no images")


def read(
    path: Path, options: ReadOptions, account: Account, *, label_key: str = "labels"
) -> Records:
    """List the images that have a mask, labelled by it; see `nnmf_cuda.data.readers.masks`.

    Where ``patient_from`` has a {label}, that is the class, and masks only tell what is no image.
    Folders called train, valid and test are splits if there are no others; the first folder below
    them is the patient. Images without a mask are left out and named, unless most are.
    """
    refuse_label_key(path, label_key)
    by_path = options.takes("label")
    pairs = _used(path, account, unmasked=by_path)
    below = [image.relative_to(path) for image, _ in pairs]
    if by_path:
        values: list[str | None] = parts_of(below, options.pattern)["label"].tolist()
        names = {value: value for value in sorted(set(filter(None, values)))}
        notes = [f"Labels come from the paths ({options.patient_from}), not from the masks"]
    else:
        values = list(masks.labels((pair.masks for pair in pairs), options, account))
        names = dict(masks.NAMES)
        share = f"more than {options.mask_area:g} of its pixels" if options.mask_area else "a pixel"
        notes = [
            f"Labels come from the masks: an image is positive if {share} is in its mask; class"
            " folders need --patient_from '{label}/{name}'",
            *_of_other_shapes(pairs),
        ]
    kept = [at for at, value in enumerate(values) if value is not None]
    several = [pairs[at].image for at in kept if len(tiff.pages(pairs[at].image).places) > 1]
    if several:
        raise ValueError(
            f"{several[0]} has several pages, and so have {len(several) - 1} other images: which"
            " belongs to which mask is not known; save each page with a mask of its own, or give a"
            " table with the columns file, frame and label"
        )
    below = [below[at] for at in kept]
    split = splits_of(below)
    groups, how = _groups(below, options, of_split=split is not None)
    return Records(
        images=[pairs[at].image for at in kept],
        values=np.array([values[at] for at in kept], dtype=np.str_),
        names=names,
        split=split,
        files=np.array([name.as_posix() for name in below]),
        groups=groups,
        notes=(*notes, *how),
    )


def _of_other_shapes(pairs: Iterable[_Used]) -> list[str]:
    """Return a warning of masks that are no smaller or larger copy of their image's frame."""
    from PIL import Image

    found = []
    for image, of_image in pairs:
        for mask in of_image:
            try:
                with Image.open(image) as one, Image.open(mask) as other:
                    (width, height), (mask_width, mask_height) = one.size, other.size
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                continue  # which is told when it is decoded
            if abs(width * mask_height / (height * mask_width) - 1) > _SHAPE_TOLERANCE:
                found.append(
                    f"{mask.name} ({mask_width} x {mask_height}, the image {width} x {height})"
                )
    if not found:
        return []
    return [
        f"Warning: {len(found)} masks have another shape than their image, as {first_few(found, 1)}"
        ": look whether they belong together"
    ]


class _Used(NamedTuple):
    image: Path
    masks: tuple[Path, ...]


def _used(path: Path, account: Account, *, unmasked: bool) -> list[_Used]:
    """Return the pairs to learn from, all others told to the account."""
    used, n_bare = [], 0
    for pair in _pairs(path, account):
        if pair.image is None:
            for mask in pair.masks:
                account.skip(mask, "masks without an image")
        elif pair.masks or unmasked:
            used.append(_Used(pair.image, pair.masks))
        else:
            n_bare += 1
            account.skip(pair.image, "images without a mask")
    if n_bare > len(used):
        named = first_few([f.file.name for f in account.skipped if f.message.startswith("images")])
        raise ValueError(
            f"{path}: {len(used)} images have a mask (NAME_mask.png, or masks/ beside images/),"
            f" {n_bare} have none, e.g. {named}; add the others' masks, empty ones for negatives,"
            " or, where folders are classes, give --patient_from '{label}/{name}'"
        )
    return used


def _has_mask_names(path: Path) -> bool:
    """Tell whether something in a folder is called as a mask; a tenth of the time of `_pairs`."""
    for _, folders, names in os.walk(path):
        if any(name.lower() in _MASK_FOLDERS for name in folders):
            return True
        # What ends like a mask is sure to hold one of its words.
        likely = (name for name in names if "mask" in (low := name.lower()) or "seg" in low)
        if any(_stem_of_mask(Path(name)) is not None for name in likely):
            return True
    return False


def _pairs(root: Path, account: Account) -> Iterator[Pair]:
    """Give the images of a folder with their masks, and masks without image, folder by folder."""
    for folder, files in groupby(walk_images(root, account), key=lambda file: file.parent):
        if (home := _images_of_masks(folder, root)) is not None:
            yield from _orphans(files, home)
        else:
            yield from _pairs_of_folder(list(files), _masks_of_images(folder, root))


def _pairs_of_folder(files: list[Path], beside: dict[str, list[Path]]) -> Iterator[Pair]:
    """Pair the files of one folder; `beside` are the masks of a parallel one, by stem."""
    stems = {file.stem for file in files}
    of_stem: dict[str, list[Path]] = {stem: list(found) for stem, found in beside.items()}
    for file in files:
        stem = _stem_of_mask(file)
        if stem is not None and file.stem not in of_stem:
            of_stem.setdefault(stem, []).append(file)
    here = {file for found in of_stem.values() for file in found}
    for file in files:
        if file not in here:
            yield Pair(file, tuple(of_stem.get(file.stem, ())))
    for stem, found in of_stem.items():
        if stem not in stems and stem not in beside:
            yield Pair(None, tuple(found))


def _orphans(files: Iterable[Path], home: Path) -> Iterator[Pair]:
    """Give the masks of a parallel folder that have no image where images are."""
    stems = {file.stem for file in home.iterdir() if is_image(file)} if home.is_dir() else set()
    for file in files:
        if file.stem not in stems and _stem_of_mask(file) not in stems:
            yield Pair(None, (file,))


def _stem_of_mask(file: Path) -> str | None:
    found = _MASK.fullmatch(file.stem)
    return found["stem"] if found else None


def _images_of_masks(folder: Path, root: Path) -> Path | None:
    """Return where the images of a folder of masks are; None if it is no such folder."""
    return _parallel(folder, root, _MASK_FOLDERS, _IMAGE_FOLDERS)


def _masks_of_images(folder: Path, root: Path) -> dict[str, list[Path]]:
    """Return the masks of a folder of images that lie in a parallel one, by their image's stem."""
    home = _parallel(folder, root, _IMAGE_FOLDERS, _MASK_FOLDERS)
    found: dict[str, list[Path]] = {}
    if home is None or not home.is_dir():
        return found
    own = {file.stem for file in folder.iterdir() if is_image(file)}
    for file in sorted(home.iterdir()):
        if not is_image(file) or file.name.startswith("."):
            continue
        stem = file.stem if file.stem in own else _stem_of_mask(file)
        if stem is not None:
            found.setdefault(stem, []).append(file)
    return found


def _parallel(
    folder: Path, root: Path, here: tuple[str, ...], there: tuple[str, ...]
) -> Path | None:
    """Return a folder with one level called otherwise, where that level has such a sibling."""
    parts = folder.relative_to(root).parts
    for at in range(len(parts) - 1, -1, -1):
        if parts[at].lower() not in here:
            continue
        above = root.joinpath(*parts[:at])
        siblings = {path.name.lower(): path for path in above.iterdir() if path.is_dir()}
        for name in there:
            if name in siblings:
                return siblings[name].joinpath(*parts[at + 1 :])
    return None


def _groups(
    below: list[Path], options: ReadOptions, *, of_split: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return patients and series of the images, by the pattern or the folders, and how."""
    if options.pattern is not None:
        groups = parts_of(below, options.pattern)
        groups.pop("label", None)
        return groups, []
    patients = []
    for name in below:
        folders = [part for part in name.parts[:-1] if part.lower() not in _IMAGE_FOLDERS]
        patients.append(folders[1 if of_split else 0 :][:1])
    if not all(patients):
        return {}, []
    found_patients = np.array([patient for (patient,) in patients])
    n_patients = len(np.unique(found_patients))
    if n_patients < 2:
        return {}, []
    return {"patient": found_patients}, [
        f"{n_patients} folders are taken for patients; --patient_from takes another part of the"
        " path"
    ]
