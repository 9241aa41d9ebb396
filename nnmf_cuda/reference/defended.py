"""Purification, classification of every draw, mean over the draws; and the gradient of it all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnmf_cuda.reference.diffusion import purify, purify_backward
from nnmf_cuda.reference.networks import feature_cnn, feature_cnn_backward


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
    """Gradients of `defended_logits` to x, noise, denoiser and classifier, from grad (n, C).

    Those of a network are in one vector; what is not asked for is empty.
    """
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
