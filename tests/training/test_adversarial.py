"""Adversarial training: it holds where plain training breaks, and repeats."""

from __future__ import annotations

import pytest
import torch

from nnmf_cuda.attacks import vector_apgd
from nnmf_cuda.attacks.balls import BALLS
from nnmf_cuda.attacks.gradient_ascent import pgd
from nnmf_cuda.attacks.objectives import majority_right
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.training import train_classifier, train_denoiser, train_robust_classifier
from nnmf_cuda.training.adversarial import _radii, balanced_weight
from nnmf_cuda.training.intervals import margin_bounds
from nnmf_cuda.training.validation import Samples

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


@pytest.mark.parametrize(
    ("method", "network"),
    [("pgd", "cnn"), ("trades", "cnn"), ("mtl-ibp", "cnn"), ("pgd", "mlp"), ("trades-ibp", "mlp")],
)
def test_holds_where_plain_training_breaks(data, method, network):
    plain = train_classifier(*data, n_classes=2, epochs=30, seed=0).model
    result = train_robust_classifier(
        *data, n_classes=2, method=method, network=network, attack_eps=0.15, epochs=30, n_steps=5,
        seed=0,
    )  # fmt: skip
    x, y = two_clouds(300, 2)
    assert robust_accuracy(result.model, x, y) > robust_accuracy(plain, x, y) + 0.1
    history = result.history
    assert set(history) == {
        "train_loss",
        "valid_loss",
        "valid_accuracy",
        "valid_robust_accuracy",
        "valid_balanced_accuracy",
        "valid_balanced_robust_accuracy",
    }
    pairs = list(zip(history["valid_accuracy"], history["valid_robust_accuracy"], strict=True))
    assert sum(pairs[result.best_epoch]) == max(map(sum, pairs))
    assert all(robust <= clean for clean, robust in pairs)


@pytest.mark.parametrize(
    ("method", "network"),
    [
        ("pgd", "cnn"),
        ("trades", "cnn"),
        ("mtl-ibp", "cnn"),
        ("mtl-ibp", "mlp"),
        ("trades-ibp", "mlp"),
    ],
)
def test_same_seed_same_weights(data, method, network):
    state = torch.get_rng_state()
    first, again, other = (
        train_robust_classifier(
            *data, n_classes=2, method=method, network=network, epochs=2, n_steps=2, seed=s
        )
        for s in (0, 0, 1)
    )
    weights = [torch.cat([w.flatten() for w in r.model.weights()]) for r in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad for p in first.model.parameters())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(("method", "alone"), [("mtl-ibp", "pgd"), ("trades-ibp", "trades")])
def test_bounds_without_weight_change_nothing(data, method, alone, norm):
    options = {"n_classes": 2, "norm": norm, "epochs": 2, "n_steps": 2, "eps_ramp": 0.5}
    plain = train_robust_classifier(*data, method=alone, **options).model
    mixed, bounded = (
        train_robust_classifier(*data, method=method, ibp_weight=alpha, **options).model
        for alpha in (0.0, 0.5)
    )
    for own, other, third in zip(mixed.weights(), plain.weights(), bounded.weights(), strict=True):
        assert torch.equal(own, other)
        assert not torch.equal(own, third)


@pytest.mark.parametrize("network", ["cnn", "mlp"])
@pytest.mark.parametrize(("bounded", "alone"), [("mtl-ibp", "pgd"), ("trades-ibp", "trades")])
def test_bounds_make_answers_provable(data, network, bounded, alone):
    """By interval bounds alone, which say nothing of a network that did not train by them."""
    proven = {}
    for method in (alone, bounded):
        model = train_robust_classifier(
            *data, n_classes=2, method=method, network=network, hidden=(32, 32), ibp_weight=0.3,
            eps_ramp=0.3, attack_eps=0.15, epochs=30, n_steps=5, batch_size=32, lr=5e-3,
        ).model  # fmt: skip
        x, y = two_clouds(300, 2)
        with torch.no_grad():
            bounds = margin_bounds(model.weights(), x, y, 0.15)
        right = torch.arange(2) == y.unsqueeze(1)
        certain = bounds.masked_fill(right, -torch.inf).amax(1) < 0
        assert bool((model(x).argmax(1) == y)[certain].all())
        proven[method] = float(certain.float().mean())
        if method == bounded:  # nothing that is proven can be attacked
            assert proven[method] <= robust_accuracy(model, x, y)
    assert proven[bounded] > proven[alone] + 0.3


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_balanced_classes_are_weighted_alike(method):
    """One in ten is positive, and most of them lie among the negatives: nobody is the best bet."""
    generator = torch.Generator().manual_seed(5)
    y = (torch.arange(400) % 10 == 0).long()
    x = (0.4 + 0.12 * y.unsqueeze(1) + 0.1 * torch.randn(400, M, generator=generator)).clamp(0, 1)
    split = (x[:300], y[:300], x[300:], y[300:])
    recalls, last = {}, {}
    for class_weight in (None, "balanced"):
        result = train_robust_classifier(
            *split, n_classes=2, method=method, class_weight=class_weight, attack_eps=0.05,
            epochs=20, n_steps=3, seed=0,
        )  # fmt: skip
        answers, truth = result.model(split[2]).argmax(1), split[3]
        recalls[class_weight] = [float((answers[truth == c] == c).float().mean()) for c in (0, 1)]
        history = result.history
        last[class_weight] = {name: values[result.best_epoch] for name, values in history.items()}
        kind = "balanced_" if class_weight else ""
        sums = [
            sum(pair)
            for pair in zip(
                history[f"valid_{kind}accuracy"], history[f"valid_{kind}robust_accuracy"],
                strict=True,
            )
        ]  # fmt: skip
        assert sums[result.best_epoch] == pytest.approx(max(sums), abs=1e-6)
    assert recalls["balanced"][1] > recalls[None][1] + 0.2
    for class_weight, scores in last.items():
        mean_recall = sum(recalls[class_weight]) / 2
        assert scores["valid_balanced_accuracy"] == pytest.approx(mean_recall, abs=1e-6)


def testbalanced_weights_are_one_over_the_shares():
    x = torch.full((8, M), 0.5)
    y = torch.tensor([0, 0, 0, 0, 0, 2, 2, 2])
    weight = balanced_weight(Samples.of(x, y, x, y, n_classes=3, device="cpu"))
    torch.testing.assert_close(weight[y].sum(), torch.tensor(16 / 3))
    torch.testing.assert_close(5 * weight[0], 3 * weight[2])
    assert bool(weight.isfinite().all())  # of a class without samples too


def test_equal_classes_are_not_changed_by_weights(data):
    plain, weighted = (
        train_robust_classifier(
            *data, n_classes=2, class_weight=class_weight, epochs=1, n_steps=2, batch_size=200
        ).model
        for class_weight in (None, "balanced")
    )
    for own, other in zip(plain.weights(), weighted.weights(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


def test_the_radius_grows_evenly_and_then_stays():
    epochs = [_radii(4, epoch, 0.1, ramp_epochs=2.0).flatten() for epoch in range(4)]
    torch.testing.assert_close(torch.cat(epochs[:2]), torch.arange(1, 9) * 0.1 / 8)
    for later in epochs[2:]:
        torch.testing.assert_close(later, torch.full((4,), 0.1))
    torch.testing.assert_close(_radii(4, 0, 0.1, ramp_epochs=0.0), torch.full((4, 1), 0.1))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_points_of_training_are_within_each_samples_radius(data, norm):
    x, radii = data[0], torch.linspace(0, 0.2, len(data[0])).unsqueeze(1)
    direction = torch.randn(M, generator=torch.Generator().manual_seed(0))
    points = pgd(lambda leaf: leaf @ direction, BALLS[norm](x, radii), x + radii, n_iter=7)
    distances = (points - x).norm(p=float("inf") if norm == "Linf" else 2.0, dim=1)
    assert bool((distances <= radii.flatten() + 1e-6).all())
    assert float(distances[-1]) > 0.19


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_a_ramp_trains_on_smaller_balls_first(data, method):
    """A ramp over the whole training loses less than the whole ball from the start."""
    losses = [
        train_robust_classifier(
            *data, n_classes=2, method=method, eps_ramp=ramp, attack_eps=0.2, epochs=10, n_steps=3,
            batch_size=16,
        ).history["train_loss"]
        for ramp in (0.0, 1.0)
    ]  # fmt: skip
    assert losses[1][4] < losses[0][4] - 0.05


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
        ({"network": "vit"}, "network must be one of cnn, mlp"),
        ({"network": "mlp", "hidden": ()}, "hidden must be one or more widths"),
        ({"ibp_weight": 1.1}, r"ibp_weight must be in \[0, 1\]"),
        ({"class_weight": "equal"}, 'class_weight must be "balanced" or None'),
        ({"eps_ramp": 1.5}, r"eps_ramp must be in \[0, 1\]"),
        ({"eps_ramp": float("nan")}, r"eps_ramp must be in \[0, 1\]"),
    ],
)
def test_misuse_is_named(data, option, message):
    with pytest.raises(ValueError, match=message):
        train_robust_classifier(*data, n_classes=2, **option)


@pytest.mark.parametrize("method", ["mtl-ibp", "trades-ibp"])
def test_bounds_of_a_random_defence_are_refused(data, purifier, method):
    with pytest.raises(ValueError, match=f'method="{method}" bounds .* leave the purifier out'):
        train_robust_classifier(*data, n_classes=2, method=method, purifier=purifier)


def test_features_outside_the_box_are_named(data):
    x, y, valid_x, valid_y = data
    with pytest.raises(ValueError, match=r"^features must be within the box \[0, 1\]"):
        train_robust_classifier(3 * x, y, valid_x, valid_y, n_classes=2, epochs=1)
    with pytest.raises(ValueError, match=r"^valid_features must be within the box \[0, 1\]"):
        train_robust_classifier(x, y, -valid_x, valid_y, n_classes=2, epochs=1)
