"""What an attacker of a purifying defence puts in the defended model's place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier


def surrogate(defended: DefendedClassifier, n_draws: int) -> DefendedClassifier:
    """Return the same defence with more draws: less noise in its gradient. Shares the weights.

    The adversary may average as many draws as it can afford; the defence keeps its own number.
    """
    purifier = defended.purifier
    more = DiffusionPurifier(
        purifier.denoiser,
        purifier.schedule,
        timesteps=purifier.timesteps.tolist(),
        n_draws=n_draws,
        eta=purifier.eta,
    )
    return defended.behind(more.to(purifier.timesteps.device))


class BPDAIdentity(nn.Module):
    """The defence with its own answers, but the identity's gradient in the purifier's place.

    Athalye, Carlini & Wagner (2018), Obfuscated gradients give a false sense of security, section
    4.1. Weaker than the true gradient where that is exact; stronger only where it is not, which
    would be a finding.
    """

    def __init__(self, defended: DefendedClassifier) -> None:
        super().__init__()
        self.defended = defended

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, n_classes) of features (n, n_features)."""
        with torch.no_grad():
            purified = self.defended.purifier(x)
        return self.defended.classify(purified + (x - x.detach()).unsqueeze(1))


class FixedNoise(nn.Module):
    """The defence with noise that the attacker knows: of one seed, the same at every call.

    Row i of a batch always meets the noise of row i, so batches must keep their order.
    """

    def __init__(self, defended: DefendedClassifier, seed: int) -> None:
        super().__init__()
        self.defended = defended
        self.seed = seed

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, n_classes) of features (n, n_features)."""
        logits: Tensor = self.defended(x, noise=self.seed)
        return logits


@dataclass(frozen=True)
class PurifierShift:
    """How far the purifier's output moves from that of clean features x, for the same noise.

    An objective without the classifier. With `every_step` the predictions of x_0 at every step of a
    chain are summed, as in DiffAttack (Kang, Song & Li, 2023), which deviates each step of the
    reverse process; else the last alone counts.
    """

    purifier: DiffusionPurifier
    x: Tensor
    seed: int = 0
    every_step: bool = False

    def __call__(self, points: Tensor) -> Tensor:
        """Return the mean squared distances (n,) over the draws."""
        total = torch.zeros(len(points), dtype=points.dtype, device=points.device)
        for steps, noise, clean in self._clean:
            total = total + (self._purified(steps, points, noise) - clean).square().sum(2).mean(1)
        return total

    @cached_property
    def _clean(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each chain its timesteps, its noise, and where the clean features come out."""
        generator = torch.Generator().manual_seed(self.seed)
        noise = self.purifier.draw_noise(self.x, generator)
        whole = self.purifier.timesteps
        first = 1 if self.every_step else len(whole)
        with torch.no_grad():
            return [
                (whole[:n], noise[:n], self._purified(whole[:n], self.x, noise[:n]))
                for n in range(first, len(whole) + 1)
            ]

    def _purified(self, timesteps: Tensor, x: Tensor, noise: Tensor) -> Tensor:
        purified: Tensor = self.purifier(x, noise=noise, timesteps=timesteps)
        return purified
