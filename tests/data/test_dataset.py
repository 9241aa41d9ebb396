from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nnmf_cuda.data import ImageDataset


def make(**changes: Any) -> ImageDataset:
    parts: dict[str, Any] = {
        "images": np.arange(8 * 3 * 5, dtype=np.uint8).reshape(8, 3, 5),
        "labels": np.array([0, 1, 0, 1, 0, 1, 0, 1]),
        "label_names": ("a", "b"),
        "split": np.array(["train", "train", "valid", "valid", "test", "test", "train", "train"]),
        "groups": {},
        "files": np.array([f"{index}.png" for index in range(8)]),
        "source": "here",
    }
    return ImageDataset(**{**parts, **changes})


def test_matrix_holds_the_rows_of_a_split_in_order() -> None:
    dataset = make()
    matrix = dataset.matrix("train")
    assert matrix.dtype == np.uint8
    np.testing.assert_array_equal(matrix, dataset.images.reshape(8, 15)[[0, 1, 6, 7]])
    np.testing.assert_array_equal(dataset.labels_of("test"), [0, 1])
    assert (dataset.n_classes, dataset.image_shape) == (2, (3, 5))


def test_matrix_is_a_copy() -> None:
    dataset = make()
    dataset.matrix("train")[:] = 0
    assert dataset.images[1].all()


def test_matrix_refuses_an_unknown_split() -> None:
    with pytest.raises(ValueError, match="split='val': choose 'train', 'valid' or 'test'"):
        make().matrix("val")


def test_sha256_tells_images_labels_and_split_apart() -> None:
    dataset = make()
    other_images = dataset.images.copy()
    other_images[7, 2, 4] ^= 1
    changed = [
        replace(dataset, images=other_images),
        replace(dataset, labels=dataset.labels[::-1]),
        replace(dataset, split=np.roll(dataset.split, 2)),
        replace(dataset, images=dataset.images.reshape(8, 5, 3)),
    ]
    prints = {item.sha256() for item in (dataset, *changed)}
    assert len(prints) == 5
    assert make().sha256() == dataset.sha256()
    # neither names nor the width of a string's dtype count
    same = replace(dataset, label_names=("x", "y"), split=dataset.split.astype("<U20"))
    assert same.sha256() == dataset.sha256()


def with_pixel(value: float, dtype: Any = np.float32) -> np.ndarray:
    images = np.full((8, 3, 5), 0.5).astype(dtype)
    images[2, 1, 1] = value
    return images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((8, 15), np.uint8)}, r"here: images have shape \(8, 15\)"),
        ({"images": np.zeros((0, 3, 5), np.uint8)}, "images are empty"),
        ({"images": np.zeros((8, 3, 5))}, "images are float64; give uint8, or float32"),
        ({"images": np.zeros((8, 3, 5), np.int64)}, "images are int64; give uint8"),
        ({"images": np.zeros((8, 3, 5), bool)}, "images are bool; give uint8"),
        ({"images": with_pixel(np.nan)}, "NaN or infinite pixels, first in image 2"),
        ({"images": with_pixel(np.inf)}, "NaN or infinite pixels, first in image 2"),
        ({"images": with_pixel(-0.5)}, "negative pixels, -0.5 the lowest, first in image 2"),
        ({"images": with_pixel(-3, np.int16)}, "negative pixels, -3 the lowest"),
        ({"images": with_pixel(255.0)}, "values up to 255, but floats must lie in"),
        ({"labels": np.zeros(7, int)}, r"labels has shape \(7,\), but there are 8 images"),
        ({"files": np.array(["a"])}, r"files has shape \(1,\), but there are 8 images"),
        ({"groups": {"patient": np.zeros((8, 1))}}, r"patient has shape \(8, 1\)"),
        ({"labels": np.zeros(8)}, "labels are float64; give integers"),
        ({"label_names": ("a",)}, r"only one class \(a\)"),
        ({"labels": np.arange(8)}, "labels run from 0 to 7, but label_names has 2 names"),
        ({"labels": np.arange(8) - 1}, "labels run from -1"),
        ({"split": np.array(["val"] * 8)}, "split holds 'val'"),
        ({"split": np.array(["train"] * 6 + ["valid"] * 2)}, "no test images"),
        ({"split": np.array(["train"] * 6 + ["test"] * 2)}, "no valid images"),
        ({"labels": np.array([0, 1, 0, 1, 0, 0, 0, 1])}, "no test image of class 'b'"),
        ({"labels": np.array([0, 0, 0, 1, 0, 1, 0, 0])}, "no train image of class 'b'"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_float_images_in_the_unit_interval_are_fine() -> None:
    dataset = make(images=np.linspace(0, 1, 120, dtype=np.float32).reshape(8, 3, 5))
    assert dataset.matrix("test").dtype == np.float32


def test_a_class_may_be_missing_from_the_validation_images() -> None:
    make(labels=np.array([0, 1, 0, 0, 0, 1, 0, 1]))
