"""The defended classifier as one op: `defended_logits`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnmf_cuda.ops._call_defence import call_defence
from nnmf_cuda.ops._defence_arguments import (
    check_chain,
    check_classifier,
    check_denoiser,
    empty_signs,
    noise_or_seed,
    require_signs,
    signs_of_classifier,
    signs_of_denoiser,
    split_like,
)
from nnmf_cuda.ops._schema import LIBRARY, raise_in_backward

__all__ = ["defended_logits"]


def defended_logits(
    x: Tensor,
    noise: Tensor | int,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    denoiser: Sequence[Tensor],
    classifier: Sequence[Tensor],
    *,
    eta: float = 0.0,
    n_draws: int | None = None,
) -> Tensor:
    """Purify features, classify every draw, average the logits: `purify` and `feature_cnn` in one.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        float32 or float64; n_features at least 2.
    noise : Tensor or int
        As in `purify`.
    timesteps : Tensor of shape (S,)
        As in `purify`.
    alphas_cumprod : Tensor of shape (num_timesteps,)
        As in `purify`.
    denoiser : sequence of Tensor
        The weights of `purify`.
    classifier : sequence of Tensor
        The weights of `feature_cnn`.
    eta : float, default=0
        Noise of the reverse steps: 0 is DDIM, 1 is DDPM.
    n_draws : int, optional
        Number of draws with a seed.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        Logits, averaged over the draws.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices disagree.

    Notes
    -----
    Differentiable in x, a noise tensor and the weights. Between forward and backward pass only the
    signs of the units are kept, a bit each.

    Examples
    --------
    >>> from nnmf_cuda.models import FeatureCNN, FeatureDenoiser
    >>> denoiser, classifier = FeatureDenoiser(15).weights(), FeatureCNN(15, 2).weights()
    >>> alphas_cumprod = torch.linspace(0.99, 0.01, 100, dtype=torch.float64)
    >>> x, t = torch.rand(4, 15), torch.tensor([41])
    >>> defended_logits(x, 0, t, alphas_cumprod, denoiser, classifier, n_draws=8).shape
    torch.Size([4, 2])
    """
    denoiser, classifier = list(denoiser), list(classifier)
    check_chain(x, timesteps, alphas_cumprod, eta)
    check_denoiser(x, denoiser, "denoiser")
    check_classifier(x, classifier, "classifier")
    tensor, seed, draws = noise_or_seed(x, noise, len(timesteps) if eta > 0 else 1, n_draws)
    return call_defence(
        "defended_logits",
        x,
        (tensor, timesteps, alphas_cumprod, denoiser, classifier),
        unasked=("noise_needs_grad", "weights_need_grad"),
        eta=float(eta),
        seed=seed,
        n_draws=draws,
    )


@torch.library.register_fake("nnmf_cuda::defended_logits", lib=LIBRARY)
def _(
    x: Tensor,
    noise: Tensor | None,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    denoiser: list[Tensor],
    classifier: list[Tensor],
    *,
    eta: float = 0.0,
    seed: int = 0,
    n_draws: int = 1,
    keep_signs: bool = False,
) -> tuple[Tensor, Tensor]:
    draws = n_draws if noise is None else noise.shape[2]
    n_words = signs_of_denoiser(denoiser, timesteps.shape[0])
    n_words += signs_of_classifier(classifier, x.shape[1])
    signs = empty_signs(x, x.shape[0] * draws, n_words, keep_signs=keep_signs)
    return x.new_empty((x.shape[0], classifier[-1].shape[0])), signs


@torch.library.register_fake("nnmf_cuda::defended_logits_backward", lib=LIBRARY)
def _(
    grad: Tensor,
    x: Tensor,
    noise: Tensor | None,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    denoiser: list[Tensor],
    classifier: list[Tensor],
    signs: Tensor,
    *,
    eta: float,
    seed: int,
    n_draws: int,
    noise_needs_grad: bool,
    weights_need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    counts = [
        sum(w.numel() for w in weights) if weights_need_grad else 0
        for weights in (denoiser, classifier)
    ]
    of_noise = x.new_empty((0,))
    if noise_needs_grad and noise is not None:
        of_noise = torch.empty_like(noise, memory_format=torch.contiguous_format)
    return (
        x.new_empty(x.shape),
        of_noise,
        x.new_empty((counts[0],)),
        x.new_empty((counts[1],)),
    )


def _save(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any
) -> None:
    x, noise, timesteps, alphas_cumprod, denoiser, classifier = inputs
    ctx.has_noise, ctx.n_denoiser = noise is not None, len(denoiser)
    ctx.options = {name: keyword_only_inputs[name] for name in ("eta", "seed", "n_draws")}
    tensors = [x, timesteps, alphas_cumprod, output[1], *denoiser, *classifier]
    ctx.save_for_backward(*tensors, *([noise] if ctx.has_noise else []))


def _backward(ctx: Any, grad: Tensor, _grad_signs: Tensor) -> tuple[Any, ...]:
    x, timesteps, alphas_cumprod, signs, *weights = ctx.saved_tensors
    require_signs("defended_logits", signs)
    noise = weights.pop() if ctx.has_noise else None
    denoiser, classifier = weights[: ctx.n_denoiser], weights[ctx.n_denoiser :]
    _, noise_needs_grad, _, _, denoiser_needs, classifier_needs = ctx.needs_input_grad
    weights_need_grad = any(denoiser_needs) or any(classifier_needs)
    grad_x, grad_noise, *grad_weights = torch.ops.nnmf_cuda.defended_logits_backward.default(
        grad,
        x,
        noise,
        timesteps,
        alphas_cumprod,
        denoiser,
        classifier,
        signs,
        noise_needs_grad=noise_needs_grad,
        weights_need_grad=weights_need_grad,
        **ctx.options,
    )
    of_weights = [
        split_like(flat, tensors) if weights_need_grad else [None] * len(tensors)
        for flat, tensors in zip(grad_weights, (denoiser, classifier), strict=True)
    ]
    return grad_x, grad_noise if noise_needs_grad else None, None, None, *of_weights


torch.library.register_autograd(
    "nnmf_cuda::defended_logits", _backward, setup_context=_save, lib=LIBRARY
)
raise_in_backward("defended_logits_backward", "it is a gradient already; there is no second one")
