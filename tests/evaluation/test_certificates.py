"""Certified radii against closed forms: linear models, and classes that are intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from nnmf_cuda import ops
from nnmf_cuda.evaluation import ABSTAINED, Certificate, certify
from nnmf_cuda.evaluation import certificates as bases
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser

SIGMA = 0.25


def linear(weight, bias=0.0) -> nn.Linear:
    """Class 1 where weight . x + bias > 0."""
    model = nn.Linear(len(weight), 2)
    with torch.no_grad():
        model.weight.copy_(torch.stack((torch.zeros(len(weight)), torch.tensor(weight))))
        model.bias.copy_(torch.tensor([0.0, bias]))
    return model


def line(n: int, d: int = 4, seed: int = 0):
    """A linear model, points on both sides of it, and their signed distances from it."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=d)
    unit = weight / np.linalg.norm(weight)
    distance = np.linspace(-0.6, 0.6, n)
    along = rng.normal(size=(n, d))
    along -= np.outer(along @ unit, unit)
    x = along + np.outer(distance, unit)
    return linear(weight.astype(np.float32)), x.astype(np.float32), distance


def exact_denoiser(d: int, alpha_cumprod: float) -> FeatureDenoiser:
    """Returns x_t / sqrt(alpha_cumprod), so that the base classifier sees x + sigma * noise."""
    denoiser = FeatureDenoiser(d, hidden=d, embedding_dim=2)
    first, second, third = (m for m in denoiser.layers if isinstance(m, nn.Linear))
    offset = 50.0  # keeps both ReLUs open
    with torch.no_grad():
        first.weight.copy_(torch.cat((torch.eye(d), torch.zeros(d, 2)), 1))
        first.bias.fill_(offset)
        second.weight.copy_(torch.eye(d))
        second.bias.zero_()
        third.weight.copy_(torch.eye(d) / math.sqrt(alpha_cumprod))
        third.bias.fill_(-offset / math.sqrt(alpha_cumprod))
    return denoiser


def defended_by(classifier, d, *, t=41, timesteps=None, num_timesteps=200):
    schedule = NoiseSchedule.linear(num_timesteps)
    denoiser = exact_denoiser(d, float(schedule.alphas_cumprod[t]))
    purifier = DiffusionPurifier(denoiser, schedule, timesteps=timesteps or (t,), n_draws=3)
    return DefendedClassifier(purifier, classifier), schedule


def expected_radius(share: float, n: int, alpha: float, sigma: float) -> float:
    return sigma * stats.norm.ppf(stats.beta.ppf(alpha, n * share, n - n * share + 1))


def test_radii_of_a_linear_model_are_its_distances():
    model, x, distance = line(41)
    y = (distance > 0).astype(int)
    found = certify(model, x, y, sigma=SIGMA, n_estimation=20_000, seed=0)
    sure = np.abs(distance) > 0.05
    assert (found.predictions[sure] == y[sure]).all()
    assert (found.radii <= np.abs(distance) + 1e-6)[sure].all()  # 41 bounds at 0.001: none fails
    reachable = sure & (np.abs(distance) < 2.5 * SIGMA)
    lost = np.abs(distance) - found.radii
    assert lost[reachable].max() < 0.12 * SIGMA
    assert found.radii.max() <= found.max_radius
    assert np.argmin(np.abs(distance)) in np.flatnonzero(found.abstained)


def test_a_denoiser_that_only_rescales_certifies_what_plain_noise_does():
    model, x, distance = line(13)
    y = (distance > 0).astype(int)
    defended, schedule = defended_by(model, 4)
    abar = float(schedule.alphas_cumprod[41])
    found = certify(defended, x, y, n_estimation=20_000, seed=1)
    assert found.sigma == pytest.approx(math.sqrt((1 - abar) / abar))
    for radius, away in zip(found.radii, np.abs(distance), strict=True):
        share = stats.norm.cdf(away / found.sigma)
        if share > 0.55:
            want = expected_radius(share, 20_000, 1e-3, found.sigma)
            assert radius == pytest.approx(want, abs=0.12 * found.sigma)
            assert radius <= away
    plain = certify(model, x, y, sigma=found.sigma, n_estimation=20_000, seed=1)
    np.testing.assert_allclose(plain.radii, found.radii, atol=2e-3)  # the same noise of Philox


def test_the_papers_noise_in_feature_units():
    for num_timesteps, sigma in ((1000, 0.147), (100, 0.44)):
        assert NoiseSchedule.linear(num_timesteps).noise_level(41) == pytest.approx(sigma, abs=0.01)


class Thresholds(nn.Module):
    """Class c where the first feature lies between cuts c-1 and c."""

    cuts = (-0.3, 0.4)

    def forward(self, x):
        named = torch.bucketize(x[:, 0].contiguous(), torch.tensor(self.cuts))
        return nn.functional.one_hot(named, 3).float()


def test_several_classes():
    x = np.zeros((5, 3), dtype=np.float32)
    x[:, 0] = (-0.7, -0.1, 0.05, 0.2, 0.9)
    y = np.array([0, 1, 1, 2, 2])
    found = certify(Thresholds(), x, y, sigma=SIGMA, n_estimation=20_000, seed=2)
    edges = np.array([-np.inf, *Thresholds.cuts, np.inf])
    shares = np.diff(stats.norm.cdf((edges[:, None] - x[:, 0]) / SIGMA), axis=0)
    assert found.predictions.tolist() == shares.argmax(0).tolist() == [0, 1, 1, 1, 2]
    true = SIGMA * stats.norm.ppf(shares.max(0))
    assert (found.radii <= true).all()
    np.testing.assert_allclose(found.radii, true, atol=0.12 * SIGMA)
    assert found.right.tolist() == [True, True, True, False, True]
    assert found.certified_accuracy(0) == 0.8  # the wrong one has a radius, and does not count
    assert found.certified_accuracy([0.0, 9.0]).tolist() == [0.8, 0.0]


def test_a_coin_toss_abstains():
    """All points on the boundary: a radius has chance alpha there, at most."""
    model = linear((1.0, 0.0))
    found = certify(
        model, torch.zeros(60, 2), [0, 1] * 30, sigma=SIGMA, n_estimation=500, alpha=0.01, seed=0
    )
    assert found.abstained.sum() >= 57
    where = found.abstained
    assert (found.radii[where] == 0).all()
    assert (found.predictions[where] == ABSTAINED).all()
    assert found.certified_accuracy(0) <= 3 / 60


def test_bounds_fail_as_often_as_alpha_says():
    """The same point many times, with noise of its own each time; a failing radius is too large."""
    away = 0.2
    model = linear((1.0, 0.0))
    x = np.tile(np.float32([away, 0.0]), (400, 1))
    found = certify(model, x, np.ones(400, int), sigma=SIGMA, n_estimation=300, alpha=0.1, seed=5)
    assert len(np.unique(found.radii)) > 10  # no two points share their noise
    failed = (found.radii > away).sum()
    assert 15 < failed <= stats.binom.ppf(0.999, 400, 0.1)


def test_selection_and_estimation_draw_apart(monkeypatch):
    asked = []
    votes = bases.BaseClassifier.votes

    def watched(self, x, n_draws, seed):
        asked.append((n_draws, seed))
        return votes(self, x, n_draws, seed)

    monkeypatch.setattr(bases.BaseClassifier, "votes", watched)
    model, x, _ = line(3)
    certify(model, x, [0, 0, 1], sigma=SIGMA, n_selection=30, n_estimation=40, seed=6)
    assert [n for n, _ in asked] == [30, 40] * 3
    assert len({seed for _, seed in asked}) == 6


def test_memory_is_bounded_and_every_draw_is_of_its_own(monkeypatch):
    seen = []

    class Keeps(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return torch.stack((x[:, 0], -x[:, 0]), 1)

    monkeypatch.setattr(bases, "_ENTRIES", 5 * 100)
    certify(Keeps(), np.zeros((1, 5)), [0], sigma=SIGMA, n_estimation=1050, seed=7)
    assert max(map(len, seen)) == 100
    draws = torch.cat(seen)
    assert len(draws) == 100 + 1050
    assert len(draws.unique(dim=0)) == len(draws)
    assert float(draws.std()) == pytest.approx(SIGMA, rel=0.05)


def networks(d=6, n_classes=3):
    torch.manual_seed(0)
    schedule = NoiseSchedule.linear(200)
    purifier = DiffusionPurifier(FeatureDenoiser(d), schedule, timesteps=(41,), n_draws=8)
    defended, x = DefendedClassifier(purifier, FeatureCNN(d, n_classes)), torch.rand(5, d)
    with torch.no_grad():  # a fresh network names one class everywhere
        purifier.denoiser.layers[-1].weight.mul_(10)
        defended.classifier.head[-1].bias.sub_(defended(x.repeat(100, 1), noise=0).mean(0))
    return defended, x


def test_the_fused_defence_votes_as_plain_torch_does():
    defended, x = networks()
    options = {"n_selection": 50, "n_estimation": 2000, "seed": 3}
    state = {name: value.clone() for name, value in defended.state_dict().items()}
    fused = certify(defended.train(), x, [0, 1, 2, 0, 1], **options)
    with ops.reference_path():
        plain = certify(defended, x, [0, 1, 2, 0, 1], **options)
        counted = bases.base_classifier(defended, None).votes(x[0], 2000, (3, 0, 1))
    assert counted.min() > 100  # the votes are divided, so that they can differ
    votes = bases.base_classifier(defended, None).votes(x[0], 2000, (3, 0, 1))
    assert np.abs(votes - counted).sum() <= 4  # one may tip by rounding
    assert ((fused.radii > 0) & (fused.radii < 0.9 * fused.max_radius)).any()
    np.testing.assert_array_equal(fused.predictions, plain.predictions)
    np.testing.assert_allclose(fused.radii, plain.radii, atol=5e-3)
    assert all(torch.equal(state[name], value) for name, value in defended.state_dict().items())
    assert all(module.training for module in defended.modules())
    assert defended.purifier.n_draws == 8


def test_votes_are_of_single_draws():
    """A model that is right on 60 % of draws, by margins that would turn a mean of logits."""

    class Lopsided(nn.Module):
        def forward(self, x):
            margin = torch.where(x[:, 0] > -0.2533 * SIGMA, 1.0, -100.0)
            return torch.stack((torch.zeros_like(margin), margin), 1)

    found = certify(Lopsided(), np.zeros((1, 2)), [1], sigma=SIGMA, n_estimation=20_000, seed=0)
    assert found.predictions.tolist() == [1]
    assert found.radii[0] == pytest.approx(0.2533 * SIGMA, abs=0.05 * SIGMA)


def test_seed_and_place_decide():
    defended, x = networks()
    y = [0, 1, 2, 0, 1]
    a, b, c = (certify(defended, x, y, n_estimation=500, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.radii, b.radii)
    fewer = certify(defended, x[:3], y[:3], n_estimation=500, seed=0)
    np.testing.assert_array_equal(fewer.radii, a.radii[:3])
    assert (a.radii != c.radii).any()


def test_figures_of_a_certificate():
    found = Certificate(
        predictions=np.array([0, 1, ABSTAINED, 1]),
        radii=np.array([0.5, 0.25, 0.0, 0.75]),
        labels=np.array([0, 1, 1, 0]),
        sigma=0.25,
        n_features=25,
        n_selection=100,
        n_estimation=10_000,
        alpha=1e-3,
    )
    np.testing.assert_allclose(found.linf_equivalent, [0.1, 0.05, 0, 0.15])
    np.testing.assert_allclose(found.certified_accuracy([0, 0.25, 0.3, 0.6]), [0.5, 0.5, 0.25, 0])
    np.testing.assert_allclose(found.certified_accuracy_linf([0.05, 0.06, 0.1, 0.11]),
                               [0.5, 0.25, 0.25, 0])  # fmt: skip
    assert found.certified_accuracy(0.3).shape == ()
    low = stats.beta.ppf(1e-3, 10_000, 1)  # all draws agree
    assert found.max_radius == pytest.approx(0.25 * stats.norm.ppf(low))
    content = found.as_dict(n_points=3)
    assert content["curve"]["radius"] == pytest.approx([0, found.max_radius / 2, found.max_radius])
    assert content["curve"]["certified_accuracy"] == [0.5, 0.25, 0.0]
    assert content["mean_certified_radius"] == pytest.approx(0.75 / 4)
    assert (content["clean_accuracy"], content["abstained_share"]) == (0.5, 0.25)
    assert content["max_linf_equivalent"] == pytest.approx(found.max_radius / 5)
    with pytest.raises(ValueError, match="give L2 radii of 0 or more"):
        found.certified_accuracy([-0.1])


def test_agreeing_draws_reach_the_largest_radius():
    found = certify(linear((1.0,)), [[50.0]], [1], sigma=SIGMA, n_estimation=1000, seed=0)
    assert found.radii[0] == found.max_radius
    assert found.certified_accuracy(found.max_radius) == 1
    assert found.as_dict()["curve"]["certified_accuracy"][-1] == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sigma": None}, "sigma=None; a model other than a DefendedClassifier"),
        ({"sigma": 0.0}, "give sigma > 0"),
        ({"sigma": math.nan}, "give sigma > 0"),
        ({"n_selection": 0}, "n_selection=0; need at least 1"),
        ({"n_estimation": 9, "alpha": 0.001}, "give at least 11 draws"),
        ({"alpha": 1.0}, "alpha=1.0"),
        ({"seed": -1}, "seed=-1"),
        ({"y": [0, 1]}, r"x has shape \(3, 4\); give \(2, n_features\)"),
        ({"x": np.full((3, 4), np.nan)}, "x holds NaN or infinity"),
        ({"y": [0.5, 1.0, 1.0]}, "labels has dtype float64"),
    ],
)
def test_errors_name_the_argument(changes, said):
    model, x, _ = line(3)
    options = {"x": x, "y": [0, 1, 1], "sigma": SIGMA, "seed": 0, **changes}
    with pytest.raises(ValueError, match=said):
        certify(model, options.pop("x"), options.pop("y"), **options)


def test_the_fewest_draws_that_the_error_names_are_enough():
    model, x, _ = line(3)
    certify(model, x, [0, 1, 1], sigma=SIGMA, n_estimation=11, alpha=0.001, seed=0)


def test_errors_of_defended_models():
    model, x, _ = line(3)
    chain, _ = defended_by(model, 4, timesteps=(41, 20))
    with pytest.raises(ValueError, match=r"timesteps \(41, 20\); a certificate needs a single one"):
        certify(chain, x, [0, 1, 1], seed=0)
    one_shot, _ = defended_by(model, 4)
    with pytest.raises(ValueError, match="sigma=0.25 is given with a defended model"):
        certify(one_shot, x, [0, 1, 1], sigma=SIGMA, seed=0)


def test_a_broken_model_is_no_vote():
    model = linear((1.0, math.nan))
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        certify(model, np.zeros((1, 2)), [0], sigma=SIGMA, seed=0)
