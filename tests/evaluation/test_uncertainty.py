"""Intervals and comparisons of a run against the functions they are made of."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from nnmf_cuda.data import ImageDataset, groupings_of_test
from nnmf_cuda.evaluation import (
    METRIC_NAMES,
    ROW_NAMES,
    EvaluatedRows,
    Metrics,
    classification_metrics,
    expected_calibration_error,
    measure_uncertainty,
    resample_metrics,
)


def make_rows(labels: np.ndarray, n_classes: int = 2, n_predictions: int = 5) -> EvaluatedRows:
    rng, probabilities, rows = np.random.default_rng(0), {}, {}
    for name, strength in zip(ROW_NAMES, (2.0, 1.5, -1.0, 0.5), strict=True):
        n = n_predictions if name.endswith("Defended") else 1
        logits = rng.normal(size=(n, len(labels), n_classes))
        logits += rng.normal(size=(len(labels), n_classes))  # shared by the predictions
        logits[:, np.arange(len(labels)), labels] += strength
        p = np.exp(logits)
        probabilities[name] = p / p.sum(-1, keepdims=True)
        table = [classification_metrics(labels, q) for q in probabilities[name]]
        mean = {m: float(np.mean([t[m] for t in table])) for m in METRIC_NAMES}
        rows[name] = Metrics(**mean, n=len(labels))
    return EvaluatedRows(rows, {}, probabilities, labels, n_predictions)


def make_dataset(test_labels: np.ndarray, **groups: np.ndarray) -> ImageDataset:
    """A training and a validation image of each class, then the test images."""
    n_classes = int(test_labels.max()) + 1
    labels = np.concatenate([np.arange(n_classes)] * 2 + [test_labels])
    split = np.repeat(["train", "valid", "test"], [n_classes, n_classes, len(test_labels)])
    return ImageDataset(
        images=np.zeros((len(labels), 2, 2), dtype=np.uint8),
        labels=labels,
        label_names=tuple("abcdefghij"[:n_classes]),
        split=split,
        groups={name: np.concatenate((labels[: 2 * n_classes], g)) for name, g in groups.items()},
        files=labels.astype(str),
        source="here",
    )


LABELS = np.arange(60) % 2
PATIENT, SERIES = np.arange(60) // 6, np.arange(60) // 2


def test_intervals_are_those_of_the_bootstrap_by_the_widest_group() -> None:
    rows = make_rows(LABELS)
    fold = np.arange(60) // 20
    for groups, by, used in (
        ({"series": SERIES, "patient": PATIENT, "patient_fold": fold}, "patient", PATIENT),
        ({"series": SERIES, "patient_fold": fold}, "series", SERIES),
        ({"patient_fold": fold}, "image", None),
        ({"patient": np.zeros(60, dtype=int), "series": SERIES}, "series", SERIES),
    ):
        found = measure_uncertainty(
            rows, groupings=groupings_of_test(make_dataset(LABELS, **groups)), seed=4
        )
        assert found.intervals.clustered_by == by
        assert found.intervals.n_clusters == (60 if used is None else len(np.unique(used)))
        content = found.as_dict()
        word = int(np.random.SeedSequence([4, 2]).generate_state(1)[0])
        for name in ROW_NAMES:
            alone = resample_metrics(LABELS, [rows.probabilities[name]], groups=used, seed=word)
            for metric, want in alone.intervals(0).items():
                ends = content["intervals"]["rows"][name][metric]
                assert ends == pytest.approx({"low": want.low, "high": want.high})
        for condition in ("Clean", "Robust"):
            a, b = (rows.probabilities[f"{condition}_{m}"] for m in ("Defended", "Baseline"))
            paired = resample_metrics(LABELS, [a, b], groups=used, seed=word).differences(0, 1)
            difference = content["comparisons"][condition.lower()]["difference"]["mcc"]
            assert difference == pytest.approx(asdict(paired["mcc"]))


def test_comparisons_count_majority_decisions() -> None:
    rows = make_rows(LABELS)
    found = measure_uncertainty(rows, groupings={}, seed=0).robust
    defended, baseline = (rows.probabilities[f"Robust_{m}"] for m in ("Defended", "Baseline"))
    votes = (defended.argmax(2) == LABELS).sum(0)
    right = baseline[0].argmax(1) == LABELS
    assert found.mcnemar.n_only_a == ((votes >= 3) & ~right).sum() > 0
    assert found.mcnemar.n_only_b == ((votes < 3) & right).sum()
    of_mean = classification_metrics(LABELS, defended.mean(0)).roc_auc
    assert found.delong.auc_a == pytest.approx(of_mean)
    assert found.delong.auc_b == pytest.approx(rows.rows["Robust_Baseline"].roc_auc)


def test_calibration_is_the_mean_over_predictions() -> None:
    rows = make_rows(LABELS)
    found = measure_uncertainty(rows, groupings={}, seed=0)
    for name, error in found.calibration_errors.items():
        each = [expected_calibration_error(LABELS, p) for p in rows.probabilities[name]]
        assert error == pytest.approx(np.mean(each))


def test_three_classes_have_no_delong() -> None:
    labels = np.arange(60) % 3
    found = measure_uncertainty(make_rows(labels, 3), groupings={}, seed=0)
    assert found.clean.delong is None
    assert found.clean.difference["roc_auc"].low < 1
    json.dumps(found.as_dict(), allow_nan=False)


def test_one_sample_of_a_class_has_no_delong() -> None:
    labels = np.array([1] + [0] * 11)
    found = measure_uncertainty(make_rows(labels), groupings={}, seed=0)
    assert found.clean.delong is None
    assert found.intervals.n_redrawn > 0


def test_data_that_cannot_be_resampled_do_not_end_a_run() -> None:
    labels = np.arange(10)  # a resample that holds all ten is one in 2756
    found = measure_uncertainty(make_rows(labels, 10), groupings={}, seed=0)
    assert found.intervals is None
    assert found.robust.difference is None
    content = found.as_dict()
    assert content["intervals"] is content["comparisons"]["robust"]["difference"] is None
    assert set(content["wilson"]) == set(ROW_NAMES)
    json.dumps(content, allow_nan=False)


def test_groups_that_cannot_be_resampled_give_way_to_finer_ones() -> None:
    labels = np.arange(200) % 10
    dataset = make_dataset(labels, patient=labels, series=np.arange(200))
    found = measure_uncertainty(make_rows(labels, 10), groupings=groupings_of_test(dataset), seed=0)
    assert found.intervals.clustered_by == "series"
