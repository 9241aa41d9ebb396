"""A defence in which a point that breaks it is known for every sample: what misses it is too weak.

Zimmermann, Brendel, Tramer & Carlini (2022), Increasing confidence in adversarial robustness
evaluations (arXiv:2206.13991). The last layer alone is replaced, so that an attack reaches the
known point only through everything before it, purifier and noise included: where their gradients
are masked, it fails here as it fails on the defence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.balls import Ball, Threat
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier
from nnmf_cuda.models.networks import FeatureClassifier, FeatureCNN, FeatureMLP, frozen, isolated

RIGHT = 0
"""The class of every sample of a planted model, which has two."""

_N_INNER = 128
"""Points inside the ball that each readout must tell from the one on its surface."""

_N_ANSWERS = 16
"""Answers of a random defence over which the units of a point are averaged."""

_INNER = 0.95
"""Largest share of the radius at which inner points lie."""

_RIDGE = 1e-3
"""Of the mean variance, added to each unit's: units may be constant."""


class _Readouts(nn.Module):
    """A linear readout of the last hidden units for each sample: row i is about sample i modulo n.

    Weights are (n, n_units), biases (n,).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, units: Tensor) -> Tensor:
        """Return logits (rows, 2) of units (rows, n_units)."""
        sample = torch.arange(len(units), device=units.device) % len(self.weight)
        score = (units * self.weight[sample]).sum(1) + self.bias[sample]
        return torch.stack((torch.zeros_like(score), score), 1)


class _PlantedClassifier(nn.Module):
    def __init__(self, network: FeatureClassifier, readouts: nn.Module) -> None:
        super().__init__()
        self.network, self.readouts = network, readouts

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.readouts(self.network.hidden(x))
        return logits


class _PlantedDefence(DefendedClassifier):
    """The readouts are linear, so the mean of the draws' logits is that of their mean units."""

    def __init__(
        self, purifier: DiffusionPurifier, network: FeatureClassifier, readouts: nn.Module
    ) -> None:
        super().__init__(purifier, network)
        self.network, self.readouts = network, readouts

    def classify(self, purified: Tensor) -> Tensor:
        units = self.network.hidden(purified.flatten(0, 1))
        logits: Tensor = self.readouts(units.reshape(*purified.shape[:2], -1).mean(1))
        return logits

    def behind(self, purifier: DiffusionPurifier) -> DefendedClassifier:
        return _PlantedDefence(purifier, self.network, self.readouts)


def plant(model: nn.Module, x: Tensor, threat: Threat, *, seed: int) -> tuple[nn.Module, Tensor]:
    """Return a model that a known point in the ball around each sample breaks, and these points.

    Of the model, a `FeatureCNN`, a `FeatureMLP` or a defended one, everything but the last layer is
    kept, not copied. The planted one has two classes, of which the first is right for every sample;
    row i of a batch is about sample i modulo n. A random defence may answer otherwise even at its
    point: count first.

    Each readout is Fisher's discriminant between the point and 128 inner ones, with its threshold
    in the middle between the point and the nearest of them: few random points break the model.
    """
    purifier, network = _parts(model)

    def make(readouts: nn.Module) -> nn.Module:
        if purifier is None:
            return _PlantedClassifier(network, readouts)
        return _PlantedDefence(purifier, network, readouts)

    units_of = make(nn.Identity()).eval()
    with frozen(model), isolated(seed), torch.no_grad():
        ball = threat.ball(x)
        points = ball.random_corner()
        answers = 1 if purifier is None else _N_ANSWERS
        at_point = _mean_units(units_of, points, answers)
        inner = torch.stack([_mean_units(units_of, p, answers) for p in _inner_points(ball)])
        readouts = _discriminants(at_point.double(), inner.double())
    return make(readouts.to(x)).eval(), points


def _parts(model: nn.Module) -> tuple[DiffusionPurifier | None, FeatureClassifier]:
    purifier, network = None, model
    if isinstance(model, DefendedClassifier):
        purifier, network = model.purifier, model.classifier
    if not isinstance(network, (FeatureCNN, FeatureMLP)):
        raise TypeError(
            "model must be a FeatureCNN or FeatureMLP, or a DefendedClassifier of one, whose last"
            f" layer can be replaced; got {type(network).__name__}"
        )
    return purifier, network


def _inner_points(ball: Ball) -> list[Tensor]:
    """Draw points that fill the ball evenly, up to a little below its surface."""
    found = []
    for _ in range(_N_INNER):
        surface = ball.random_start()
        n, m = surface.shape
        share = (_INNER * torch.rand(n, 1) ** (1 / m)).to(surface)
        found.append(ball.centers + share * (surface - ball.centers))
    return found


def _mean_units(units_of: Callable[[Tensor], Tensor], points: Tensor, answers: int) -> Tensor:
    units = units_of(points.repeat(answers, 1))
    return units.reshape(answers, len(points), -1).mean(0)


def _discriminants(at_point: Tensor, inner: Tensor) -> _Readouts:
    """Fit a readout for each sample, from units (n, n_units) at its point and at inner ones.

    Those are (n_inner, n, n_units).
    """
    centred = (inner - inner.mean(0)).transpose(0, 1)  # (n, n_inner, n_units)
    covariance = centred.transpose(1, 2) @ centred / centred.shape[1]
    mean_variance = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    ridge = _RIDGE * mean_variance[:, None, None] * torch.eye(inner.shape[2]).to(inner)
    weight = torch.linalg.solve(covariance + ridge, at_point - inner.mean(0))
    score = (at_point * weight).sum(1)
    highest = (inner * weight).sum(2).amax(0)
    scale = (score - highest).abs().clamp_min(1e-12)
    return _Readouts(weight / scale[:, None], -0.5 * (score + highest) / scale)
