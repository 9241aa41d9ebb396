"""Image files: finding them, and decoding one.

Every file becomes a grey image of one size by Pillow's ``convert("L")`` and
``resize((width, height), BILINEAR)``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SHAPE = (128, 128)
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".tif", ".tiff", ".webp")


def is_image(path: Path) -> bool:
    """Tell by its suffix whether a file is taken for an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def find_images(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """List image files.

    Parameters
    ----------
    paths : path or iterable of paths
        A file is taken as it is, whatever its suffix. A folder is walked, its image files
        (`IMAGE_SUFFIXES`) in sorted order; names that begin with a dot are left out, and symbolic
        links to folders are not followed, unless given here themselves.

    Returns
    -------
    list of Path
        In the order of `paths`; a file reached twice is listed once.

    Raises
    ------
    ValueError
        If a path does not exist, a folder holds no image, or a folder cannot be read.
    """
    return list(iter_images(paths))


def iter_images(paths: str | Path | Iterable[str | Path]) -> Iterator[Path]:
    """Give image files one by one, as `find_images` lists them.

    Folders are walked as the caller goes on: in memory are the names of one folder, not all files.
    The paths are checked at once, before the first file is asked for; a folder inside them that
    cannot be read is told when the walk arrives there.

    Parameters
    ----------
    paths : path or iterable of paths
        As in `find_images`.

    Yields
    ------
    Path

    Raises
    ------
    ValueError
        As `find_images`.
    """
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not given:
        raise ValueError("no images given; name at least one file or folder")
    for path in given:
        if path.is_dir():
            if next(_walk(path), None) is None:
                raise ValueError(
                    f"no images in folder {str(path)!r}; looked for {', '.join(IMAGE_SUFFIXES)}"
                )
        elif not path.exists():
            raise ValueError(f"no such file or folder: {str(path)!r}")
    return _each_once(given)


def _each_once(given: list[Path]) -> Iterator[Path]:
    """Walk what was given; a file that an earlier argument has reached is left out.

    What was reached is told from the arguments alone: a set of all files would grow with them.
    """
    files: set[Path] = set()
    folders: list[Path] = []
    for path in given:
        walked = path.is_dir()
        for file in _walk(path) if walked else (path,):
            if file not in files and not any(_walk_reaches(folder, file) for folder in folders):
                yield file
        if walked:
            folders.append(path)
        else:
            files.add(path)


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(where, name)
            if not name.startswith(".") and is_image(path):
                yield path


def _refuse_folder(error: OSError) -> None:
    raise ValueError(f"cannot read folder {str(error.filename)!r}: {_reason(error)}") from error


def _walk_reaches(folder: Path, file: Path) -> bool:
    """Tell whether `_walk(folder)` gives `file`, without walking."""
    if not file.is_relative_to(folder) or not is_image(file):
        return False
    inside = file.relative_to(folder)
    between = [folder / parent for parent in inside.parents][:-1]
    return not (
        any(part.startswith(".") for part in inside.parts)
        or any(parent.is_symlink() for parent in between)
    )


def read_image(
    path: str | Path, *, image_shape: tuple[int, int] = IMAGE_SHAPE
) -> NDArray[np.uint8]:
    """Read one image file as grey values.

    Parameters
    ----------
    path : path
        Any 8-bit format that Pillow reads: grey, RGB, palette, or with transparency, which is
        dropped. Of several frames the first is read.
    image_shape : tuple of int, default=(128, 128)
        Height and width of the result, in pixels.

    Returns
    -------
    ndarray of shape (height, width), uint8

    Raises
    ------
    ValueError
        If the file cannot be read or is cut short, or holds 16-bit, 32-bit or floating grey
        values: which of them are black and white is not in the file, and Pillow's own conversion
        would clip them at 255.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(
                    f"holds grey values of more than 8 bits (mode {image.mode}); choose a window "
                    "and save it as an 8-bit image"
                )
            return to_grey(image, image_shape)
    # Pillow's decoders raise all of these for damaged files; DecompressionBombError is for files
    # that would unpack to more pixels than Image.MAX_IMAGE_PIXELS allows.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {str(path)!r}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__ if not str(error) else " ".join(str(error).split())


def to_grey(image: Image, image_shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Convert an open 8-bit Pillow image to grey values of shape `image_shape`."""
    from PIL import Image as pillow

    height, width = image_shape
    grey = image.convert("L").resize((width, height), pillow.Resampling.BILINEAR)
    return np.array(grey, dtype=np.uint8)


def resize_images(images: NDArray[Any], image_shape: tuple[int, int]) -> NDArray[Any]:
    """Bring a stack of images to `image_shape`, as `read_image` does for files.

    Parameters
    ----------
    images : ndarray of shape (n, height, width) or (n, height, width, 3)
        uint8; without colours also float32 in [0, 1].
    image_shape : tuple of int
        Height and width of the result.

    Returns
    -------
    ndarray of shape (n, *image_shape), same dtype
    """
    from PIL import Image

    height, width = image_shape
    resized = np.empty((len(images), height, width), dtype=images.dtype)
    for row, image in zip(resized, images, strict=True):
        if images.dtype == np.uint8:
            row[:] = to_grey(Image.fromarray(image), image_shape)
        else:
            grey = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
            row[:] = np.clip(np.asarray(grey), 0.0, 1.0)  # rounding may pass 1 by an ulp
    return resized
