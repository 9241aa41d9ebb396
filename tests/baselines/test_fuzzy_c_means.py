from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import clone

from nnmf_cuda.baselines import FuzzyCMeans
from nnmf_cuda.baselines.fuzzy_c_means import fuzzy_clusters

Floats = NDArray[np.float64]


def blobs(seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(at, 0.4, size=(25, 3)) for at in (-2.0, 0.0, 3.0)])


def grey_values(seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([rng.normal(at, 12, size=400) for at in (20, 90, 170)])
    return drawn.clip(0, 255).astype(np.uint8)[:, None]


def textbook(
    X: Floats, memberships: Floats, m: float, tol: float, max_iter: int
) -> tuple[Floats, Floats, int]:
    """Bezdek's two formulas, number by number, from memberships (n_samples, n_clusters)."""
    u, n_iter = memberships / memberships.sum(1, keepdims=True), 0
    n_samples, n_clusters = u.shape
    for _ in range(max_iter):
        n_iter += 1
        sums = [sum(u[i, j] ** m * X[i] for i in range(n_samples)) for j in range(n_clusters)]
        centers = np.array([sums[j] / sum(u[:, j] ** m) for j in range(n_clusters)])
        new = np.empty_like(u)
        for i, x in enumerate(X):
            distances = [np.sqrt(((x - center) ** 2).sum()) for center in centers]
            for j, distance in enumerate(distances):
                new[i, j] = 1 / sum((distance / other) ** (2 / (m - 1)) for other in distances)
        change, u = np.linalg.norm(new - u), new
        if change < tol:
            break
    return centers, u, n_iter


@pytest.mark.parametrize("m", [1.6, 2.0, 3.0])
def test_clusters_are_those_of_the_textbook_loop(m: float) -> None:
    X = blobs()
    start = np.random.default_rng(1).random((len(X), 3)) + 0.01
    centers, memberships, n_iter = textbook(X, start, m, 1e-6, 40)
    model = FuzzyCMeans(3, m=m, tol=1e-6, max_iter=40, init=start).fit(X)
    np.testing.assert_allclose(model.cluster_centers_, centers, atol=1e-9)
    np.testing.assert_allclose(model.memberships_, memberships, atol=1e-9)
    assert model.n_iter_ == n_iter
    np.testing.assert_array_equal(model.labels_, memberships.argmax(1))


@pytest.mark.parametrize("pixels", [True, False])
def test_clusters_are_those_of_scikit_fuzzy(pixels: bool) -> None:
    skfuzzy = pytest.importorskip("skfuzzy")
    X = grey_values() if pixels else blobs()
    numbers = X / 255 if pixels else X
    start = np.random.default_rng(1).random((len(X), 3)) + 0.01
    start /= start.sum(1, keepdims=True)
    centers, u, _, _, objective, n_iter, _ = skfuzzy.cmeans(
        numbers.T, 3, 2.0, 1e-5, 200, init=start.T
    )
    model = FuzzyCMeans(3, tol=1e-5, max_iter=200, init=start).fit(X)
    np.testing.assert_allclose(model.cluster_centers_, centers, atol=1e-10)
    np.testing.assert_allclose(model.memberships_, u.T, atol=1e-9)
    assert model.n_iter_ == n_iter
    # The objective that it records last is of the memberships one iteration before.
    assert model.objective_ == pytest.approx(objective[-1], rel=1e-4)


@pytest.mark.parametrize(
    ("m", "n_iter", "centers"),
    [
        (
            1.5,
            57,
            [[4.26923711, -2.1494068], [2.21395271, -0.97907432], [-0.0124723, 0.05485858]],
        ),
        (
            2.0,
            175,
            [[4.22093754, -2.11001222], [2.14802445, -0.86983942], [-0.04045405, 0.07260901]],
        ),
    ],
)
def test_centres_are_those_that_scikit_fuzzy_gave(
    m: float, n_iter: int, centers: list[list[float]]
) -> None:
    """Found once with `skfuzzy.cmeans` of scikit-fuzzy 0.5.0, from the same start."""
    i = np.arange(30)
    X = np.stack([np.sin(i * 1.7) + (i % 3) * 2, np.cos(i * 0.9) - (i % 3)], axis=1)
    start = 1.0 + (np.arange(90).reshape(30, 3) * 7) % 11
    model = FuzzyCMeans(3, m=m, tol=1e-6, max_iter=200, init=start).fit(X)
    np.testing.assert_allclose(model.cluster_centers_, centers, atol=1e-8)
    assert model.n_iter_ == n_iter


@pytest.mark.parametrize("given", ["centers", "memberships", "spread"])
def test_grey_values_are_clustered_by_their_histogram(given: str) -> None:
    X = grey_values()
    init: object = "spread"
    if given == "centers":
        init = np.array([[0.0], [0.5], [1.0]])
    elif given == "memberships":
        init = np.random.default_rng(0).random((len(X), 3)) + 0.01
    by_histogram = FuzzyCMeans(3, init=init).fit(X)
    by_samples = FuzzyCMeans(3, init=init).fit(X / 255)
    np.testing.assert_allclose(
        by_histogram.cluster_centers_, by_samples.cluster_centers_, atol=1e-10
    )
    assert by_histogram.n_iter_ == by_samples.n_iter_
    np.testing.assert_allclose(by_histogram.memberships_, by_samples.memberships_, atol=1e-9)


def test_sets_of_a_batch_end_each_on_its_own() -> None:
    values = np.arange(256)[:, None] / 255
    counts = np.stack([np.bincount(grey_values(s)[:, 0], minlength=256) for s in range(3)])
    start = np.tile(np.array([[0.1], [0.4], [0.9]]), (3, 1, 1))
    start[1] = [[0.08], [0.35], [0.66]]
    together = fuzzy_clusters(values, counts.astype(np.float64), start)
    assert len(set(together.n_iter)) > 1
    for row in range(3):
        alone = FuzzyCMeans(3, init=start[row]).fit(grey_values(row))
        np.testing.assert_allclose(together.centers[row], alone.cluster_centers_, atol=1e-10)
        assert together.n_iter[row] == alone.n_iter_


def test_the_objective_falls() -> None:
    X = blobs()
    objectives = [
        FuzzyCMeans(3, tol=0, max_iter=n, random_state=0).fit(X).objective_ for n in range(1, 12)
    ]
    assert np.all(np.diff(objectives) <= 1e-12 * objectives[0])
    assert objectives[-1] < 0.9 * objectives[0]


def test_a_sample_on_a_centre_belongs_to_it() -> None:
    X = np.array([[0.0], [0.0], [5.0], [5.0]])
    model = FuzzyCMeans(2, init="spread").fit(X)
    np.testing.assert_allclose(model.cluster_centers_.ravel(), [0, 5], atol=1e-6)
    np.testing.assert_allclose(model.memberships_, np.repeat(np.eye(2), 2, axis=0), atol=1e-6)
    assert np.isfinite(FuzzyCMeans(2).fit(np.ones((4, 2))).memberships_).all()


def test_new_samples_go_to_the_centres_that_there_are() -> None:
    X = blobs()
    model = clone(FuzzyCMeans(3, random_state=0)).fit(X)
    np.testing.assert_allclose(model.predict_memberships(X), model.memberships_)
    np.testing.assert_array_equal(model.predict(X), model.labels_)
    np.testing.assert_allclose(model.predict_memberships(X + 0.1).sum(1), 1)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"n_clusters": 0}, "n_clusters must be at least 1"),
        ({"n_clusters": 100}, "n_clusters=100 is more than"),
        ({"m": 1.0}, "m must be a finite number > 1"),
        ({"tol": -1.0}, "tol must be >= 0"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"init": "k-means++"}, "init must be"),
        ({"init": np.ones((2, 2))}, "init has the shape"),
        ({"init": -np.ones((75, 4))}, "must not be negative"),
    ],
)
def test_what_cannot_be_clustered_is_refused(settings: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FuzzyCMeans(**settings).fit(blobs())


def test_samples_of_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match="fitted to 3"):
        FuzzyCMeans(2, random_state=0).fit(blobs()).predict(np.ones((2, 2)))
