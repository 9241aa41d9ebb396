from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import clone

from nnmf_cuda.baselines import HossainClassifier, texture
from nnmf_cuda.baselines.hossain import Classifier
from nnmf_cuda.baselines.texture import (
    PROPERTIES,
    STATISTICS,
    TextureOptions,
    segmented,
    texture_features,
)
from nnmf_cuda.data import ImageDataset, phantom

pytest.importorskip("skimage")

Levels = NDArray[np.int64]
SMALL = TextureOptions(levels=8, distances=(1, 2))


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return phantom((60, 2, 40), image_shape=(32, 32))


def named(features: NDArray[np.float64], options: TextureOptions) -> dict[str, NDArray[np.float64]]:
    return dict(zip(options.names(), features.T, strict=True))


def co_occurring(levels: Levels, right: int, inside: NDArray[np.bool_]) -> dict[str, float]:
    """The properties of pairs of one row, `right` pixels apart, by their definitions."""
    n_levels = SMALL.levels
    counts = np.zeros((n_levels, n_levels))
    height, width = levels.shape
    for row in range(height):
        for column in range(width - right):
            if inside[row, column] and inside[row, column + right]:
                a, b = levels[row, column], levels[row, column + right]
                counts[a, b] += 1
                counts[b, a] += 1
    share = counts / counts.sum()
    i, j = np.indices(share.shape)
    mean = (share * i).sum()
    variance = (share * (i - mean) ** 2).sum()
    return {
        "contrast": (share * (i - j) ** 2).sum(),
        "dissimilarity": (share * abs(i - j)).sum(),
        "homogeneity": (share / (1 + (i - j) ** 2)).sum(),
        "ASM": (share**2).sum(),
        "energy": math.sqrt((share**2).sum()),
        "correlation": (share * (i - mean) * (j - mean)).sum() / variance,
    }


def test_texture_is_that_of_the_definitions() -> None:
    images = phantom((3, 2, 2), image_shape=(64, 64)).images[:3]
    found = named(texture_features(images, SMALL), SMALL)
    region = segmented(images, SMALL).region
    for number, image in enumerate(images):
        levels = image.astype(np.int64) * SMALL.levels // 256
        for what, inside in (("slice", np.ones(image.shape, bool)), ("region", region[number])):
            for distance in SMALL.distances:
                expected = co_occurring(levels, distance, inside)
                assert set(expected) == set(PROPERTIES)
                for name, value in expected.items():
                    here = found[f"{what} {name} at {distance} px, 0 deg"][number]
                    assert here == pytest.approx(value, abs=1e-9), (what, distance, name)


def test_statistics_are_those_of_the_pixels(data: ImageDataset) -> None:
    from scipy import stats

    images = data.images[:3]
    found = named(texture_features(images, SMALL), SMALL)
    region = segmented(images, SMALL).region
    for number, image in enumerate(images):
        for what, pixels in (("slice", image.ravel()), ("region", image[region[number]])):
            values = pixels / 255
            _, counts = np.unique(pixels, return_counts=True)
            expected = {
                "mean": values.mean(),
                "variance": values.var(),
                "skewness": stats.skew(values),
                "kurtosis": stats.kurtosis(values),
                "entropy": stats.entropy(counts, base=2),
            }
            assert set(expected) == set(STATISTICS)
            for name, value in expected.items():
                assert found[f"{what} {name}"][number] == pytest.approx(value, abs=1e-9)
        rows, columns = np.nonzero(region[number])
        assert found["region area"][number] == pytest.approx(len(rows) / image.size)
        assert found["region row"][number] == pytest.approx((rows.mean() + 0.5) / 32)
        assert found["region column_spread"][number] == pytest.approx(columns.std() / 32)


def test_the_region_is_the_largest_bright_piece_inside_the_head() -> None:
    image = np.zeros((40, 40), dtype=np.uint8)
    image[2:38, 2:38] = 80
    image[2:4, 2:38] = 250  # a scalp: larger than what is sought, at the surface
    image[20:26, 20:26] = 240
    image[12:14, 12:14] = 245  # smaller
    image[30, 10:30] = 245  # a line, which the opening takes away
    expected = np.zeros(image.shape, dtype=bool)
    expected[20:26, 20:26] = True
    options = TextureOptions(n_clusters=3)
    segments = segmented(image[None], options)
    np.testing.assert_array_equal(segments.region[0], expected)
    np.testing.assert_allclose(segments.centers[0], [0, 80 / 255, 0.97], atol=0.02)
    assert segments.shares[0, 0] == pytest.approx((image == 0).mean())


def test_an_image_of_one_grey_value_has_features() -> None:
    images = np.full((2, 16, 16), 7, dtype=np.uint8)
    assert not segmented(images, SMALL).region.any()
    assert np.isfinite(texture_features(images, SMALL)).all()


def test_features_do_not_depend_on_the_images_beside_them(data: ImageDataset) -> None:
    together = texture_features(data.images[:9], SMALL)
    np.testing.assert_allclose(texture_features(data.images[4:5], SMALL)[0], together[4])


@pytest.mark.parametrize("name", get_args(Classifier))
def test_each_classifier_learns(data: ImageDataset, name: Classifier) -> None:
    train, test = data.split == "train", data.split == "test"
    y = np.array([-3, 5])[data.labels]
    model = clone(HossainClassifier(name, levels=8, distances=(1,)))
    model.fit(data.images[train], y[train])
    probabilities = model.predict_proba(data.images[test])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    np.testing.assert_array_equal(model.classes_, [-3, 5])
    assert (model.predict(data.images[test]) == y[test]).mean() > 0.7
    assert model.n_parameters_ > 2 * len(model.scaler_.mean_)
    as_floats = model.predict_proba(data.images[test].astype(np.float32) / 255)
    np.testing.assert_array_equal(as_floats, probabilities)


def test_three_classes(data: ImageDataset) -> None:
    images = data.images[:60].copy()
    y = np.arange(60) % 3
    images[y == 2] //= 4
    model = HossainClassifier("svm", levels=8, distances=(1,)).fit(images, y)
    probabilities = model.predict_proba(images)
    assert probabilities.shape == (60, 3)
    features = model.scaler_.transform(texture_features(images, model._options()))
    np.testing.assert_array_equal(model.predict(images), model.classifier_.predict(features))
    assert (model.predict(images)[y == 2] == 2).all()


def test_six_classifiers_describe_their_images_once(
    data: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = []
    described_before = texture._described
    monkeypatch.setattr(texture, "_KNOWN", type(texture._KNOWN)())

    def counted(images: NDArray[np.uint8], options: TextureOptions) -> NDArray[np.float64]:
        described.append(len(images))
        return described_before(images, options)

    monkeypatch.setattr(texture, "_described", counted)
    for name in ("svm", "knn", "naive-bayes"):
        HossainClassifier(name, levels=8).fit(data.images, data.labels)
    assert sum(described) == len(data.images)
    HossainClassifier("knn", levels=16).fit(data.images, data.labels)
    assert sum(described) == 2 * len(data.images)
    for start in range(1, 12):
        texture_features(data.images[start : start + 2], SMALL, remember=True)
    assert len(texture._KNOWN) == texture._KEPT


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"classifier": "tree"}, "classifier must be one of svm"),
        ({"n_clusters": 1}, "n_clusters must be at least 2"),
        ({"m": 1.0}, "m must be above 1"),
        ({"levels": 256}, "levels must be in 2 to 255"),
        ({"distances": ()}, "distances must be"),
    ],
)
def test_settings_that_do_not_go_are_refused(
    data: ImageDataset, settings: dict[str, object], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        HossainClassifier(**settings).fit(data.images[:4], [0, 1, 0, 1])


def test_images_and_labels_that_do_not_go_are_refused(data: ImageDataset) -> None:
    images = data.images[:4]
    with pytest.raises(ValueError, match="y must have shape"):
        HossainClassifier("knn").fit(images, [0, 1])
    with pytest.raises(ValueError, match="one class only"):
        HossainClassifier("knn").fit(images, [1, 1, 1, 1])
    with pytest.raises(ValueError, match=r"expected \(n_images, height, width\)"):
        HossainClassifier("knn").fit(images[0], [0])
    fitted = HossainClassifier("svm", levels=8).fit(images, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="resize them"):
        fitted.predict(images[:, :20])


def test_a_classifier_that_is_spared_the_features_counts_their_time(
    data: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texture, "_KNOWN", type(texture._KNOWN)())
    images, labels = data.images[data.split == "train"], data.labels[data.split == "train"]
    first = HossainClassifier("svm", levels=8).fit(images, labels)
    assert first.spared_seconds_ == 0
    second = HossainClassifier("knn", levels=8).fit(images, labels)
    assert second.spared_seconds_ > 0
    assert HossainClassifier("knn", levels=16).fit(images, labels).spared_seconds_ == 0
