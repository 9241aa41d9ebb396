"""Adversarial training: it holds where plain training breaks, and repeats."""

from __future__ import annotations

import pytest
import torch

from nnmf_cuda.attacks import vector_apgd
from nnmf_cuda.attacks.objectives import majority_right
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.training import train_classifier, train_denoiser, train_robust_classifier

M = 6


def two_clouds(n, seed):
    """One feature tells the classes apart by far; the others do too, within the ball."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = 0.5 + 0.03 * torch.randn(n, M, generator=generator)
    x[:, 1:] += 0.05 * (2 * y - 1).unsqueeze(1)
    x[:, 0] = 0.5 + (2 * y - 1) * 0.25 + 0.1 * torch.randn(n, generator=generator)
    return x.clamp(0, 1), y


@pytest.fixture(scope="module")
def data():
    return (*two_clouds(200, 0), *two_clouds(100, 1))


def robust_accuracy(model, x, y):
    points = vector_apgd(model, x, y, attack_eps=0.15, n_iter=40, n_restarts=2)
    return float((model(points).argmax(1) == y).float().mean())


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_holds_where_plain_training_breaks(data, method):
    plain = train_classifier(*data, n_classes=2, epochs=30, seed=0).model
    result = train_robust_classifier(
        *data, n_classes=2, method=method, attack_eps=0.15, epochs=30, n_steps=5, seed=0
    )
    x, y = two_clouds(300, 2)
    assert robust_accuracy(result.model, x, y) > robust_accuracy(plain, x, y) + 0.1
    history = result.history
    assert set(history) == {
        "train_loss",
        "valid_loss",
        "valid_accuracy",
        "valid_robust_accuracy",
    }
    pairs = list(zip(history["valid_accuracy"], history["valid_robust_accuracy"], strict=True))
    assert sum(pairs[result.best_epoch]) == max(map(sum, pairs))
    assert all(robust <= clean for clean, robust in pairs)


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_same_seed_same_weights(data, method):
    state = torch.get_rng_state()
    first, again, other = (
        train_robust_classifier(*data, n_classes=2, method=method, epochs=2, n_steps=2, seed=s)
        for s in (0, 0, 1)
    )
    weights = [torch.cat([w.flatten() for w in r.model.weights()]) for r in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad for p in first.model.parameters())


@pytest.fixture(scope="module")
def purifier(data):
    schedule = NoiseSchedule.linear(100)
    denoiser = train_denoiser(data[0], schedule, epochs=20, seed=0).model
    return DiffusionPurifier(denoiser, schedule, timesteps=(10,), n_draws=4)


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_training_behind_a_purifier(data, purifier, method):
    before = [weight.clone() for weight in purifier.denoiser.weights()]
    first, again = (
        train_robust_classifier(
            *data, n_classes=2, method=method, purifier=purifier, attack_eps=0.15, epochs=15,
            n_steps=3, seed=0,
        )
        for _ in range(2)
    )  # fmt: skip
    for own, other in zip(first.model.weights(), again.model.weights(), strict=True):
        assert torch.equal(own, other)
    for weight, old in zip(purifier.denoiser.weights(), before, strict=True):
        assert torch.equal(weight, old)
        assert weight.grad is None
    plain = train_classifier(*data, n_classes=2, epochs=30, seed=0).model
    x, y = two_clouds(300, 2)
    accuracies = []
    for classifier in (plain, first.model):
        model = DefendedClassifier(purifier, classifier)
        points = vector_apgd(model, x, y, attack_eps=0.15, n_iter=30, n_restarts=1, eot_iter=8)
        accuracies.append(float(majority_right(model, points, y, seed=9).float().mean()))
    assert accuracies[1] > accuracies[0] + 0.05


def test_a_purifier_with_a_noisy_chain_trains(data, purifier):
    chain = DiffusionPurifier(
        purifier.denoiser, purifier.schedule, timesteps=(10, 5), n_draws=2, eta=1.0
    )
    result = train_robust_classifier(*data, n_classes=2, purifier=chain, epochs=1, n_steps=2)
    assert len(result.history["train_loss"]) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"method": "free"}, "method must be one of"),
        ({"attack_eps": 0.0}, "attack_eps must be"),
        ({"trades_beta": float("nan")}, "trades_beta must be"),
        ({"norm": "L1"}, "norm must be one of"),
        ({"n_steps": 0}, "n_steps must be"),
    ],
)
def test_misuse_is_named(data, option, message):
    with pytest.raises(ValueError, match=message):
        train_robust_classifier(*data, n_classes=2, **option)


def test_features_outside_the_box_are_named(data):
    x, y, valid_x, valid_y = data
    with pytest.raises(ValueError, match=r"^features must be within the box \[0, 1\]"):
        train_robust_classifier(3 * x, y, valid_x, valid_y, n_classes=2, epochs=1)
    with pytest.raises(ValueError, match=r"^valid_features must be within the box \[0, 1\]"):
        train_robust_classifier(x, y, -valid_x, valid_y, n_classes=2, epochs=1)
