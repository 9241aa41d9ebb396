"""Certified radii in pixels: no attack contradicts one, and what is not proven has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nnmf_cuda.baselines import SYSTEMS, Setting
from nnmf_cuda.comparison.certified import certified_linf
from nnmf_cuda.comparison.features import FeatureClassifier
from nnmf_cuda.comparison.pixels import transfer_points
from nnmf_cuda.comparison.victims import Victim
from tests.comparison.conftest import NearestCentroid, images_of


class Defended(FeatureClassifier):
    """The light CNN of features, as the package's own systems name their parts."""

    @property
    def defence_(self) -> Any:
        return self.classifier_


def test_no_attack_reaches_what_is_certified() -> None:
    arrays = images_of(12, 4, 2)
    images, labels = arrays["images"], arrays["labels"]
    model = Defended(n_components=4, max_iter=20, epochs=60).fit(images, labels)
    x, y = torch.from_numpy(images).flatten(1).float() / 255, torch.from_numpy(labels)
    radii = certified_linf(model, x, y)
    assert radii is not None
    assert (radii > 0).any()
    victim = Victim(model, (32, 32), seed=0)
    right = victim.right(x, y).numpy()
    assert not (radii[~right] > 0).any()
    least = float(radii[radii > 0].min())
    proven = torch.from_numpy(np.flatnonzero(radii > 0))
    points = transfer_points(victim, x[proven], y[proven], eps=least, n_iter=30, seed=0)
    assert victim.right(points, y[proven]).all()
    # A proof is of the label, not of the answer.
    wrong = certified_linf(model, x, 1 - y)
    assert wrong is not None
    assert not (wrong[right] > 0).any()


@pytest.mark.parametrize("name", ["paper", "robust", "proven", "pixel"])
def test_a_system_names_a_proof_where_there_is_one(name: str) -> None:
    arrays = images_of(6, 4, 2)
    images, labels = arrays["images"], arrays["labels"]
    x, y = torch.from_numpy(images).flatten(1).float() / 255, torch.from_numpy(labels)
    model = SYSTEMS[name].make(Setting(smoke=True)).fit(images, labels)
    assert (certified_linf(model, x[:2], y[:2]) is not None) == (SYSTEMS[name].proof is not None)


def test_what_cannot_be_verified_has_no_radius() -> None:
    arrays = images_of(6, 4, 2)
    images, labels = arrays["images"], arrays["labels"]
    x, y = torch.from_numpy(images).flatten(1).float() / 255, torch.from_numpy(labels)
    assert certified_linf(NearestCentroid().fit(images, labels), x, y) is None
    model = Defended(n_components=4, max_iter=5, epochs=2).fit(images, labels)
    model.classifier_ = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    assert certified_linf(model, x, y) is None
