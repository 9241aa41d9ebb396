"""The rows of the comparison that learn without backpropagation, or factorise: made and tried."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone

from nnmf_cuda.baselines import SYSTEMS, PixelNetwork, Setting
from nnmf_cuda.data import ImageDataset, phantom

pytest.importorskip("skimage")

WITHOUT_GRADIENT = (
    *("hossain-svm", "hossain-knn", "hossain-logistic-regression", "hossain-naive-bayes"),
    *("hossain-random-forest", "hossain-mlp", "snnet", "s-snnet", "pcanet"),
)
WITH_GRADIENT = ("chan-maps", "lee-pang")


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return phantom((60, 2, 10), image_shape=(32, 32))


@pytest.mark.parametrize("name", [*WITHOUT_GRADIENT, *WITH_GRADIENT])
def test_a_row_is_made_learns_and_answers(data: ImageDataset, name: str) -> None:
    system = SYSTEMS[name]
    assert system.name == name
    assert all((system.title, system.authors, system.source, system.described))
    model = clone(system.make(Setting(seed=1, smoke=True)))
    assert model.get_params()["random_state"] == 1
    y = data.labels[:60].copy()
    y[:20] = 2  # three classes
    model.fit(data.images[:60], y)
    probabilities = model.predict_proba(data.images[60:])
    assert probabilities.shape == (12, 3)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    assert model.n_parameters_ > 0
    network = model.pixel_network()
    assert isinstance(network, PixelNetwork) == (name in WITH_GRADIENT)
    if network is not None:
        images = torch.from_numpy(data.images[60:]).float() / 255
        found = network(images).softmax(1).numpy()
        np.testing.assert_allclose(found, probabilities, atol=1e-5)
        assert network.device.type == "cpu"
        assert not network.is_random


def test_whole_settings_differ_from_those_of_a_trial() -> None:
    for name in (*WITHOUT_GRADIENT, *WITH_GRADIENT):
        whole, tried = (SYSTEMS[name].make(Setting(smoke=smoke)) for smoke in (False, True))
        assert whole.get_params() != tried.get_params()
