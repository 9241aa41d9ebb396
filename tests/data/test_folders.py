from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.data import Account, ReadOptions, iter_image_batches, iter_images, load_dataset
from nnmf_cuda.data.images import name_of
from nnmf_cuda.data.readers import folders

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


def class_folders(root: Path, save_image: SaveImage, *names: str, n: int = 3) -> Path:
    for name in names:
        for index in range(n):
            save_image(root / name / f"{index}.png")
    return root


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, save_image: SaveImage) -> None:
    class_folders(tmp_path, save_image, "no", "yes")
    for name in ("no/a.jfif", "no/b.gif", "no/c.gif", "__MACOSX/no/._0.png", "yes/.DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("left out")
    save_image(tmp_path / "loose.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "no" / "link").symlink_to(tmp_path / "yes")
    account = Account()
    records = folders.read(tmp_path, ReadOptions(), account)
    assert records.files.tolist() == [f"{c}/{i}.png" for c in ("no", "yes") for i in range(3)]
    assert account.by_ending == {".png": 7, ".gif": 2, ".jfif": 1}
    left_out = {file.relative_to(tmp_path).as_posix(): why for file, why in account.skipped}
    assert left_out == {
        "no/a.jfif": "no image by its ending .jfif",
        "no/b.gif": "no image by its ending .gif",
        "no/c.gif": "no image by its ending .gif",
        "__MACOSX": "hidden",
        "yes/.DS_Store": "hidden",
        "loose.png": "beside the class folders",
        "gone": "a link that leads nowhere",
        "no/link": "a link to a folder, which is not followed",
    }
    assert any("empty holds no image: it is no class" in note for note in account.notes)
    lines = account.lines()
    assert "Files: 7 .png, 2 .gif, 1 .jfif" in lines
    assert "Left out, no image by its ending .gif: 2 (b.gif, c.gif)" in lines


def test_an_archive_of_macos_beside_the_images_is_no_error(
    tmp_path: Path, save_image: SaveImage
) -> None:
    class_folders(tmp_path, save_image, "no", "yes")
    (tmp_path / "__MACOSX" / "no").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "no" / "._0.png").write_text("no image")
    names = [path.relative_to(tmp_path).parts[0] for path in iter_images(tmp_path)]  # type: ignore[union-attr]
    assert names == ["no"] * 3 + ["yes"] * 3
    assert load_dataset(tmp_path).label_names == ("no", "yes")


def test_nested_copies_are_no_class(tmp_path: Path, save_image: SaveImage) -> None:
    class_folders(tmp_path, save_image, "no", "yes", "all/no", "all/yes")
    dataset = load_dataset(tmp_path)
    assert dataset.label_names == ("no", "yes")
    assert any("a nested copy of the class folders: 1 (all)" in note for note in dataset.notes)


def test_a_class_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, save_image: SaveImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path, save_image, "a", "b", "c")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may read everything
    with pytest.raises(ValueError, match="cannot read folder '.*/b': Permission denied"):
        load_dataset(tmp_path)


def test_folders_of_patients_are_refused_with_what_to_do(
    tmp_path: Path, save_image: SaveImage
) -> None:
    for patient in range(11):
        for label in ("no", "yes"):
            save_image(tmp_path / f"P{patient}" / label / "1.png")
    with pytest.raises(ValueError, match="11 folders, such as 'P0', 'P1', 'P10' and 8 more, which"):
        load_dataset(tmp_path)
    reading = ReadOptions(patient_from="{patient}/{label}/{name}")
    dataset = load_dataset(tmp_path, reading=reading)
    assert dataset.label_names == ("no", "yes")
    assert len(set(dataset.groups["patient"])) == 11
    assert any("by patient: none is in two splits" in note for note in dataset.notes)
    with pytest.raises(ValueError, match="takes the class folders of .* for patients"):
        load_dataset(tmp_path, reading=ReadOptions(patient_from="{patient}/{name}"))
    as_classes = ReadOptions(patient_from="{label}/{name}")
    assert len(set(folders.read(tmp_path, as_classes, Account()).values)) == 11


def test_patients_are_read_from_names_within_splits(tmp_path: Path, save_image: SaveImage) -> None:
    for split in ("train", "valid", "test"):
        for name in ("P1_no_1", "P1_no_2", "P2_yes_1"):
            save_image(tmp_path / split / f"{split}-{name}.png")
    reading = ReadOptions(patient_from="*/{patient}_{label}_*")
    records = folders.read(tmp_path, reading, Account())
    assert records.values.tolist() == ["no", "no", "yes"] * 3
    assert records.groups["patient"][:3].tolist() == ["test-P1", "test-P1", "test-P2"]
    assert records.split is not None
    assert records.split.tolist() == [s for s in ("test", "train", "valid") for _ in range(3)]
    with pytest.raises(
        ValueError, match="patient_from='{patient}/{series}/x/{label}' does not fit"
    ):
        folders.read(tmp_path, ReadOptions(patient_from="{patient}/{series}/x/{label}"), Account())


def test_pages_of_a_tiff_are_images_of_one_series(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("no", "yes"):
        for number in range(10):
            stack = rng.integers(0, 256, (1 + number % 3, 20, 30), dtype=np.uint8)
            path = tmp_path / name / f"{number}.tif"
            path.parent.mkdir(exist_ok=True)
            first, *others = (Image.fromarray(page) for page in stack)
            first.save(path, save_all=True, append_images=others)
    dataset = load_dataset(tmp_path, image_shape=(20, 30))
    assert len(dataset.files) == 2 * (1 + 2 + 3 + 1 + 2 + 3 + 1 + 2 + 3 + 1)
    assert dataset.files[:4].tolist() == ["no/0.tif", "no/1.tif[0]", "no/1.tif[1]", "no/2.tif[0]"]
    assert any("20 files hold 38 images" in note for note in dataset.notes)
    for series in set(dataset.groups["series"].tolist()):
        assert len(set(dataset.split[dataset.groups["series"] == series].tolist())) == 1
    streamed = list(iter_images(tmp_path))
    names = [str(name_of(image).relative_to(tmp_path)) for image in streamed]
    assert names == dataset.files.tolist()
    (batch,) = iter_image_batches(streamed, image_shape=(20, 30))
    np.testing.assert_array_equal(batch.images, dataset.images)
    assert len(list(iter_images(tmp_path / "no" / "2.tif"))) == 3
