"""`crown_bounds` against the reference, and against what it bounds, on every device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from nnmf_cuda import ops, reference, show_config
from tests.helpers import DEVICES, INSTRUCTION_SETS, run_with_instruction_set

F64 = torch.float64
# Features, channels, channels, hidden units, classes: lanes are 2, 4 or 8, tiles 4 or 8 units by 2
# vectors of rows, panels 64 rows.
CNNS = [
    *[(n, 16, 32, 64, 2) for n in (2, 3, 4, 15, 16, 39, 40)],
    (5, 1, 1, 1, 2),
    (6, 3, 5, 7, 3),
    (9, 9, 17, 65, 5),
    (7, 17, 33, 130, 2),
    (2, 8, 16, 63, 4),
]
MLPS = [
    (1, 1, 2),
    (5, 7, 2),
    (15, 128, 64, 2),
    (3, 1, 1, 1, 1, 2),
    (4, 9, 8, 7, 6, 3),
    (2, 300, 2),
    (40, 65, 130, 66, 5),
    (7, 16, 8, 4),
]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def layer(seed: int, *shape: int, gain: float = 1.5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    fan_in = shape[1] * (shape[2] if len(shape) == 3 else 1)
    weight = gain * torch.randn(shape, generator=generator, dtype=F64) / fan_in**0.5
    return [weight, 0.2 * torch.randn(shape[0], generator=generator, dtype=F64)]


def cnn(n: int, first: int, second: int, hidden: int, n_classes: int) -> list[Tensor]:
    shapes = ((first, 1, 3), (second, first, 3), (hidden, second * (n // 2)), (n_classes, hidden))
    return [t for i, shape in enumerate(shapes) for t in layer(10 * n + i, *shape)]


def mlp(*widths: int) -> list[Tensor]:
    pairs = itertools.pairwise(widths)
    return [t for i, (n_in, n_out) in enumerate(pairs) for t in layer(i, n_out, n_in)]


NETWORKS = [(s[0], s[-1], cnn(*s)) for s in CNNS] + [(s[0], s[-1], mlp(*s)) for s in MLPS]
NAMES = [f"cnn {'-'.join(map(str, s))}" for s in CNNS]
NAMES += [f"mlp {'-'.join(map(str, s))}" for s in MLPS]
networks = pytest.mark.parametrize(("n", "n_classes", "weights"), NETWORKS, ids=NAMES)
on_devices = pytest.mark.parametrize("device", DEVICES)


def boxes(n: int, n_boxes: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return centres, and boxes around them of very different widths."""
    x = drawn(n_boxes, n, seed=n)
    low, high = (eps * drawn(n_boxes, n, seed=n + i) ** 2 for i in (1, 2))
    return x, x - low, x + high


def bounds_on(
    device: str, *given: Tensor, weights: list[Tensor], **around: Tensor
) -> ops.CrownBounds:
    low, high, objective = (t.to(device) for t in given)
    moved = {name: value.to(device) for name, value in around.items()}
    found = ops.crown_bounds(low, high, [w.to(device) for w in weights], objective, **moved)
    assert all(part.device == low.device and part.dtype == F64 for part in found)
    return ops.CrownBounds(*(part.cpu() for part in found))


def answers(weights: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last hidden layer before its ReLU, and the logits, by torch's own layers."""
    weights, h = list(weights), x
    if weights[0].dim() == 3:
        for weight, bias in (weights[:2], weights[2:4]):
            h = h.unsqueeze(1) if h.dim() == 2 else h
            h = nn.functional.conv1d(h, weight, bias, padding=1).relu()
        h, weights = nn.functional.max_pool1d(h, 2).flatten(1), weights[4:]
    for i in range(0, len(weights) - 2, 2):
        z = nn.functional.linear(h, weights[i], weights[i + 1])
        h = z.relu()
    return z, nn.functional.linear(h, weights[-2], weights[-1])


@on_devices
@networks
@pytest.mark.parametrize("eps", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("ball", [False, True])
def test_equals_reference(
    n: int, n_classes: int, weights: list[Tensor], eps: float, ball: bool, device: str
) -> None:
    n_boxes = 5
    x, low, high = boxes(n, n_boxes, eps)
    objective = drawn(n_boxes, n_classes, seed=3) - 0.5
    around = {"center": x, "radius": eps * drawn(n_boxes, seed=4)} if ball else {}
    got = bounds_on(device, low, high, objective, weights=weights, **around)
    want = reference.crown_bounds(low, high, weights, objective, **around)
    # Any two orders of the same sums; slopes jump where a sign is within rounding of open.
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@on_devices
@networks
@pytest.mark.parametrize("ball", [False, True])
def test_no_point_is_outside(
    n: int, n_classes: int, weights: list[Tensor], ball: bool, device: str
) -> None:
    n_boxes, n_points, eps = 6, 400, 0.2
    x, low, high = boxes(n, n_boxes, eps)
    share = drawn(n_boxes, n_points, n, seed=10)
    share[:, ::2] = share[:, ::2].round()  # corners
    points = low[:, None] + (high - low)[:, None] * share
    around = {}
    if ball:
        around = {"center": x, "radius": torch.full((n_boxes,), eps / 4, dtype=F64)}
        step = points - x[:, None]
        length = step.norm(dim=2, keepdim=True).clamp(min=1e-300)
        points = x[:, None] + step * (eps / 4 / length).clamp(max=1) * (1 - 1e-14)
    z, logits = (v.view(n_boxes, n_points, -1) for v in answers(weights, points.flatten(0, 1)))
    rounding = 1e-12 * (1 + logits.abs().amax())  # of the points' own answers
    for j in range(n_classes):
        objective = torch.zeros(n_boxes, n_classes, dtype=F64)
        objective[:, 0] += 1
        objective[:, j] -= 1 if j else 2
        found = bounds_on(device, low, high, objective, weights=weights, **around)
        values = (logits * objective[:, None]).sum(2)
        assert (values.amin(1) >= found.bound - rounding).all()
        assert (z.amin(1) >= found.hidden_lower - rounding).all()
        assert (z.amax(1) <= found.hidden_upper + rounding).all()


# An exact oracle: along a segment every unit is piecewise linear, in rationals.
Curve = list[list[Fraction]]  # values of a layer's units at each node


def with_kinks(nodes: list[Fraction], of: Curve, kinks: Curve) -> tuple[list[Fraction], Curve]:
    """Add the nodes at which any of `kinks`, linear between the nodes, is zero."""
    places: set[Fraction] = set(nodes)
    for (start, end), (before, after) in zip(
        itertools.pairwise(nodes), itertools.pairwise(kinks), strict=True
    ):
        for a, b in zip(before, after, strict=True):
            if a * b < 0:
                places.add(start + (end - start) * a / (a - b))
    refined, values, k = sorted(places), [], 0
    for t in refined:
        while k + 2 < len(nodes) and t > nodes[k + 1]:
            k += 1
        share = (t - nodes[k]) / (nodes[k + 1] - nodes[k])
        values.append([a + share * (b - a) for a, b in zip(of[k], of[k + 1], strict=True)])
    return refined, values


def affine(weight: list[list[Fraction]], bias: list[Fraction], of: Curve) -> Curve:
    return [
        [
            sum((w * v for w, v in zip(row, unit, strict=True) if w), b)
            for row, b in zip(weight, bias, strict=True)
        ]
        for unit in of
    ]


def rational(weight: Tensor) -> list:
    return [rational(w) if w.dim() else Fraction(float(w)) for w in weight]


def convolution(weight: Tensor, bias: Tensor, n: int) -> tuple[list, list]:
    """Return a convolution of kernel 3 and padding 1 as a dense layer, channel by channel."""
    c_out, c_in, _ = weight.shape
    dense = torch.zeros(c_out, n, c_in, n + 2, dtype=F64)
    for i, tap in itertools.product(range(n), range(3)):
        dense[:, i, :, i + tap] = weight[:, :, tap]
    dense = dense[..., 1:-1].reshape(c_out * n, c_in * n)
    return rational(dense), rational(bias.repeat_interleave(n))


def exact_range(
    weights: list[Tensor], low: Tensor, high: Tensor, objective: Tensor
) -> tuple[Fraction, Curve]:
    """Return the exact least value from `low` to `high`, and the last hidden layer on the way."""
    nodes, curve, n = [Fraction(0), Fraction(1)], [rational(low), rational(high)], len(low)
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    z: Curve = []
    for i, (weight, bias) in enumerate(layers):
        dense = convolution(weight, bias, n) if weight.dim() == 3 else None
        z = affine(*(dense or (rational(weight), rational(bias))), curve)
        if i == len(layers) - 1:
            break
        hidden_nodes, hidden = nodes, z
        nodes, curve = with_kinks(nodes, z, z)
        curve = [[max(v, Fraction(0)) for v in unit] for unit in curve]
        if dense and i == 1:
            pairs = [
                (c * n + 2 * p, c * n + 2 * p + 1)
                for c in range(weight.shape[0])
                for p in range(n // 2)
            ]
            gaps = [[unit[a] - unit[b] for a, b in pairs] for unit in curve]
            nodes, curve = with_kinks(nodes, curve, gaps)
            curve = [[max(unit[a], unit[b]) for a, b in pairs] for unit in curve]
    assert hidden_nodes[0] == 0
    c = rational(objective)
    return min(sum(a * b for a, b in zip(c, unit, strict=True)) for unit in z), hidden


EXACT = [(3, 2, 3, 4, 2), (2, 3, 2, 5, 3), (4, 1, 2, 3, 2)]
EXACT_MLPS = [(1, 4, 2), (2, 5, 4, 2), (3, 4, 3, 3, 3), (1, 3, 3, 2, 2, 2)]


@on_devices
@pytest.mark.parametrize("scale", [1.0, 1e-40, 1e20])
@pytest.mark.parametrize("sizes", EXACT + EXACT_MLPS, ids=str)
def test_bounds_hold_in_rationals(sizes: tuple[int, ...], scale: float, device: str) -> None:
    """One feature moves: the exact range of every unit is found at its kinks."""
    n, n_classes = sizes[0], sizes[-1]
    weights = cnn(*sizes) if sizes in EXACT else mlp(*sizes)
    weights = [scale * weights[0], scale * weights[1], *weights[2:]]
    n_boxes, widths = 12, (0.0, 1e-12, 1e-3, 0.1, 2.0)
    x = drawn(n_boxes, n, seed=30)
    high = x.clone()
    for i in range(n_boxes):
        high[i, i % n] += widths[i % len(widths)]
    objective = drawn(n_boxes, n_classes, seed=31) - 0.5
    found = bounds_on(device, x, high, objective, weights=weights)
    for i in range(n_boxes):
        least, hidden = exact_range(weights, x[i], high[i], objective[i])
        assert least >= Fraction(float(found.bound[i]))
        for unit in range(len(hidden[0])):
            values = [at[unit] for at in hidden]
            assert min(values) >= Fraction(float(found.hidden_lower[i, unit]))
            assert max(values) <= Fraction(float(found.hidden_upper[i, unit]))
        if widths[i % len(widths)] <= 1e-3:  # and says something
            _, logits = answers(weights, x[i : i + 1])
            size = float((objective[i] * logits[0]).abs().sum()) + 50 * scale
            assert float(least) - float(found.bound[i]) <= 0.05 * size


@on_devices
@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e-45, 1e30, 1e80, 1e300])
@pytest.mark.parametrize("small", [1.0, 1e-200])
def test_extreme_numbers_never_give_a_false_bound(size: float, small: float, device: str) -> None:
    for weights in (cnn(3, 2, 3, 4, 2), mlp(3, 4, 4, 2)):
        weights = [size * w for w in weights]
        for layers in (slice(1, None, 2), slice(0, 0)):  # without biases, with them
            weights[layers] = [0 * w for w in weights[layers]]
            x = small * drawn(5, 3, seed=5)
            high = x.clone()
            high[:, 0] *= 1.5
            objective = torch.tensor([[1.0, -1.0]], dtype=F64).expand(5, 2)
            found = bounds_on(device, x, high, objective, weights=weights)
            assert not any(part.isnan().any() for part in found)
            for i in range(5):
                least, _ = exact_range(weights, x[i], high[i], objective[i])
                bound = float(found.bound[i])
                assert bound == -torch.inf or least >= Fraction(bound)


@on_devices
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("sizes", [(3, 2, 3, 4, 2), (3, 4, 4, 2)], ids=str)
def test_what_is_no_number_bounds_nothing(bad: float, sizes: tuple[int, ...], device: str) -> None:
    weights = cnn(*sizes) if len(sizes) == 5 else mlp(*sizes)
    x, objective = drawn(4, 3, seed=5), drawn(4, 2, seed=6)
    for i in range(len(weights)):
        broken = [w.clone() for w in weights]
        broken[i].view(-1)[-1] = bad
        found = bounds_on(device, x, x + 0.1, objective, weights=broken)
        assert (found.bound == -torch.inf).all()
        assert (found.hidden_lower == -torch.inf).all()
        assert (found.hidden_upper == torch.inf).all()
    for which in range(3):
        given = [x, x + 0.1, objective.clone()]
        given[which] = given[which].clone()
        given[which][2, 1] = bad
        found = bounds_on(device, *given, weights=weights)
        assert (found.bound == -torch.inf).tolist() == [False, False, True, False]
        assert not any(part.isnan().any() for part in found)
    for ball in ((x + bad, x[:, 0] + 1), (x, x[:, 0] + bad)):
        around = {"center": ball[0], "radius": ball[1]}
        found = bounds_on(device, x, x + 0.1, objective, weights=weights, **around)
        assert (found.bound == -torch.inf).all()


@on_devices
@pytest.mark.parametrize("sizes", [(15, 16, 32, 64, 2), (15, 30, 20, 2)], ids=str)
def test_what_is_known_of_the_hidden_layer_counts(sizes: tuple[int, ...], device: str) -> None:
    weights = cnn(*sizes) if len(sizes) == 5 else mlp(*sizes)
    x, low, high = boxes(15, 12, 0.3)
    objective = torch.tensor([[1.0, -1.0]], dtype=F64).expand(12, 2)
    parent = bounds_on(device, low, high, objective, weights=weights)
    high = (x + high) / 2
    known = {"hidden": (parent.hidden_lower.to(device), parent.hidden_upper.to(device))}
    child = ops.crown_bounds(
        *(t.to(device) for t in (low, high)),
        [w.to(device) for w in weights],
        objective.to(device),
        **known,
    )
    alone = bounds_on(device, low, high, objective, weights=weights)
    assert (child.hidden_lower.cpu() >= parent.hidden_lower).all()
    assert (child.hidden_upper.cpu() <= parent.hidden_upper).all()
    assert (child.bound.cpu() >= alone.bound - 1e-9).float().mean() > 0.9
    settled = (alone.hidden_lower.abs() + 1, alone.hidden_lower.abs() + 2)
    told = ops.crown_bounds(
        *(t.to(device) for t in (low, high)),
        [w.to(device) for w in weights],
        objective.to(device),
        hidden=tuple(t.to(device) for t in settled),
    )
    assert torch.equal(told.hidden_lower.cpu(), settled[0])
    unknown = tuple(torch.full_like(t, float("nan")).to(device) for t in settled)
    same = ops.crown_bounds(
        *(t.to(device) for t in (low, high)),
        [w.to(device) for w in weights],
        objective.to(device),
        hidden=unknown,
    )
    assert torch.equal(same.bound.cpu(), alone.bound)


@on_devices
def test_any_number_of_boxes_in_any_layout(device: str) -> None:
    weights = cnn(15, 16, 32, 64, 2)
    x, low, high = boxes(15, 67, 0.1)
    objective = drawn(67, 2, seed=1)
    together = bounds_on(device, low, high, objective, weights=weights)
    again = bounds_on(device, low, high, objective, weights=weights)
    strided = [t.t().contiguous().t() for t in (low, high, objective)]
    turned = bounds_on(device, *strided, weights=[w.float().double() for w in weights])
    single = bounds_on(device, low[5:6], high[5:6], objective[5:6], weights=weights)
    kernel = show_config()["ops"]["crown_bounds"][device] == "kernel"
    for part, same, one, other in zip(together, again, single, turned, strict=True):
        assert torch.equal(part, same)
        # Products of torch depend on how many boxes there are, in the last bits.
        assert torch.equal(part[5:6], one) or not kernel
        torch.testing.assert_close(part[5:6], one, rtol=1e-9, atol=1e-9)
        assert other.shape == part.shape
    none = bounds_on(device, x[:0], x[:0], objective[:0], weights=weights)
    assert [tuple(part.shape) for part in none] == [(0,), (0, 15), (0, 64), (0, 64)]


def test_float32_weights_are_the_numbers_they_are() -> None:
    weights = [w.float() for w in cnn(6, 3, 5, 7, 3)]
    _, low, high = boxes(6, 4, 0.1)
    objective = drawn(4, 3, seed=2)
    got = ops.crown_bounds(low, high, weights, objective)
    want = ops.crown_bounds(low, high, [w.double() for w in weights], objective)
    assert torch.equal(got.bound, want.bound)


@pytest.mark.parametrize("ball", [False, True])
def test_opcheck(ball: bool) -> None:
    for weights in (cnn(4, 2, 3, 5, 2), mlp(4, 5, 2)):
        x, low, high = boxes(4, 3, 0.1)
        around = (x, drawn(3, seed=1)) if ball else (None, None)
        hidden = (-torch.ones(3, 5, dtype=F64), torch.ones(3, 5, dtype=F64))
        for known in ((None, None), hidden):
            torch.library.opcheck(
                torch.ops.nnmf_cuda.crown_bounds.default,
                (low, high, weights, drawn(3, 2, seed=2), *around, *known),
            )


def test_no_gradient_is_given() -> None:
    weights = mlp(3, 4, 2)
    x, objective = drawn(2, 3, seed=0).requires_grad_(), drawn(2, 2, seed=1)
    with pytest.raises(ValueError, match="no gradient"):
        ops.crown_bounds(x, x, weights, objective)
    out = torch.ops.nnmf_cuda.crown_bounds(x, x.detach(), weights, objective)
    with pytest.raises(RuntimeError, match="not differentiable"):
        out[0].sum().backward()


def test_reference_path_serves_the_reference() -> None:
    weights = cnn(5, 2, 3, 4, 2)
    _, low, high = boxes(5, 3, 0.2)
    objective = drawn(3, 2, seed=1)
    with ops.reference_path():
        got = ops.crown_bounds(low, high, weights, objective)
    want = reference.crown_bounds(low, high, weights, objective)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


WRONG = [
    ({"lower": torch.zeros(2, 3)}, TypeError, "lower must be float64"),
    ({"lower": torch.zeros(6, dtype=F64)}, ValueError, "lower must have 2 dimensions"),
    ({"upper": torch.zeros(2, 4, dtype=F64)}, ValueError, "upper must have shape"),
    ({"objective": torch.zeros(2, 3, dtype=F64)}, ValueError, "objective must have shape"),
    ({"center": torch.zeros(2, 3, dtype=F64)}, ValueError, "both or neither"),
    ({"weights": mlp(3, 4, 2)[:2]}, ValueError, "two layers"),
    ({"weights": mlp(4, 4, 2)}, ValueError, r"weights\[0\] must have shape"),
    ({"weights": [w.half() for w in mlp(3, 4, 2)]}, TypeError, r"weights\[0\] must be float32"),
    ({"hidden": (torch.zeros(2, 3, dtype=F64),) * 2}, ValueError, r"hidden\[0\] must have shape"),
]


@pytest.mark.parametrize(("changed", "error", "message"), WRONG)
def test_wrong_arguments_are_named(changed: dict, error: type[Exception], message: str) -> None:
    x = torch.zeros(2, 3, dtype=F64)
    given = {"lower": x, "upper": x, "weights": mlp(3, 4, 2), "objective": x[:, :2]} | changed
    with pytest.raises(error, match=message):
        ops.crown_bounds(**given)


THREADS_AND_SETS = """
import sys, torch
from tests.ops.test_crown import boxes, cnn, drawn, mlp
from nnmf_cuda import ops
found = []
for weights in (cnn(15, 16, 32, 64, 2), mlp(15, 40, 70, 2)):
    x, low, high = boxes(15, 37, 0.1)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(ops.crown_bounds(low, high, weights, drawn(37, 2, seed=1)))
torch.save([tuple(part for part in bounds) for bounds in found], sys.argv[1])
"""


@pytest.mark.needs_ext
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_threads_and_instruction_sets(name: str, tmp_path) -> None:
    """The same bits for any number of threads; the same bounds by any instruction set."""
    path = tmp_path / "bounds.pt"
    done = run_with_instruction_set(name, "-c", THREADS_AND_SETS, str(path))
    assert done.returncode == 0, done.stderr
    found = torch.load(path)
    networks = (cnn(15, 16, 32, 64, 2), mlp(15, 40, 70, 2))
    _, low, high = boxes(15, 37, 0.1)
    for i, weights in enumerate(networks):
        want = reference.crown_bounds(low, high, weights, drawn(37, 2, seed=1))
        for bounds in found[3 * i : 3 * i + 3]:
            for part, same, truth in zip(bounds, found[3 * i], want, strict=True):
                assert torch.equal(part, same)
                torch.testing.assert_close(part, truth, rtol=1e-9, atol=1e-9)
