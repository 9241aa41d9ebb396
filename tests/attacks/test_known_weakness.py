"""A planted weakness is found by the suite, unless what stands before it masks its gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nnmf_cuda.attacks import Threat, run_suite
from nnmf_cuda.attacks.known_weakness import RIGHT, plant
from nnmf_cuda.attacks.objectives import majority_right
from nnmf_cuda.attacks.surrogates import surrogate
from nnmf_cuda.models.networks import FeatureMLP
from nnmf_cuda.robustness.budgets import LIGHT

EPS = 0.1


class Rounded(nn.Module):
    """Rounds what goes through it: almost the same answers, and no gradient."""

    def forward(self, x):
        return torch.round(x, decimals=3)


def broken_by_gradients(model, samples, norm="Linf", least_known=0.8):
    """Share of the known weaknesses that APGD finds."""
    x, _ = samples
    y = torch.full((len(x),), RIGHT)
    planted, points = plant(model, x, Threat(EPS, norm), seed=0)
    known = ~majority_right(planted, points, y, seed=1)
    assert float(known.float().mean()) > least_known
    assert float(majority_right(planted, x, y, seed=1).float().mean()) > 0.9
    result = run_suite(planted, x, y, attack_eps=EPS, norm=norm, budget=LIGHT, n_rounds=1)
    broken = torch.stack([~o.robust[0] for o in result.outcomes if o.attack.kind.is_white_box])
    return float(broken.any(0)[known].float().mean())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_suite_finds_what_is_planted(classifier, samples, norm):
    assert broken_by_gradients(classifier, samples, norm) > 0.9


def test_the_suite_finds_what_is_planted_in_an_mlp(samples):
    torch.manual_seed(0)
    mlp = FeatureMLP(samples[0].shape[1], 2)
    assert broken_by_gradients(mlp, samples) > 0.9


def test_the_suite_finds_what_is_planted_behind_a_purifier(defended, samples):
    # The noise is larger than the ball, so some points are known in vain.
    assert broken_by_gradients(defended, samples, least_known=0.5) > 0.8


def test_masked_gradients_are_noticed(classifier, samples):
    masked = copy.deepcopy(classifier)
    masked.convolutions = nn.Sequential(Rounded(), *masked.convolutions)
    assert broken_by_gradients(masked, samples) < 0.6


def test_random_points_do_not_break_a_planted_model(classifier, samples):
    x, _ = samples
    planted, _ = plant(classifier, x, Threat(EPS), seed=0)
    generator = torch.Generator().manual_seed(7)
    moved = (x + EPS * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
    right = majority_right(planted, moved, torch.full((len(x),), RIGHT), seed=1)
    assert float(right.float().mean()) > 0.9


def test_a_surrogate_of_a_planted_defence_keeps_its_readouts(defended, samples):
    x, _ = samples
    planted, points = plant(defended, x, Threat(EPS), seed=0)
    noise = planted.purifier.draw_noise(points, torch.Generator().manual_seed(1))
    wide = surrogate(planted, 3 * noise.shape[2])
    torch.testing.assert_close(
        wide(points, noise=noise.repeat(1, 1, 3, 1)),
        planted(points, noise=noise),
        rtol=1e-3,
        atol=1e-3,
    )


def test_other_models_are_refused(samples):
    with pytest.raises(TypeError, match="model must be a FeatureCNN"):
        plant(nn.Linear(6, 2), samples[0], Threat(EPS), seed=0)
