from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from nnmf_cuda.baselines import ActivationFactors, LabelledImages
from nnmf_cuda.baselines.cnn_activations import PooledAmounts
from nnmf_cuda.data import ImageDataset, phantom

SMALL = {"n_components": 4, "nnmf_max_iter": 30, "widths": (4, 8), "image_size": 16}


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return phantom((160, 40, 60), image_shape=(32, 32))


@pytest.fixture(scope="module")
def fitted(data: ImageDataset) -> ActivationFactors:
    train, valid = data.split == "train", data.split == "valid"
    model = ActivationFactors(epochs=12, lr=1e-2, ema_decay=0.9, **SMALL)
    watched = LabelledImages(data.images[valid], data.labels[valid])
    return clone(model).fit(data.images[train], data.labels[train], validation=watched)


def test_it_learns(data: ImageDataset, fitted: ActivationFactors) -> None:
    test = data.split == "test"
    probabilities = fitted.predict_proba(data.images[test])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (fitted.predict(data.images[test]) == data.labels[test]).mean() > 0.8
    assert fitted.components_.shape == (4, 8)
    convolutions = 9 * 4 + 2 * 4 + 9 * 4 * 8 + 2 * 8
    assert fitted.n_parameters_ == convolutions + 4 * 8 + 2 * (2 * 4 + 1)


def test_the_last_layer_is_logistic_regression_of_amounts(
    data: ImageDataset, fitted: ActivationFactors
) -> None:
    train = data.split == "train"
    network = fitted.pixel_network()
    images = torch.from_numpy(data.images[train]).float() / 255
    *before, last = fitted._standardised().network
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        hook = last.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        fitted.network_(images)
        hook.remove()
    features = seen[0].double().numpy()
    scaler = StandardScaler().fit(features)
    regression = LogisticRegression(max_iter=2000)
    regression.fit(scaler.transform(features), data.labels[train])
    expected = regression.predict_proba(scaler.transform(features))
    np.testing.assert_allclose(network(images).softmax(1).numpy(), expected, atol=2e-3)
    np.testing.assert_allclose(fitted.predict_proba(data.images[train]), expected, atol=2e-3)


def test_amounts_are_least_squares_at_each_place() -> None:
    rng = np.random.default_rng(0)
    components, activations = rng.random((3, 5)), rng.random((2, 5, 2, 3))
    module = PooledAmounts(torch.from_numpy(components))
    found = module(torch.from_numpy(activations)).numpy()
    for number, one in enumerate(activations):
        amounts = np.array([nnls(components.T, place)[0] for place in one.reshape(5, -1).T])
        expected = np.concatenate([amounts.mean(0), amounts.max(0)])
        np.testing.assert_allclose(found[number], expected, atol=1e-9)


def test_amounts_have_gradients() -> None:
    torch.manual_seed(0)
    components = torch.rand(3, 6, dtype=torch.float64)
    amounts = torch.rand(8, 3, dtype=torch.float64) + 0.3
    rows = (amounts @ components).reshape(2, 4, 6).mT.reshape(2, 6, 2, 2)
    assert torch.autograd.gradcheck(PooledAmounts(components), rows.requires_grad_())


def test_an_attack_reaches_the_pixels(data: ImageDataset, fitted: ActivationFactors) -> None:
    images = (torch.from_numpy(data.images[:6]).float() / 255).requires_grad_()
    network = fitted.pixel_network()
    logits = network(images)
    expected = fitted.predict_proba(data.images[:6])
    np.testing.assert_allclose(logits.softmax(1).detach().numpy(), expected, atol=1e-5)
    labels = torch.from_numpy(data.labels[:6])
    loss = torch.nn.functional.cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(loss, images)
    assert (gradient != 0).any((1, 2)).all()
    with torch.no_grad():
        moved = (images + 0.005 * gradient.sign()).clamp(0, 1)
        assert torch.nn.functional.cross_entropy(network(moved), labels) > loss


def test_three_classes_few_places_and_a_seed(data: ImageDataset) -> None:
    images, y = data.images[:60].copy(), np.arange(60) % 3 + 5
    images[y == 7] //= 4
    model = ActivationFactors(epochs=2, n_places=120, random_state=4, **SMALL)
    first, again = clone(model).fit(images, y), clone(model).fit(images, y)
    np.testing.assert_array_equal(first.classes_, [5, 6, 7])
    probabilities = first.predict_proba(images)
    assert probabilities.shape == (60, 3)
    np.testing.assert_array_equal(probabilities, again.predict_proba(images))
    assert (first.predict(images)[y == 7] == 7).mean() > 0.8


def test_widths_that_leave_nothing_are_refused(data: ImageDataset) -> None:
    model = ActivationFactors(**{**SMALL, "widths": (2,) * 6})
    with pytest.raises(ValueError, match="take fewer, or a larger image_size"):
        model.fit(data.images[:8], np.arange(8) % 2)
