"""Classifiers of noisy features, one draw and one vote at a time: what smoothing is made of."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnmf_cuda import ops
from nnmf_cuda.diffusion import DiffusionPurifier
from nnmf_cuda.models import DefendedClassifier

__all__ = ["BaseClassifier", "base_classifier"]

_ENTRIES = 2**21
"""Numbers of features held at a time."""


class BaseClassifier:
    """Votes of a classifier on x + sigma * noise.

    Parameters
    ----------
    model : nn.Module
        ``model(x, noise=seed)`` noises each row once and gives logits.
    sigma : float
        Standard deviation of that noise, in units of the features.
    """

    def __init__(self, model: nn.Module, sigma: float) -> None:
        self.model = model
        self.sigma = sigma

    def votes(self, x: Tensor, n_draws: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
        """Count how often each class is named for one sample.

        Parameters
        ----------
        x : Tensor of shape (n_features,)
        n_draws : int
            Draws of noise, one vote each. Calls hold a number of them that depends on n_features
            alone, so neither batches nor devices change what is drawn.
        seed : tuple of int
            Words of the seed of this sample's noise.

        Returns
        -------
        array of shape (n_classes,)

        Raises
        ------
        ValueError
            If logits are not finite.
        """
        size, counts = max(1, _ENTRIES // len(x)), []
        for call, start in enumerate(range(0, n_draws, size)):
            rows = x.repeat(min(size, n_draws - start), 1)
            words = np.random.SeedSequence([*seed, call]).generate_state(2, np.uint32)
            # 63 bits: what Philox takes
            logits = self.model(rows, noise=(int(words[0]) << 31) | (int(words[1]) >> 1))
            if not bool(torch.isfinite(logits).all()):
                raise ValueError("the model returned NaN or infinite logits; check its weights")
            counts.append(torch.bincount(logits.argmax(1), minlength=logits.shape[1]))
        return torch.stack(counts).sum(0).cpu().numpy()


class _Noised(nn.Module):
    """A classifier behind plain noise, called as a defended one is."""

    def __init__(self, classifier: nn.Module, sigma: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.sigma = sigma

    def forward(self, x: Tensor, *, noise: int) -> Tensor:
        draws = ops.philox_normal(
            noise, (1, len(x), 1, x.shape[1]), dtype=x.dtype, device=x.device
        )[0, :, 0]
        logits: Tensor = self.classifier(x + self.sigma * draws)
        return logits


def base_classifier(model: nn.Module, sigma: float | None) -> BaseClassifier:
    """Return the base classifier of a defended model, or of one behind plain noise.

    Raises
    ------
    ValueError
        If a defended model is given with sigma, has a chain of timesteps, or another model is given
        without a positive sigma.
    """
    if isinstance(model, DefendedClassifier):
        if sigma is not None:
            raise ValueError(
                f"sigma={sigma} is given with a defended model, whose timestep sets its noise; "
                "leave sigma out, or give the classifier alone (model.classifier)"
            )
        return _one_shot(model)
    if sigma is None or not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(
            f"sigma={sigma}; a model other than a DefendedClassifier is certified behind plain "
            "noise: give sigma > 0, its standard deviation in units of the features"
        )
    return BaseClassifier(_Noised(model, float(sigma)), float(sigma))


def _one_shot(defended: DefendedClassifier) -> BaseClassifier:
    purifier = defended.purifier
    steps = [int(t) for t in purifier.timesteps]
    if len(steps) != 1:
        raise ValueError(
            f"defended has timesteps {tuple(steps)}; a certificate needs a single one. Smoothing "
            "certifies a function of x + noise with one Gaussian draw; a chain is such a function "
            "only with its other draws counted in, and costs a call of the denoiser a step: make "
            "a DiffusionPurifier with timesteps=(t,)"
        )
    one_draw = DiffusionPurifier(purifier.denoiser, purifier.schedule, timesteps=steps, n_draws=1)
    model = DefendedClassifier(
        one_draw.to(purifier.alphas_cumprod.device), defended.classifier
    ).train(defended.training)
    return BaseClassifier(model, purifier.schedule.noise_level(steps[0]))
