from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.data import Account, ReadOptions, load_dataset, read_image
from nnmf_cuda.data.readers import coco

EditCoco = Callable[..., Path]
ANNOTATIONS = "_annotations.coco.json"


def test_images_are_matched_to_annotations_by_id(coco_root: Path) -> None:
    dataset = load_dataset(coco_root, classes="2=Normal,1=Tumor")
    assert dataset.label_names == ("Normal", "Tumor")
    in_test = dataset.split == "test"
    # ids 7 and 27 have category 1, which is label 1
    found = dict(
        zip(dataset.files[in_test].tolist(), dataset.labels_of("test").tolist(), strict=True)
    )
    assert found == {"37.png": 0, "7.png": 1, "27.png": 1, "17.png": 0}
    row = int(np.flatnonzero(in_test & (dataset.files == "27.png"))[0])
    np.testing.assert_array_equal(dataset.images[row], read_image(coco_root / "test" / "27.png"))


def test_without_box_left_out_and_of_several_the_largest(coco_root: Path) -> None:
    records = coco.read(coco_root, ReadOptions(), Account())
    assert records.split is not None
    train = dict(zip(records.files.tolist(), records.values.tolist(), strict=True))
    assert "87.png" not in records.files
    assert train["97.png"] == "2"
    assert records.notes == (
        "train: 1 images without annotation are left out",
        "train: 1 images have several boxes; the largest gives the class",
    )


def test_a_byte_order_mark_changes_nothing(coco_root: Path) -> None:
    without = load_dataset(coco_root).sha256()
    for path in coco_root.glob(f"*/{ANNOTATIONS}"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_dataset(coco_root).sha256() == without


def test_categories_without_images_are_no_classes(coco_root: Path) -> None:
    dataset = load_dataset(coco_root)
    assert dataset.label_names == ("0", "1")
    assert "In the source's order (--classes chooses another)" in dataset.notes[0]
    assert "label 0 is '0' (1 in the source)" in dataset.notes[0]


def test_the_folder_may_be_called_val(coco_root: Path) -> None:
    (coco_root / "valid").rename(coco_root / "val")
    assert len(load_dataset(coco_root).labels_of("valid")) == 4


def test_missing_files_are_listed(coco_root: Path) -> None:
    for image_id in (7, 17, 27, 37):
        (coco_root / "valid" / f"{image_id}.png").unlink()
    with pytest.raises(ValueError, match=r"names 4 images .* 37.png, 7.png, 27.png and 1 more"):
        load_dataset(coco_root)


def test_a_truncated_image_is_named(coco_root: Path) -> None:
    path = coco_root / "test" / "17.png"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"cannot read image '.*test/17.png': .*truncated"):
        load_dataset(coco_root)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
def test_what_is_not_json_is_refused(coco_root: Path, content: bytes) -> None:
    (coco_root / "test" / ANNOTATIONS).write_bytes(content)
    with pytest.raises(ValueError, match=r"test/_annotations.coco.json is not JSON"):
        load_dataset(coco_root)


def without(name: str) -> Callable[[Any], Any]:
    return lambda content: {key: value for key, value in content.items() if key != name}


def with_box(**changes: Any) -> Callable[[Any], Any]:
    def change(content: Any) -> None:
        content["annotations"][0].update(changes)

    return change


def repeat_image(content: Any) -> None:
    content["images"].append(content["images"][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: [content], "is not a COCO file"),
        (without("images"), "is not a COCO file: KeyError 'images'"),
        (without("annotations"), "is not a COCO file: KeyError 'annotations'"),
        (without("categories"), "is not a COCO file: KeyError 'categories'"),
        (with_box(bbox=[1, 2, 3]), "is not a COCO file: ValueError not enough values"),
        (with_box(bbox=None), "is not a COCO file: TypeError"),
        (with_box(category_id="one"), "is not a COCO file: ValueError .*'one'"),
        (with_box(image_id=1234), "belongs to image id 1234, which 'images' does not list"),
        (repeat_image, "two images have the same id"),
    ],
)
def test_a_malformed_file_is_refused(
    edit_coco: EditCoco, change: Callable[[Any], Any], message: str
) -> None:
    root = edit_coco(change)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(root)
    assert f"train/{ANNOTATIONS}" in str(caught.value)


def test_splits_that_name_categories_differently_are_refused(edit_coco: EditCoco) -> None:
    def rename(content: Any) -> None:
        content["categories"][1]["name"] = "other"

    with pytest.raises(ValueError, match="category 1 is .* in one split and .* in"):
        load_dataset(edit_coco(rename))


def test_a_split_without_annotations_is_refused(coco_root: Path) -> None:
    (coco_root / "valid" / ANNOTATIONS).unlink()
    with pytest.raises(ValueError, match="valid has no _annotations.coco.json, though other"):
        load_dataset(coco_root)


def test_two_folders_for_one_split_are_refused(coco_root: Path) -> None:
    (coco_root / "val").mkdir()
    (coco_root / "val" / ANNOTATIONS).write_bytes((coco_root / "test" / ANNOTATIONS).read_bytes())
    with pytest.raises(ValueError, match="two folders for the valid split: 'val' and 'valid'"):
        load_dataset(coco_root)


def test_an_export_without_any_box_is_refused(edit_coco: EditCoco) -> None:
    for split in ("train", "valid", "test"):
        root = edit_coco(lambda content: {**content, "annotations": []}, split)
    with pytest.raises(ValueError, match="no image has an annotation"):
        load_dataset(root)


def test_only_one_category_is_refused(edit_coco: EditCoco) -> None:
    def one(content: Any) -> None:
        for annotation in content["annotations"]:
            annotation["category_id"] = 2

    for split in ("train", "valid", "test"):
        root = edit_coco(one, split)
    with pytest.raises(ValueError, match=r"only one class, 2 \('1', 13 images\)"):
        load_dataset(root)


def test_an_unknown_category_id_is_refused(coco_root: Path) -> None:
    with pytest.raises(ValueError, match=r"asks for '3', which no image has; the images have 1 \("):
        load_dataset(coco_root, classes="3=Normal,1=Tumor")


def test_a_folder_without_splits_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no train, valid or test folder with _annotations"):
        coco.read(tmp_path, ReadOptions(), Account())


def test_jpg_and_rgb_are_converted_by_pillow(coco_root: Path) -> None:
    with Image.open(coco_root / "train" / "7.png") as image:
        assert image.mode == "RGB"
        expected = image.convert("L").resize((128, 128), Image.Resampling.BILINEAR)
    dataset = load_dataset(coco_root)
    row = (dataset.files == "7.png") & (dataset.split == "train")
    np.testing.assert_array_equal(dataset.images[row][0], np.asarray(expected))


def test_files_that_no_annotation_names_are_told(coco_root: Path, save_image: Any) -> None:
    save_image(coco_root / "train" / "extra.png")
    (coco_root / "README.txt").write_text("about")
    account = Account()
    coco.read(coco_root, ReadOptions(), account)
    assert account.by_ending == {".png": 15, ".json": 3}
    assert [(file.name, why) for file, why in account.skipped] == [
        ("extra.png", "not named in _annotations.coco.json"),
        ("README.txt", "beside the splits"),
    ]


def test_two_categories_of_one_name_are_not_confused(edit_coco: EditCoco, coco_root: Path) -> None:
    def rename(content: Any) -> None:
        for category in content["categories"]:
            category["name"] = "tumor"

    for split in ("train", "valid", "test"):
        edit_coco(rename, split)
    with pytest.raises(ValueError, match=r"classes 1 \('tumor'\) and 2 \('tumor'\) cannot be told"):
        load_dataset(coco_root)
    assert load_dataset(coco_root, classes="1=a,2=b").label_names == ("a", "b")


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "a/../../b.png"])
def test_names_that_lead_out_of_the_folder_are_refused(edit_coco: EditCoco, name: str) -> None:
    def change(content: Any) -> None:
        content["images"][0]["file_name"] = name

    with pytest.raises(ValueError, match=f"file_name '{name}' leads out of the folder"):
        load_dataset(edit_coco(change))


def test_nesting_without_end_is_refused(coco_root: Path) -> None:
    (coco_root / "test" / ANNOTATIONS).write_text("[" * 200_000)
    with pytest.raises(ValueError, match="is not JSON"):
        load_dataset(coco_root)


def test_patients_come_from_the_names_of_files(coco_root: Path) -> None:
    reading = ReadOptions(patient_from="*/{patient}.png")
    dataset = load_dataset(coco_root, split_by="split", reading=reading)
    assert dataset.groups["patient"].tolist() == [Path(name).stem for name in dataset.files]
