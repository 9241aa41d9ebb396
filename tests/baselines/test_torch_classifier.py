"""What all image networks share, on a network of a few weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from nnmf_cuda.baselines import Augmentation, LabelledImages, TorchImageClassifier
from nnmf_cuda.baselines.torch_classifier import need, resized


@dataclass(kw_only=True, eq=False, repr=False)
class Tiny(TorchImageClassifier):
    width: int = 4
    epochs: int = 2
    batch_size: int = 8
    image_size: int | None = 8

    def build(self, n_classes: int, image_shape: tuple[int, int]) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, self.width, 3, padding=1),
            nn.BatchNorm2d(self.width),
            nn.GELU(),  # smooth: finite differences have no kink to meet
            nn.Flatten(),
            nn.Linear(self.width * image_shape[0] * image_shape[1], n_classes),
        )


def bright_or_dark(n: int = 40, shape: tuple[int, int] = (16, 24), n_classes: int = 2):
    """Return images whose class is where they are bright, and labels 3, 5, ..."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (n, *shape))
    labels = np.arange(n) % n_classes
    width = shape[1] // n_classes
    for image, label in zip(images, labels, strict=True):
        image[:, label * width : (label + 1) * width] += 150
    return images.astype(np.uint8), 3 + 2 * labels


PLAIN = {"augmentation": Augmentation(), "epochs": 8, "lr": 1e-2}


@pytest.mark.parametrize("n_classes", [2, 3])
def test_it_learns_classes_of_any_numbers(n_classes):
    images, labels = bright_or_dark(n_classes=n_classes)
    model = Tiny(**PLAIN).fit(images, labels)
    assert model.classes_.tolist() == [3, 5, 7][:n_classes]
    assert model.score(images, labels) > 0.9
    probabilities = model.predict_proba(images)
    assert probabilities.shape == (40, n_classes)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(images), model.classes_[probabilities.argmax(1)])


def test_parameters_are_counted_and_settings_cloned():
    images, labels = bright_or_dark()
    model = Tiny(width=3, augmentation=None).fit(images, labels)
    assert model.n_parameters_ == 3 * 9 + 3 + 2 * 3 + (3 * 64 + 1) * 2
    twin = clone(model)
    assert twin.get_params() == model.get_params()
    assert not hasattr(twin, "network_")


def test_the_seed_decides_everything_and_draws_from_nothing_else():
    images, labels = bright_or_dark()
    torch.manual_seed(1)
    first = Tiny().fit(images, labels)
    before = torch.get_rng_state()
    again = clone(first).fit(images, labels)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first.predict_proba(images), again.predict_proba(images))
    other = Tiny(random_state=1).fit(images, labels)
    assert np.abs(first.predict_proba(images) - other.predict_proba(images)).max() > 1e-3


def test_bytes_and_floats_give_the_same_answers():
    images, labels = bright_or_dark()
    of_bytes = Tiny().fit(images, labels)
    of_floats = Tiny().fit(images / 255, labels)
    for answered in (images, images / 255, (images / 255).astype(np.float32)):
        for model in (of_bytes, of_floats):
            np.testing.assert_allclose(
                model.predict_proba(answered), of_bytes.predict_proba(images), atol=1e-4
            )


def test_validation_keeps_the_best_epoch():
    images, labels = bright_or_dark()
    train, held_out = slice(0, 30), slice(30, 40)
    validation = LabelledImages(images[held_out], labels[held_out])
    model = Tiny(**PLAIN).fit(images[train], labels[train], validation=validation)
    accuracies = model.history_["valid_accuracy"]
    assert accuracies[model.best_epoch_] == max(accuracies)
    assert model.score(*validation) == pytest.approx(max(accuracies))
    losses = [
        loss
        for loss, accuracy in zip(model.history_["valid_loss"], accuracies, strict=True)
        if accuracy == max(accuracies)
    ]
    assert model.history_["valid_loss"][model.best_epoch_] == min(losses)


def test_without_validation_the_last_epoch_is_kept():
    model = Tiny().fit(*bright_or_dark())
    assert model.best_epoch_ == 1
    assert "valid_accuracy" not in model.history_


def test_the_pixel_network_answers_as_the_model_does():
    images, labels = bright_or_dark()
    model = Tiny().fit(images, labels)
    network = model.pixel_network()
    assert not network.training
    assert not network.is_random
    assert network.device == torch.device("cpu")
    assert not any(weight.requires_grad for weight in network.parameters())
    with torch.no_grad():
        logits = network(torch.from_numpy(images).float() / 255)
    np.testing.assert_allclose(logits.double().softmax(1), model.predict_proba(images), atol=1e-6)
    # A copy: what is done to it does not reach the model.
    network.double()
    assert next(model.network_.parameters()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(16, 24), (11, 13)])
def test_gradients_reach_the_pixels_that_were_given(shape):
    images, labels = bright_or_dark(shape=shape)
    network = Tiny().fit(images, labels).pixel_network().double()
    pixels = (torch.from_numpy(images[:2]).double() / 255).requires_grad_()
    assert torch.autograd.gradcheck(network, pixels)


def test_images_grow_and_shrink():
    images = torch.arange(16.0).reshape(1, 4, 4)
    halves = torch.tensor([[[2.5, 4.5], [10.5, 12.5]]])
    torch.testing.assert_close(resized(images, (2, 2)), halves)
    assert resized(images, (4, 4)) is images
    assert resized(images, (3, 8)).shape == (1, 3, 8)


def test_a_lone_image_in_the_last_batch_is_put_off():
    images, labels = bright_or_dark(n=9, shape=(8, 8))
    model = Tiny(image_size=None)  # nine images, eight a step
    model.build = lambda n_classes, shape: nn.Sequential(  # type: ignore[method-assign]
        nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1, n_classes)
    )
    assert np.isfinite(model.fit(images, labels).predict_proba(images)).all()


def test_augmentation_of_nothing_changes_nothing():
    images = torch.rand(5, 9, 12, generator=torch.Generator().manual_seed(0))
    nothing = Augmentation(degrees=0, shift=0, scale=0, contrast=0, brightness=0)
    draws = nothing.draw(5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(nothing(images, draws), images, atol=1e-5, rtol=0)


def test_augmentation_flips_and_moves():
    images = torch.rand(40, 8, 8, generator=torch.Generator().manual_seed(0))
    flips = Augmentation(flip=True, degrees=0, shift=0, scale=0, contrast=0, brightness=0, share=1)
    seen = flips(images, flips.draw(40, torch.Generator().manual_seed(1)))
    same = (seen - images).abs().amax((1, 2)) < 1e-5
    mirrored = (seen - images.flip(2)).abs().amax((1, 2)) < 1e-5
    assert (same | mirrored).all()
    assert 10 < int(same.sum()) < 30
    moves = Augmentation(degrees=0, shift=0.25, scale=0, contrast=0, brightness=0, share=1)
    right = torch.zeros(1, 8)
    right[0, 3] = 1  # by a quarter of 8 pixels
    moved = moves(images[:1], right)
    torch.testing.assert_close(moved[:, :, :6], images[:1, :, 2:], atol=1e-5, rtol=0)
    right[0, 7] = 1  # not chosen
    half = Augmentation(shift=0.25)
    assert torch.equal(half(images[:1], right), images[:1])
    everything = Augmentation(flip=True, degrees=30, brightness=0.5)
    changed = everything(images, everything.draw(40, torch.Generator().manual_seed(2)))
    assert 0 <= changed.min()
    assert changed.max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
        ({"image_size": 4}, "image_size must be at least 8"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": -1.0}, "lr must be a finite number > 0"),
        ({"weight_decay": -1.0}, "weight_decay must be a finite number >= 0"),
    ],
)
def test_settings_that_cannot_be_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        Tiny(**change).fit(*bright_or_dark())


def test_images_and_labels_that_do_not_fit_are_errors():
    images, labels = bright_or_dark()
    model = Tiny()
    with pytest.raises(ValueError, match=r"expected \(n_images, height, width\)"):
        model.fit(images[0], labels)
    with pytest.raises(ValueError, match="one label an image"):
        model.fit(images, labels[1:])
    with pytest.raises(ValueError, match="one class only"):
        model.fit(images, np.zeros(40, dtype=np.int64))
    with pytest.raises(ValueError, match="validation.labels hold 9"):
        model.fit(images, labels, validation=LabelledImages(images[:2], np.array([3, 9])))
    with pytest.raises(ValueError, match="validation.labels must have shape"):
        model.fit(images, labels, validation=LabelledImages(images[:2], labels))
    with pytest.raises(ValueError, match="the images of fit were 16 x 24"):
        model.fit(images, labels).predict(images[:, :8])


def test_what_is_missing_is_named_with_its_extra():
    with pytest.raises(ImportError, match=r"pip install 'nnmf-cuda\[baselines\]'"):
        need("nnmf_cuda.no_such_module")
