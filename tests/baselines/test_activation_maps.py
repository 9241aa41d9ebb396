from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.base import clone

from nnmf_cuda.baselines import ActivationMapNetwork, LabelledImages
from nnmf_cuda.baselines.activation_maps import WithMaps
from nnmf_cuda.data import ImageDataset, phantom

SMALL = {"n_components": 3, "nnmf_max_iter": 20, "widths": (4, 8), "n_hidden": 8, "image_size": 16}


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return phantom((160, 40, 60), image_shape=(32, 32))


@pytest.fixture(scope="module")
def fitted(data: ImageDataset) -> ActivationMapNetwork:
    train, valid = data.split == "train", data.split == "valid"
    model = ActivationMapNetwork(epochs=12, lr=5e-3, ema_decay=0.9, **SMALL)
    watched = LabelledImages(data.images[valid], data.labels[valid])
    return clone(model).fit(data.images[train], data.labels[train], validation=watched)


def test_it_learns(data: ImageDataset, fitted: ActivationMapNetwork) -> None:
    test = data.split == "test"
    probabilities = fitted.predict_proba(data.images[test])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (fitted.predict(data.images[test]) == data.labels[test]).mean() > 0.65
    assert fitted.components_.shape == (3, 16 * 16)
    weights = sum(p.numel() for p in fitted.network_.parameters())
    assert fitted.n_parameters_ == weights + 3 * 16 * 16


def test_maps_are_amounts_times_components() -> None:
    rng = np.random.default_rng(0)
    components, images = rng.random((3, 20)), rng.random((2, 4, 5))
    mean, deviation = torch.tensor(0.4), torch.tensor(0.25)
    module = WithMaps(torch.from_numpy(components), mean, deviation).double()
    standardised = (torch.from_numpy(images) - 0.4) / 0.25
    found = module(standardised.unsqueeze(1))
    assert found.shape == (2, 4, 4, 5)
    torch.testing.assert_close(found[:, 0], standardised)
    for number, image in enumerate(images):
        amounts, _ = nnls(components.T, image.ravel())
        maps = amounts[:, None] * components
        np.testing.assert_allclose(found[number, 1:].numpy(), maps.reshape(3, 4, 5), atol=1e-6)


def test_maps_have_gradients() -> None:
    torch.manual_seed(0)
    components = torch.rand(3, 12, dtype=torch.float64)
    # Images of which every component is a part: where an amount is zero there is a kink.
    amounts = torch.rand(2, 3, dtype=torch.float64) + 0.5
    images = (amounts @ components).reshape(2, 1, 3, 4).requires_grad_()
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert torch.autograd.gradcheck(WithMaps(components, zero, one), images)


def test_an_attack_reaches_the_pixels(data: ImageDataset, fitted: ActivationMapNetwork) -> None:
    images = torch.from_numpy(data.images[:6]).float() / 255
    network = fitted.pixel_network()
    expected = fitted.predict_proba(data.images[:6])
    images.requires_grad_()
    logits = network(images)
    np.testing.assert_allclose(logits.softmax(1).detach().numpy(), expected, atol=1e-5)
    labels = torch.from_numpy(data.labels[:6])
    loss = torch.nn.functional.cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(loss, images)
    assert (gradient != 0).any((1, 2)).all()
    with torch.no_grad():
        moved = (images + 0.005 * gradient.sign()).clamp(0, 1)
        assert torch.nn.functional.cross_entropy(network(moved), labels) > loss


def test_the_maps_have_a_part_in_the_gradient(
    data: ImageDataset, fitted: ActivationMapNetwork
) -> None:
    """A change along a component alone, seen through maps that are held, is another change."""
    network = fitted.pixel_network()
    images = (torch.from_numpy(data.images[:1]).float() / 255).requires_grad_()
    (whole,) = torch.autograd.grad(network(images)[0, 0], images)
    maps = next(part for part in network.modules() if isinstance(part, WithMaps))
    before = maps.forward
    maps.forward = lambda x: torch.cat([x, before(x)[:, 1:].detach()], 1)
    (beside,) = torch.autograd.grad(network(images)[0, 0], images)
    assert not torch.allclose(whole, beside, rtol=1e-2)


def test_three_classes_and_a_seed(data: ImageDataset) -> None:
    images, y = data.images[:60].copy(), np.arange(60) % 3 + 5
    images[y == 7] //= 4
    model = ActivationMapNetwork(epochs=3, augmentation=None, random_state=4, **SMALL)
    first, again = clone(model).fit(images, y), clone(model).fit(images, y)
    np.testing.assert_array_equal(first.classes_, [5, 6, 7])
    np.testing.assert_array_equal(first.predict_proba(images), again.predict_proba(images))


def test_widths_that_leave_nothing_are_refused(data: ImageDataset) -> None:
    model = ActivationMapNetwork(**{**SMALL, "widths": (2, 2, 2, 2, 2)})
    with pytest.raises(ValueError, match="take fewer, or a larger image_size"):
        model.fit(data.images[:8], np.arange(8) % 2)
