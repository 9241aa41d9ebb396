"""The defence: two networks layer by layer, purification by a chain of one, and both as one.

Formulas only, no modules, each with its gradient: `feature_cnn` classifies features, `purify` adds
noise and denoises, `defended_logits` classifies every draw of it and averages. Weights are lists of
a weight and a bias a layer. Gradients of weights come in one vector, one tensor after another, and
are empty, as that of noise is, unless asked for: an attack on x does without them. The signs that
compiled kernels read are not needed here, where a backward pass does the forward pass again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from nnmf_cuda.reference.philox import philox_normal

__all__ = [
    "defended_logits",
    "defended_logits_backward",
    "denoise",
    "feature_cnn",
    "feature_cnn_backward",
    "purify",
    "purify_backward",
    "sinusoidal_embedding",
]

BLOCK_ROWS = 32
"""Rows whose signs share a word."""


def pack_signs(signs: Sequence[Tensor], *, keep_signs: bool, like: Tensor) -> Tensor:
    """Pack bools (..., units), flat rows in front, as bits: int32 (n_blocks, all units).

    Bit r of word (b, u) belongs to row 32 b + r; bits beyond the last row are 0. Empty, on the
    device of `like`, if signs are not kept.
    """
    if not keep_signs:
        return torch.empty(0, dtype=torch.int32, device=like.device)
    if not signs:
        return torch.empty(0, 0, dtype=torch.int32, device=like.device)
    bits = torch.cat([sign.flatten(0, -2) for sign in signs], -1)
    bits = functional.pad(bits, (0, 0, 0, -len(bits) % BLOCK_ROWS))
    bits = bits.reshape(-1, BLOCK_ROWS, bits.shape[-1]).to(torch.int64)
    place = torch.arange(BLOCK_ROWS, dtype=torch.int64, device=bits.device).reshape(-1, 1)
    return (bits << place).sum(1).to(torch.int32)  # wraps: bit 31 is the sign


def mlp(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the input and every layer's output; ReLU after each layer but the last."""
    outputs = [x]
    for i in range(0, len(weights), 2):
        x = functional.linear(x, weights[i], weights[i + 1])
        if i + 2 < len(weights):
            x = x.relu()
        outputs.append(x)
    return outputs


def mlp_backward(
    grad: Tensor,
    outputs: list[Tensor],
    weights: Sequence[Tensor],
    grad_weights: list[Tensor] | None,
) -> Tensor:
    """Return the gradient to the input of `mlp`; add those of the weights to `grad_weights`."""
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


def feature_cnn(
    x: Tensor, weights: Sequence[Tensor], *, keep_signs: bool = False, prepares: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the logits (n, n_classes) of features x (n, M), and the signs if they are kept.

    Here as in the others, `prepares` asks for what only kernels of a GPU make.

    weights: those of two convolutions (kernel 3, padding 1), each with ReLU, and, after a max-pool
    of 2, of two fully connected layers with ReLU between. Signs, as `pack_signs` packs them: the
    first convolution's, position by position; the pooled ones', channel by channel; which of its
    pair each of these is (0 the first, also among equals); the hidden layer's.
    """
    first, pooled, from_second, layers = _feature_cnn(x, weights)
    hidden = [
        (first > 0).mT.flatten(1),
        (pooled > 0).flatten(1),
        from_second.flatten(1),
        layers[1] > 0,
    ]
    return layers[-1], pack_signs(hidden, keep_signs=keep_signs, like=x)


def feature_cnn_backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    signs: Tensor,
    *,
    weights_need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `feature_cnn` to x and to the weights, from grad (n, n_classes)."""
    first, pooled, from_second, layers = _feature_cnn(x, weights)
    grad_layers = [torch.zeros_like(w) for w in weights[4:]] if weights_need_grad else None
    grad = mlp_backward(grad, layers, weights[4:], grad_layers).reshape(pooled.shape)
    grad = grad * (pooled > 0)
    pairs = torch.stack((grad * ~from_second, grad * from_second), -1).flatten(-2)
    at_second = functional.pad(pairs, (0, first.shape[-1] - pairs.shape[-1]))
    at_first = functional.conv_transpose1d(at_second, weights[2], padding=1) * (first > 0)
    grad_x = functional.conv_transpose1d(at_first, weights[0], padding=1).squeeze(1)
    if grad_layers is None:
        return grad_x, x.new_empty(0)
    grad_weights = (
        *_convolution_weights_gradient(at_first, x.unsqueeze(1), weights[0]),
        *_convolution_weights_gradient(at_second, first, weights[2]),
        *grad_layers,
    )
    return grad_x, torch.cat([g.flatten() for g in grad_weights])


def _feature_cnn(
    x: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Return the first convolution's output, the pooled one, which of each pair it is, the rest."""
    first = functional.conv1d(x.unsqueeze(1), weights[0], weights[1], padding=1).relu()
    second = functional.conv1d(first, weights[2], weights[3], padding=1).relu()
    pooled, index = functional.max_pool1d(second, 2, return_indices=True)
    return first, pooled, index % 2 == 1, mlp(pooled.flatten(1), weights[4:])


def _convolution_weights_gradient(
    grad: Tensor, given: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients to a convolution's weight (out, in, 3) and bias, from that to its output."""
    windows = functional.pad(given, (1, 1)).unfold(-1, weight.shape[-1], 1)
    return torch.einsum("nop,nipd->oid", grad, windows), grad.sum((0, 2))


def sinusoidal_embedding(t: Tensor, dim: int) -> Tensor:
    """Embed timesteps t (S,) as (S, dim): sines, then cosines, of t * 10000^(-2 i / dim).

    Vaswani et al. (2017), section 3.5, in the layout of Ho, Jain & Abbeel (2020). Returned in
    float64 whatever t's dtype; an odd `dim` ends in a zero.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float64, device=t.device) / max(half, 1)
    angles = t.double().unsqueeze(-1) * torch.exp(-math.log(10000) * exponent)
    embedding = torch.cat((angles.sin(), angles.cos()), -1)
    return functional.pad(embedding, (0, dim - 2 * half))


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
    prepares: bool = False,
) -> tuple[Tensor, Tensor]:
    """Noise x to timesteps[0] and denoise down the list.

    x (n, M); noise (S', n, K, M), or None: drawn from `seed` for `n_draws` draws; timesteps (S,)
    descending; weights [W1, b1, W2, b2, ...]. See `nnmf_cuda.ops.purify`.

    Returns the prediction (n, K, M), one per draw, and the signs of the hidden units if they are
    kept (else empty): those of step 0's layers, of step 1's, ..., as `pack_signs` packs them.
    """
    steps = _coefficients(timesteps, alphas_cumprod, eta, x.dtype)
    noise = _noise_for(x, noise, len(timesteps), eta, seed, n_draws)
    outputs = _go_down(x, noise, steps, partial(_mlp_at, weights))
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
    """Gradients of `purify` to x, noise and the weights, from grad (n, K, M)."""
    steps = _coefficients(timesteps, alphas_cumprod, eta, x.dtype)
    noise = _noise_for(x, noise, len(timesteps), eta, seed, n_draws)
    outputs = _go_down(x, noise, steps, partial(_mlp_at, weights))
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


def denoise(
    x: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    eta: float,
    predict: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return what `purify` does, (n, K, M), where `predict` is the denoiser.

    `predict` gives x_0 from a timestep, a tensor of shape (), and x_t (n, K, M).
    """
    steps = _coefficients(timesteps, alphas_cumprod, eta, x.dtype)
    return _go_down(x, noise, steps, lambda t, x_t: [predict(t, x_t)])[-1][-1]


def _noise_for(
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


def _go_down(
    x: Tensor,
    noise: Tensor,
    steps: list[_Step],
    layers_at: Callable[[Tensor, Tensor], list[Tensor]],
) -> list[list[Tensor]]:
    """Run the chain; return what `layers_at` returns at each step, which ends with x_0."""
    outputs = []
    x_t = steps[0].keep * x.unsqueeze(1) + steps[0].spread * noise[0]
    for i, step in enumerate(steps):
        outputs.append(layers_at(step.t, x_t))
        if i + 1 < len(steps):
            x_t = step.of_prediction * outputs[-1][-1] + step.of_x_t * x_t
            if len(noise) > 1:
                x_t = x_t + step.of_noise * noise[i + 1]
    return outputs


def _mlp_at(weights: Sequence[Tensor], t: Tensor, x_t: Tensor) -> list[Tensor]:
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


def defended_logits(
    x: Tensor,
    noise: Tensor | None,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    denoiser: Sequence[Tensor],
    classifier: Sequence[Tensor],
    *,
    eta: float = 0.0,
    seed: int = 0,
    n_draws: int = 1,
    keep_signs: bool = False,
    prepares: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the mean logits (n, n_classes) over the draws of `purify`, and the signs if kept.

    Arguments as in `purify` and `feature_cnn`; the signs are those of both, side by side.
    """
    purified, of_denoiser = purify(
        x,
        noise,
        timesteps,
        alphas_cumprod,
        denoiser,
        eta=eta,
        seed=seed,
        n_draws=n_draws,
        keep_signs=keep_signs,
    )
    logits, of_classifier = feature_cnn(purified.flatten(0, 1), classifier, keep_signs=keep_signs)
    if keep_signs and of_denoiser.numel() > 0:
        of_classifier = torch.cat((of_denoiser, of_classifier), 1)
    return logits.reshape(*purified.shape[:2], logits.shape[1]).mean(1), of_classifier


def defended_logits_backward(
    grad: Tensor,
    x: Tensor,
    noise: Tensor | None,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    denoiser: Sequence[Tensor],
    classifier: Sequence[Tensor],
    signs: Tensor,
    *,
    eta: float,
    seed: int,
    n_draws: int,
    noise_needs_grad: bool,
    weights_need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `defended_logits` to x, noise, denoiser and classifier, from grad (n, C)."""
    chain = (x, noise, timesteps, alphas_cumprod, denoiser)
    purified, _ = purify(*chain, eta=eta, seed=seed, n_draws=n_draws)
    draws = purified.shape[1]
    grad_purified, grad_classifier = feature_cnn_backward(
        (grad / draws).repeat_interleave(draws, 0),
        purified.flatten(0, 1),
        classifier,
        signs,
        weights_need_grad=weights_need_grad,
    )
    grad_x, grad_noise, grad_denoiser = purify_backward(
        grad_purified.reshape(purified.shape),
        *chain,
        signs,
        eta=eta,
        seed=seed,
        n_draws=n_draws,
        noise_needs_grad=noise_needs_grad,
        weights_need_grad=weights_need_grad,
    )
    return grad_x, grad_noise, grad_denoiser, grad_classifier
