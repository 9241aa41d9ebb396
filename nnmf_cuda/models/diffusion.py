"""Diffusion in feature space: the noise schedule and the purifier built on `ops.purify`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nnmf_cuda import ops

if TYPE_CHECKING:
    from nnmf_cuda.models.networks import FeatureDenoiser

__all__ = ["DiffusionPurifier", "NoiseSchedule"]


class NoiseSchedule:
    """Variances of the forward process x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise.

    Timesteps count from 0: `alphas_cumprod[t]` is the product of `alphas[0..t]`.

    Parameters
    ----------
    betas : Tensor of shape (num_timesteps,)
        Variance added at each step, in (0, 1). Kept in float64.

    Attributes
    ----------
    betas, alphas, alphas_cumprod, alphas_cumprod_prev : Tensor of shape (num_timesteps,)
        float64. `alphas_cumprod_prev[0]` is 1: before the first step there is no noise.

    Raises
    ------
    ValueError
        If betas are not one-dimensional or not all in (0, 1).

    References
    ----------
    .. [1] Ho, Jain & Abbeel (2020), Denoising diffusion probabilistic models, NeurIPS 33.
    """

    def __init__(self, betas: Tensor) -> None:
        if betas.dim() != 1 or len(betas) == 0:
            raise ValueError(f"betas must have shape (num_timesteps,), got {tuple(betas.shape)}")
        if not bool(((betas > 0) & (betas < 1)).all()):
            low, high = float(betas.min()), float(betas.max())
            raise ValueError(f"betas must all be in (0, 1), got values from {low} to {high}")
        self.betas = betas.detach().double()
        self.alphas = 1 - self.betas
        self.alphas_cumprod = self.alphas.cumprod(0)
        self.alphas_cumprod_prev = torch.cat(
            (torch.ones_like(self.alphas_cumprod[:1]), self.alphas_cumprod[:-1])
        )

    @classmethod
    def linear(
        cls, num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """Return the schedule whose betas rise linearly, both ends included."""
        if num_timesteps < 1:
            raise ValueError(f"num_timesteps must be at least 1, got {num_timesteps}")
        return cls(torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64))

    @property
    def num_timesteps(self) -> int:
        """Length T of the schedule; valid timesteps are 0..T-1."""
        return len(self.betas)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """Return the same schedule on another device."""
        return NoiseSchedule(self.betas.to(device))

    def sigma(self, t: Tensor | int) -> Tensor:
        """Return the noise level sqrt(1 - alphas_cumprod[t]), float64, in the shape of t."""
        return (1 - self._at(self.alphas_cumprod, torch.as_tensor(t))).sqrt()

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noise clean samples to their timesteps.

        Parameters
        ----------
        x_start, noise : Tensor of shape (B, ...)
            Clean samples and standard normal noise of the same shape.
        t : Tensor of shape (B,)
            int64 timesteps. Their range is checked on the CPU only: on a GPU it would
            synchronise.

        Returns
        -------
        Tensor of shape (B, ...)
            x_t, of x_start's dtype; the coefficients are computed in float64.
        """
        alpha_cumprod_t = _per_sample(self._at(self.alphas_cumprod, t), x_start)
        keep, spread = alpha_cumprod_t.sqrt(), (1 - alpha_cumprod_t).sqrt()
        return keep.to(x_start.dtype) * x_start + spread.to(x_start.dtype) * noise

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of q(x_{t-1} | x_t, x_0), Ho et al. (2020) equations 6 and 7.

        Parameters
        ----------
        x_start, x_t : Tensor of shape (B, ...)
            Clean and noised samples.
        t : Tensor of shape (B,)
            int64 timesteps of x_t. At t = 0 the mean is x_start and the variance 0.

        Returns
        -------
        mean : Tensor of shape (B, ...)
        variance : Tensor of shape (B, 1, ...)
            Broadcasts against the mean.
        """
        beta_t, alpha_t, alpha_cumprod_t, alpha_cumprod_prev_t = (
            _per_sample(self._at(values, t), x_start)
            for values in (self.betas, self.alphas, self.alphas_cumprod, self.alphas_cumprod_prev)
        )
        of_x_start = alpha_cumprod_prev_t.sqrt() * beta_t / (1 - alpha_cumprod_t)
        of_x_t = alpha_t.sqrt() * (1 - alpha_cumprod_prev_t) / (1 - alpha_cumprod_t)
        variance = beta_t * (1 - alpha_cumprod_prev_t) / (1 - alpha_cumprod_t)
        mean = of_x_start.to(x_start.dtype) * x_start + of_x_t.to(x_start.dtype) * x_t
        return mean, variance.to(x_start.dtype)

    def noise_level(self, t: int) -> float:
        """Return sigma of x_start + sigma * noise = x_t / sqrt(alphas_cumprod[t])."""
        of_signal = float(self.alphas_cumprod[t])
        return math.sqrt((1 - of_signal) / of_signal)

    def _at(self, values: Tensor, t: Tensor) -> Tensor:
        if t.dtype != torch.int64:
            raise TypeError(f"t must be int64, got {t.dtype}")
        # Without this a negative t would silently count from the end.
        if t.device.type == "cpu" and bool(((t < 0) | (t >= self.num_timesteps)).any()):
            raise ValueError(
                f"t must be within 0..{self.num_timesteps - 1}, got values from "
                f"{int(t.min())} to {int(t.max())}"
            )
        return values.to(t.device)[t]


def _per_sample(coefficients: Tensor, x: Tensor) -> Tensor:
    """Reshape (B,) so that it broadcasts over x (B, ...)."""
    return coefficients.reshape(-1, *[1] * (x.dim() - 1))


class DiffusionPurifier(nn.Module):
    """Noise features to a timestep and denoise them, K draws per sample, differentiably.

    Parameters
    ----------
    denoiser : FeatureDenoiser
        Network that predicts x_0 from x_t and t.
    schedule : NoiseSchedule
        Schedule on which the denoiser was trained.
    timesteps : sequence of int, default=(41,)
        Strictly descending. One entry: one shot from there to x_0. Several: a DDIM (eta = 0) or
        DDPM (eta = 1) chain.
    n_draws : int, default=8
        Independent noise draws K per sample.
    eta : float, default=0.0
        Noise of the reverse steps of a chain, in [0, 1].

    Raises
    ------
    ValueError
        If timesteps, n_draws or eta are out of range.

    Notes
    -----
    The schedule is configuration, not state: `state_dict` holds the denoiser alone. It stays
    float64 under `.to(dtype)`, `.half()` and the like, and follows the module to a device.
    """

    timesteps: Tensor
    alphas_cumprod: Tensor

    def __init__(
        self,
        denoiser: FeatureDenoiser,
        schedule: NoiseSchedule,
        *,
        timesteps: Sequence[int] = (41,),
        n_draws: int = 8,
        eta: float = 0.0,
    ) -> None:
        super().__init__()
        steps = [int(t) for t in timesteps]
        last = schedule.num_timesteps - 1
        in_range = all(0 <= t <= last for t in steps)
        if not steps or not in_range or sorted(set(steps), reverse=True) != steps:
            raise ValueError(
                f"timesteps must descend strictly within 0..{last}, got {tuple(timesteps)}"
            )
        if n_draws < 1:
            raise ValueError(f"n_draws must be at least 1, got {n_draws}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        self.denoiser = denoiser
        self.schedule = schedule
        self.n_draws = int(n_draws)
        self.eta = float(eta)
        self.register_buffer("timesteps", torch.tensor(steps), persistent=False)
        self.register_buffer("alphas_cumprod", schedule.alphas_cumprod, persistent=False)

    def forward(
        self,
        x: Tensor,
        *,
        noise: Tensor | int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Purify features.

        Parameters
        ----------
        x : Tensor of shape (n_samples, n_features)
            Features, in the denoiser's dtype and on its device.
        noise : Tensor of shape (n_samples, n_draws, n_features), or int, optional
            Standard normal noise, or (S', n_samples, n_draws, n_features) as in `ops.purify`, or
            a seed. Drawn afresh where it is not given.
        generator : torch.Generator, optional
            Draws the noise, on its own device; by default torch's global generator of x's
            device does. A CPU generator gives the same noise whatever device x is on.

        Returns
        -------
        Tensor of shape (n_samples, n_draws, n_features)
            Predictions of x_0: neither clipped nor normalised.

        Raises
        ------
        ValueError
            If both noise and generator are given, or shapes disagree.
        """
        chain = self.chain(x, noise, generator)
        return ops.purify(x, weights=self.denoiser.weights(), **chain)

    def chain(
        self,
        x: Tensor,
        noise: Tensor | int | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """Return what `ops.purify` and `ops.defended_logits` take beside features and weights.

        Arguments as in `forward`.
        """
        if noise is not None and generator is not None:
            raise ValueError("give noise or generator, not both")
        if noise is None:
            noise = self.draw_noise(x, generator)
        return {
            "noise": noise,
            "timesteps": self.timesteps,
            "alphas_cumprod": self.alphas_cumprod,
            "eta": self.eta,
            "n_draws": None if isinstance(noise, Tensor) else self.n_draws,
        }

    def draw_noise(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw the noise that one forward pass over x needs: (S', n_samples, n_draws, M)."""
        device = x.device if generator is None else generator.device
        shape = self.noise_shape(x)
        noise = torch.randn(shape, generator=generator, dtype=x.dtype, device=device)
        return noise.to(x.device)

    def noise_shape(self, x: Tensor) -> tuple[int, int, int, int]:
        """Return the shape of the noise that one forward pass over x needs."""
        num_draws_in_time = len(self.timesteps) if self.eta > 0 else 1
        return num_draws_in_time, x.shape[0], self.n_draws, x.shape[1]

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return f"timesteps={self.timesteps.tolist()}, n_draws={self.n_draws}, eta={self.eta}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        module = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # fn may have rounded the schedule to a lower precision: keep its device, not its dtype.
        self.alphas_cumprod = self.schedule.alphas_cumprod.to(self.alphas_cumprod.device)
        return module
