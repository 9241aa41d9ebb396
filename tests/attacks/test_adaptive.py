"""Adaptive attacks: they find what is planted, and stay where they may."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nnmf_cuda.attacks import vector_apgd, vector_square
from nnmf_cuda.attacks.balls import BALLS
from nnmf_cuda.attacks.gradient_ascent import pgd
from nnmf_cuda.attacks.objectives import ExpectedLoss, dlr_loss, loss_named, margin_loss
from nnmf_cuda.models.networks import FeatureCNN

N, M = 12, 9
WIDE = (-10.0, 10.0)


class Linear(nn.Module):
    """Two logits, 0 and w x + b: the worst point of a ball is known in closed form."""

    def __init__(self, weight, bias=0.0, scale=1.0):
        super().__init__()
        self.weight, self.bias, self.scale = nn.Parameter(weight), bias, scale

    def forward(self, x):
        score = self.scale * (x @ self.weight + self.bias)
        return torch.stack((torch.zeros_like(score), score), 1)


class Noisy(nn.Module):
    """The linear model behind noise far above what an attack may change."""

    def __init__(self, weight, level):
        super().__init__()
        self.linear, self.level = Linear(weight), level

    def forward(self, x):
        return self.linear(x + self.level * torch.randn_like(x))


@pytest.fixture
def weight():
    return torch.randn(M, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def samples():
    x = torch.rand(N, M, generator=torch.Generator().manual_seed(4))
    return x, torch.arange(N) % 2


def worst_margins(model, x, y, eps, norm):
    """Margin losses of the worst points of a linear model, without a box."""
    weight = model.weight.detach()
    reach = eps * (weight.abs().sum() if norm == "Linf" else weight.norm())
    return (margin_loss(model(x), y) + model.scale * reach).detach()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", [vector_apgd, vector_square])
def test_the_planted_direction_is_found(weight, samples, attack, norm):
    x, y = samples
    model = Linear(weight)
    options = {"n_queries": 2000} if attack is vector_square else {"n_iter": 50}
    points = attack(model, x, y, attack_eps=0.3, norm=norm, box=WIDE, **options)
    with torch.no_grad():
        clean, found = margin_loss(model(x), y), margin_loss(model(points), y)
    best = worst_margins(model, x, y, 0.3, norm)
    share = (found - clean) / (best - clean)
    assert float(share.min()) > (0.999 if attack is vector_apgd else 0.9)
    assert float(share.max()) < 1 + 1e-4


@pytest.mark.parametrize("attack", [vector_apgd, vector_square])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_points_stay_in_ball_and_box(weight, samples, attack, norm):
    x, y = samples
    low = torch.linspace(-0.05, 0.0, M)
    high = torch.linspace(1.0, 1.2, M)
    points = attack(Linear(weight), x, y, attack_eps=0.2, norm=norm, box=(low, high))
    order = math.inf if norm == "Linf" else 2
    assert float((points - x).norm(p=order, dim=1).max()) <= 0.2 + 1e-6
    assert bool((points >= low).all())
    assert bool((points <= high).all())
    assert bool((points != x).any(1).all())


def test_margin_loss_attacks_where_cross_entropy_saturates(weight, samples):
    x = torch.full_like(samples[0], 0.5)
    y = torch.ones(N, dtype=torch.int64)
    # Far from the boundary, but within reach; the scale lets the cross-entropy round to zero.
    eps = 2.0 / float(weight.abs().sum())
    model = Linear(weight, bias=1.5 - float(x[0] @ weight), scale=1e4)
    points = {
        loss: vector_apgd(model, x, y, attack_eps=eps, box=WIDE, loss=loss, n_iter=20)
        for loss in ("margin", "ce")
    }
    right = {loss: float((model(p).argmax(1) == y).float().mean()) for loss, p in points.items()}
    assert right["margin"] == 0
    assert right["ce"] > 0.5


def test_an_average_over_answers_finds_what_one_answer_hides(samples):
    x, y = samples
    weight = torch.zeros(M)
    weight[-1] = 1.0  # the last feature too is attacked
    model = Noisy(weight, level=2.0)
    linear = model.linear
    for attack in (vector_apgd, vector_square):
        points = attack(model, x, y, attack_eps=0.3, box=WIDE, eot_iter=64)
        gain = margin_loss(linear(points), y) - margin_loss(linear(x), y)
        assert float(gain.detach().mean()) > 0.15, attack


def test_square_touches_every_feature(samples):
    x, y = samples
    for last in range(M):
        weight = torch.zeros(M)
        weight[last] = 1.0
        points = vector_square(Linear(weight), x, y, attack_eps=0.1, box=WIDE, n_queries=200)
        moved = (points - x)[:, last] * (1 - 2 * y)
        torch.testing.assert_close(moved, torch.full((N,), 0.1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_no_proposal_of_square_is_the_point_that_is_held(samples, norm):
    x, _ = samples
    ball = BALLS[norm](x, 0.1, WIDE)
    held = ball.random_corner()
    for share in (1 / M, 3 / M):
        proposed = ball.changed(held, *ball.draw_change(share))
        assert bool((proposed != held).any(1).all())


def test_square_takes_no_point_without_an_answer(samples):
    x, y = samples

    class Broken(nn.Module):
        def forward(self, points):
            bad = (points[:, :1] > 0.5).expand(-1, 2)
            return torch.where(bad, torch.nan, points[:, 1:3])

    inside = x * 0.4
    points = vector_square(Broken(), inside, y, attack_eps=0.3, n_queries=300)
    started = vector_square(Broken(), inside, y, attack_eps=0.3, n_queries=1)
    answered = started[:, 0] <= 0.5
    assert bool(answered.any())
    assert bool((points[answered, 0] <= 0.5).all())


def test_same_seed_same_points_and_the_state_comes_back(samples):
    x, y = samples
    torch.manual_seed(0)
    model = FeatureCNN(M, 2)
    state = torch.get_rng_state()
    for attack in (vector_apgd, vector_square):
        first, second, other = (attack(model, x, y, attack_eps=0.1, seed=s) for s in (7, 7, 8))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_judge_chooses(weight, samples):
    x, y = samples
    judge = Linear(-weight)
    points = vector_apgd(Linear(weight), x, y, attack_eps=0.2, box=WIDE, judge=judge)
    assert torch.equal(points, x)  # the surrogate leads the wrong way: staying is worse for judge


def test_starts_are_climbed_from(weight, samples):
    x, y = samples
    model = Linear(weight)
    points = vector_apgd(model, x, y, attack_eps=0.2, n_restarts=0, starts=[x], n_iter=10)
    assert bool((margin_loss(model(points), y) > margin_loss(model(x), y)).all())


def test_pgd_reaches_the_worst_point_of_a_linear_model(weight, samples):
    x, y = samples
    model = Linear(weight)
    ball = BALLS["Linf"](x, 0.3, WIDE)
    start = ball.random_start()
    kept = start.clone()
    points = pgd(ExpectedLoss(model, y), ball, start, n_iter=10)
    best = worst_margins(model, x, y, 0.3, "Linf")
    torch.testing.assert_close(margin_loss(model(points), y), best, rtol=1e-5, atol=1e-5)
    assert torch.equal(start, kept)


def test_losses_of_three_classes():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.5]], dtype=torch.float64)
    y = torch.tensor([0, 2])
    torch.testing.assert_close(margin_loss(logits, y), torch.tensor([-2.0, 0.5]).double())
    torch.testing.assert_close(dlr_loss(logits, y), torch.tensor([-2 / 3, 0.25]).double())
    logits.requires_grad_()
    for name in ("ce", "margin", "dlr"):
        assert torch.autograd.gradcheck(lambda z, n=name: loss_named(n)(z, y), logits)


def test_misuse_is_named(weight, samples):
    x, y = samples
    model = Linear(weight)
    for options, message in (
        ({"loss": "dlr"}, "the model has 2 classes"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"norm": "L1"}, "norm must be one of"),
        ({"attack_eps": 0.0}, "attack_eps must be"),
        ({"box": (0.5, 1.0)}, "inside the box"),
        ({"n_iter": 0}, "n_iter=0"),
    ):
        with pytest.raises(ValueError, match=message):
            vector_apgd(model, x, y, **{"attack_eps": 0.1, **options})
    with pytest.raises(ValueError, match="n_queries=0"):
        vector_square(model, x, y, attack_eps=0.1, n_queries=0)
