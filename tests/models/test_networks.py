from __future__ import annotations

import pytest
import torch

from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.networks import (
    FeatureCNN,
    FeatureDenoiser,
    FeatureMLP,
    build_classifier,
    deterministic_convolutions,
)
from nnmf_cuda.reference import sinusoidal_embedding


def defended(n_features: int = 6, n_classes: int = 3, n_draws: int = 4) -> DefendedClassifier:
    torch.manual_seed(0)
    denoiser = FeatureDenoiser(n_features, hidden=16, embedding_dim=8)
    purifier = DiffusionPurifier(denoiser, NoiseSchedule.linear(), n_draws=n_draws)
    return DefendedClassifier(purifier, FeatureCNN(n_features, n_classes)).eval()


@pytest.mark.parametrize("n_features", [2, 3, 15])
def test_cnn_has_the_documented_layers(n_features):
    model = FeatureCNN(n_features, 2)
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert shapes == [
        *[(16, 1, 3), (16,), (32, 16, 3), (32,)],
        *[(64, 32 * (n_features // 2)), (64,), (2, 64), (2,)],
    ]
    assert model(torch.rand(7, n_features)).shape == (7, 2)
    assert model(torch.rand(0, n_features)).shape == (0, 2)


@pytest.mark.parametrize("hidden", [(5,), (7, 3), (4, 6, 5)])
def test_mlp_has_the_documented_layers(hidden):
    torch.manual_seed(0)
    model, x = FeatureMLP(6, 3, hidden), torch.rand(4, 6)
    weights = model.weights()
    widths = (6, *hidden, 3)
    shapes = [(n_out, n_in) for n_in, n_out in zip(widths[:-1], widths[1:], strict=True)]
    assert [tuple(weight.shape) for weight in weights[::2]] == shapes
    units = x
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        units = (units @ weight.T + bias).relu()
    torch.testing.assert_close(model.hidden(x), units)
    torch.testing.assert_close(model(x), units @ weights[-2].T + weights[-1])
    assert [w.data_ptr() for w in weights] == [p.data_ptr() for p in model.parameters()]


def test_mlp_behind_a_purifier_is_computed_by_its_modules():
    model = defended()
    model.classifier = FeatureMLP(6, 3, hidden=(8,))
    x, noise = torch.rand(5, 6), torch.randn(5, 4, 6)
    purified = model.purifier(x, noise=noise)
    expected = sum(model.classifier(purified[:, draw]) for draw in range(4)) / 4
    torch.testing.assert_close(model(x, noise=noise), expected)
    assert "classifier is a FeatureMLP" in model.served_by()


def test_classifiers_are_built_by_name():
    assert isinstance(build_classifier("cnn", 5, 2), FeatureCNN)
    built = build_classifier("mlp", 5, 2, (8, 4))
    assert [tuple(w.shape) for w in built.weights()[::2]] == [(8, 5), (4, 8), (2, 4)]
    with pytest.raises(ValueError, match="network must be one of cnn, mlp; got 'vit'"):
        build_classifier("vit", 5, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2), "n_features must be at least 1, got 0"),
        ((5, 1), "n_classes must be at least 2, got 1"),
        ((5, 2, (4, 0)), "hidden must be one or more widths"),
    ],
)
def test_mlp_names_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureMLP(*arguments)
    with pytest.raises(ValueError, match=r"features must have shape \(n_samples, 5\)"):
        FeatureMLP(5, 2)(torch.rand(3, 4))


def test_cnn_does_not_normalise_its_input():
    torch.manual_seed(0)
    model, x = FeatureCNN(15, 2), torch.rand(3, 15)
    assert not torch.allclose(model(x), model(x / x.norm(dim=1, keepdim=True)))


def test_denoiser_sees_features_and_embedding():
    torch.manual_seed(0)
    model = FeatureDenoiser(5)
    x_t, t = torch.rand(4, 5), torch.tensor([0, 1, 41, 999])
    hidden = torch.cat((x_t, sinusoidal_embedding(t, 32).float()), 1)
    w1, b1, w2, b2, w3, b3 = model.weights()
    assert w1.shape == (128, 5 + 32)
    assert w3.shape == (5, 128)
    expected = ((hidden @ w1.T + b1).relu() @ w2.T + b2).relu() @ w3.T + b3
    torch.testing.assert_close(model(x_t, t), expected)
    assert [w.data_ptr() for w in model.weights()] == [p.data_ptr() for p in model.parameters()]


def test_defended_classifier_averages_the_draws_logits():
    model = defended()
    x, noise = torch.rand(5, 6), torch.randn(5, 4, 6)
    purified = model.purifier(x, noise=noise)
    expected = sum(model.classifier(purified[:, draw]) for draw in range(4)) / 4
    logits = model(x, noise=noise)
    assert logits.shape == (5, 3)
    torch.testing.assert_close(logits, expected)


def test_defended_classifier_takes_a_generator():
    model, x = defended(), torch.rand(5, 6)
    first = model(x, generator=torch.Generator().manual_seed(3))
    assert torch.equal(model(x, generator=torch.Generator().manual_seed(3)), first)
    assert not torch.equal(model(x), first)


def test_defended_gradient_is_right():
    model = defended(n_draws=2).double()
    x = torch.rand(3, 6, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(3, 2, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: model(x, noise=noise), (x,))


def test_defended_gradient_equals_finite_differences_in_random_directions():
    model = defended(n_draws=2).double()
    x, noise = torch.rand(3, 6).double(), torch.randn(3, 2, 6).double()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf, noise=noise).logsumexp(1).sum(), leaf)
    assert bool((gradient != 0).all())
    direction, step = torch.randn_like(x), 1e-6
    with torch.no_grad():
        up, down = (
            model(x + sign * step * direction, noise=noise).logsumexp(1).sum() for sign in (1, -1)
        )
    slope = float((up - down) / (2 * step))
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def test_defended_gradient_flows_with_drawn_noise():
    model = defended()
    x = torch.rand(3, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    assert bool((gradient != 0).any(1).all())


@pytest.mark.needs_cuda
def test_defended_classifier_agrees_between_devices():
    model, x, noise = defended(), torch.rand(5, 6), torch.randn(5, 4, 6)
    expected = model(x, noise=noise)
    got = model.cuda()(x.cuda(), noise=noise.cuda()).cpu()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FeatureCNN(1, 2), "n_features must be at least 2 for the max-pool of 2, got 1"),
        (lambda: FeatureCNN(5, 1), "n_classes must be at least 2, got 1"),
        (lambda: FeatureDenoiser(0), "n_features must be at least 1, got 0"),
        (lambda: FeatureDenoiser(5, hidden=0), "hidden must be at least 1, got 0"),
        (lambda: FeatureCNN(5, 2)(torch.rand(3, 4)), r"shape \(n_samples, 5\), got \(3, 4\)"),
        (lambda: FeatureCNN(5, 2)(torch.rand(3, 1, 5)), r"got \(3, 1, 5\)"),
        (
            lambda: FeatureDenoiser(5)(torch.rand(3, 4), torch.zeros(3).long()),
            r"shape \(n_samples, 5\), got \(3, 4\)",
        ),
    ],
)
def test_models_reject_bad_shapes(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_deterministic_convolutions_restores_the_flag():
    before = torch.backends.cudnn.deterministic
    with pytest.raises(ZeroDivisionError), deterministic_convolutions():  # noqa: PT012
        assert torch.backends.cudnn.deterministic
        _ = 1 / 0
    assert torch.backends.cudnn.deterministic == before
