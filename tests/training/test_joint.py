"""The joint classifier: it classifies noised samples, and its own gradient denoises them."""

from __future__ import annotations

import pytest
import torch

from nnmf_cuda.models.networks import FeatureCNN
from nnmf_cuda.training import train_classifier, train_joint_classifier
from nnmf_cuda.training.joint import logits_and_score
from tests.training.test_adversarial import robust_accuracy, two_clouds


@pytest.fixture(scope="module")
def data():
    return (*two_clouds(200, 0), *two_clouds(100, 1))


def test_holds_more_than_plain_training_and_denoises(data):
    x, y = two_clouds(300, 2)
    plain = train_classifier(*data, n_classes=2, epochs=30, seed=0).model
    joint = train_joint_classifier(
        *data, n_classes=2, denoising_weight=10.0, attack_eps=0.15, epochs=30, lr=3e-3,
        batch_size=32, seed=0,
    ).model  # fmt: skip
    assert robust_accuracy(joint, x, y) > robust_accuracy(plain, x, y) + 0.05
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    errors = []
    for model in (plain, joint):
        _, score = logits_and_score(model, x + 0.15 * noise)
        errors.append(float((0.15 * score.detach() + noise).square().mean()))
    # 1 is what answering the noised sample itself gives.
    assert errors[1] < 0.9 < errors[0]


def test_score_is_the_gradient_of_the_log_density():
    torch.manual_seed(0)
    model, x = FeatureCNN(6, 3).double(), torch.rand(4, 6, dtype=torch.float64)
    logits, score = logits_and_score(model, x.clone())
    torch.testing.assert_close(logits, model(x))
    for i in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[i] = 1e-6
        ahead, behind = (model(x + s * step).logsumexp(1) for s in (1, -1))
        torch.testing.assert_close(score[:, i], (ahead - behind) / 2e-6, rtol=0, atol=1e-6)
    assert all(
        gradient is not None and bool(gradient.isfinite().all())
        for gradient in torch.autograd.grad(score.square().sum(), model.weights()[::2])
    )


def test_same_seed_same_weights(data):
    first, again = (train_joint_classifier(*data, n_classes=2, epochs=2, seed=4) for _ in range(2))
    for own, other in zip(first.model.weights(), again.model.weights(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sigma_max": 0.0}, "sigma_max must be"),
        ({"denoising_weight": float("inf")}, "denoising_weight must be"),
        ({"attack_eps": -1.0}, "attack_eps must be"),
        ({"norm": "L1"}, "norm must be one of"),
    ],
)
def test_misuse_is_named(data, option, message):
    with pytest.raises(ValueError, match=message):
        train_joint_classifier(*data, n_classes=2, **option)
