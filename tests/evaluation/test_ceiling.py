"""The ceiling against brute force over all sets of robust samples, in rational numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch

from nnmf_cuda.evaluation.ceiling import ceiling, largest_eps
from nnmf_cuda.robustness import ceiling as as_public


def share_a_point(a, b, eps, norm):
    """Whether real balls around two points meet, in exact arithmetic."""
    moves = [abs(Fraction(float(p)) - Fraction(float(q))) for p, q in zip(a, b, strict=True)]
    reach = 2 * Fraction(eps)
    if norm == "Linf":
        return max(moves) <= reach
    return sum(move * move for move in moves) <= reach * reach


def most_robust(x, y, eps, norm):
    """The largest set of points without a conflict, by trying all."""
    n = len(x)
    apart = [
        [y[i] == y[j] or not share_a_point(x[i], x[j], eps, norm) for j in range(n)]
        for i in range(n)
    ]
    for size in range(n, 0, -1):
        for chosen in combinations(range(n), size):
            if all(apart[i][j] for i, j in combinations(chosen, 2)):
                return size
    return 0


def drawn(seed, n, n_features, n_classes):
    rng = np.random.default_rng(seed)
    return rng.random((n, n_features), dtype=np.float32), rng.integers(0, n_classes, n)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("seed", range(12))
def test_two_classes_reach_what_all_sets_of_samples_allow(seed, norm):
    x, y = drawn(seed, n=11, n_features=1 + seed % 4, n_classes=2)
    seen = set()
    for eps in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4):
        found = ceiling(x, y, eps, norm)
        assert found.accuracy == most_robust(x, y, eps, norm) / 11
        seen.add(found.n_lost)
    assert len(seen) > 1  # the radii do not all give the same


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("n_classes", [3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_more_classes_are_bounded_from_above_and_by_a_matching(seed, n_classes, norm):
    x, y = drawn(100 + seed, n=12, n_features=2, n_classes=n_classes)
    for eps in (0.02, 0.05, 0.1, 0.2):
        found = ceiling(x, y, eps, norm)
        best = most_robust(x, y, eps, norm)
        assert best <= 12 - found.n_lost
        assert 12 - found.n_lost <= 12 - greedy_matching(x, y, eps, norm)


def greedy_matching(x, y, eps, norm):
    free, n = set(range(len(x))), 0
    for i, j in combinations(range(len(x)), 2):
        if {i, j} <= free and y[i] != y[j] and share_a_point(x[i], x[j], eps, norm):
            free -= {i, j}
            n += 1
    return n


def test_odd_rings_of_three_classes_lose_half_of_their_points_rounded_up():
    """A matching alone would lose two of five, and two of them are what can be robust."""
    angles = 2 * np.pi * np.arange(5) / 5
    x = np.stack([np.cos(angles), np.sin(angles)], 1)
    found = ceiling(x, np.array([0, 1, 0, 1, 2]), 0.6, "L2")
    assert (found.n_conflicts, found.n_lost) == (5, 3)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_distance_of_two_eps_counts_only_where_a_float32_point_lies_between(norm):
    a, b = np.float32(0.25), np.float32(0.75)
    spacing = float(np.spacing(np.float32(0.75)))
    x, y = np.array([[a], [b]]), np.array([0, 1])
    assert ceiling(x, y, 0.25 - 1e-12, norm).n_lost == 0
    assert ceiling(x, y, 0.25, norm).n_lost == 0  # rounding on the safe side
    assert ceiling(x, y, 0.25 + spacing, norm).n_lost == 1


def test_neighbouring_float32_points_have_nothing_between_them():
    a = np.float32(0.5)
    b = np.nextafter(a, np.float32(1))
    x, y = np.array([[a], [b]]), np.array([0, 1])
    half = (float(b) - float(a)) / 2
    assert ceiling(x, y, half).n_lost == 0  # their middle is no float32 number
    assert ceiling(x, y, 1.001 * (float(b) - float(a))).n_lost == 1


def test_equal_points_of_different_classes_conflict_without_a_ball():
    x = np.array([[0.3, 0.4], [0.3, 0.4], [0.5, 0.5], [0.3, 0.4]])
    assert ceiling(x, np.array([0, 1, 1, 0]), 0.0).n_lost == 1
    tiny = np.array([[0.0], [1e-170], [1.0]])  # its square is 0
    assert ceiling(tiny, np.array([0, 1, 1]), 0.0, "L2").n_lost == 0


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_ceiling_is_never_below_the_constant_answer_and_falls_with_eps(norm):
    x, y = drawn(3, n=300, n_features=5, n_classes=2)
    accuracies = [ceiling(x, y, eps, norm).accuracy for eps in np.linspace(0, 1.5, 12)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == 1
    assert accuracies[-1] == np.bincount(y).max() / 300


def test_tensors_float64_and_float32_agree_in_blocks_of_any_size(monkeypatch):
    x, y = drawn(5, n=90, n_features=3, n_classes=3)
    whole = ceiling(torch.from_numpy(x), torch.from_numpy(y), 0.05)
    monkeypatch.setattr("nnmf_cuda.evaluation.ceiling._BLOCK", 64)
    assert as_public(x.astype(np.float64), y, 0.05) == whole
    assert whole.as_dict()["accuracy"] == whole.accuracy < 1


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("at_least", [0.95, 0.8])
def test_the_largest_eps_keeps_the_ceiling_and_a_little_more_does_not(at_least, norm):
    x, y = drawn(7, n=200, n_features=6, n_classes=2)
    eps = largest_eps(x, y, at_least, norm)
    assert ceiling(x, y, eps, norm).accuracy >= at_least
    assert ceiling(x, y, eps * 1.001, norm).accuracy < at_least


def test_the_largest_eps_where_nothing_or_everything_is_allowed():
    x = np.array([[0.1], [0.1], [0.9]])
    assert largest_eps(x, np.array([0, 1, 1]), 0.9) == 0
    assert largest_eps(x, np.array([1, 1, 1]), 0.9) == math.inf
    assert largest_eps(x, np.array([0, 0, 1]), 0.6) == math.inf  # no radius costs two samples


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"norm": "L1"}, "norm must be Linf or L2, got 'L1'"),
        ({"eps": -0.1}, "eps must be a finite number >= 0, got -0.1"),
        ({"eps": math.nan}, "eps must be a finite number >= 0, got nan"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, "with n at least 1"),
        ({"x": np.zeros(3)}, r"got \(3,\)"),
        ({"y": np.zeros(2, int)}, r"got \(3, 2\) and \(2,\)"),
        ({"y": np.zeros(3)}, "y must hold integers, the classes; got float64"),
        ({"x": np.full((3, 2), np.nan)}, "x holds NaN or infinity"),
    ],
)
def test_what_cannot_be_asked_is_said(change, says):
    asked = {"x": np.zeros((3, 2)), "y": np.arange(3), "eps": 0.1} | change
    with pytest.raises(ValueError, match=says):
        ceiling(**asked)


def test_the_largest_eps_wants_a_share():
    with pytest.raises(ValueError, match=r"at_least must lie in \(0, 1\], got 1.5"):
        largest_eps(np.zeros((2, 1)), np.arange(2), 1.5)
