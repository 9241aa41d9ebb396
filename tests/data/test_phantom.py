from __future__ import annotations

import numpy as np
import pytest

from nnmf_cuda.data import ImageDataset, ReadOptions, load_dataset, phantom


@pytest.fixture(scope="module")
def small() -> ImageDataset:
    return phantom((120, 20, 40), seed=0)


def test_the_same_seed_gives_the_same_images(small: ImageDataset) -> None:
    assert phantom((120, 20, 40), seed=0).sha256() == small.sha256()
    assert phantom((120, 20, 40), seed=1).sha256() != small.sha256()


def test_it_says_that_it_is_synthetic(small: ImageDataset) -> None:
    assert small.synthetic
    assert small.source == "phantom"
    assert all("synthetic" in name for name in small.label_names)
    assert "SYNTHETIC" in small.notes[0]
    assert all(file.startswith("phantom-0-") for file in small.files)


def test_classes_are_even_in_every_split(small: ImageDataset) -> None:
    assert small.images.dtype == np.uint8
    assert small.images.shape == (180, 128, 128)
    for split, n_images in (("train", 120), ("valid", 20), ("test", 40)):
        assert np.bincount(small.labels_of(split)).tolist() == [n_images // 2] * 2


def test_images_look_like_heads_in_the_dark(small: ImageDataset) -> None:
    corners = small.images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    centre = small.images[:, 40:90, 45:85]
    assert corners.max() < 40
    assert 60 < centre.mean() < 160
    assert (small.images == 255).mean() < 0.01
    assert len(np.unique(small.images.reshape(180, -1), axis=0)) == 180


def test_classes_differ_but_not_in_plain_sight(small: ImageDataset) -> None:
    # The mean grey value alone must not tell the classes apart.
    means = small.images.mean(axis=(1, 2))
    higher = means[small.labels == 1][:, None] > means[small.labels == 0][None, :]
    assert 0.15 < higher.mean() < 0.85
    # Where a compact lesion may lie in the midline, its class is brighter on average.
    middle = small.images[:, 50:70, 58:70].mean(axis=(1, 2))
    assert middle[small.labels == 0].mean() > middle[small.labels == 1].mean() + 10


def test_other_shapes() -> None:
    dataset = phantom((2, 2, 2), image_shape=(40, 64))
    assert dataset.images.shape == (6, 40, 64)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"n_samples=\(5, 1, 5\): give three numbers"):
        phantom((5, 1, 5))
    with pytest.raises(ValueError, match=r"image_shape=\(8, 128\): give at least 16 x 16"):
        phantom(image_shape=(8, 128))


def test_it_is_what_no_path_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset(None, seed=3, image_shape=(32, 32))
    assert dataset.synthetic
    assert len(dataset.images) == 1050
    assert dataset.files[0] == "phantom-3-00000"


@pytest.mark.parametrize(
    ("name", "value"), [("classes", "0=a,1=b"), ("label_key", "kind"), ("split_by", "patient")]
)
def test_arguments_for_real_data_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is for a data set of yours"):
        load_dataset(None, **{name: value})  # type: ignore[arg-type]


def test_options_on_reading_are_for_real_data() -> None:
    with pytest.raises(ValueError, match="window is for a data set of yours"):
        load_dataset(None, reading=ReadOptions(window="0:5"))
