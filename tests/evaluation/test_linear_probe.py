"""The linear probe: its proofs against the worst corners, its training against what must be."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from nnmf_cuda.evaluation.ceiling import ceiling
from nnmf_cuda.evaluation.linear_probe import (
    LinearProbe,
    fit_linear_probe,
    largest_gaining_eps,
)
from tests.hard_data import overlapping, three_classes


def tensors(splits):
    return {name: tuple(map(torch.from_numpy, rows)) for name, rows in splits.items()}


@pytest.mark.parametrize("n_classes", [2, 3])
def test_proven_in_linf_is_right_at_every_corner(n_classes):
    generator = torch.Generator().manual_seed(n_classes)
    x = torch.rand(200, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(n_classes, (200,), generator=generator)
    weight = torch.randn(n_classes, 4, generator=generator, dtype=torch.float64)
    probe = LinearProbe(weight, torch.zeros(n_classes, dtype=torch.float64), "Linf")
    corners = torch.tensor(list(product([-0.1, 0.1], repeat=4)), dtype=torch.float64)
    answers = ((x[:, None] + corners) @ weight.T).argmax(2)
    right = (answers == y[:, None]).all(1)
    assert torch.equal(probe.proven(x, y, 0.1), right)
    assert 0 < right.sum() < 200
    assert probe.accuracy(x, y, 0.1) == float(right.double().mean())


def test_proven_in_l2_is_the_distance_to_the_plane():
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    probe = LinearProbe(weight, torch.tensor([0.0, -2.5], dtype=torch.float64), "L2")
    x = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.1, 0.1]])  # distances 0.2 and 0.36
    y = torch.tensor([1, 1, 0])
    assert probe.proven(x, y, 0.19).tolist() == [True, True, True]
    assert probe.proven(x, y, 0.21).tolist() == [False, False, True]
    assert probe.proven(x, y, 0.37).tolist() == [False] * 3


def test_training_keeps_the_margin_that_plain_training_gives_away():
    """One feature tells the classes without a rest by 0.02, the other by 0.4 in 19 of 20."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    wide = np.where(rng.random(400) < 0.05, 1 - y, y)
    x = torch.from_numpy(np.stack([0.5 + 0.01 * (2 * y - 1), 0.3 + 0.4 * wide], 1))
    of = torch.from_numpy(y)
    robust = fit_linear_probe(x, of, 0.1, n_classes=2)
    share = float((wide == y).mean())
    assert robust.accuracy(x, of, 0.1) == share
    assert fit_linear_probe(x, of, 0.0, n_classes=2).accuracy(x, of, 0.1) <= share


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_nothing_is_proven_above_the_ceiling(norm):
    for n_classes, make in ((2, overlapping), (3, three_classes)):
        x, y = tensors(make())["train"]
        for eps in (0.03, 0.06, 0.12):
            probe = fit_linear_probe(x, y, eps, n_classes=n_classes, norm=norm)
            assert probe.accuracy(x, y, eps) <= ceiling(x, y, eps, norm).accuracy


def test_the_largest_gaining_radius_gains_and_a_larger_one_does_not():
    splits = tensors(overlapping())
    train, valid = splits["train"], splits["valid"]
    found = largest_gaining_eps(train, valid, accuracy=0.85, up_to=0.1, n_classes=2)
    assert found is not None
    assert 0.02 < found < 0.1
    for eps, gains in ((found, True), (1.06 * found, False)):
        probe = fit_linear_probe(*train, eps, n_classes=2)
        assert (probe.accuracy(*valid, eps) >= 0.85) == gains
    assert largest_gaining_eps(train, valid, accuracy=0.85, up_to=0.02, n_classes=2) == 0.02
    assert largest_gaining_eps(train, valid, accuracy=0.999, up_to=0.1, n_classes=2) is None
