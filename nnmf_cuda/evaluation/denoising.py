"""How far the denoiser brings noised features back, at each noise level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from nnmf_cuda.evaluation.inference import device_of, evaluation_mode

__all__ = ["denoising_error"]


def denoising_error(
    denoiser: nn.Module,
    alphas_cumprod: ArrayLike | Tensor,
    x_start: ArrayLike | Tensor,
    *,
    seed: int,
    timesteps: Sequence[int] | None = None,
    n_draws: int = 8,
) -> dict[str, NDArray[np.float64]]:
    """Measure the mean squared error of one-shot denoising against the noise level.

    Parameters
    ----------
    denoiser : nn.Module
        ``denoiser(x_t, t)`` predicts x_start.
    alphas_cumprod : array-like of shape (num_timesteps,)
        Of the noise schedule.
    x_start : array-like or Tensor of shape (n_samples, n_features)
        Clean features, best not those the denoiser was trained on.
    seed : int
        Of the noise.
    timesteps : sequence of int, optional
        Indices counted from 0; by default up to 25 whose noise levels are evenly spread.
    n_draws : int, default=8
        Noise draws a sample and level.

    Returns
    -------
    dict of arrays, each of shape (len(timesteps),)
        ``t``; ``sigma`` = sqrt(1 - alphas_cumprod[t]); ``mse_denoised``; ``mse_noisy``, the error
        of x_t / sqrt(alphas_cumprod[t]) left as it is; and ``mse_mean``, that of always answering
        the mean of ``x_start``. A denoiser that helps lies below both.

    Raises
    ------
    ValueError
        If ``x_start`` is not two-dimensional or empty, or a timestep is outside the schedule.
    """
    device = device_of(denoiser)
    x = torch.as_tensor(x_start if isinstance(x_start, Tensor) else np.asarray(x_start))
    x = x.detach().to(device, torch.float32)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(
            f"x_start has shape {tuple(x.shape)}; give (n_samples, n_features), not empty"
        )
    schedule = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
    if timesteps is None:
        timesteps = _evenly_spread_levels((1 - schedule).sqrt().numpy(), 25)
    outside = [t for t in timesteps if not 0 <= t < len(schedule)]
    if outside:
        raise ValueError(f"timesteps holds {outside}; the schedule has 0..{len(schedule) - 1}")
    generator = torch.Generator(device).manual_seed(seed)
    clean = x.repeat(n_draws, 1)
    noisy_errors, denoised_errors = [], []
    with evaluation_mode(denoiser):
        for t in timesteps:
            kept = float(schedule[t])
            noise = torch.randn(clean.shape, generator=generator, device=device)
            x_t = kept**0.5 * clean + (1 - kept) ** 0.5 * noise
            index = torch.full((len(clean),), t, dtype=torch.int64, device=device)
            noisy_errors.append(float((x_t / kept**0.5 - clean).square().mean()))
            denoised_errors.append(float((denoiser(x_t, index) - clean).square().mean()))
    return {
        "t": np.asarray(timesteps, dtype=np.float64),
        "sigma": (1 - schedule[list(timesteps)]).sqrt().numpy(),
        "mse_noisy": np.array(noisy_errors),
        "mse_denoised": np.array(denoised_errors),
        "mse_mean": np.full(len(timesteps), float((x - x.mean(0)).square().mean())),
    }


def _evenly_spread_levels(sigma: NDArray[np.float64], n: int) -> list[int]:
    """Return the timesteps whose noise levels come nearest to n levels from first to last."""
    targets = np.linspace(sigma[0], sigma[-1], n)
    nearest = np.abs(sigma[None, :] - targets[:, None]).argmin(axis=1)
    return [int(t) for t in np.unique(nearest)]
