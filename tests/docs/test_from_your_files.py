"""The commands of docs/from_your_files.md, on small files that are made as each section says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "from_your_files.md"
SECTIONS = {
    title: re.findall(r"^\$ nnmf-cuda (.*)$", text, re.MULTILINE)
    for title, text in re.findall(
        r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
}

N_PATIENTS, N_EACH = 8, 3


def save(path: Path, rng: np.random.Generator, *, mode: str = "L") -> None:
    """Write an image of 40 x 40 pixels."""
    shape = (40, 40) if mode == "L" else (40, 40, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)


def class_folders(rng: np.random.Generator) -> None:
    for name in ("no", "yes"):
        for index in range(8):
            save(Path("images", name, f"{index}.png"), rng)


def four_class_folders(rng: np.random.Generator) -> None:
    for name in ("glioma", "meningioma", "notumor", "pituitary"):
        for index in range(8):
            save(Path("images", name, f"{index}.jpg"), rng)


def patient_folders(rng: np.random.Generator) -> None:
    for patient in range(N_PATIENTS):
        for label in ("no", "yes"):
            for index in range(N_EACH):
                save(Path("images", f"P{patient:02}", label, f"{index}.png"), rng)


def arrays(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (40, 32, 32), dtype=np.uint8)
    labels = np.arange(40) % 2
    np.savez("set.npz", images=images, labels=labels)
    parts = {"train": slice(0, 24), "val": slice(24, 30), "test": slice(30, 40)}
    medmnist = {f"{split}_images": images[rows] for split, rows in parts.items()}
    medmnist |= {f"{split}_labels": labels[rows, None] for split, rows in parts.items()}
    np.savez("breastmnist.npz", **medmnist)


def coco(rng: np.random.Generator) -> None:
    for split in ("train", "valid", "test"):
        for index in range(6):
            save(Path("export", split, f"{index}.jpg"), rng, mode="RGB")
        content = {
            "images": [{"id": index, "file_name": f"{index}.jpg"} for index in range(6)],
            "annotations": [
                {"image_id": index, "category_id": 1 + index % 2, "bbox": [1, 2, 9, 9]}
                for index in range(6)
            ],
            "categories": [{"id": 1, "name": "0"}, {"id": 2, "name": "1"}],
        }
        Path("export", split, "_annotations.coco.json").write_text(json.dumps(content))


MAKERS: dict[str, Callable[[np.random.Generator], None]] = {
    "Class folders": class_folders,
    "Several classes that are one": four_class_folders,
    "Patients in folders or names": patient_folders,
    "Arrays: .npz and MedMNIST": arrays,
    "COCO exports": coco,
}


@pytest.mark.parametrize("title", SECTIONS)
def test_the_commands_of_a_section_work(
    title: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """`audit` stands for `run`, whose options on data it has: a run of each format takes long."""
    assert SECTIONS[title]
    monkeypatch.chdir(tmp_path)
    MAKERS[title](rng)
    for command in SECTIONS[title]:
        name, *options = shlex.split(command)
        if name == "run":
            name = "audit"
        else:  # extract and predict, of a model that is called RUN there
            run = str(request.getfixturevalue("small_run")[0])
            options = [run if option == "RUN" else option for option in options]
        assert main([name, *options]) == 0, capsys.readouterr().err
        printed = capsys.readouterr()
        assert "Images read: " in printed.err


def test_every_section_has_a_command() -> None:
    assert set(SECTIONS) == set(MAKERS)
