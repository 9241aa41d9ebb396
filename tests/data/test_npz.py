from __future__ import annotations

import zipfile
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
from nnmf_cuda.data.readers import npz

SaveNpz = Callable[..., Path]


def test_every_array_is_read(save_npz: SaveNpz) -> None:
    path = save_npz(
        label_names=np.array(["no", "yes"]),
        split=np.array(["train", "Validation", "TEST", "val"] * 10),
        patient=np.repeat(["p1", "p2"], 20),
        patient_fold=np.arange(40) % 5,
        series=np.arange(40),
        file=np.array([f"{index}.jpg" for index in range(40)]),
        masks=np.zeros(3),
    )
    records = npz.read(path, ReadOptions(), Account())
    np.testing.assert_array_equal(records.images, np.load(path)["images"])
    assert records.values[:3].tolist() == ["0", "1", "0"]
    assert records.names == {"0": "no", "1": "yes"}
    assert records.split is not None
    assert records.split[:4].tolist() == ["train", "valid", "test", "valid"]
    assert set(records.groups) == {"patient", "patient_fold", "series"}
    assert records.files[39] == "39.jpg"
    assert records.notes == ()


def test_names_may_be_called_files_as_savez_needs(save_npz: SaveNpz) -> None:
    names = np.array([f"{index}.jpg" for index in range(40)])
    assert npz.read(save_npz(files=names), ReadOptions(), Account()).files[39] == "39.jpg"


def test_only_images_and_labels_are_needed(save_npz: SaveNpz) -> None:
    records = npz.read(save_npz(), ReadOptions(), Account())
    assert records.split is None
    assert records.groups == {}
    assert records.names == {"0": "labels 0", "1": "labels 1"}
    assert records.files[3] == "images[3]"


@pytest.mark.parametrize(
    ("label_key", "names_key"),
    [("class_labels", "class_names"), ("grades", "grade_names"), ("kind", "kind_names")],
)
def test_another_array_of_labels_has_its_own_names(
    save_npz: SaveNpz, label_key: str, names_key: str
) -> None:
    three = {label_key: np.arange(40) % 3, names_key: np.array(["x", "y", "z"])}
    path = save_npz(label_names=np.array(["no", "yes"]), **three)
    records = npz.read(path, ReadOptions(), Account(), label_key=label_key)
    assert list(records.names.values()) == ["x", "y", "z"]
    assert records.values[2] == "2"


def test_text_labels_are_sorted(save_npz: SaveNpz) -> None:
    dataset = load_dataset(save_npz(labels=np.array(["tumor", "healthy"] * 20)))
    assert dataset.label_names == ("healthy", "tumor")
    assert dataset.labels[:2].tolist() == [1, 0]


def test_labels_need_not_begin_at_0(save_npz: SaveNpz) -> None:
    dataset = load_dataset(save_npz(labels=np.arange(40) % 2 + 5))
    assert dataset.labels[:2].tolist() == [0, 1]
    assert "label 1 is 'labels 6' (6 in the source)" in dataset.notes[0]


def test_a_name_without_images_is_dropped(save_npz: SaveNpz) -> None:
    path = save_npz(labels=np.arange(40) % 2 * 2, label_names=np.array(["a", "b", "c"]))
    dataset = load_dataset(path)
    assert dataset.label_names == ("a", "c")
    assert set(dataset.labels.tolist()) == {0, 1}


def test_float_images_become_float32(save_npz: SaveNpz) -> None:
    dataset = load_dataset(save_npz(images=np.full((40, 128, 128), 0.25)))
    assert dataset.images.dtype == np.float32
    assert (dataset.images == 0.25).all()


def test_other_sizes_are_resized_with_a_note(save_npz: SaveNpz, rng: np.random.Generator) -> None:
    small = rng.integers(0, 256, size=(40, 60, 50), dtype=np.uint8)
    dataset = load_dataset(save_npz(images=small))
    expected = Image.fromarray(small[7]).resize((128, 128), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(dataset.images[7], np.asarray(expected))
    note = "Images of 60 x 50 pixels were converted to grey images of 128 x 128"
    assert dataset.notes[1] == note
    kept = load_dataset(save_npz(images=small), image_shape=(60, 50))
    np.testing.assert_array_equal(kept.images, small)
    assert not any("converted" in note for note in kept.notes)


def test_float_images_are_resized_within_the_unit_interval(
    save_npz: SaveNpz, rng: np.random.Generator
) -> None:
    small = rng.integers(0, 2, size=(40, 60, 50)).astype(np.float64)
    images = load_dataset(save_npz(images=small)).images
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert images.mean() == pytest.approx(small.mean(), abs=0.01)


def test_colours_become_grey(save_npz: SaveNpz, rng: np.random.Generator) -> None:
    colours = rng.integers(0, 256, size=(40, 128, 128, 3), dtype=np.uint8)
    dataset = load_dataset(save_npz(images=colours))
    expected = Image.fromarray(colours[3]).convert("L")
    np.testing.assert_array_equal(dataset.images[3], np.asarray(expected))
    assert "with colours" in dataset.notes[1]


def with_pixel(value: float) -> np.ndarray:
    images = np.full((40, 128, 128), 0.5, dtype=np.float32)
    images[11, 5, 6] = value
    return images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, r"data.npz has no array 'images'; it has labels"),
        ({"labels": None}, r"data.npz has no array 'labels'; it has images"),
        (
            {"labels": np.array([0, 1] * 20, dtype=object)},
            r"data.npz: 'labels' holds Python objects, which only pickle",
        ),
        ({"images": np.array([object()])}, "'images' holds Python objects"),
        ({"labels": np.zeros(39, int)}, r"'labels' has shape \(39,\), but there are 40 images"),
        ({"labels": np.zeros((40, 1), int)}, r"'labels' has shape \(40, 1\)"),
        ({"split": np.array(["train"])}, r"'split' has shape \(1,\)"),
        ({"patient": np.zeros(41)}, r"'patient' has shape \(41,\)"),
        ({"file": np.array(["a.png"] * 3)}, r"'file' has shape \(3,\)"),
        ({"labels": np.zeros(40)}, "'labels' are float64; give integers or text"),
        ({"images": np.zeros((40, 16384), np.uint8)}, r"'images' have shape \(40, 16384\)"),
        ({"images": np.zeros((0, 8, 8), np.uint8), "labels": np.zeros(0, int)}, "are empty"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8), "labels": np.zeros(0, int)}, "have shape"),
        ({"images": with_pixel(np.nan)}, r"data.npz: 'images' hold NaN .* in image 11; repair"),
        ({"images": with_pixel(-np.inf)}, "'images' hold NaN or infinite"),
        ({"images": with_pixel(-0.1)}, "'images' hold values from -0.1 to 0.5 in image 11; floats"),
        (
            {"images": with_pixel(1.5)},
            r"values from 0.5 to 1.5 in image 11; floats must lie in \[0, 1\]: divide",
        ),
        ({"images": np.zeros((40, 8, 8), np.int32)}, "'images' are int32; give uint8"),
        ({"split": np.array(["train", "dev"] * 20)}, "'split' holds 'dev'; give 'train'"),
        ({"labels": np.zeros(40, int)}, "only one class, 0 .'labels 0', 40 images."),
        ({"label_names": np.array(["a", "a"])}, "'label_names' gives two classes the same name"),
        (
            {"labels": np.arange(40) % 3, "label_names": np.array(["a", "b"])},
            "'labels' holds 2, but 'label_names' names only labels 0..1",
        ),
        (
            {"labels": np.arange(40) % 3 - 1, "label_names": np.array(["a", "b"])},
            "'labels' holds -1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    save_npz: SaveNpz, changes: dict[str, Any], message: str
) -> None:
    path = save_npz(**changes)
    with pytest.raises(ValueError, match=message):
        load_dataset(path)


def test_a_missing_label_key_is_named(save_npz: SaveNpz) -> None:
    with pytest.raises(ValueError, match="has no array 'grades'; it has images, labels"):
        load_dataset(save_npz(), label_key="grades")


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    path = tmp_path / "trap.npz"
    np.savez(path, images=np.array([Trap()], dtype=object), labels=np.zeros(1, int))
    with pytest.raises(ValueError, match="Python objects"):
        load_dataset(path)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read '.*data.npz': not a whole .npz archive"):
        load_dataset(path)


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="holds a single array; give an .npz"):
        load_dataset(path)


@pytest.mark.parametrize("key", ["images", "labels", "patient"])
def test_a_member_that_is_no_array_is_refused(save_npz: SaveNpz, tmp_path: Path, key: str) -> None:
    good, path = save_npz(patient=np.repeat("P", 40)), tmp_path / "odd.npz"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, b"no array" if name == f"{key}.npy" else source.read(name))
    with pytest.raises(ValueError, match=f"odd.npz: '{key}' cannot be read: it is no array"):
        load_dataset(path)


def test_a_damaged_array_is_named(save_npz: SaveNpz) -> None:
    path = save_npz()
    content = bytearray(path.read_bytes())
    content[5000:5100] = bytes(100)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="'images' is damaged: .*; fetch the file anew"):
        load_dataset(path)


MEDMNIST = {"train": 20, "val": 6, "test": 8}


def medmnist(save_npz: SaveNpz, **changes: Any) -> Path:
    rng = np.random.default_rng(5)
    arrays: dict[str, Any] = {}
    for split, n in MEDMNIST.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 2).astype(np.uint8)[:, None]
    return save_npz(**{"images": None, "labels": None, **arrays, **changes})


def test_arrays_of_medmnist_are_read_with_their_splits(save_npz: SaveNpz) -> None:
    path = medmnist(save_npz)
    dataset = load_dataset(path, image_shape=(28, 28))
    assert [int((dataset.split == s).sum()) for s in ("train", "valid", "test")] == [20, 6, 8]
    assert dataset.label_names == ("labels 0", "labels 1")
    with np.load(path) as arrays:
        np.testing.assert_array_equal(dataset.images[20:26], arrays["val_images"])
        np.testing.assert_array_equal(dataset.labels[26:], arrays["test_labels"][:, 0])
    found = list(iter_images(path))
    assert [str(image.name.name) for image in found[:2]] == ["train_images[0]", "train_images[1]"]
    assert len(found) == 34


def test_bad_images_alone_are_left_out(save_npz: SaveNpz, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).random((40, 60, 50))
    for at, value in {3: np.nan, 7: np.inf, 8: -0.5, 39: 1.5}.items():
        images[at, 4, 5] = value
    path, reading = save_npz(images=images), ReadOptions(on_error="skip")
    good = [at for at in range(40) if at not in (3, 7, 8, 39)]
    dataset = load_dataset(path, image_shape=(60, 50), reading=reading)
    assert dataset.files.tolist() == [f"images[{at}]" for at in good]
    np.testing.assert_array_equal(dataset.images, images[good].astype(np.float32))
    np.testing.assert_array_equal(dataset.labels, np.array(good) % 2)
    left_out = "Left out, unreadable: 4 (images[3], images[7], images[8], images[39])"
    assert left_out in dataset.notes
    resized = load_dataset(path, image_shape=(30, 25), reading=reading)
    note = "Images of 60 x 50 pixels were converted to grey images of 30 x 25"
    assert resized.notes[1] == note
    with pytest.raises(
        ValueError,
        match=r"4 of 40 images cannot be read: '[^']*images\[3\]', .*first: .*NaN .* in image 3;",
    ):
        load_dataset(path)
    monkeypatch.setattr(npz, "_BLOCK_BYTES", 9 * 8 * 60 * 50)
    stream = iter_images(path, reading=reading)
    (batch,) = iter_image_batches(stream, image_shape=(60, 50), on_error="skip")
    np.testing.assert_array_equal(batch.images, dataset.images)
    told = [(failure.file.name, failure.message.split(";")[0]) for failure in batch.failures]
    name = f"{path}: 'images' hold"
    assert told == [
        ("images[3]", f"{name} NaN or infinite pixels in image 3"),
        ("images[7]", f"{name} NaN or infinite pixels in image 7"),
        ("images[8]", f"{name} values from -0.5 to {images[8].max():g} in image 8"),
        ("images[39]", f"{name} values from {images[39].min():g} to 1.5 in image 39"),
    ]


def test_where_no_image_is_left_the_first_reason_is_told(save_npz: SaveNpz) -> None:
    path = save_npz(images=np.full((40, 8, 8), np.nan))
    with pytest.raises(ValueError, match="40 of 40 images cannot be read; the first: .*in image 0"):
        load_dataset(path, reading=ReadOptions(on_error="skip"))


def test_bad_images_of_medmnist_are_left_out_of_their_split(save_npz: SaveNpz) -> None:
    arrays = {f"{split}_images": np.full((n, 9, 9), 0.5) for split, n in MEDMNIST.items()}
    arrays["val_images"][2] = np.nan
    path = medmnist(save_npz, **arrays)
    dataset = load_dataset(path, image_shape=(9, 9), reading=ReadOptions(on_error="skip"))
    assert [int((dataset.split == s).sum()) for s in ("train", "valid", "test")] == [20, 5, 8]
    assert "Left out, unreadable: 1 (val_images[2])" in dataset.notes
    with pytest.raises(ValueError, match="'val_images' hold NaN .* in image 2;"):
        load_dataset(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": np.zeros((6, 14), np.uint8)}, "'val_labels' have 14 labels an image"),
        ({"val_labels": np.zeros((5, 1), np.uint8)}, r"'val_labels' has shape \(5,\)"),
        ({"val_labels": None}, "has no array 'val_labels'"),
        ({"test_images": np.zeros((8, 28, 28, 3), np.uint8)}, "splits differ in shape"),
        ({"test_images": np.zeros((8, 28, 28, 28), np.uint8)}, "'test_images' have shape"),
    ],
)
def test_arrays_of_medmnist_that_do_not_fit_are_refused(
    save_npz: SaveNpz, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(medmnist(save_npz, **changes))
