"""The paper's data set: fetching it from Kaggle, and telling whether a copy is whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnmf_cuda.data.dataset import SPLITS
from nnmf_cuda.data.load import load_dataset
from nnmf_cuda.data.readers import coco

HANDLE = "pkdarabi/brain-tumor-image-dataset-semantic-segmentation"
PAGE = f"https://www.kaggle.com/datasets/{HANDLE}"
CLASSES = "2=Normal,1=Tumor"
LICENCE = (
    "CC BY 4.0, as the source states it. Credit: Kaggle user pkdarabi and Roboflow (export of 19"
    " August 2023); Jun Cheng (2017), brain tumor dataset, figshare, doi"
    " 10.6084/m9.figshare.1512427"
)
CHECKSUM = "bb5da834eba293cd3fa4dff7b448ab2997b2342f893ac87381f3944e78e86137"
"""`checksum` of the copy that every figure of this package's documents was made from."""

_BY_HAND = (
    f"by hand: open {PAGE} in a browser, download and unpack the archive, then check it with"
    " nnmf-cuda data darabi --folder FOLDER"
)


@dataclass(frozen=True)
class Copy:
    """A copy of the data set on this machine.

    Attributes
    ----------
    folder : Path
        What ``--data`` takes.
    counts : dict of str to int
        Images with a label in each split.
    checksum : str
        See `checksum`.
    """

    folder: Path
    counts: dict[str, int]
    checksum: str

    @property
    def is_whole(self) -> bool:
        """Whether these are the images and labels that the documents speak of."""
        return self.checksum == CHECKSUM


def fetch() -> Path:
    """Download the data set, or find it where it was downloaded before; returns its folder.

    Raises
    ------
    ImportError
        Without kagglehub, with the ways to go on.
    ValueError
        If it cannot be downloaded, such as offline.
    """
    try:
        import kagglehub
    except ImportError as error:
        raise ImportError(
            f"downloading needs kagglehub: pip install 'nnmf-cuda[data]'; or {_BY_HAND}"
        ) from error
    try:
        return Path(kagglehub.dataset_download(HANDLE))
    except Exception as error:  # of its own, of requests, of the system
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot download {HANDLE} ({said}); {_BY_HAND}") from error


def inspect_copy(folder: str | Path, *, progress: bool = False) -> Copy:
    """Read every image of a copy, and tell what it holds.

    Parameters
    ----------
    folder : path
        The unpacked archive: the folder with train/, valid/ and test/, or one that has it inside.
    progress : bool, default=False
        Show a progress bar, if standard error is a terminal.

    Raises
    ------
    ValueError
        If there is no such folder, or an image cannot be read.
    """
    root = _root(Path(folder))
    dataset = load_dataset(root, classes=CLASSES, split_by="split", progress=progress)
    split, files = dataset.split, dataset.files
    names = [f"{part}/{Path(file).name}" for part, file in zip(split, files, strict=True)]
    return Copy(
        folder=root,
        counts={part: int((split == part).sum()) for part in SPLITS},
        checksum=checksum(names, dataset.labels, dataset.images),
    )


def checksum(names: list[str], labels: np.ndarray, images: np.ndarray) -> str:
    """Return the SHA-256 of names, labels and grey pixels (128 x 128), in the order of the names.

    Of what is computed with, not of files: archives of the same images differ.
    """
    digest = hashlib.sha256()
    for row in sorted(range(len(names)), key=names.__getitem__):
        digest.update(f"{names[row]}={int(labels[row])}\n".encode())
        digest.update(np.ascontiguousarray(images[row]).tobytes())
    return digest.hexdigest()


def _root(folder: Path) -> Path:
    if not folder.is_dir():
        raise ValueError(f"no such folder: {str(folder)!r}; {_BY_HAND}")
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    found = next((path for path in (folder, *inside) if coco.recognises(path)), None)
    if found is None:
        raise ValueError(
            f"{folder} has no train, valid or test folder with {coco.ANNOTATIONS}; unpack the"
            f" archive and name the folder it makes"
        )
    return found
