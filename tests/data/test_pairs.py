from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.data import (
    Account,
    ReadOptions,
    iter_image_batches,
    iter_images,
    load_dataset,
)
from nnmf_cuda.data.readers import Records, folders, masks, pairs, reader_of

SaveImage = Callable[..., Path]


def save_mask(path: Path, n_inside: int, *, mode: str = "L", **options: Any) -> Path:
    """Write a mask of 10 x 10 pixels, of which some are white."""
    pixels = np.zeros(100, np.uint8)
    pixels[:n_inside] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.reshape(10, 10)).convert(mode).save(path, **options)
    return path


def read(path: Path, account: Account | None = None, **options: Any) -> Records:
    account = Account() if account is None else account
    return pairs.read(path, ReadOptions(**options), account)


@pytest.fixture
def patients(tmp_path: Path, save_image: SaveImage) -> Path:
    """Return folders of 6 patients with 4 images each, of which the last two have a lesion."""
    root = tmp_path / "patients"
    for patient in range(6):
        for number in range(4):
            home = root / f"TCGA_{patient}"
            save_image(home / f"TCGA_{patient}_{number}.tif")
            save_mask(home / f"TCGA_{patient}_{number}_mask.tif", 30 * (number > 1))
    return root


def test_patient_folders_are_patients_and_masks_no_images(patients: Path) -> None:
    assert reader_of(patients) is pairs
    account = Account()
    records = read(patients, account)
    assert len(records.files) == 24
    assert not any("_mask" in name for name in records.files)
    assert records.values.tolist() == ["negative", "negative", "positive", "positive"] * 6
    expected = [name.split("/")[0] for name in records.files]
    assert records.groups["patient"].tolist() == expected
    assert any("6 folders are taken for patients" in note for note in records.notes)
    assert account.lines()[0] == "Files: 48 .tif"
    dataset = load_dataset(patients)
    assert dataset.label_names == ("negative", "positive")
    for patient in set(expected):
        assert len(set(dataset.split[dataset.groups["patient"] == patient].tolist())) == 1


def test_streams_hold_the_images_only(patients: Path, save_image: SaveImage) -> None:
    save_image(patients / "TCGA_0" / "without.png")
    account = Account()
    names = [Path(str(image)).name for image in iter_images(patients, account=account)]
    assert len(names) == 25
    assert "without.png" in names
    assert not any("_mask" in name for name in names)
    assert any("24 masks" in note for note in account.notes)


def save_pages(path: Path, n: int) -> Path:
    pages = [Image.fromarray(np.full((20, 30), 9 * page, np.uint8)) for page in range(n)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


@pytest.mark.parametrize("masked", [False, True])
def test_streams_hold_every_page_with_and_without_masks(
    tmp_path: Path, save_image: SaveImage, masked: bool
) -> None:
    stack = save_pages(tmp_path / "x.tif", 5)
    save_image(tmp_path / "y.png")
    if masked:
        save_mask(tmp_path / "x_mask.png", 5)
    assert reader_of(tmp_path) is (pairs if masked else folders)
    (batch,) = iter_image_batches(iter_images(tmp_path), image_shape=(20, 30))
    assert batch.files == [*(Path(f"{stack}[{page}]") for page in range(5)), tmp_path / "y.png"]
    assert batch.images[:5, 0, 0].tolist() == [0, 9, 18, 27, 36]
    for given in ([tmp_path, stack], [stack, tmp_path], [stack, stack]):  # each once
        assert len(list(iter_images(given))) == (5 if given[1:] == given[:1] else 6)


def test_which_page_a_mask_belongs_to_is_not_guessed(tmp_path: Path) -> None:
    for name in "xy":
        save_pages(tmp_path / f"{name}.tif", 5)
        save_mask(tmp_path / f"{name}_mask.png", 5)
    with pytest.raises(ValueError, match=r"x.tif has several pages, and so have 1 other images: "):
        read(tmp_path)


@pytest.mark.parametrize(
    "mask",
    ["x_mask.png", "x_seg.png", "x-mask.png", "x_Segmentation.bmp", "x_mask_1.png", "x_masks.tif"],
)
def test_what_masks_are_called(tmp_path: Path, save_image: SaveImage, mask: str) -> None:
    save_image(tmp_path / "x.jpg")
    save_mask(tmp_path / mask, 1)
    assert reader_of(tmp_path) is pairs
    records = read(tmp_path)
    assert (records.files.tolist(), records.values.tolist()) == (["x.jpg"], ["positive"])
    assert records.groups == {}


@pytest.mark.parametrize("names", [("images", "masks"), ("Image", "Segmentation")])
@pytest.mark.parametrize("below", ["", "P1/"])
@pytest.mark.parametrize("word", ["", "_mask"])
def test_parallel_folders(
    tmp_path: Path, save_image: SaveImage, names: tuple[str, str], below: str, word: str
) -> None:
    for number in range(3):
        save_image(tmp_path / names[0] / below / f"{number}.jpg")
        save_mask(tmp_path / names[1] / below / f"{number}{word}.png", number)
    assert reader_of(tmp_path) is pairs
    records = read(tmp_path)
    assert [Path(name).name for name in records.files] == ["0.jpg", "1.jpg", "2.jpg"]
    assert records.values.tolist() == ["negative", "positive", "positive"]
    assert all(Path(name).parts[0] == names[0] for name in records.files)
    assert len(list(iter_images(tmp_path))) == 3


def test_splits_and_patients_with_parallel_folders(tmp_path: Path, save_image: SaveImage) -> None:
    for split in ("train", "val", "test"):
        for patient in ("A", "B"):
            for number in range(2):
                name = f"{split}{patient}/{number}.png"
                save_image(tmp_path / split / "images" / name)
                save_mask(tmp_path / split / "masks" / name, number)
    records = read(tmp_path)
    assert records.split is not None
    assert records.split.tolist() == ["test"] * 4 + ["train"] * 4 + ["valid"] * 4
    assert records.groups["patient"].tolist()[:4] == ["testA", "testA", "testB", "testB"]


def test_patients_by_a_pattern(patients: Path, tmp_path: Path, save_image: SaveImage) -> None:
    found = read(patients, patient_from="{series}/TCGA_{patient}_*.tif")
    assert set(found.groups["patient"].tolist()) == set("012345")
    assert found.groups["series"].tolist()[0] == "TCGA_0"
    flat = tmp_path / "flat"
    for name in ("P1_0", "P1_1", "P2_0"):
        save_image(flat / f"{name}.png")
        save_mask(flat / f"{name}_mask.png", 1)
    assert read(flat, patient_from="{patient}_*").groups["patient"].tolist() == ["P1", "P1", "P2"]
    with pytest.raises(ValueError, match=r"patient_from=.* does not fit 'P1_0.png'"):
        read(flat, patient_from="{patient}/{name}")


def test_classes_by_a_pattern(tmp_path: Path, save_image: SaveImage) -> None:
    for name in ("benign", "malignant", "normal"):
        save_image(tmp_path / name / f"{name} (1).png")
        if name != "normal":
            save_mask(tmp_path / name / f"{name} (1)_mask.png", 5)
    records = read(tmp_path, patient_from="{label}/{name}")
    assert records.values.tolist() == ["benign", "malignant", "normal"]
    assert list(records.names) == ["benign", "malignant", "normal"]
    assert records.groups == {}
    assert any("--patient_from '{label}/{name}'" in note for note in read(tmp_path).notes)


def test_what_has_no_partner_is_told(patients: Path, save_image: SaveImage) -> None:
    save_image(patients / "TCGA_0" / "bare.tif")
    save_mask(patients / "TCGA_1" / "gone_mask.tif", 5)
    account = Account()
    assert len(read(patients, account).files) == 24
    lines = account.lines()
    assert "Left out, images without a mask: 1 (bare.tif)" in lines
    assert "Left out, masks without an image: 1 (gone_mask.tif)" in lines


def test_a_mask_of_another_shape_is_warned_of(patients: Path, save_image: SaveImage) -> None:
    for number in range(4):
        Image.new("L", (30, 30)).save(patients / "TCGA_0" / f"TCGA_0_{number}.tif")
    Image.new("L", (10, 4)).save(patients / "TCGA_0" / "TCGA_0_3_mask.tif")
    for folder in patients.glob("TCGA_[1-5]"):
        shutil.rmtree(folder)
    (warning,) = [note for note in read(patients).notes if note.startswith("Warning")]
    expected = "1 masks have another shape than their image, as TCGA_0_3_mask.tif (10 x 4, the "
    assert expected in warning


def test_mostly_without_masks_is_refused(tmp_path: Path, save_image: SaveImage) -> None:
    for number in range(5):
        save_image(tmp_path / "a" / f"{number}.png")
    save_mask(tmp_path / "a" / "0_mask.png", 5)
    with pytest.raises(ValueError, match=r"1 images have a mask .* 4 have none, e.g. 1.png, 2.png"):
        read(tmp_path)
    assert len(list(iter_images(tmp_path))) == 5


def test_a_damaged_mask_is_named_or_left_out(patients: Path) -> None:
    bad = patients / "TCGA_3" / "TCGA_3_2_mask.tif"
    bad.write_bytes(bad.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"cannot read mask '.*TCGA_3_2_mask.tif'"):
        read(patients)
    account = Account()
    records = read(patients, account, on_error="skip")
    assert len(records.files) == 23
    assert "TCGA_3/TCGA_3_2.tif" not in records.files
    assert [failure.file for failure in account.skipped] == [bad]


def test_folders_without_masks_are_class_folders(tmp_path: Path, save_image: SaveImage) -> None:
    for name in ("a/1.png", "b/unmasked.png", "b/mask.png", "b/x_mask.png", "masks/1.png"):
        save_image(tmp_path / name)
    assert reader_of(tmp_path) is folders


def test_area_of_the_union(tmp_path: Path) -> None:
    one = save_mask(tmp_path / "1.png", 10)
    two = save_mask(tmp_path / "2.png", 20)
    assert masks.is_positive([one, two], 0.19)
    assert not masks.is_positive([one, two], 0.20)
    three = tmp_path / "3.png"
    Image.new("L", (9, 10)).save(three)
    with pytest.raises(ValueError, match=r"3.png' has 10 x 9 pixels, another .* 10 x 10"):
        masks.is_positive([one, three], 0.0)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "P", "I;16", "I", "F"])
def test_masks_of_every_mode(tmp_path: Path, mode: str) -> None:
    for n_inside in (0, 1):
        pixels = np.zeros((10, 10), np.uint8)
        pixels.ravel()[:n_inside] = 1
        image: Any
        if mode == "P":  # the second colour is nearly black
            image = Image.fromarray(pixels, "P")
            image.putpalette([0, 0, 0, 0, 0, 1])
        elif mode == "I;16":
            image = Image.fromarray(pixels.astype(np.uint16))
        elif mode == "1":
            image = Image.fromarray(pixels > 0)
        else:
            image = Image.fromarray(pixels).convert(mode)
        path = tmp_path / ("mask.tif" if mode in ("F", "I") else "mask.png")
        image.save(path)
        assert masks.is_positive([path], 0.0) == bool(n_inside)


def test_a_lossy_mask_counts_what_is_half_white(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[20:44, 17:45] = 255
    path = tmp_path / "mask.jpg"
    Image.fromarray(pixels).save(path, quality=60)
    share = float((pixels > 0).mean())
    with Image.open(path) as image:
        assert (np.asarray(image) > 0).mean() > share + 0.02  # ringing around the edge
    assert masks.is_positive([path], share - 0.01)
    assert not masks.is_positive([path], share + 0.01)
