from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch.nn import functional

from nnmf_cuda.baselines import SNnet
from nnmf_cuda.baselines.snnet import _filtered

FILTERS = ("semi-nmf", "graph", "pca")


def digits(n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))[:n]
    return (data.images[order] / 16).astype(np.float32), data.target[order]


def small(filters: str = "semi-nmf", **settings: object) -> SNnet:
    quick = {"n_filters": (4, 4), "patch_size": 3, "block_size": 4, "image_size": None}
    return SNnet(filters, **{**quick, "n_patches": 3000, "max_iter": 40, **settings})


@pytest.fixture(scope="module", params=FILTERS)
def fitted(request: pytest.FixtureRequest) -> SNnet:
    X, y = digits()
    return clone(small(request.param)).fit(X[:400], y[:400])


def test_digits_are_told_apart(fitted: SNnet) -> None:
    X, y = digits()
    probabilities = fitted.predict_proba(X[400:])
    assert probabilities.shape == (200, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (fitted.predict(X[400:]) == y[400:]).mean() > 0.87
    n_features = 4 * 9 * 2**4
    assert fitted.n_parameters_ == 2 * 4 * 9 + 10 * (n_features + 1)


def test_filters_have_mean_zero_and_length_one(fitted: SNnet) -> None:
    for filters in fitted.filters_:
        assert filters.shape == (4, 3, 3)
        torch.testing.assert_close(filters.mean((1, 2)), torch.zeros(4), atol=1e-6, rtol=0)
        torch.testing.assert_close(filters.flatten(1).norm(dim=1), torch.ones(4))


def test_features_are_counted_as_pcanet_says(fitted: SNnet) -> None:
    X, _ = digits()
    image = torch.from_numpy(X[500])
    first, second = fitted.filters_

    def responses(map_: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(map_, (1, 1, 1, 1))
        made = torch.zeros(len(filters), 8, 8)
        for row, column in itertools.product(range(8), range(8)):
            patch = padded[row : row + 3, column : column + 3]
            made[:, row, column] = ((patch - patch.mean()) * filters).sum((1, 2))
        return made

    expected = []
    made = [(responses(one, second) > 1e-6).numpy() for one in responses(image, first)]
    for top, left in itertools.product((0, 2, 4), (0, 2, 4)):
        for bits in made:
            number = (bits * 2 ** np.arange(4)[:, None, None]).sum(0)
            block = number[top : top + 4, left : left + 4]
            expected.append(np.bincount(block.ravel(), minlength=16))
    wanted = np.sqrt(np.concatenate(expected))
    found = fitted._features(image[None]).toarray()[0]
    # A response of nearly 0 may have either sign by rounding, and then counts elsewhere.
    assert (abs(found - wanted / np.linalg.norm(wanted)) > 1e-5).mean() < 0.02


def test_filters_of_pcanet_are_principal_components() -> None:
    X, y = digits(100)
    model = small("pca", n_patches=10_000).fit(X, y)
    padded = np.pad(X, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).reshape(-1, 9)
    patches = windows - windows.mean(1, keepdims=True)
    # The mean of all patches is nearly 0, which PCANet does not take away.
    components = PCA(4).fit(np.concatenate([patches, -patches])).components_
    cosines = abs((components * model.filters_[0].flatten(1).numpy()).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=1e-4)


def test_filters_of_semi_nmf_make_patches_in_amounts_that_are_not_negative() -> None:
    rng = np.random.default_rng(0)
    planted = rng.normal(size=(3, 9))
    planted -= planted.mean(1, keepdims=True)
    patches = rng.gamma(0.3, size=(500, 3)) @ planted
    model = small(max_iter=400)
    found = model._components(torch.from_numpy(patches).float(), np.zeros(500, int), 3)
    left = [nnls(found.double().numpy().T, patch)[1] for patch in planted]
    lengths = np.linalg.norm(planted, axis=1)
    assert (left < 0.02 * lengths).all()
    # Principal components, which span the same, need amounts of either sign.
    components = np.linalg.svd(patches, full_matrices=False)[2][:3]
    assert max(nnls(components.T, patch)[1] for patch in planted) > 0.1


def test_the_graph_has_a_part_in_the_filters() -> None:
    X, y = digits(200)

    def filters(alpha_graph: float) -> torch.Tensor:
        return small("graph", alpha_graph=alpha_graph).fit(X, y).filters_[0]

    assert not torch.allclose(filters(0.0), filters(10.0), atol=1e-2)


def test_maps_of_maps_are_those_of_each_alone() -> None:
    maps, filters = torch.rand(2, 3, 6, 5), torch.rand(4, 3, 3)
    together = _filtered(maps, filters)
    assert together.shape == (2, 12, 6, 5)
    torch.testing.assert_close(together[:, 4:8], _filtered(maps[:, 1:2], filters))


def test_blocks_reach_the_end_of_the_image() -> None:
    numbers = np.arange(7 * 10).reshape(1, 1, 7, 10)
    model = SNnet(block_size=4, overlap=0.5)
    blocks = list(model._blocks(numbers))
    assert [int(block[0, 0, 0, 0]) for block in blocks] == [
        top * 10 + left for top in (0, 2, 3) for left in (0, 2, 4, 6)
    ]
    (whole,) = SNnet(block_size=32)._blocks(numbers)
    assert whole.shape == numbers.shape


def test_two_classes_have_the_answers_of_the_margins() -> None:
    X, y = digits(300)
    model = small().fit(X, np.where(y % 2 == 1, 7, -7))
    margins = model.classifier_.decision_function(model._features(torch.from_numpy(X)))
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(probabilities[:, 1], 1 / (1 + np.exp(-margins)))
    np.testing.assert_array_equal(model.predict(X), np.where(margins > 0, 7, -7))


def test_pixels_are_read_as_floats_and_a_seed_repeats() -> None:
    X, y = digits(200)
    pixels = (X * 255).round().astype(np.uint8)
    first = small(image_size=16, random_state=3).fit(pixels, y)
    again = clone(first).fit(pixels, y)
    np.testing.assert_array_equal(first.predict_proba(pixels), again.predict_proba(pixels))
    np.testing.assert_allclose(
        first.predict_proba(pixels), first.predict_proba(pixels.astype(np.float32) / 255), atol=0.05
    )


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"filters": "ica"}, "filters must be one of semi-nmf, graph, pca"),
        ({"n_filters": (0, 4)}, "n_filters must be two numbers"),
        ({"n_filters": (4, 17)}, "n_filters must be two numbers"),
        ({"n_filters": (9, 4), "patch_size": 3}, "fewer than the pixels of a patch"),
        ({"patch_size": 4}, "patch_size must be odd"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"overlap": 1.0}, "overlap must be in"),
        ({"n_patches": 5}, "n_patches=5 must be more"),
    ],
)
def test_settings_that_do_not_go_are_refused(settings: dict[str, object], match: str) -> None:
    X, y = digits(20)
    with pytest.raises(ValueError, match=match):
        SNnet(**settings).fit(X, y)


def test_images_of_another_shape_are_refused() -> None:
    X, y = digits(60)
    with pytest.raises(ValueError, match="resize them"):
        small("pca").fit(X, y).predict(X[:, :6])


def test_the_graph_does_little_at_its_default_weight() -> None:
    digits = load_digits()
    images, labels = (digits.images / 16).astype(np.float32)[::3], digits.target[::3]
    size = {"patch_size": 3, "block_size": 4, "image_size": None, "n_patches": 5000}
    hardly, default, much = (
        SNnet("graph", alpha_graph=weight, **size).fit(images, labels)
        for weight in (1e-9, SNnet().alpha_graph, 1e3)
    )

    def nearness(model: SNnet) -> float:
        """Return the mean cosine of each filter and the nearest without a graph."""
        pairs = zip(model.filters_, hardly.filters_, strict=True)
        return float(np.mean([(a.flatten(1) @ b.flatten(1).T).abs().amax(1) for a, b in pairs]))

    assert nearness(default) > 0.9
    assert nearness(much) < 0.8
    other = (digits.images / 16).astype(np.float32)[1::3], digits.target[1::3]
    assert default.score(*other) > much.score(*other) + 0.05
