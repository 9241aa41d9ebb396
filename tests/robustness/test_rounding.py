"""Rounding: bounds against networks that round as badly as may be, distances against rationals."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from nnmf_cuda.models import FeatureCNN
from nnmf_cuda.robustness.rounding import (
    inward,
    logit_errors,
    outward,
    real_logits,
    within_l2,
    within_linf,
)


def exact_logits(weights: list[Tensor], x: Tensor) -> list[Fraction]:
    """Answer an MLP in rationals."""
    h = [Fraction(float(v)) for v in x]
    for i in range(0, len(weights), 2):
        z = [
            sum((Fraction(float(w)) * v for w, v in zip(row, h, strict=True)), Fraction(float(b)))
            for row, b in zip(weights[i], weights[i + 1], strict=True)
        ]
        h = [max(v, Fraction(0)) for v in z] if i < len(weights) - 2 else z
    return h


def in_any_order(weights: list[Tensor], x: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Answer an MLP in float32, every sum in an order of its own, one number after the other."""
    h = x.numpy()
    for i in range(0, len(weights), 2):
        rows = []
        for row, bias in zip(weights[i].numpy(), weights[i + 1].numpy(), strict=True):
            terms = np.append((row * h).astype(np.float32), bias)
            total = np.float32(0)
            for term in rng.permutation(terms):
                total = np.float32(total + term)
            rows.append(total)
        h = np.array(rows, np.float32)
        if i < len(weights) - 2:
            h = np.maximum(h, np.float32(0))
    return h


def mlp(widths: tuple[int, ...], seed: int, spread: float) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    weights = []
    for inputs, outputs in itertools.pairwise(widths):
        for shape in ((outputs, inputs), (outputs,)):
            size = 10 ** rng.uniform(-spread, spread, shape)
            weights.append(torch.from_numpy((rng.standard_normal(shape) * size).astype(np.float32)))
    return weights


@pytest.mark.parametrize("spread", [0.0, 2.0, 6.0])
@pytest.mark.parametrize("seed", range(5))
def test_logit_errors_hold_for_sums_in_any_order(seed: int, spread: float) -> None:
    weights = mlp((5, 17, 9, 3), seed, spread)
    rng = np.random.default_rng(100 + seed)
    x = torch.from_numpy(rng.random((6, 5)).astype(np.float32))
    wide = x.double()
    bound = logit_errors(weights, wide - 0.1, wide + 0.1)
    point = logit_errors(weights, wide, wide)
    assert (point <= bound).all()
    for row, error in zip(x, point, strict=True):
        exact = exact_logits(weights, row)
        for _ in range(5):
            found = in_any_order(weights, row, rng)
            for a, b, e in zip(found, exact, error, strict=True):
                assert abs(Fraction(float(a)) - b) <= Fraction(float(e))


@pytest.mark.parametrize("scale", [1.0, 2.0**-6])
def test_logit_errors_are_about_what_large_sums_lose(scale: float) -> None:
    """A sum that swallows its small terms one by one loses nearly what the bound allows."""
    n = 4096
    one = torch.ones(1, n)
    one[0, 1:] = 2.0**-24
    one *= scale
    weights = [one, torch.zeros(1), torch.tensor([[1.0], [0.0]]), torch.zeros(2)]
    x = torch.ones(1, n)
    total = np.float32(0)
    for term in one[0].numpy():
        total = np.float32(total + term)
    lost = abs(float(total) - float(real_logits(weights, x)[0, 0]))
    bound = float(logit_errors(weights, x.double(), x.double())[0, 0])
    assert lost == scale * (n - 1) * 2.0**-24
    assert lost <= bound <= 1.01 * lost


@pytest.mark.parametrize("where", ["features", "weights", "bias", "results"])
def test_logit_errors_hold_where_what_is_too_small_becomes_zero(where: str) -> None:
    """Zero on some machines; on others it is kept, and enlarged to 1."""
    small, large = 2.0**-127, 2.0**63
    sizes = {
        "features": (small, large, 0.0, 2 * large),
        "weights": (large, small, 0.0, 2 * large),
        "bias": (0.0, 0.0, small, 2.0**127),
        "results": (2.0**-64, 1 / large, 0.0, 2.0**127),
    }
    feature, first, bias, last = (torch.tensor([size]) for size in sizes[where])
    weights = [first[None], bias, last[None], torch.zeros(1)]
    x = feature[None].double()
    assert float(real_logits(weights, x)) == 1
    assert float(logit_errors(weights, x, x)) >= 1


@pytest.mark.parametrize("n", [2, 5, 15, 16])
def test_logit_errors_hold_for_the_network(n: int) -> None:
    model = FeatureCNN(n, 3).requires_grad_(False)
    weights = [3 * w for w in model.weights()]
    for own, larger in zip(model.weights(), weights, strict=True):
        own.copy_(larger)
    x = torch.rand(200, n, generator=torch.Generator().manual_seed(0))
    wide = x.double()
    error = logit_errors(weights, wide - 0.05, wide + 0.05)
    moved = (wide + 0.05 * (2 * torch.rand(x.shape, dtype=torch.float64) - 1)).float()
    for answer in (model, model.plain):
        assert ((answer(moved).double() - real_logits(weights, moved)).abs() <= error).all()
    hidden = torch.full((200, 64), torch.inf, dtype=torch.float64)
    torch.testing.assert_close(
        logit_errors(weights, wide - 0.05, wide + 0.05, hidden_upper=hidden), error
    )
    hidden[:] = -1000
    none = logit_errors(weights, wide, wide, hidden_upper=hidden)
    assert (none < 1e-5 * (1 + weights[-1].abs().amax())).all()


@pytest.mark.parametrize("size", [1e30, np.inf, np.nan])
def test_logit_errors_of_what_may_overflow_are_infinite(size: float) -> None:
    weights = [torch.full((4, 3), size), torch.zeros(4), torch.full((2, 4), 1e10), torch.zeros(2)]
    x = torch.ones(1, 3, dtype=torch.float64)
    assert logit_errors(weights, x, x).isinf().all()


def test_within_linf_is_exact() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((3000, 1)).astype(np.float32))
    x[::3] *= 1e-12  # where float64 cannot hold the difference
    eps = torch.tensor([0.1], dtype=torch.float64)
    points = (x.double() + eps * torch.from_numpy(rng.choice([-1, 1], (3000, 1)))).float()
    for steps in range(-2, 3):
        shifted = points.clone()
        for _ in range(abs(steps)):
            shifted = torch.nextafter(shifted, torch.full_like(shifted, steps * torch.inf))
        want = [
            abs(Fraction(float(p)) - Fraction(float(c))) <= Fraction(0.1)
            for p, c in zip(shifted, x, strict=True)
        ]
        assert within_linf(shifted, x, eps).tolist() == want
    # The nearest float64 to this difference is eps; the difference itself is more.
    assert not within_linf(
        torch.tensor([[1.0]]), torch.tensor([[-(2.0**-60)]]), torch.tensor([1.0]).double()
    )
    assert within_linf(
        torch.tensor([[1.0]]), torch.tensor([[2.0**-60]]), torch.tensor([1.0]).double()
    )


def test_within_l2_never_lets_a_point_out() -> None:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.random((500, 6)).astype(np.float32))
    step = rng.standard_normal((500, 6))
    step *= 0.3 / np.linalg.norm(step, axis=1, keepdims=True)
    points = (x.double() + torch.from_numpy(step)).float()
    eps = torch.tensor(0.3, dtype=torch.float64)
    found = within_l2(points, x, eps).tolist()
    exact = [
        sum((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(p, c, strict=True))
        <= Fraction(0.3) ** 2
        for p, c in zip(points, x, strict=True)
    ]
    assert any(exact)
    assert not all(exact)
    assert all(e for f, e in zip(found, exact, strict=True) if f)
    assert np.mean([f == e for f, e in zip(found, exact, strict=True)]) > 0.99


def test_inward_and_outward_edges() -> None:
    x = torch.rand(500, dtype=torch.float64)
    low, high = x - 0.1, x + 0.1
    inner_low, inner_high = inward(low, high, torch.float32)
    assert (inner_low.double() >= low).all()
    assert (inner_high.double() <= high).all()
    assert (torch.nextafter(inner_low, inner_low - 1).double() < low).all()
    assert (torch.nextafter(inner_high, inner_high + 1).double() > high).all()
    for value, below, above in zip(
        x.tolist(), *map(Tensor.tolist, outward(low, high)), strict=True
    ):
        assert Fraction(below) < Fraction(value) - Fraction(0.1)
        assert Fraction(above) > Fraction(value) + Fraction(0.1)
