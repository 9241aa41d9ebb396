"""Trainings that end in one answer: noticed and tried again, planted and real."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from nnmf_cuda.pipeline.collapse import train_without_collapse
from nnmf_cuda.pipeline.config import DefenceConfig
from nnmf_cuda.pipeline.defences import train_adversarially
from tests.hard_data import overlapping

SETTINGS = DefenceConfig(kind="adversarial", method="pgd", train_eps=0.2)


def planted(accuracies):
    """Return a training that ends so, one accuracy after the other, and what it was told."""
    told = []

    def train(settings):
        told.append((settings.radius, settings.class_weight, settings.eps_ramp))
        history = {"valid_balanced_accuracy": [0.0, accuracies[len(told) - 1]]}
        return SimpleNamespace(history=history, best_epoch=1, number=len(told))

    return train, told


def tried(accuracies, settings=SETTINGS, n_classes=2):
    train, told = planted(accuracies)
    said = []
    training, attempts = train_without_collapse(
        train, settings, n_classes=n_classes, say=said.append
    )
    return training.number, told, attempts, said


def test_what_tells_classes_is_trained_once():
    number, told, attempts, said = tried([0.6])
    assert (number, told, said) == (1, [(0.2, None, 0.0)], [])
    assert not attempts[0].collapsed


def test_a_collapse_is_tried_again_with_weights_and_ramp_then_smaller():
    number, told, attempts, said = tried([0.5, 0.51, 0.9])
    assert number == 3
    assert told == [(0.2, None, 0.0), (0.2, "balanced", 0.5), (0.1, "balanced", 0.5)]
    assert [attempt.collapsed for attempt in attempts] == [True, True, False]
    assert "training at eps 0.2: one answer for every sample" in said[0]
    assert "at eps 0.1, class weights balanced, radius growing over 0.5" in said[2]
    assert "answers that tell classes" in said[2]


def test_where_all_collapse_the_best_is_kept():
    number, told, attempts, _ = tried([0.5, 0.515, 0.5, 0.51])
    assert (number, len(told)) == (2, 4)
    assert told[-1] == (0.05, "balanced", 0.5)
    assert all(attempt.collapsed for attempt in attempts)


def test_chance_depends_on_the_classes_and_one_class_is_no_collapse():
    assert tried([0.36], n_classes=3)[2][0].collapsed is False
    assert tried([0.34, 0.9], n_classes=3)[2][0].collapsed is True
    assert len(tried([1.0], n_classes=1)[2]) == 1


def test_settings_that_are_already_careful_are_not_repeated():
    careful = DefenceConfig(train_eps=0.2, class_weight="balanced", eps_ramp=0.5)
    _, told, _, _ = tried([0.5, 0.5, 0.5], careful)
    assert [radius for radius, *_ in told] == [0.2, 0.1, 0.05]


def test_training_on_images_takes_weights_and_a_smaller_ball_of_pixels():
    tries = []

    def train(settings):
        tries.append((settings.pixel_eps, settings.class_weight, settings.eps_ramp))
        history = {"valid_balanced_accuracy": [0.5 if len(tries) < 3 else 0.8]}
        return SimpleNamespace(history=history, best_epoch=0)

    settings = DefenceConfig(kind="pixel", pixel_eps=0.04)
    _, attempts = train_without_collapse(train, settings, n_classes=2)
    assert tries == [(0.04, None, 0.0), (0.04, "balanced", 0.0), (0.02, "balanced", 0.0)]
    assert [attempt.train_eps for attempt in attempts] == [0.04, 0.04, 0.02]


def test_a_real_training_in_too_large_a_ball_comes_back():
    splits = overlapping()
    x = {name: torch.from_numpy(rows) for name, (rows, _) in splits.items()}
    y = {name: labels for name, (_, labels) in splits.items()}
    settings = DefenceConfig(
        kind="adversarial", method="pgd", train_eps=0.2, epochs=8, n_steps=5, lr=3e-3, ema_decay=0.9
    )
    training, attempts = train_without_collapse(
        lambda now: train_adversarially(x, y, now, norm="Linf", n_classes=2, seed=0),
        settings,
        n_classes=2,
    )
    assert attempts[0].collapsed
    assert not attempts[-1].collapsed
    with torch.no_grad():
        answers = training.model(x["valid"]).argmax(1).numpy()
    assert len(np.unique(answers)) == 2
