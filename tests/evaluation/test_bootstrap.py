"""Bootstrap intervals against scikit-learn on repeated samples, scipy, and known coverage."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy import stats

from nnmf_cuda.evaluation import (
    METRIC_NAMES,
    bootstrap_mean,
    classification_metrics,
    resample_metrics,
    wilson_interval,
)
from nnmf_cuda.evaluation import bootstrap as resampling
from nnmf_cuda.evaluation.metrics import WeightedMetrics, check_predictions


def predictions(n, n_classes, seed=0, strength=1.0, decimals=None):
    """Labels with every class in them, and probabilities; coarse ones have ties."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    logits = rng.normal(size=(n, n_classes))
    logits[np.arange(n), labels] += strength
    if decimals is not None:
        logits = logits.round(decimals)
    p = np.exp(logits)
    return labels, p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("decimals", [None, 0])
def test_metrics_of_counts_are_scikit_learns_on_repeated_samples(n_classes, decimals):
    labels, p = predictions(60, n_classes, decimals=decimals)
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 4, (60, 25)).astype(float)
    counts[:n_classes] = 1
    labels[:n_classes] = np.arange(n_classes)  # every resample holds every class
    found = WeightedMetrics(*check_predictions(labels, p))(counts)
    for b in range(counts.shape[1]):
        index = np.repeat(np.arange(60), counts[:, b].astype(int))
        want = classification_metrics(labels[index], p[index])
        assert found[:, b] == pytest.approx([want[name] for name in METRIC_NAMES], abs=1e-12)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_metrics_of_a_constant_and_of_a_certain_answer(n_classes):
    labels, p = predictions(12, n_classes)
    constant = np.full_like(p, 1 / n_classes)
    certain = np.eye(n_classes)[(labels + 1) % n_classes]  # wrong, with probability 1
    for answer in (constant, certain, np.eye(n_classes)[labels]):
        found = WeightedMetrics(*check_predictions(labels, answer))(np.ones((12, 1)))[:, 0]
        want = classification_metrics(labels, answer)
        assert found == pytest.approx([want[name] for name in METRIC_NAMES], abs=1e-12)


def test_accuracys_interval_is_the_binomial_distributions():
    """A resample of n samples, k of them right, is right on a Binomial(n, k / n) number."""
    labels, p = predictions(200, 2)
    k = int((p.argmax(1) == labels).sum())
    found = resample_metrics(labels, [p], n_resamples=20_000, seed=3)
    interval = found.intervals(0)["accuracy"]
    assert interval.estimate == k / 200
    want = stats.binom.ppf([0.025, 0.975], 200, k / 200) / 200
    assert [interval.low, interval.high] == pytest.approx(want, abs=1.01 / 200)
    assert [interval.low, interval.high] == pytest.approx(wilson_interval(k, 200), abs=0.01)


def test_level_moves_the_ends():
    labels, p = predictions(80, 2)
    found, widths = resample_metrics(labels, [p], seed=0), []
    for level in (0.5, 0.9, 0.99):
        intervals = found.intervals(0, level=level)
        assert list(intervals) == list(METRIC_NAMES)
        widths.append([i.high - i.low for i in intervals.values()])
        assert all(i.low <= i.estimate <= i.high for i in intervals.values())
    assert (np.diff(widths, axis=0) > 0).all()


def test_whole_groups_are_drawn():
    """Ten samples in ten copies each, drawn by copy, are the ten samples drawn alone."""
    labels, p = predictions(10, 2, strength=0.5)
    alone = resample_metrics(labels, [p], n_resamples=500, seed=4)
    order = np.random.default_rng(0).permutation(100)
    copies = np.repeat(np.arange(10), 10)[order]
    grouped = resample_metrics(labels[copies], [p[copies]], groups=copies, n_resamples=500, seed=4)
    assert grouped.values == pytest.approx(alone.values, abs=1e-12)
    assert (grouped.n_clusters, grouped.n_redrawn) == (10, alone.n_redrawn)
    names = np.array([f"patient {g}" for g in copies])  # group names may be anything that sorts
    named = resample_metrics(labels[copies], [p[copies]], groups=names, n_resamples=500, seed=4)
    assert np.array_equal(named.values, grouped.values)
    ungrouped = resample_metrics(labels[copies], [p[copies]], n_resamples=500, seed=4)
    ratio = grouped.values[0, 0].std() / ungrouped.values[0, 0].std()
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)


def test_groups_of_several_sizes_make_resamples_of_several_sizes():
    """Drawn by hand, with the same generator."""
    labels, p = predictions(40, 2)
    groups = np.random.default_rng(2).integers(0, 12, 40)
    found = resample_metrics(labels, [p], groups=groups, n_resamples=30, seed=9)
    rng, names, redrawn, made = np.random.default_rng(9), np.unique(groups), 0, []
    while len(made) < 30:
        drawn = names[rng.integers(0, len(names), len(names))]
        index = np.concatenate([np.flatnonzero(groups == g) for g in drawn])
        if len(np.unique(labels[index])) < 2:
            redrawn += 1
            continue
        made.append([classification_metrics(labels[index], p[index])[m] for m in METRIC_NAMES])
    assert found.values[0].T == pytest.approx(np.array(made), abs=1e-12)
    assert found.n_redrawn == redrawn


def test_resamples_without_a_class_are_redrawn_and_counted():
    labels = np.array([1, *[0] * 19])
    p = np.stack((np.linspace(0.2, 0.9, 20), 1 - np.linspace(0.2, 0.9, 20)), 1)
    found = resample_metrics(labels, [p], n_resamples=2000, seed=0)
    share = (1 - 1 / 20) ** 20  # of resamples that lack the only positive sample
    assert found.n_redrawn / (found.n_redrawn + 2000) == pytest.approx(share, abs=0.03)
    area = found.intervals(0)["roc_auc"]
    assert area.low == area.high == 1  # it ranks highest
    classes = np.arange(12)
    with pytest.raises(ValueError, match="lacked a class; give samples of each class from more"):
        resample_metrics(classes, [np.full((12, 12), 1 / 12)], n_resamples=5, seed=0)


def test_blocks_change_nothing(monkeypatch):
    labels, p = predictions(30, 3, strength=0.5)
    groups = np.arange(30) // 3
    whole = resample_metrics(labels, [p], groups=groups, n_resamples=300, seed=1)
    monkeypatch.setattr(resampling, "_BLOCK", 30 * 7)
    blocks = resample_metrics(labels, [p], groups=groups, n_resamples=300, seed=1)
    assert whole.values == pytest.approx(blocks.values, abs=1e-12)
    assert whole.n_redrawn == blocks.n_redrawn


def test_several_predictions_are_averaged():
    labels, p = predictions(50, 2)
    other = predictions(50, 2, seed=5)[1]
    each = resample_metrics(labels, [p, other], n_resamples=100, seed=0)
    both = resample_metrics(labels, [np.stack((p, other))], n_resamples=100, seed=0)
    assert both.values[0] == pytest.approx(each.values.mean(axis=0), abs=1e-12)
    assert both.estimates[0] == pytest.approx(each.estimates.mean(axis=0), abs=1e-12)


def test_differences_of_a_model_from_itself_and_from_another():
    labels, p = predictions(100, 2)
    same = resample_metrics(labels, [p, p], seed=0).differences(0, 1)
    assert all((i.estimate, i.low, i.high) == (0, 0, 0) for i in same.values())
    other = p.copy()
    other[:10] = other[:10, ::-1]  # wrong where p was right, and the other way round
    gained = (p.argmax(1) == labels).sum() - (other.argmax(1) == labels).sum()
    both = resample_metrics(labels, [p, other], seed=0)
    found = both.differences(0, 1)
    assert found["accuracy"].estimate == pytest.approx(gained / 100)
    apart = both.intervals(0)["accuracy"]
    width = found["accuracy"].high - found["accuracy"].low
    assert width < 0.8 * (apart.high - apart.low)  # they are right on the same samples, mostly
    reverse = both.differences(1, 0)
    for name in found:
        assert reverse[name].low == pytest.approx(-found[name].high)


def test_clustered_intervals_cover_and_plain_ones_do_not():
    """Groups of 8 samples that are right or wrong together, mostly; the truth is 0.7."""
    rng, covered = np.random.default_rng(8), np.zeros(2)
    groups, labels = np.arange(320) // 8, np.arange(320) % 2
    for trial in range(150):
        share = rng.beta(0.7, 0.3, 40)  # of right answers in each group; its mean is 0.7
        right = rng.random(320) < share[groups]
        p_right = np.where(right, 0.9, 0.1)
        p = np.where((labels == 1)[:, None], *(
            np.stack(pair, 1) for pair in ((1 - p_right, p_right), (p_right, 1 - p_right))
        ))  # fmt: skip
        for i, by in enumerate((groups, None)):
            found = resample_metrics(labels, [p], groups=by, n_resamples=200, seed=trial)
            accuracy = found.intervals(0)["accuracy"]
            covered[i] += accuracy.low <= 0.7 <= accuracy.high
    assert covered[0] / 150 > 0.87
    assert covered[1] / 150 < 0.75


def test_seed_decides():
    labels, p = predictions(40, 2)
    a, b, c = (resample_metrics(labels, [p], seed=s).intervals(0) for s in (0, 0, 1))
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_resamples": 0}, "n_resamples=0; need at least 1"),
        ({"groups": np.zeros(40)}, "groups holds a single group"),
        ({"groups": np.zeros(4)}, "groups has shape"),
    ],
)
def test_errors_name_the_argument(changes, said):
    labels, p = predictions(40, 2)
    with pytest.raises(ValueError, match=said):
        resample_metrics(labels, [p], seed=0, **changes)


def test_a_level_is_a_share():
    labels, p = predictions(40, 2)
    found = resample_metrics(labels, [p, p], n_resamples=10, seed=0)
    for measure in (found.intervals, partial(found.differences, 1)):
        with pytest.raises(ValueError, match="level=95; need a value between 0 and 1"):
            measure(0, level=95)


def test_errors_of_probabilities():
    labels, p = predictions(40, 2)
    with pytest.raises(ValueError, match="models is empty"):
        resample_metrics(labels, [], seed=0)
    with pytest.raises(ValueError, match=r"models\[1\] has shape \(40,\)"):
        resample_metrics(labels, [p, p[:, 0]], seed=0)
    with pytest.raises(ValueError, match="probabilities has 39 rows"):
        resample_metrics(labels, [p[:39]], seed=0)


def test_the_interval_of_a_mean_is_that_of_accuracy():
    labels, p = predictions(200, 2)
    right = (p.argmax(1) == labels).astype(float)
    groups = np.arange(200) // 4
    for options in ({}, {"groups": groups}):
        mean = bootstrap_mean(right, n_resamples=5000, seed=1, **options)
        same = resample_metrics(labels, [p], n_resamples=5000, seed=2, **options)
        want = same.intervals(0)["accuracy"]
        assert mean.estimate == pytest.approx(want.estimate)
        # Both ends are quantiles of 5000 resamples.
        np.testing.assert_allclose([mean.low, mean.high], [want.low, want.high], atol=0.01)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"values": [1.0]}, "a single sample or none"),
        ({"values": [1.0, np.nan]}, "holds NaN"),
        ({"values": np.ones((2, 2))}, "values has shape"),
        ({"groups": [0, 0, 0]}, "groups holds a single group"),
        ({"groups": [0, 0]}, "groups has shape|groups \\(2,\\)"),
        ({"level": 2}, "level=2"),
    ],
)
def test_errors_of_a_mean(changes, said):
    options = {"values": [0.0, 1.0, 1.0], "seed": 0, **changes}
    with pytest.raises(ValueError, match=said):
        bootstrap_mean(options.pop("values"), **options)
