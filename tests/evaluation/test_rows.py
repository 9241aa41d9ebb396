"""The four rows, with models whose answers are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from nnmf_cuda.evaluation import (
    METRIC_NAMES,
    PAPER_METRICS,
    PAPER_TEST_COUNTS,
    PAPER_TIMINGS,
    ROW_NAMES,
    classification_metrics,
    evaluate_rows,
    majority_class_accuracy,
    predict_probabilities,
)


class Sign(nn.Module):
    """Logit of class 1 is the sum of the features, centred."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.dropout = nn.Dropout(0.5)
        self.grad_enabled: list[bool] = []

    def forward(self, x):
        self.grad_enabled.append(torch.is_grad_enabled())
        score = self.scale * (self.dropout(x).sum(1) - 0.5 * x.shape[1])
        return torch.stack([-score, score], dim=1)


class NoisySign(Sign):
    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x, *, generator):
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        return super().forward(x + self.sigma * noise)


@pytest.fixture
def data(rng):
    labels = np.arange(40) % 2
    clean = (0.3 + 0.4 * labels[:, None] + 0.05 * rng.normal(size=(40, 5))).astype(np.float32)
    attacked = clean[::-1].copy()  # every sample now looks like the other class
    return clean, attacked, labels


def test_rows_of_a_perfect_and_of_a_broken_model(data):
    clean, attacked, labels = data
    found = evaluate_rows(
        Sign(), NoisySign(0.0), clean, attacked, attacked, labels, seed=0, n_predictions=3
    )
    assert list(found.rows) == list(ROW_NAMES)
    for name in ("Clean_Baseline", "Clean_Defended"):
        assert found.rows[name].accuracy == found.rows[name].roc_auc == 1.0
    for name in ("Robust_Baseline", "Robust_Defended"):
        assert found.rows[name].accuracy == 0.0
    assert set(found.spread) == {"Clean_Defended", "Robust_Defended"}
    assert all(v == pytest.approx(0, abs=1e-12) for v in found.spread["Clean_Defended"].values())


def test_defended_rows_are_means_over_different_predictions(data):
    clean, attacked, labels = data
    found = evaluate_rows(
        Sign(), NoisySign(0.5), clean, clean, attacked, labels, seed=1, n_predictions=6
    )
    draws = found.probabilities["Robust_Defended"]
    assert draws.shape == (6, 40, 2)
    assert found.probabilities["Clean_Baseline"].shape == (1, 40, 2)
    assert len({p.tobytes() for p in draws}) == 6
    table = [classification_metrics(labels, p) for p in draws]
    for name in METRIC_NAMES:
        values = np.array([row[name] for row in table])
        assert found.rows["Robust_Defended"][name] == pytest.approx(values.mean())
        assert found.spread["Robust_Defended"][name] == pytest.approx(values.std(ddof=1))
    assert found.spread["Robust_Defended"]["accuracy"] > 0


def test_the_seed_decides_and_no_global_state_is_used(data):
    clean, attacked, labels = data
    torch.manual_seed(123)
    before = torch.get_rng_state()
    arguments = (Sign(), NoisySign(0.5), clean, attacked, attacked, labels)
    first = evaluate_rows(*arguments, seed=7, n_predictions=2)
    again = evaluate_rows(*arguments, seed=7, n_predictions=2)
    other = evaluate_rows(*arguments, seed=8, n_predictions=2)
    assert torch.equal(before, torch.get_rng_state())
    assert first.rows == again.rows
    assert first.rows["Clean_Defended"] != other.rows["Clean_Defended"]


def test_prediction_runs_in_evaluation_mode_without_gradients_and_restores_the_model(data):
    clean, _, _ = data
    model = Sign().train()
    p = predict_probabilities(model, torch.from_numpy(clean).requires_grad_(), batch_size=7)
    np.testing.assert_allclose(p, predict_probabilities(model, clean))  # dropout is off
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)
    assert model.grad_enabled == [False] * 7
    assert model.training
    assert model.dropout.training


def test_metrics_json_has_the_documented_keys(data):
    clean, attacked, labels = data
    found = evaluate_rows(
        Sign(), NoisySign(0.2), clean, attacked, attacked, labels, seed=0, n_predictions=1
    )
    content = json.loads(json.dumps(found.as_dict(notes=["a note"]), allow_nan=False))
    assert content["majority_class_accuracy"] == majority_class_accuracy(labels) == 0.5
    assert content["notes"] == ["a note"]
    assert content["n_predictions"] == 1
    for name in ROW_NAMES:
        assert set(content["rows"][name]) == {*METRIC_NAMES, "n"}
        assert content["rows"][name]["n"] == 40


def test_three_classes(rng):
    labels = np.arange(30) % 3
    x = np.eye(3, dtype=np.float32)[labels] + 0.1 * rng.normal(size=(30, 3)).astype(np.float32)

    class Noisy(nn.Identity):
        def forward(self, x, *, generator):
            return 3 * x + torch.randn(x.shape, generator=generator)

    found = evaluate_rows(nn.Identity(), Noisy(), x, x, x, labels, seed=0, n_predictions=2)
    assert found.rows["Clean_Baseline"].accuracy == 1.0
    assert found.probabilities["Clean_Defended"].shape == (2, 30, 3)


def test_bad_input_is_named(data):
    clean, attacked, labels = data
    models = Sign(), NoisySign(0.0)
    with pytest.raises(ValueError, match=r"x_adv_baseline has shape \(39, 5\)"):
        evaluate_rows(*models, clean, attacked[1:], attacked, labels, seed=0)
    with pytest.raises(ValueError, match="n_predictions=0"):
        evaluate_rows(*models, clean, attacked, attacked, labels, seed=0, n_predictions=0)
    with pytest.raises(ValueError, match="no sample of class"):
        evaluate_rows(*models, clean, attacked, attacked, np.ones(40, int), seed=0)
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        predict_probabilities(Sign(), np.full((2, 5), np.nan))
    with pytest.raises(ValueError, match=r"x has shape \(0, 5\)"):
        predict_probabilities(Sign(), np.zeros((0, 5)))
    with pytest.raises(ValueError, match="batch_size=0"):
        predict_probabilities(Sign(), clean, batch_size=0)


def test_the_papers_tables_are_complete():
    assert tuple(PAPER_METRICS) == ROW_NAMES
    assert all(set(row) <= set(METRIC_NAMES) for row in PAPER_METRICS.values())
    assert sum(PAPER_TEST_COUNTS) == 215
    for device in ("cpu", "gpu"):
        stages = [v[device] for stage, v in PAPER_TIMINGS.items() if stage != "total"]
        assert sum(stages) == pytest.approx(PAPER_TIMINGS["total"][device], abs=0.011)
