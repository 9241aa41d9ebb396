"""Purification by an x0-predicting denoiser, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnmf_cuda.reference.philox import philox_normal


def sinusoidal_embedding(t: Tensor, dim: int) -> Tensor:
    """Embed timesteps t (S,) as (S, dim): sines, then cosines, of t * 10000^(-2 i / dim).

    Vaswani et al. (2017), section 3.5, in the layout of Ho, Jain & Abbeel (2020). Returned in
    float64 whatever t's dtype; an odd `dim` ends in a zero.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float64, device=t.device) / max(half, 1)
    angles = t.double().unsqueeze(-1) * torch.exp(-math.log(10000) * exponent)
    embedding = torch.cat((angles.sin(), angles.cos()), -1)
    return torch.nn.functional.pad(embedding, (0, dim - 2 * half))


def purify(
    x: Tensor,
    noise: Tensor | None,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    weights: Sequence[Tensor],
    *,
    eta: float = 0.0,
    seed: int = 0,
    n_draws: int = 1,
) -> Tensor:
    """Noise x to timesteps[0] and denoise down the list; returns (n, K, M), one per draw.

    x (n, M); noise (S', n, K, M), or None: drawn from `seed` for `n_draws` draws; timesteps (S,)
    descending; weights [W1, b1, W2, b2, ...]. See `nnmf_cuda.ops.purify`.
    """
    steps = _coefficients(timesteps, alphas_cumprod, eta, x.dtype)
    noise = noise_for(x, noise, len(timesteps), eta, seed, n_draws)
    return _denoise(x, noise, steps, weights)[-1][-1]


def purify_backward(
    grad: Tensor,
    x: Tensor,
    noise: Tensor | None,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    weights: Sequence[Tensor],
    *,
    eta: float,
    seed: int,
    n_draws: int,
    weights_need_grad: bool = True,
) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """Gradients of `purify` to x, noise and the weights, from grad (n, K, M).

    Those of the weights are None unless asked for: an attack on x does without them.
    """
    steps = _coefficients(timesteps, alphas_cumprod, eta, x.dtype)
    noise = noise_for(x, noise, len(timesteps), eta, seed, n_draws)
    outputs = _denoise(x, noise, steps, weights)
    grad_noise = torch.zeros_like(noise)
    grad_weights = [torch.zeros_like(w) for w in weights] if weights_need_grad else None
    grad_x_t = _mlp_backward(grad, outputs[-1], weights, grad_weights)[..., : x.shape[-1]]
    for i in reversed(range(len(steps) - 1)):
        if len(noise) > 1:
            grad_noise[i + 1] = steps[i].of_noise * grad_x_t
        grad_input = _mlp_backward(
            steps[i].of_prediction * grad_x_t, outputs[i], weights, grad_weights
        )
        grad_x_t = steps[i].of_x_t * grad_x_t + grad_input[..., : x.shape[-1]]
    grad_noise[0] = steps[0].spread * grad_x_t
    return steps[0].keep * grad_x_t.sum(1), grad_noise, grad_weights


def noise_for(
    x: Tensor, noise: Tensor | None, num_steps: int, eta: float, seed: int, n_draws: int
) -> Tensor:
    """Return the given noise, or draw it: one tensor a step where eta > 0, else one."""
    if noise is not None:
        return noise
    shape = (num_steps if eta > 0 else 1, x.shape[0], n_draws, x.shape[1])
    return philox_normal(seed, shape, dtype=x.dtype, device=x.device)


@dataclass(frozen=True)
class _Step:
    """The scalars of one step, as tensors on the device."""

    t: Tensor
    keep: Tensor  # sqrt(alphas_cumprod[t])
    spread: Tensor  # sqrt(1 - alphas_cumprod[t])
    of_prediction: Tensor
    of_x_t: Tensor
    of_noise: Tensor


def _coefficients(
    timesteps: Tensor, alphas_cumprod: Tensor, eta: float, dtype: torch.dtype
) -> list[_Step]:
    """Coefficients of x_prev = a * pred_x_start + b * x_t + sigma * z (Song et al. 2021, eq. 12).

    eta = 0 is DDIM, eta = 1 DDPM's ancestral step. The last entry's step is not taken: its
    prediction is the result. Computed in float64, then rounded to `dtype`.
    """
    now = alphas_cumprod.double()[timesteps]
    prev = torch.cat((now[1:], torch.ones_like(now[:1])))
    sigma = eta * ((1 - prev) / (1 - now) * (1 - now / prev)).clamp_min(0).sqrt()
    direction = (1 - prev - sigma**2).clamp_min(0).sqrt() / (1 - now).sqrt()
    of_prediction = prev.sqrt() - direction * now.sqrt()
    scalars = (now.sqrt(), (1 - now).sqrt(), of_prediction, direction, sigma)
    return [_Step(*row) for row in zip(timesteps, *(v.to(dtype) for v in scalars), strict=True)]


def _denoise(
    x: Tensor, noise: Tensor, steps: list[_Step], weights: Sequence[Tensor]
) -> list[list[Tensor]]:
    """Run the chain; returns for each step what `_mlp` returns."""
    outputs = []
    x_t = steps[0].keep * x.unsqueeze(1) + steps[0].spread * noise[0]
    for i, step in enumerate(steps):
        outputs.append(_mlp(_with_embedding(x_t, step.t, weights[0]), weights))
        if i + 1 < len(steps):
            x_t = step.of_prediction * outputs[-1][-1] + step.of_x_t * x_t
            if len(noise) > 1:
                x_t = x_t + step.of_noise * noise[i + 1]
    return outputs


def _with_embedding(x_t: Tensor, t: Tensor, first_weight: Tensor) -> Tensor:
    """Concatenate the embedding of t that the first layer has room for."""
    dim = first_weight.shape[1] - x_t.shape[-1]
    embedding = sinusoidal_embedding(t.reshape(1), dim).to(x_t.dtype)
    return torch.cat((x_t, embedding.expand(*x_t.shape[:-1], dim)), -1)


def _mlp(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the input and every layer's output; ReLU after each layer but the last."""
    outputs = [x]
    for i in range(0, len(weights), 2):
        x = torch.nn.functional.linear(x, weights[i], weights[i + 1])
        if i + 2 < len(weights):
            x = x.relu()
        outputs.append(x)
    return outputs


def _mlp_backward(
    grad: Tensor,
    outputs: list[Tensor],
    weights: Sequence[Tensor],
    grad_weights: list[Tensor] | None,
) -> Tensor:
    """Return the gradient to the input of `_mlp`; add those of the weights to `grad_weights`."""
    for layer in reversed(range(len(weights) // 2)):
        if grad_weights is not None:
            rows = grad.flatten(0, -2)
            at = 2 * layer
            grad_weights[at] = grad_weights[at] + rows.mT @ outputs[layer].flatten(0, -2)
            grad_weights[at + 1] = grad_weights[at + 1] + rows.sum(0)
        grad = grad @ weights[2 * layer]
        if layer > 0:
            grad = grad * (outputs[layer] > 0)
    return grad
