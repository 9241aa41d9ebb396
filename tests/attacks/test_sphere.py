"""Attacks that keep to what features can be: non-negative, of length 1, each within its own eps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nnmf_cuda.attacks import AttackKind, Budget, Threat, run_suite, vector_apgd, vector_square
from nnmf_cuda.attacks.objectives import margin_loss
from nnmf_cuda.attacks.sphere import onto_cap, onto_sphere_in_box
from nnmf_cuda.attacks.suite import CONSTRAINED
from nnmf_cuda.models.networks import FeatureCNN

SMALL = Budget(n_iter=20, n_restarts=2, n_cheap_restarts=2, pgd_iter=5, n_queries=10)


def features(n, m, seed=0):
    """Rows of length 1, a third of whose entries are zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, m, generator=generator, dtype=torch.float64)
    x = torch.where(torch.rand(n, m, generator=generator) < 1 / 3, 0, x)
    x[:, 0] += 1e-3  # no row of zeros
    return (x / x.norm(dim=1, keepdim=True)).float()


def grid_of_the_octant(n_steps=600):
    """Points of the non-negative part of the unit sphere in three dimensions, 0.003 apart."""
    angles = torch.linspace(0, math.pi / 2, n_steps, dtype=torch.float64)
    up, around = torch.meshgrid(angles, angles, indexing="ij")
    points = torch.stack((up.cos() * around.cos(), up.cos() * around.sin(), up.sin()), 2)
    return points.flatten(0, 1)


class Line(nn.Module):
    """Two classes apart by a linear score."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        score = x @ self.weight
        return torch.stack((torch.zeros_like(score), score), 1)


def test_no_point_of_box_and_sphere_is_nearer():
    """Every point of a grid that is in the box is farther, and one of them is hardly farther."""
    grid = grid_of_the_octant()
    for seed in range(6):
        x = features(4, 3, seed).double()
        generator = torch.Generator().manual_seed(seed)
        eps = torch.rand(3, generator=generator, dtype=torch.float64) * 0.3 + 0.05
        low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
        given = x + torch.randn(4, 3, generator=generator, dtype=torch.float64)
        found = onto_sphere_in_box(given, low, high, x.norm(dim=1, keepdim=True))
        torch.testing.assert_close(found.norm(dim=1), x.norm(dim=1), rtol=0, atol=1e-12)
        assert bool(((found >= low) & (found <= high)).all())
        inside_box = given.clamp(low, high)
        for i in range(4):
            allowed = grid[((grid >= low[i]) & (grid <= high[i])).all(1)]
            nearest = (allowed - inside_box[i]).norm(dim=1).min()
            mine = (found[i] - inside_box[i]).norm()
            # Lengths are of float32: by 1e-8 longer may be 1e-4 farther along the sphere.
            assert nearest - 0.01 <= mine <= nearest + 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [2, 15, 33])
def test_points_are_in_the_box_and_of_the_length(m, dtype):
    x = features(500, m).to(dtype)
    x[0] = 0
    low, high = (x - 0.1).clamp(min=0), (x + 0.1).clamp(max=1)
    lengths = x.double().norm(dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-6, 0.1, 1.0, 1e3):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        found = onto_sphere_in_box((x + scale * noise).to(dtype), low, high, lengths)
        assert found.dtype == dtype
        assert bool(((found >= low) & (found <= high)).all())
        off = (found.double().norm(dim=1, keepdim=True) - lengths)[1:].abs().max()
        assert float(off) <= (1e-6 if dtype == torch.float32 else 1e-12)
        again = onto_sphere_in_box(found, low, high, lengths)
        torch.testing.assert_close(again[1:], found[1:], rtol=0, atol=4e-7)
    # Nothing is as long as the first row but itself; to the sphere its box is too far.
    torch.testing.assert_close(found[0], x[0], rtol=0, atol=1e-8)


def test_a_cap_holds_its_points_and_others_come_to_its_edge():
    x = features(300, 7).double()
    x[0] = 0
    generator = torch.Generator().manual_seed(2)
    given = x + torch.randn(x.shape, generator=generator, dtype=torch.float64)
    found = onto_cap(given, x, 0.2)
    distances = (found - x).norm(dim=1)
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.norm(dim=1), x.norm(dim=1), rtol=0, atol=1e-12)
    assert float(distances.max()) <= 0.2 + 1e-12
    straight = given.clamp_min(0) / given.clamp_min(0).norm(dim=1, keepdim=True)
    beyond = (straight - x).norm(dim=1) > 0.2
    beyond[0] = False
    assert 100 < int(beyond.sum()) < 300
    torch.testing.assert_close(distances[beyond], torch.full_like(distances[beyond], 0.2))
    torch.testing.assert_close(found[1:][~beyond[1:]], straight[1:][~beyond[1:]])
    torch.testing.assert_close(onto_cap(found, x, 0.2), found)
    assert torch.equal(found[0], x[0])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_attack_on_a_linear_model_finds_the_worst_feature_vector(norm):
    """No point of a grid over what is allowed is worse, and the free attack finds worse ones."""
    grid, x = grid_of_the_octant(), features(12, 3, seed=3)
    model = Line(torch.tensor([1.0, -0.7, 0.2]))
    y = model(x).argmax(1)
    eps = torch.tensor([0.05, 0.2, 0.1]) if norm == "Linf" else 0.2
    points = vector_apgd(model, x, y, attack_eps=eps, norm=norm, keeps_length=True)
    Threat(eps, norm, keeps_length=True).check_points(points, x, attack="APGD")
    margins = margin_loss(model(points), y)
    for i, row in enumerate(x.double()):
        moves = grid - row
        near = (moves.abs() <= eps).all(1) if norm == "Linf" else moves.norm(dim=1) <= eps
        worst = margin_loss(model(grid[near].float()), y[i].expand(int(near.sum()))).max()
        assert float(margins[i]) >= float(worst) - 3e-3  # the grid's width
    free = margin_loss(model(vector_apgd(model, x, y, attack_eps=eps, norm=norm)), y)
    assert bool((free >= margins - 1e-6).all())
    assert float((free - margins).max()) > 0.01


def test_each_feature_moves_as_far_as_its_own_eps():
    """On a linear model the worst point is a corner of the box, for both attacks."""
    eps = torch.tensor([0.0, 0.01, 0.1, 0.3])
    weight = torch.tensor([4.0, -2.0, 1.0, -0.5])
    x = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.35
    model = Line(weight)
    y = model(x).argmax(1)
    corner = x + eps * weight.sign() * (1 - 2 * y.unsqueeze(1))
    found = vector_apgd(model, x, y, attack_eps=eps)
    torch.testing.assert_close(found, corner, rtol=0, atol=1e-6)
    found = vector_square(model, x, y, attack_eps=eps, n_queries=300)
    torch.testing.assert_close(found, corner, rtol=0, atol=1e-6)
    Threat(eps).check_points(corner, x, attack="corners")
    with pytest.raises(RuntimeError, match="broke the bound"):
        Threat(eps).check_points(x + 0.05, x, attack="all by 0.05")


def test_the_suite_tells_what_features_could_do():
    """A line of its own whose points are features; the worst case counts it like any other."""
    torch.manual_seed(0)
    x = features(30, 6, seed=4)
    model = FeatureCNN(6, 2).eval()
    y = model(x).argmax(1)
    result = run_suite(model, x, y, attack_eps=0.3, budget=SMALL)
    last = result.outcomes[-1]
    assert (last.name, last.attack.kind) == (CONSTRAINED, AttackKind.CONSTRAINED)
    assert not last.attack.kind.is_white_box
    Threat(0.3, keeps_length=True).check_points(last.points, x, attack="the line")
    assert float((last.points - x).abs().max()) > 0.1
    assert result.worst_case_accuracy <= last.robust_accuracy
    without = run_suite(model, x * 0.9, y, attack_eps=0.3, budget=SMALL)
    assert CONSTRAINED not in [outcome.name for outcome in without.outcomes]


def test_points_off_the_sphere_are_refused():
    x = features(5, 4)
    threat = Threat(0.2, keeps_length=True)
    threat.check_points(x, x, attack="none")
    with pytest.raises(RuntimeError, match="off the sphere by 0.1"):
        threat.check_points(x * 0.9, x, attack="shrunk")


def test_misuse_is_named():
    for options, message in (
        ({"attack_eps": torch.tensor([0.1, 0.2]), "norm": "L2"}, "attack_eps must be a number"),
        ({"attack_eps": torch.tensor([[0.1, 0.2]])}, "attack_eps must be a number"),
        ({"attack_eps": torch.tensor([0.1, -0.2])}, "attack_eps must be a finite number > 0"),
        ({"attack_eps": torch.zeros(3)}, "attack_eps must be a finite number > 0"),
        ({"attack_eps": torch.tensor([0.1, math.nan])}, "attack_eps must be a finite number > 0"),
        ({"attack_eps": 0.1, "box": (-1.0, 1.0), "keeps_length": True}, "a box from 0 on"),
        ({"attack_eps": 0.1, "box": (0.0, 0.5), "norm": "L2", "keeps_length": True}, "box"),
    ):
        with pytest.raises(ValueError, match=message):
            Threat(**options)
    with pytest.raises(ValueError, match="attack_eps has 2 radii, x 3 features"):
        Threat(torch.tensor([0.1, 0.2])).check_features(torch.rand(4, 3))
