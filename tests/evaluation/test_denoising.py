"""Denoising error of denoisers whose error is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nnmf_cuda.evaluation import denoising_error

ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


class Rescale(nn.Module):
    """Undo the shrinking and leave the noise."""

    def forward(self, x_t, t):
        return x_t / torch.from_numpy(ALPHAS_CUMPROD)[t].sqrt().float()[:, None]


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.register_parameter("value", nn.Parameter(value))

    def forward(self, x_t, t):
        return self.value.expand_as(x_t)


def test_errors_of_known_denoisers(rng):
    x = torch.from_numpy(rng.uniform(size=(200, 6)))
    timesteps = [0, 41, 500]
    found = denoising_error(Rescale(), ALPHAS_CUMPROD, x, seed=0, timesteps=timesteps)
    np.testing.assert_allclose(found.mse_denoised, found.mse_noisy, rtol=1e-4)
    kept = ALPHAS_CUMPROD[timesteps]
    np.testing.assert_allclose(found.mse_noisy, (1 - kept) / kept, rtol=0.05)  # 9600 draws
    assert found.sigma[1] == pytest.approx(0.1454, abs=1e-4)
    mean = denoising_error(Constant(x.mean(0).float()), ALPHAS_CUMPROD, x, seed=0)
    np.testing.assert_allclose(mean.mse_denoised, mean.mse_mean, rtol=1e-5)
    assert mean.t[0] == 0
    assert mean.t[-1] == 999
    assert len(mean.t) == 25
    np.testing.assert_allclose(np.diff(mean.sigma), 0.99 / 24, rtol=0.2)  # evenly spread


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"timesteps holds \[1000\]"):
        denoising_error(Rescale(), ALPHAS_CUMPROD, np.ones((2, 3)), seed=0, timesteps=[1000])
    with pytest.raises(ValueError, match="x_start has shape"):
        denoising_error(Rescale(), ALPHAS_CUMPROD, np.ones(3), seed=0)
