from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nnmf_cuda.data import load_dataset

SaveImage = Callable[..., Path]


def test_split_and_class_folders(tmp_path: Path, save_image: SaveImage) -> None:
    for split in ("Training", "val", "test"):
        for name, mode in (("yes", "RGB"), ("no", "L")):
            for index in range(3):
                save_image(tmp_path / split / name / f"{index}.png", mode=mode)
    dataset = load_dataset(tmp_path)
    assert dataset.label_names == ("no", "yes")
    assert dataset.images.shape == (18, 128, 128)
    assert len(dataset.labels_of("train")) == len(dataset.labels_of("valid")) == 6
    assert "Training/yes/2.png" in dataset.files
    assert (dataset.labels == [int("/yes/" in file) for file in dataset.files]).all()
    chosen = load_dataset(tmp_path, classes="yes=Tumor,no=Normal")
    assert chosen.label_names == ("Tumor", "Normal")
    assert (chosen.labels == 1 - dataset.labels).all()


def test_class_folders_alone_are_divided(tmp_path: Path, save_image: SaveImage) -> None:
    for name in ("a", "b", "c"):
        for index in range(10):
            save_image(tmp_path / name / "deeper" / f"{index}.jpg")
    dataset = load_dataset(tmp_path, seed=3)
    assert dataset.n_classes == 3
    assert {len(dataset.labels_of(name)) for name in ("valid", "test")} == {6}
    assert any("70/15/15" in note and "seed 3" in note for note in dataset.notes)
    two = load_dataset(tmp_path, classes="a,c")
    assert two.label_names == ("a", "c")
    assert len(two.images) == 20
    assert any("10 images of classes not chosen" in note for note in two.notes)


def test_validation_images_are_taken_from_train_where_missing(
    tmp_path: Path, save_image: SaveImage
) -> None:
    for split, n_images in (("Training", 20), ("Testing", 4)):
        for name in ("no", "yes"):
            for index in range(n_images):
                save_image(tmp_path / split / name / f"{index}.png")
    dataset = load_dataset(tmp_path)
    assert len(dataset.labels_of("test")) == 8
    assert len(dataset.labels_of("valid")) == 8  # round(20 * 15 / 85) of each class
    assert dataset.labels_of("valid").mean() == 0.5
    assert all(file.startswith("Training/") for file in dataset.files[dataset.split == "valid"])
    assert any("no validation images: 8 of its 40" in note for note in dataset.notes)


def test_no_test_images_is_an_error(tmp_path: Path, save_image: SaveImage) -> None:
    for split in ("train", "valid"):
        for name in ("no", "yes"):
            for index in range(6):
                save_image(tmp_path / split / name / f"{index}.png")
    with pytest.raises(ValueError, match="no test images; give some, or .*split_by='random'"):
        load_dataset(tmp_path)
    assert len(load_dataset(tmp_path, split_by="random").labels_of("test")) == 4


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    with pytest.raises(ValueError, match="holds no data set: expected class folders"):
        load_dataset(tmp_path)


def test_one_class_is_refused(tmp_path: Path, save_image: SaveImage) -> None:
    save_image(tmp_path / "yes" / "1.png")
    (tmp_path / "no").mkdir()
    with pytest.raises(ValueError, match=r"only one class, yes \('yes', 1 images\)"):
        load_dataset(tmp_path)


def test_mixed_folders_are_refused(tmp_path: Path, save_image: SaveImage) -> None:
    save_image(tmp_path / "train" / "yes" / "1.png")
    save_image(tmp_path / "extra" / "1.png")
    with pytest.raises(ValueError, match="mixes split folders and others, e.g. 'extra'"):
        load_dataset(tmp_path)


def test_images_outside_class_folders_are_refused(tmp_path: Path, save_image: SaveImage) -> None:
    save_image(tmp_path / "train" / "1.png")
    with pytest.raises(ValueError, match="train holds images outside class folders, e.g. '1.png'"):
        load_dataset(tmp_path)


def test_too_few_images_to_divide(tmp_path: Path, save_image: SaveImage) -> None:
    for name, n_images in (("a", 9), ("b", 2)):
        for index in range(n_images):
            save_image(tmp_path / name / f"{index}.png")
    with pytest.raises(ValueError, match="class 'b' has 2 images, too few for one in each of 3"):
        load_dataset(tmp_path)


def test_an_unreadable_image_is_named(tmp_path: Path, save_image: SaveImage) -> None:
    for name in "ab":
        for index in range(3):
            save_image(tmp_path / name / f"{index}.png")
    (tmp_path / "b" / "2.png").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read image '.*/b/2.png': cannot identify"):
        load_dataset(tmp_path)
