"""Metrics against the paper's table, hand-written formulas and scikit-learn on its own."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from sklearn import metrics as sk

from nnmf_cuda.evaluation import (
    METRIC_NAMES,
    METRICS,
    PAPER_METRICS,
    Metrics,
    classification_metrics,
    majority_class_accuracy,
    wilson_interval,
)

PAPER_CONFUSION = {
    "Clean_Baseline": (106, 18, 12, 79),
    "Clean_Defended": (104, 18, 14, 79),
    "Robust_Baseline": (0, 96, 118, 1),
    "Robust_Defended": (85, 54, 33, 43),
}


OF_CONFUSION = ("accuracy", "precision", "recall", "f1", "mcc", "balanced_accuracy")


def _answers(tp, fp, fn, tn):
    """Labels and certain predictions with these counts."""
    labels = np.repeat([1, 0, 1, 0], [tp, fp, fn, tn])
    return labels, np.eye(2)[np.repeat([1, 1, 0, 0], [tp, fp, fn, tn])]


@pytest.mark.parametrize("row", PAPER_METRICS)
def test_confusion_counts_give_the_papers_rows(row):
    found = classification_metrics(*_answers(*PAPER_CONFUSION[row]))
    assert found.n == 215
    for name in OF_CONFUSION:  # the paper prints four decimals
        assert round(found[name], 4) == pytest.approx(PAPER_METRICS[row][name], abs=1e-9), name


def test_metrics_of_a_confusion_follow_the_formulas():
    tp, fp, fn, tn = 7, 3, 2, 11
    found = classification_metrics(*_answers(tp, fp, fn, tn))
    mcc = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert found.mcc == pytest.approx(mcc)
    assert found.f1 == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert found.balanced_accuracy == pytest.approx((tp / (tp + fn) + tn / (tn + fp)) / 2)


def test_one_list_names_every_metric():
    assert tuple(field.name for field in fields(Metrics)) == (*METRIC_NAMES, "n")
    assert [m.title for m in METRICS if not m.higher_is_better] == ["Brier", "log loss"]
    found = classification_metrics(*_answers(7, 3, 2, 11))
    assert list(found.as_dict()) == [*METRIC_NAMES, "n"]
    assert [found[name] for name in METRIC_NAMES] == list(found.as_dict().values())[:-1]
    with pytest.raises(KeyError, match="auc"):
        found["auc"]


def _binary(rng, n=60):
    labels = np.arange(n) % 2
    p1 = np.clip(0.3 * labels + rng.uniform(0, 0.7, n), 0, 1)
    return labels, np.stack([1 - p1, p1], axis=1)


def test_binary_metrics_by_hand(rng):
    labels, p = _binary(rng)
    found = classification_metrics(labels, p)
    p1, y = p[:, 1], labels
    assert found.brier == pytest.approx(np.mean((p1 - y) ** 2))
    assert found.log_loss == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean())
    positive, negative = p1[y == 1], p1[y == 0]
    wins = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    assert found.roc_auc == pytest.approx(wins)
    predicted = p1 > 0.5
    counts = [
        int((predicted & (y == 1)).sum()),
        int((predicted & (y == 0)).sum()),
        int((~predicted & (y == 1)).sum()),
        int((~predicted & (y == 0)).sum()),
    ]
    of_counts = classification_metrics(*_answers(*counts))
    assert [found[k] for k in OF_CONFUSION] == pytest.approx([of_counts[k] for k in OF_CONFUSION])


def test_the_last_label_is_the_positive_class():
    labels = [0, 0, 0, 1]
    found = classification_metrics(labels, [[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9]])
    assert found.recall == 1.0
    assert found.precision == 0.5


def test_a_class_never_predicted_gives_zero_without_a_warning(recwarn):
    found = classification_metrics([0, 1, 1], [[0.9, 0.1]] * 3)
    assert found.precision == found.recall == found.f1 == found.mcc == 0.0
    assert not recwarn.list


def test_log_loss_clips_certain_mistakes():
    found = classification_metrics([0, 1], [[0.0, 1.0], [1.0, 0.0]])
    assert found.log_loss == pytest.approx(-np.log(np.finfo(np.float64).eps))


def test_multiclass_metrics_by_hand(rng):
    labels = np.arange(90) % 3
    logits = rng.normal(size=(90, 3))
    logits[np.arange(90), labels] += 1
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = classification_metrics(labels, p.astype(np.float32))
    predicted = p.argmax(1)
    recalls = [(predicted[labels == c] == c).mean() for c in range(3)]
    precisions = [(labels[predicted == c] == c).mean() for c in range(3)]
    aucs = [sk.roc_auc_score(labels == c, p[:, c]) for c in range(3)]
    assert found.recall == pytest.approx(np.mean(recalls))
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert found.precision == pytest.approx(np.mean(precisions))
    assert found.roc_auc == pytest.approx(np.mean(aucs))
    assert found.brier == pytest.approx(((p - np.eye(3)[labels]) ** 2).sum(1).mean(), rel=1e-5)


GOOD = [[0.4, 0.6], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1, 1], GOOD, "2 rows but labels has 3"),
        ([0, 1], [[0.4, 0.6], [np.nan, 0.5]], "NaN or infinity in 1 rows"),
        ([0, 1], [[0.4, 0.4], [0.5, 0.5]], "sums to 0.8 in row 0"),
        ([0, 1], [[-0.5, 1.5], [0.5, 0.5]], r"spans \[-0.5, 1.5\]"),
        ([1, 1], GOOD, r"no sample of class \[0\]"),
        ([0, 2], np.full((2, 4), 0.25), r"no sample of class \[1, 3\]"),
        ([0, 2], GOOD, "labels holds 2 but probabilities has 2 columns"),
        ([0, -1], GOOD, "labels holds -1"),
        ([0.0, 1.0], GOOD, "dtype float64"),
        ([], np.zeros((0, 2)), r"labels has shape \(0,\)"),
        ([0, 1], [0.4, 0.5], r"probabilities has shape \(2,\)"),
    ],
)
def test_bad_input_is_named(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, probabilities)


def test_constant_answer_of_the_papers_test_split():
    labels = np.repeat([0, 1], [97, 118])
    assert round(majority_class_accuracy(labels), 4) == 0.5488


def test_wilson_interval():
    low, high = wilson_interval(81, 263)  # Newcombe (1998), table I, method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson_interval(0, 20)[0] == 0.0
    assert round(wilson_interval(0, 20)[1], 4) == 0.1611  # the same table
    assert wilson_interval(20, 20)[1] == 1.0
    with pytest.raises(ValueError, match="k=3, n=2"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="confidence=95"):
        wilson_interval(1, 2, confidence=95)
