"""Small data sets on disk, one for each kind of source."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SaveImage = Callable[..., Path]


@pytest.fixture
def save_image(rng: np.random.Generator) -> SaveImage:
    """Return a function that writes a random grey or RGB image and returns its path."""

    def save(path: Path, *, size: tuple[int, int] = (20, 30), mode: str = "L") -> Path:
        shape = size if mode == "L" else (*size, len(mode))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, size=shape, dtype=np.uint8), mode).save(path)
        return path

    return save


@pytest.fixture
def save_npz(tmp_path: Path, rng: np.random.Generator) -> Callable[..., Path]:
    """Return a function that writes a sound archive of 40 images, with changes."""

    def save(**changes: Any) -> Path:
        arrays: dict[str, Any] = {
            "images": rng.integers(0, 256, size=(40, 128, 128), dtype=np.uint8),
            "labels": np.arange(40) % 2,
        }
        arrays.update(changes)
        path = tmp_path / "data.npz"
        # Not by numpy.savez, whose first parameter stands in the way of an array called "file".
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in arrays.items():
                if array is not None:
                    with archive.open(f"{name}.npy", "w") as member:
                        np.lib.format.write_array(member, array)
        return path

    return save


@pytest.fixture
def coco_root(tmp_path: Path, save_image: SaveImage) -> Path:
    """Return a COCO export: each split has two images of category 1 and two of category 2.

    Image ids have gaps and are not list positions. The train split has besides an image without
    annotation, and one with a small box of category 1 and a large one of category 2.
    """
    for split in ("train", "valid", "test"):
        annotations = [box(10 * i + 7, 1 + i % 2, 4, 4) for i in range(4)]
        if split == "train":
            annotations += [box(97, 1, 3, 3), box(97, 2, 5, 5), box(97, 1, 4, 4)]
        ids = [37, 7, 27, 17] + ([97, 87] if split == "train" else [])
        write_coco(tmp_path / split, ids, annotations)
        for image_id in ids:
            save_image(tmp_path / split / f"{image_id}.png", mode="RGB")
    return tmp_path


def box(image_id: int, category_id: int, width: float, height: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": [1, 2, width, height]}


def write_coco(folder: Path, ids: list[int], annotations: list[dict[str, Any]]) -> None:
    content = {
        "images": [{"id": image_id, "file_name": f"{image_id}.png"} for image_id in ids],
        "annotations": annotations,
        "categories": [{"id": id_, "name": name} for id_, name in enumerate(("all", "0", "1"))],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def edit_coco(coco_root: Path) -> Callable[..., Path]:
    """Return a function that changes one split's annotation file and returns the root."""

    def edit(change: Callable[[Any], Any], split: str = "train") -> Path:
        path = coco_root / split / "_annotations.coco.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(change(content) or content), encoding="utf-8")
        return coco_root

    return edit
