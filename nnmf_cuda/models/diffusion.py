"""Diffusion in feature space: the noise schedule and the purifier built on `ops.purify`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnmf_cuda import ops, reference
from nnmf_cuda.models.networks import Fusible, FusibleLayers, why_not_part


class NoiseSchedule:
    """Variances of the forward process x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise.

    Timesteps count from 0: `alphas_cumprod[t]` is the product of `alphas[0..t]`.

    Parameters
    ----------
    betas : Tensor of shape (num_timesteps,)
        Variance added at each step, in (0, 1). Kept in float64.

    Attributes
    ----------
    betas, alphas, alphas_cumprod : Tensor of shape (num_timesteps,)
        float64.

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
        self._check_timesteps(t)
        alpha_cumprod_t = self.alphas_cumprod.to(t.device)[t].reshape(
            -1, *[1] * (x_start.dim() - 1)
        )
        keep, spread = alpha_cumprod_t.sqrt(), (1 - alpha_cumprod_t).sqrt()
        return keep.to(x_start.dtype) * x_start + spread.to(x_start.dtype) * noise

    def noise_level(self, t: int) -> float:
        """Return sigma of x_start + sigma * noise = x_t / sqrt(alphas_cumprod[t])."""
        of_signal = float(self.alphas_cumprod[t])
        return math.sqrt((1 - of_signal) / of_signal)

    def _check_timesteps(self, t: Tensor) -> None:
        if t.dtype != torch.int64:
            raise TypeError(f"t must be int64, got {t.dtype}")
        # Without this a negative t would silently count from the end.
        if t.device.type == "cpu" and bool(((t < 0) | (t >= self.num_timesteps)).any()):
            raise ValueError(
                f"t must be within 0..{self.num_timesteps - 1}, got values from "
                f"{int(t.min())} to {int(t.max())}"
            )


class DiffusionPurifier(Fusible):
    """Noise features to a timestep and denoise them, K draws per sample, differentiably.

    Parameters
    ----------
    denoiser : FeatureDenoiser
        Network that predicts x_0 from x_t and t. Any other module of (x_t, t) does as well, but is
        called step by step in plain torch.
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

    fused_by = "purify"
    computed_by = ("forward", "weights")
    timesteps: Tensor
    alphas_cumprod: Tensor

    def __init__(
        self,
        denoiser: nn.Module,
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
        timesteps: Tensor | None = None,
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
        timesteps : Tensor of shape (S,), optional
            The chain to go down instead of the purifier's own.

        Returns
        -------
        Tensor of shape (n_samples, n_draws, n_features)
            Predictions of x_0: neither clipped nor normalised.

        Raises
        ------
        ValueError
            If both noise and generator are given, or shapes disagree.
        """
        noise = self.noise_for(x, noise, generator)
        timesteps = self.timesteps if timesteps is None else timesteps
        if not self.is_fused():
            return self._step_by_step(x, noise, timesteps)
        return ops.purify(
            x,
            noise,
            timesteps,
            self.alphas_cumprod,
            self.weights(),
            eta=self.eta,
            n_draws=None if isinstance(noise, Tensor) else self.n_draws,
        )

    def why_modules(self) -> str:
        """Say what keeps `ops.purify` from computing this purifier; empty if nothing does."""
        return Fusible.why_modules(self) or why_not_part(self, "denoiser", "purify")

    def weights(self) -> list[Tensor]:
        """Return the denoiser's weights, as `ops.purify` takes them; not copies."""
        if not isinstance(self.denoiser, FusibleLayers):
            raise TypeError(
                f"a {type(self.denoiser).__name__} has no weights that ops.purify takes"
            )
        return self.denoiser.weights()

    def _step_by_step(self, x: Tensor, noise: Tensor | int, timesteps: Tensor) -> Tensor:
        """Go down the chain in plain torch, calling the denoiser as the module that it is."""
        shape = (len(timesteps) if self.eta > 0 else 1, len(x), self.n_draws, x.shape[1])
        if not isinstance(noise, Tensor):
            noise = ops.philox_normal(noise, shape, dtype=x.dtype, device=x.device)
        noise = noise.unsqueeze(0) if noise.dim() == 3 else noise
        if noise.shape != (*shape[:2], noise.shape[2], shape[3]):
            raise ValueError(f"noise must have shape {shape}, got {tuple(noise.shape)}")

        def predict(t: Tensor, x_t: Tensor) -> Tensor:
            rows = x_t.flatten(0, 1)
            pred_x_start: Tensor = self.denoiser(rows, t.expand(len(rows)))
            return pred_x_start.reshape(x_t.shape)

        return reference.denoise(x, noise, timesteps, self.alphas_cumprod, self.eta, predict)

    def noise_for(
        self, x: Tensor, noise: Tensor | int | None, generator: torch.Generator | None = None
    ) -> Tensor | int:
        """Return the noise or seed that is given, or draw the noise; arguments as in `forward`."""
        if noise is not None and generator is not None:
            raise ValueError("give noise or generator, not both")
        return self.draw_noise(x, generator) if noise is None else noise

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
