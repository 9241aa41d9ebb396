"""Bounds against what they bound: points, corners, exact minima in rationals, and each other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnmf_cuda.models import FeatureCNN
from nnmf_cuda.reference import crown_bounds

pytestmark = pytest.mark.filterwarnings("error")


def draw(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cnn(n: int, n_classes: int = 2, *, gain: float = 1.5, seed: int = 0) -> list[Tensor]:
    """Draw weights of a CNN of 16 and 32 channels, larger than those that training begins with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [gain * w.detach().double() for w in FeatureCNN(n, n_classes).weights()]


def mlp(*widths: int, gain: float = 1.0, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights: list[Tensor] = []
    for inputs, outputs in itertools.pairwise(widths):
        weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
        weights += [
            gain * weight / inputs**0.5,
            0.3 * torch.randn(outputs, generator=generator, dtype=torch.float64),
        ]
    return weights


def small_cnn(c1: int, c2: int, hidden: int, n: int, n_classes: int, *, seed: int) -> list[Tensor]:
    shapes = [(c1, 1, 3), (c1,), (c2, c1, 3), (c2,)]
    shapes += [(hidden, c2 * (n // 2)), (hidden,), (n_classes, hidden), (n_classes,)]
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]


def units(weights: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last hidden layer before its ReLU and the logits, by torch's own layers."""
    h = x
    weights = list(weights)
    if weights[0].dim() == 3:
        h = nn.functional.conv1d(x[:, None], weights[0], weights[1], padding=1).relu()
        h = nn.functional.conv1d(h, weights[2], weights[3], padding=1).relu()
        h = nn.functional.max_pool1d(h, 2).flatten(1)
        weights = weights[4:]
    for i in range(0, len(weights) - 2, 2):
        z = nn.functional.linear(h, weights[i], weights[i + 1])
        h = z.relu()
    return z, nn.functional.linear(h, weights[-2], weights[-1])


NETWORKS = {
    "cnn 2": (2, cnn(2)),
    "cnn 3": (3, cnn(3, seed=1)),
    "cnn 4": (4, cnn(4, seed=2)),
    "cnn 15": (15, cnn(15, seed=3)),
    "cnn 16, large": (16, cnn(16, gain=4.0, seed=4)),
    "cnn of 1 and 2 channels": (5, small_cnn(1, 2, 3, 5, 2, seed=5)),
    "cnn of 3 and 1 channels": (6, small_cnn(3, 1, 4, 6, 2, seed=4)),
    "mlp 5-7-2": (5, mlp(5, 7, 2)),
    "mlp 15-128-64-2": (15, mlp(15, 128, 64, 2, seed=1)),
    "mlp 3-1-1-1-2": (3, mlp(3, 1, 1, 1, 2, seed=9, gain=3.0)),
    "mlp 4-9-8-7-6-5-2": (4, mlp(4, 9, 8, 7, 6, 5, 2, seed=3, gain=1.5)),
}
SIGN = torch.tensor([[1.0, -1.0]], dtype=torch.float64)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ball", [False, True])
def test_crown_bounds_hold_at_corners_and_points(name: str, eps: float, ball: bool) -> None:
    n, weights = NETWORKS[name]
    n_boxes, n_points = 6, 300
    x = draw(n_boxes, n, seed=7)
    low, high = x - eps * draw(n_boxes, n, seed=8), x + eps * draw(n_boxes, n, seed=9)
    share = draw(n_boxes, n_points, n, seed=10)
    share[:, ::2] = share[:, ::2].round()
    points = low[:, None] + (high - low)[:, None] * share
    around = {}
    if ball:
        radius = torch.full((n_boxes,), eps / 2, dtype=torch.float64)
        around = {"center": x, "radius": radius}
        step = points - x[:, None]
        length = step.norm(dim=2, keepdim=True).clamp(min=1e-300)
        points = x[:, None] + step * (radius[:, None, None] / length).clamp(max=1) * (1 - 1e-15)
    z, logits = (v.view(n_boxes, n_points, -1) for v in units(weights, points.flatten(0, 1)))
    for sign in (SIGN, -SIGN):
        found = crown_bounds(low, high, weights, sign.expand(n_boxes, 2), **around)
        margin = logits @ sign[0]
        # The points' own logits are rounded too.
        rounding = 1e-12 * (1 + logits.abs().amax())
        assert (margin.amin(1) >= found.bound - rounding).all()
        assert (z.amin(1) >= found.hidden_lower - 1e-12).all()
        assert (z.amax(1) <= found.hidden_upper + 1e-12).all()
        if eps == 0:
            torch.testing.assert_close(found.bound, margin[:, 0], rtol=0, atol=1e-6)
        # The slope is of a linear function below: it explains the bound.
        below = found.bound[:, None] + (
            (points - torch.where(found.slope > 0, low, high)[:, None]) * found.slope[:, None]
        ).sum(2)
        if not ball:
            assert (margin >= below - rounding).all()


def exact_logits(weights: Sequence[Tensor], x: Sequence[Fraction]) -> list[Fraction]:
    """Answer an MLP in rationals."""
    h = list(x)
    for i in range(0, len(weights), 2):
        rows = [[Fraction(float(v)) for v in row] for row in weights[i]]
        bias = [Fraction(float(v)) for v in weights[i + 1]]
        z = [
            sum((a * b for a, b in zip(row, h, strict=True)), c)
            for row, c in zip(rows, bias, strict=True)
        ]
        h = [max(v, Fraction(0)) for v in z] if i < len(weights) - 2 else z
    return h


@pytest.mark.parametrize("seed", range(20))
def test_crown_bounds_hold_in_rationals_where_all_cancels(seed: int) -> None:
    """Boxes of one point: the bound is the answer less the slack, and nothing else may help."""
    rng = np.random.default_rng(seed)
    widths = (3, 6, 5, 2)
    weights = []
    for inputs, outputs in itertools.pairwise(widths):
        size = 10.0 ** rng.integers(-30, 30, (outputs, inputs))
        weight = rng.standard_normal((outputs, inputs)) * size
        weight[1::2] = -weight[: outputs // 2 * 2 : 2]  # units whose sum is next to nothing
        bias = rng.standard_normal(outputs) * 10.0 ** rng.integers(-30, 30, outputs)
        weights += [torch.from_numpy(weight), torch.from_numpy(bias)]
    x = torch.from_numpy(rng.standard_normal((4, 3)))
    found = crown_bounds(x, x, weights, SIGN.expand(4, 2))
    for row, bound in zip(x, found.bound, strict=True):
        first, second = exact_logits(weights, [Fraction(float(v)) for v in row])
        assert first - second >= Fraction(float(bound))


@pytest.mark.parametrize("ftz", [False, True])
@pytest.mark.parametrize("bias", [0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 4])
@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e-110, 1e-45, 1e30, 1e80, 1e120, 1e155, 1e300])
def test_crown_bounds_of_extreme_weights_hold_in_rationals(
    size: float, seed: int, bias: float, ftz: bool
) -> None:
    weights = [size * w * (bias if w.dim() == 1 else 1.0) for w in mlp(3, 4, 4, 2, seed=seed)]
    x = draw(5, 3, seed=5)
    torch.set_flush_denormal(ftz)
    try:
        found = crown_bounds(x, x + 0.1, weights, SIGN.expand(5, 2))
    finally:
        torch.set_flush_denormal(False)
    assert not found.bound.isnan().any()
    for row, bound in zip(x, found.bound.tolist(), strict=True):
        first, second = exact_logits(weights, [Fraction(float(v)) for v in row])
        assert bound == -np.inf or first - second >= Fraction(bound)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", range(6))
def test_crown_bounds_of_what_is_no_number_say_nothing(bad: float, where: int) -> None:
    weights = mlp(3, 4, 4, 2)
    weights[where].view(-1)[0] = bad
    x = draw(5, 3, seed=5)
    found = crown_bounds(x, x, weights, SIGN.expand(5, 2))
    assert (found.bound == -torch.inf).all()


@pytest.mark.parametrize("name", ["cnn 15", "mlp 15-128-64-2"])
def test_crown_bounds_know_what_a_parent_knows(name: str) -> None:
    _, weights = NETWORKS[name]
    x = draw(40, 15, seed=11)
    sign = SIGN.expand(40, 2)
    parent = crown_bounds(x - 0.1, x + 0.1, weights, sign)
    low, high = x - 0.1, x + 0.1
    high[:, 0] = x[:, 0]
    alone = crown_bounds(low, high, weights, sign)
    child = crown_bounds(low, high, weights, sign, hidden=parent[2:])
    assert (child.bound >= torch.maximum(alone.bound, parent.bound) - 1e-9).float().mean() > 0.95
    assert (alone.bound > parent.bound).float().mean() > 0.9
    assert (child.hidden_lower >= parent.hidden_lower).all()
    assert (child.hidden_upper <= parent.hidden_upper).all()
    nothing = parent.hidden_lower * torch.nan
    torch.testing.assert_close(
        crown_bounds(low, high, weights, sign, hidden=(nothing, nothing)).bound, alone.bound
    )


def test_crown_bounds_are_exact_where_no_unit_changes_sign() -> None:
    """A network that is linear on the box has its minimum at a corner."""
    weights = mlp(4, 6, 5, 2, seed=8)
    weights[1] += 50
    weights[3] += 500 * weights[2].abs().sum(1)
    x = draw(9, 4, seed=9)
    found = crown_bounds(x - 0.2, x + 0.2, weights, SIGN.expand(9, 2))
    corners = torch.tensor(list(itertools.product((-0.2, 0.2), repeat=4)), dtype=torch.float64)
    _, logits = units(weights, (x[:, None] + corners).flatten(0, 1))
    exact = (logits @ SIGN[0]).view(9, -1).amin(1)
    torch.testing.assert_close(found.bound, exact, rtol=0, atol=1e-7 * float(logits.abs().max()))
    ball = crown_bounds(
        x - 0.2,
        x + 0.2,
        weights,
        SIGN.expand(9, 2),
        center=x,
        radius=torch.full((9,), 0.1, dtype=torch.float64),
    )
    matrix = weights[4] @ weights[2] @ weights[0]
    lowest = (units(weights, x)[1] @ SIGN[0]) - 0.1 * (SIGN @ matrix).norm()
    torch.testing.assert_close(ball.bound, lowest, rtol=0, atol=1e-7 * float(logits.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_crown_bounds_close_in_as_boxes_shrink(name: str) -> None:
    """What branch and bound lives on: halving a box cuts what is left open by about that."""
    n, weights = NETWORKS[name]
    x = draw(8, n, seed=12)
    margin = units(weights, x)[1] @ SIGN[0]
    gaps = [
        float((margin - crown_bounds(x - r, x + r, weights, SIGN.expand(8, 2)).bound).mean())
        for r in (1e-2, 1e-3, 1e-4)
    ]
    assert gaps[1] < gaps[0] / 5
    assert gaps[2] < gaps[1] / 5


def test_crown_bounds_do_not_depend_on_the_other_boxes() -> None:
    _, weights = NETWORKS["cnn 15"]
    x = draw(50, 15, seed=13)
    sign = SIGN.expand(50, 2)
    together = crown_bounds(x - 0.1, x + 0.1, weights, sign)
    alone = [crown_bounds(v - 0.1, v + 0.1, weights, SIGN) for v in x.split(1)]
    torch.testing.assert_close(
        together.bound, torch.cat([found.bound for found in alone]), rtol=1e-9, atol=1e-9
    )
    none = crown_bounds(x[:0], x[:0], weights, sign[:0])
    assert [tuple(t.shape) for t in none] == [(0,), (0, 15), (0, 64), (0, 64)]


def test_crown_bounds_refuse_a_gradient() -> None:
    weights = mlp(3, 4, 2)
    x = draw(2, 3, seed=0)
    with pytest.raises(ValueError, match="no gradient"):
        crown_bounds(x.requires_grad_(), x, weights, SIGN.expand(2, 2))
    with torch.no_grad():
        assert not crown_bounds(x, x, weights, SIGN.expand(2, 2)).bound.requires_grad
