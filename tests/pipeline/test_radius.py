"""The radius that "auto" takes, what is said before training, and what is then gained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnmf_cuda.attacks.gradient_ascent import vector_apgd
from nnmf_cuda.evaluation.ceiling import ceiling, largest_eps
from nnmf_cuda.pipeline.config import PRESETS, AttackConfig, ExperimentConfig
from nnmf_cuda.pipeline.defences import train_adversarially
from nnmf_cuda.pipeline.radius import decide_radius
from tests.hard_data import overlapping, three_classes

HARD = {"overlapping": (overlapping, 2), "three classes": (three_classes, 3)}


def parts(splits):
    x = {name: torch.from_numpy(rows) for name, (rows, _) in splits.items()}
    return x, {name: labels for name, (_, labels) in splits.items()}


def asked(attack_eps, preset="robust"):
    return replace(PRESETS[preset], attack=AttackConfig(attack_eps=attack_eps))


def test_the_data_are_as_hard_as_they_are_said_to_be():
    x, y = overlapping()["test"]
    assert 0.75 < ceiling(x, y, 0.1).accuracy < 0.85
    assert 0.3 < y.mean() < 0.4
    x, y = three_classes()["test"]
    assert 0.7 < ceiling(x, y, 0.1).accuracy < 0.85
    assert len(np.unique(y)) == 3


@pytest.mark.parametrize("name", HARD)
def test_a_radius_too_large_is_said_before_training_with_one_that_is_not(name):
    x, y = parts(HARD[name][0]())
    config, found = decide_radius(x, y, asked(0.1))
    assert config.attack.radius == config.defence.radius == 0.1
    assert found.decided_by == "as given"
    assert found.ceilings["test"] == ceiling(x["test"], y["test"], 0.1).accuracy
    assert "constant answer" in found.summary
    assert found.worth_having is not None
    assert 0.03 < found.worth_having < 0.1
    assert found.warning is not None
    assert "it is not sure that a defence gains anything" in found.warning
    assert "give --attack.attack_eps auto, or 0.0" in found.warning
    assert found.as_dict()["warning"] == found.warning


@pytest.mark.parametrize("name", HARD)
def test_auto_takes_a_radius_at_which_the_worst_case_gains(name):
    make, n_classes = HARD[name]
    x, y = parts(make())
    config, found = decide_radius(x, y, asked("auto"))
    eps = config.attack.radius
    assert eps == config.defence.radius == found.attack_eps
    assert eps <= largest_eps(x["train"], y["train"], 0.95) < 1.2 * eps  # rounded to two digits
    assert found.ceilings["train"] >= 0.95
    assert found.warning is None
    training = train_adversarially(
        *(x, y, replace(config.defence, epochs=25)), norm="Linf", n_classes=n_classes, seed=0
    )
    labels = torch.from_numpy(y["test"])
    points = vector_apgd(
        *(training.model, x["test"], labels),
        attack_eps=eps,
        norm="Linf",
        n_iter=40,
        n_restarts=1,
        seed=0,
    )
    with torch.no_grad():
        right = training.model(points).argmax(1) == labels
    assert float(right.float().mean()) >= found.constants["test"] + 0.10


def test_auto_goes_below_the_ceilings_radius_where_that_gains_nothing():
    """Distances that say nothing of the classes: the ceiling is high at radii that are hopeless."""
    rng = np.random.default_rng(0)

    def drawn(n):
        y = rng.integers(0, 2, n)
        x = np.abs(rng.normal(0.4, 0.1, (n, 12)))
        x[:, 0] += 0.15 * y
        return x.astype(np.float32).clip(0, 1), y

    x, y = parts({"train": drawn(500), "valid": drawn(300), "test": drawn(300)})
    config, found = decide_radius(x, y, asked("auto"))
    by_ceiling = largest_eps(x["train"], y["train"], 0.95)
    assert config.attack.radius < 0.8 * by_ceiling
    assert found.decided_by == (
        "auto: the largest at which a linear classifier is proven to gain 0.15"
    )
    assert found.linear_proven >= found.constants["valid"] + 0.1


def test_features_that_say_nothing_are_said_to():
    rng = np.random.default_rng(1)
    splits = {
        name: (rng.random((n, 6), dtype=np.float32), rng.integers(0, 2, n))
        for name, n in {"train": 300, "valid": 150, "test": 150}.items()
    }
    _, found = decide_radius(*parts(splits), asked(0.05))
    assert found.worth_having is None
    assert found.warning is not None
    assert "at no eps at all" in found.warning


def test_a_hopeless_radius_is_said_to_be():
    _, found = decide_radius(*parts(overlapping()), asked(0.5))
    assert found.ceilings["test"] == found.constants["test"]
    assert found.warning is not None
    assert "nothing can be gained" in found.warning


def test_auto_says_where_there_is_no_radius():
    splits = overlapping()
    x, y = parts(splits)
    same = {name: torch.full_like(rows, 0.5) for name, rows in x.items()}
    with pytest.raises(ValueError, match='attack.attack_eps="auto" finds no radius: more than 5'):
        decide_radius(same, y, asked("auto"))
    one = {name: np.zeros_like(labels) for name, labels in y.items()}
    with pytest.raises(ValueError, match="no two training samples of different classes"):
        decide_radius(x, one, asked("auto"))


def test_a_large_split_is_looked_at_in_part(monkeypatch):
    monkeypatch.setattr("nnmf_cuda.pipeline.radius._MOST", 100)
    _, found = decide_radius(*parts(overlapping()), ExperimentConfig())
    assert found.ceilings["train"] > 0.85  # of a tenth of the samples, which lie less close
