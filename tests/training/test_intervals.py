"""Interval bounds: no point of the ball goes beyond them, and they are what the formula says."""

from __future__ import annotations

import pytest
import torch

from nnmf_cuda.models.networks import FeatureCNN, FeatureMLP
from nnmf_cuda.training.intervals import margin_bounds


def network(kind, n_features, n_classes):
    torch.manual_seed(n_features)
    if kind == "cnn":
        return FeatureCNN(n_features, n_classes)
    return FeatureMLP(n_features, n_classes, hidden=(17, 9) if kind == "mlp" else (31,))


def samples(n_features, n_classes, n=40):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, n_features, generator=generator)
    x[0], x[1] = 0.0, 1.0
    return x, torch.arange(n) % n_classes


def margins(model, points, y):
    logits = model(points)
    return logits - logits.gather(1, y.unsqueeze(1))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("kind", ["cnn", "mlp", "shallow"])
@pytest.mark.parametrize(("n_features", "n_classes"), [(2, 2), (7, 3), (15, 2)])
def test_no_point_goes_beyond_the_bounds(kind, n_features, n_classes, norm):
    model = network(kind, n_features, n_classes).double()
    x, y = samples(n_features, n_classes)
    x, radius = x.double(), torch.linspace(0, 0.3, len(x), dtype=torch.float64).unsqueeze(1)
    bounds = margin_bounds(model.weights(), x, y, radius, norm=norm)
    largest = torch.full_like(bounds, -torch.inf)
    generator = torch.Generator().manual_seed(2)
    for draw in range(300):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        if norm == "Linf":
            move = radius * (direction.sign() if draw % 2 else direction.clamp(-1, 1))
        else:
            move = radius * direction / direction.norm(dim=1, keepdim=True)
        largest = torch.maximum(largest, margins(model, (x + move).clamp(0, 1), y))
    assert bool((largest <= bounds + 1e-12).all())
    # Without room the bound is the answer itself.
    torch.testing.assert_close(bounds[0], margins(model, x, y)[0])
    assert bool((bounds.gather(1, y.unsqueeze(1)) == 0).all())


@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_the_l2_ball_is_within_its_box(kind):
    model = network(kind, 15, 2)
    x, y = samples(15, 2)
    box, ball = (margin_bounds(model.weights(), x, y, 0.1, norm=norm) for norm in ("Linf", "L2"))
    assert bool((ball <= box + 1e-6).all())
    assert bool((box - ball > 0.01).any())


def test_one_hidden_layer_by_hand():
    """Units 2a - b + 1 and b - 1 over a in [0.2, 0.4] and b in [0.9, 1]: h0 - 3 h1 + 0.5."""
    weights = [
        torch.tensor([[2.0, -1.0], [0.0, 1.0]]), torch.tensor([1.0, -1.0]),
        torch.tensor([[0.0, 0.0], [1.0, -3.0]]), torch.tensor([0.0, 0.5]),
    ]  # fmt: skip
    x = torch.tensor([[0.3, 1.0]])
    zero, one = (
        margin_bounds(weights, x, torch.tensor([label]), 0.1) for label in (0, 1)
    )  # h0 in [0.4, 0.9], h1 = 0
    torch.testing.assert_close(zero, torch.tensor([[0.0, 1.4]]))
    torch.testing.assert_close(one, torch.tensor([[-0.9, 0.0]]))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_the_gradient_in_the_weights_is_right(kind, norm):
    model = network(kind, 4, 3).double()
    x, y = samples(4, 3, n=3)
    weights = [weight.detach().requires_grad_() for weight in model.weights()]

    def loss(*weights):
        bounds = margin_bounds(weights, x.double(), y, 0.07, norm=norm)
        return torch.nn.functional.cross_entropy(bounds, y)

    direction = [torch.randn_like(weight) for weight in weights]
    gradients = torch.autograd.grad(loss(*weights), weights)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    step = 1e-6
    ends = [
        loss(*(w + sign * step * d for w, d in zip(weights, direction, strict=True)))
        for sign in (1, -1)
    ]
    difference = (ends[0] - ends[1]).item() / (2 * step)
    assert slope.item() == pytest.approx(difference, rel=1e-4)
    if kind == "mlp":
        assert torch.autograd.gradcheck(loss, weights)


def test_no_radius_no_nan():
    model = network("mlp", 4, 2)
    x, y = samples(4, 2)
    bounds = margin_bounds(model.weights(), x, y, torch.zeros(len(x), 1), norm="L2")
    gradients = torch.autograd.grad(bounds.sum(), model.weights())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
