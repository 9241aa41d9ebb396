"""The package's own systems as estimators of images, against its stages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone

from nnmf_cuda.baselines import SYSTEMS, DefendedFeatures, LabelledImages, Setting
from nnmf_cuda.data import phantom
from nnmf_cuda.data.dataset import ImageDataset
from nnmf_cuda.pipeline.config import PRESETS, AttackConfig, ExperimentConfig
from nnmf_cuda.pipeline.stages import run_stages
from nnmf_cuda.timing import StageTimer

NAMES = ("paper", "robust", "proven", "pixel")


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    return phantom((40, 12, 12), image_shape=(32, 32))


def images_of(dataset: ImageDataset, split: str) -> LabelledImages:
    rows = dataset.split == split
    return LabelledImages(dataset.images[rows], dataset.labels[rows])


def tiny(name: str, seed: int = 0) -> DefendedFeatures:
    model = SYSTEMS[name].make(Setting(seed=seed, smoke=True))
    assert isinstance(model, DefendedFeatures)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_the_stages_train(dataset, name):
    model = tiny(name, seed=3)
    model.fit(*images_of(dataset, "train"), validation=images_of(dataset, "valid"))
    assert isinstance(model.config, ExperimentConfig)
    attack = AttackConfig(attacks=("apgd-ce",), n_iter=1, n_restarts=1)
    config = replace(model.config, seed=3, attack=attack)
    timer = StageTimer(torch.device("cpu"))
    ran = run_stages(dataset, config, device=torch.device("cpu"), timer=timer)
    torch.testing.assert_close(model.extractor_.state_dict(), ran.features.extractor.state_dict())
    torch.testing.assert_close(model.defence_.state_dict(), ran.defence.model.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_repeatable_and_reach_the_pixels(dataset, name):
    images, labels = images_of(dataset, "train")
    model = tiny(name).fit(images, 2 * labels + 5, validation=None)
    assert model.classes_.tolist() == [5, 7]
    probabilities = model.predict_proba(images)
    np.testing.assert_array_equal(model.predict_proba(images), probabilities)
    np.testing.assert_allclose(model.predict_proba(images / 255), probabilities, atol=1e-4)
    network = model.pixel_network()
    assert network.is_random == (name == "paper")
    pixels = (torch.from_numpy(images[:3]).float() / 255).requires_grad_()
    logits = network(pixels)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), pixels)
    assert gradient.abs().amax((1, 2)).min() > 0
    if not network.is_random:
        answers = logits.detach().double().softmax(1)
        np.testing.assert_allclose(answers, probabilities[:3], atol=1e-5)


def test_parameters_are_those_that_answers_need(dataset):
    model = tiny("robust").fit(*images_of(dataset, "train"))
    components, network = 6 * 32 * 32, 16 * 4 + 32 * (16 * 3 + 1) + 64 * (32 * 3 + 1) + 2 * 65
    assert model.n_parameters_ == components + network


def test_three_classes_and_a_clone(dataset):
    images, labels = images_of(dataset, "train")
    labels = np.where(np.arange(len(labels)) % 3 == 2, 2, labels)
    model = tiny("robust").fit(images, labels)
    twin = clone(model).fit(images, labels)
    assert model.predict_proba(images).shape == (40, 3)
    np.testing.assert_array_equal(twin.predict_proba(images), model.predict_proba(images))


def test_settings_that_cannot_be_are_errors(dataset):
    images, labels = images_of(dataset, "train")
    with pytest.raises(ValueError, match="preset must be one of paper, "):
        DefendedFeatures(preset="none").fit(images, labels)
    config = replace(PRESETS["robust"], attack=AttackConfig(attack_eps="auto"))
    with pytest.raises(ValueError, match="attack_eps must be a number here"):
        DefendedFeatures(config=config).fit(images, labels)
