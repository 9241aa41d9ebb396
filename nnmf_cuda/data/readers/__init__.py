"""The one list of readers, which whatever comes in is given to.

A new kind of source is a module with the functions of `Reader`, and an entry in `READERS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from nnmf_cuda.data.images import (
    ImageSource,
    LazyImage,
    is_below,
    is_image,
    name_of,
    walk_reaches,
)
from nnmf_cuda.data.readers import (
    coco,
    decathlon,
    dicom,
    folders,
    nifti,
    npz,
    pairs,
    stacks,
    table,
    tar,
)
from nnmf_cuda.data.readers.base import Reader, Records
from nnmf_cuda.data.reading import DEFAULT_READING, Account, ReadOptions, is_special

__all__ = ["READERS", "Reader", "Records", "iter_images", "reader_of"]


READERS: tuple[Reader, ...] = (
    npz,
    coco,
    decathlon,
    table,
    stacks,
    tar,
    dicom,
    nifti,
    pairs,
    folders,
)
"""Asked in this order; the last takes every file and folder that no other knows."""


def reader_of(path: Path) -> Reader:
    """Return the first reader that recognises a source; there must be something at the path."""
    if not path.exists():
        raise ValueError(f"no such file or folder: {str(path)!r}")
    if is_special(path):
        raise ValueError(f"{str(path)!r} is a pipe or a device; give a file or a folder")
    return next(reader for reader in READERS if reader.recognises(path))


def note_unheeded(reader: Reader, path: Path, reading: ReadOptions, account: Account) -> None:
    """Tell an account of the options that were given but change nothing about a source."""
    without = [f"--{name}" for name in reading.changed() if name not in {"on_error", *reader.HEEDS}]
    if without:
        account.notes.append(f"Without effect on {path}: {', '.join(without)}")


def iter_images(
    paths: str | Path | Iterable[str | Path],
    *,
    reading: ReadOptions = DEFAULT_READING,
    account: Account | None = None,
) -> Iterator[ImageSource]:
    """Give the images of any sources one by one, without labels.

    Sources are read as the caller goes on: in memory are the names of one folder, or some images
    of an archive, not all. Paths are checked at once, before the first image is asked for; what
    cannot be read inside them is told when it is reached.

    Parameters
    ----------
    paths : path or iterable of paths
        Anything that `load_dataset` takes. A file that no reader knows is taken for an image,
        whatever its suffix. A folder is walked, its image files (`IMAGE_SUFFIXES`) in sorted
        order; names that begin with a dot are left out, and symbolic links to folders are not
        followed, unless given here themselves.
    reading : ReadOptions, optional
        How they are read.
    account : Account, optional
        Is told what becomes of each file, as it is reached.

    Yields
    ------
    Path, ArrayImage or LazyImage
        In the order of `paths`; a file reached twice is given once.

    Raises
    ------
    ValueError
        If no path is given, one does not exist or holds no image, or cannot be read.
    """
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not given:
        raise ValueError("no images given; name at least one file or folder")
    sources = [(path, reader_of(path)) for path in given]
    for path, reader in sources:
        # Raises where there is none; told to no account, as it is read again.
        next(reader.images(path, reading, Account()))
    return _each_once(sources, reading, Account() if account is None else account)


def _each_once(
    sources: list[tuple[Path, Reader]], reading: ReadOptions, account: Account
) -> Iterator[ImageSource]:
    """Give the images of each path, without those that an earlier path has reached.

    What was reached is told from the paths alone: a set of all images would grow with them.
    """
    files: set[Path] = set()
    folders: list[tuple[Path, Reader]] = []
    for path, reader in sources:
        if path in files:
            continue
        note_unheeded(reader, path, reading, account)
        for image in reader.images(path, reading, account):
            found_at = image.found_at if isinstance(image, LazyImage) else None
            file = image if isinstance(image, Path) else found_at
            if file is not None and (file is image or is_image(file)):  # itself, or a page of it
                reached = file in files or any(walk_reaches(at, file) for at, _ in folders)
            elif walked := [at for at, by in folders if by is reader]:
                # A frame or slice below a folder that the same reader has walked.
                where = found_at or name_of(image)
                reached = any(is_below(at, where) for at in walked)
            else:  # not even its name is made, which takes as long as a projection
                reached = False
            if not reached:
                yield image
        if path.is_dir():
            folders.append((path, reader))
        else:
            files.add(path)
