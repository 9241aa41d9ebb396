"""McNemar's and DeLong's test against scipy, scikit-learn, all pairs, and permutations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from nnmf_cuda.evaluation import delong, mcnemar


def test_mcnemar_counts_what_differs():
    a = np.array([1, 1, 1, 1, 1, 0, 0, 1, 0], dtype=bool)
    b = np.array([1, 0, 0, 0, 0, 1, 0, 1, 0], dtype=bool)
    found = mcnemar(a, b)
    assert (found.n_only_a, found.n_only_b) == (4, 1)
    assert found.p_value == pytest.approx(2 * (1 + 5) / 2**5)  # both tails of 5 coins
    assert mcnemar(b, a).p_value == found.p_value
    assert found.as_dict() == {"n_only_a": 4, "n_only_b": 1, "p_value": found.p_value}


def test_mcnemar_is_the_permutation_test_of_exchanged_answers():
    rng = np.random.default_rng(0)
    a, b = rng.random(60) < 0.8, rng.random(60) < 0.6
    flips = rng.random((20_000, 60)) < 0.5
    difference = np.where(flips, b, a).sum(1) - np.where(flips, a, b).sum(1)
    share = (np.abs(difference) >= abs(int(a.sum()) - int(b.sum()))).mean()
    assert mcnemar(a, b).p_value == pytest.approx(share, abs=0.01)


def test_mcnemar_of_models_that_are_right_together():
    assert mcnemar([True, False], [True, False]).p_value == 1


@pytest.mark.parametrize("wrong", [[[True]], [], [0.5, 1.0], ["yes", "no"]])
def test_mcnemar_refuses_what_is_not_true_or_false(wrong):
    with pytest.raises(ValueError, match="right_b .* must be a 1-D array of True and False"):
        mcnemar([True, False], wrong)


def test_mcnemar_refuses_other_samples():
    with pytest.raises(ValueError, match="right_a has 2 entries and right_b 3"):
        mcnemar([True, False], [True, False, True])


def by_all_pairs(labels, *scores):
    """Areas and their covariance by DeLong's structural components, pair by pair."""
    areas, of_positives, of_negatives = [], [], []
    for score in scores:
        x, y = score[labels == 1], score[labels == 0]
        wins = np.array([[float(a > b) + 0.5 * float(a == b) for b in y] for a in x])
        areas.append(wins.mean())
        of_positives.append(wins.mean(1))
        of_negatives.append(wins.mean(0))
    m, n = len(of_positives[0]), len(of_negatives[0])
    return np.array(areas), np.cov(of_positives) / m + np.cov(of_negatives) / n


def scores_of(seed, n=60, decimals=8):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3 == 0).astype(int)
    shared = rng.normal(size=n)
    a = 1.2 * labels + shared + 0.5 * rng.normal(size=n)
    b = 0.6 * labels + shared + 0.5 * rng.normal(size=n)
    return labels, a.round(decimals), b.round(decimals)


@pytest.mark.parametrize("decimals", [8, 0])  # 0: many ties
@pytest.mark.parametrize("seed", range(3))
def test_delong_is_that_of_all_pairs(seed, decimals):
    labels, a, b = scores_of(seed, decimals=decimals)
    found = delong(labels, a, b)
    areas, covariance = by_all_pairs(labels, a, b)
    assert (found.auc_a, found.auc_b) == pytest.approx(tuple(areas))
    assert found.auc_a == pytest.approx(roc_auc_score(labels, a))
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert found.standard_error == pytest.approx(error)
    assert found.z == pytest.approx((areas[0] - areas[1]) / error)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(found.z)))
    assert found.high - found.low == pytest.approx(2 * 1.959964 * error, rel=1e-6)
    assert (found.low + found.high) / 2 == pytest.approx(found.difference)
    swapped = delong(labels, b, a)
    assert (swapped.z, swapped.p_value) == pytest.approx((-found.z, found.p_value))


def test_delong_agrees_with_permutations():
    """Under the null the two (standardised) scores of a sample may be exchanged."""
    labels, a, b = scores_of(7, n=120)
    ranks = np.stack([stats.rankdata(a), stats.rankdata(b)])
    observed = abs(delong(labels, *ranks).difference)
    rng, exceeded = np.random.default_rng(0), 0
    for _ in range(1000):
        flip = rng.random(120) < 0.5
        one, two = np.where(flip, ranks[1], ranks[0]), np.where(flip, ranks[0], ranks[1])
        exceeded += abs(roc_auc_score(labels, one) - roc_auc_score(labels, two)) >= observed
    assert delong(labels, a, b).p_value == pytest.approx(exceeded / 1000, abs=0.04)


def test_delong_rejects_as_often_as_it_says():
    rng, rejected = np.random.default_rng(1), 0
    for _ in range(400):
        labels = np.arange(80) % 2
        shared = rng.normal(size=80) + labels
        rejected += delong(labels, *(shared + rng.normal(size=(2, 80)))).p_value < 0.1
    assert 0.06 < rejected / 400 < 0.15


def test_delong_of_scores_in_the_same_order():
    labels, a, _ = scores_of(0)
    for other in (a, np.exp(a)):
        found = delong(labels, a, other)
        assert (found.difference, found.standard_error, found.z, found.p_value) == (0, 0, 0, 1)
        assert (found.low, found.high) == (0, 0)
    constant = delong(labels, np.zeros(60), np.ones(60))
    assert (constant.auc_a, constant.p_value) == (0.5, 1)


def test_delong_says_nothing_of_perfect_against_perfectly_wrong():
    labels = np.array([0, 0, 1, 1])
    found = delong(labels, labels, -labels)
    assert (found.auc_a, found.auc_b, found.standard_error) == (1, 0, 0)
    assert math.isnan(found.p_value)
    assert found.as_dict()["p_value"] is None
    assert found.as_dict()["z"] is None
    assert found.as_dict()["low"] is None


@pytest.mark.parametrize(
    ("labels", "scores", "level", "said"),
    [
        ([0, 1, 1, 2], [0, 1, 2, 3], 0.95, "give 0 and 1, at least two samples of each"),
        ([0, 1, 1, 1], [0, 1, 2, 3], 0.95, "at least two samples of each"),
        ([0, 0, 1, 1], [0, 1, 2], 0.95, r"scores_b has shape \(3,\)"),
        ([0, 0, 1, 1], [0, 1, 2, math.nan], 0.95, "not finite"),
        ([0, 0, 1, 1], [0, 1, 2, 3], 95, "level=95"),
    ],
)
def test_delong_names_what_is_wrong(labels, scores, level, said):
    with pytest.raises(ValueError, match=said):
        delong(labels, [0, 1, 2, 3], scores, level=level)
