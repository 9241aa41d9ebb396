"""Purification by an x0-predicting denoiser, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnmf_cuda.reference.networks import mlp, mlp_backward, pack_signs
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
    keep_signs: bool = False,
) -> tuple[Tensor, Tensor]:
    """Noise x to timesteps[0] and denoise down the list.

    x (n, M); noise (S', n, K, M), or None: drawn from `seed` for `n_draws` draws; timesteps (S,)
    descending; weights [W1, b1, W2, b2, ...]. See `nnmf_cuda.ops.purify`.

    Returns the prediction (n, K, M), one per draw, and the signs of the hidden units if they are
    kept (else empty): those of step 0's layers, of step 1's, ..., as `pack_signs` packs them.
    """
    steps = _coefficients(timesteps, alphas_cumprod, eta, x.dtype)
    noise = noise_for(x, noise, len(timesteps), eta, seed, n_draws)
    outputs = _denoise(x, noise, steps, weights)
    hidden = [layer > 0 for step in outputs for layer in step[1:-1]]
    return outputs[-1][-1], pack_signs(hidden, keep_signs=keep_signs, like=x)


def purify_backward(
    grad: Tensor,
    x: Tensor,
    noise: Tensor | None,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    weights: Sequence[Tensor],
    signs: Tensor,
    *,
    eta: float,
    seed: int,
    n_draws: int,
    noise_needs_grad: bool,
    weights_need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `purify` to x, noise and the weights, from grad (n, K, M).

    Those of the weights are in one vector, one tensor after another; those of noise and weights
    are empty unless asked for: an attack on x does without them. The signs are not needed here,
    where the forward pass is done again.
    """
    steps = _coefficients(timesteps, alphas_cumprod, eta, x.dtype)
    noise = noise_for(x, noise, len(timesteps), eta, seed, n_draws)
    outputs = _denoise(x, noise, steps, weights)
    grad_noise = torch.zeros_like(noise)
    grad_weights = [torch.zeros_like(w) for w in weights] if weights_need_grad else None
    grad_x_t = _mlp_at_backward(steps[-1].t, grad, outputs[-1], weights, grad_weights)
    for i in reversed(range(len(steps) - 1)):
        if len(noise) > 1:
            grad_noise[i + 1] = steps[i].of_noise * grad_x_t
        grad_prediction = steps[i].of_prediction * grad_x_t
        through_mlp = _mlp_at_backward(
            steps[i].t, grad_prediction, outputs[i], weights, grad_weights
        )
        grad_x_t = steps[i].of_x_t * grad_x_t + through_mlp
    grad_noise[0] = steps[0].spread * grad_x_t
    return (
        steps[0].keep * grad_x_t.sum(1),
        grad_noise if noise_needs_grad else x.new_empty(0),
        x.new_empty(0) if grad_weights is None else torch.cat([g.flatten() for g in grad_weights]),
    )


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
    """Run the chain; returns for each step what `mlp` returns."""
    outputs = []
    x_t = steps[0].keep * x.unsqueeze(1) + steps[0].spread * noise[0]
    for i, step in enumerate(steps):
        outputs.append(_mlp_at(step.t, x_t, weights))
        if i + 1 < len(steps):
            x_t = step.of_prediction * outputs[-1][-1] + step.of_x_t * x_t
            if len(noise) > 1:
                x_t = x_t + step.of_noise * noise[i + 1]
    return outputs


def _mlp_at(t: Tensor, x_t: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return what `mlp` returns for x_t followed by the embedding of t."""
    return mlp(x_t, _at_timestep(t, x_t.shape[-1], weights)[0])


def _mlp_at_backward(
    t: Tensor,
    grad: Tensor,
    outputs: list[Tensor],
    weights: Sequence[Tensor],
    grad_weights: list[Tensor] | None,
) -> Tensor:
    """Return the gradient to x_t of `_mlp_at`; add those of the weights to `grad_weights`."""
    folded, embedding = _at_timestep(t, outputs[0].shape[-1], weights)
    if grad_weights is None:
        return mlp_backward(grad, outputs, folded, None)
    grad_folded = [torch.zeros_like(w) for w in folded]
    grad_x_t = mlp_backward(grad, outputs, folded, grad_folded)
    grad_folded[0] = torch.cat((grad_folded[0], torch.outer(grad_folded[1], embedding)), 1)
    for i, part in enumerate(grad_folded):
        grad_weights[i] = grad_weights[i] + part
    return grad_x_t


def _at_timestep(
    t: Tensor, n_features: int, weights: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Fold the embedding of t into the first bias: it is the same for every row.

    Returns the weights of an MLP of x_t alone, and the embedding.
    """
    dim = weights[0].shape[1] - n_features
    embedding = sinusoidal_embedding(t.reshape(1), dim).squeeze(0).to(weights[0].dtype)
    bias = weights[1] + weights[0][:, n_features:] @ embedding
    return [weights[0][:, :n_features], bias, *weights[2:]], embedding
