"""The defended classifier as one op: `defended_logits`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnmf_cuda.ops._defence import (
    call_defence,
    check_chain,
    check_classifier,
    check_denoiser,
    check_features,
    empty_signs,
    noise_or_seed,
    require_signs,
    signs_of_classifier,
    signs_of_denoiser,
    split_like,
)
from nnmf_cuda.ops._schema import LIBRARY, raise_in_backward

__all__ = ["defended_logits", "feature_cnn", "purify"]


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


def _save_defended_logits(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any
) -> None:
    x, noise, timesteps, alphas_cumprod, denoiser, classifier = inputs
    ctx.has_noise, ctx.n_denoiser = noise is not None, len(denoiser)
    ctx.options = {name: keyword_only_inputs[name] for name in ("eta", "seed", "n_draws")}
    tensors = [x, timesteps, alphas_cumprod, output[1], *denoiser, *classifier]
    ctx.save_for_backward(*tensors, *([noise] if ctx.has_noise else []))


def _backward_defended_logits(ctx: Any, grad: Tensor, _grad_signs: Tensor) -> tuple[Any, ...]:
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
    "nnmf_cuda::defended_logits",
    _backward_defended_logits,
    setup_context=_save_defended_logits,
    lib=LIBRARY,
)
raise_in_backward("defended_logits_backward", "it is a gradient already; there is no second one")


# Diffusion in feature space: `purify`.


def purify(
    x: Tensor,
    noise: Tensor | int,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    weights: Sequence[Tensor],
    *,
    eta: float = 0.0,
    n_draws: int | None = None,
) -> Tensor:
    """Add noise to features and denoise them with an x0-predicting MLP, K draws per sample.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        float32 or float64.
    noise : Tensor of shape (n_samples, n_draws, n_features) or (S', n_samples, n_draws, n_features)
        Standard normal noise of x's dtype. Entry 0 of the four-dimensional form is added to x,
        entry i at the i-th reverse step; S' = 1 where eta = 0, else len(timesteps). An int in
        [0, 2**63) is a seed from which Philox4x32-10 draws the same numbers on every device, for
        any batching; `n_draws` is then required.
    timesteps : Tensor of shape (S,)
        int64, strictly descending indices into `alphas_cumprod`. One entry: one shot. Several: a
        chain that predicts x_0 at each and steps to the next. Values are not checked on a GPU,
        which would need a synchronisation.
    alphas_cumprod : Tensor of shape (num_timesteps,)
        float64, in (0, 1), without gradient.
    weights : sequence of Tensor
        [W1, b1, W2, b2, ...] of the MLP with ReLU between layers, of x's dtype; W as in
        `torch.nn.Linear`. Its input is x_t followed by the sinusoidal embedding of t, whose width
        is what W1 has beyond n_features; its output is the prediction of x_0.
    eta : float, default=0
        Noise of the reverse steps: 0 is DDIM, 1 is DDPM.
    n_draws : int, optional
        Number of draws with a seed.

    Returns
    -------
    Tensor of shape (n_samples, n_draws, n_features)
        Predicted x_0 of every draw: neither averaged, clipped nor normalised.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices disagree.

    Notes
    -----
    x_t = sqrt(alphas_cumprod[t]) x + sqrt(1 - alphas_cumprod[t]) noise. Differentiable in x, a
    noise tensor and the weights.

    References
    ----------
    .. [1] Ho, Jain & Abbeel (2020), Denoising diffusion probabilistic models, NeurIPS 33.
    .. [2] Song, Meng & Ermon (2021), Denoising diffusion implicit models, ICLR, equation 12.

    Examples
    --------
    >>> x = torch.rand(4, 3)
    >>> weights = [torch.rand(3, 3 + 8), torch.zeros(3)]  # 8 numbers embed t
    >>> alphas_cumprod = torch.linspace(0.99, 0.01, 100, dtype=torch.float64)
    >>> purify(x, 0, torch.tensor([41]), alphas_cumprod, weights, n_draws=2).shape
    torch.Size([4, 2, 3])
    """
    weights = list(weights)
    check_chain(x, timesteps, alphas_cumprod, eta)
    check_denoiser(x, weights, "weights")
    tensor, seed, draws = noise_or_seed(x, noise, len(timesteps) if eta > 0 else 1, n_draws)
    return call_defence(
        "purify",
        x,
        (tensor, timesteps, alphas_cumprod, weights),
        unasked=("noise_needs_grad", "weights_need_grad"),
        eta=float(eta),
        seed=seed,
        n_draws=draws,
    )


@torch.library.register_fake("nnmf_cuda::purify", lib=LIBRARY)
def _(
    x: Tensor,
    noise: Tensor | None,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    weights: list[Tensor],
    *,
    eta: float = 0.0,
    seed: int = 0,
    n_draws: int = 1,
    keep_signs: bool = False,
) -> tuple[Tensor, Tensor]:
    draws = n_draws if noise is None else noise.shape[2]
    n_words = signs_of_denoiser(weights, timesteps.shape[0])
    signs = empty_signs(x, x.shape[0] * draws, n_words, keep_signs=keep_signs)
    return x.new_empty((x.shape[0], draws, x.shape[1])), signs


@torch.library.register_fake("nnmf_cuda::purify_backward", lib=LIBRARY)
def _(
    grad: Tensor,
    x: Tensor,
    noise: Tensor | None,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    weights: list[Tensor],
    signs: Tensor,
    *,
    eta: float,
    seed: int,
    n_draws: int,
    noise_needs_grad: bool,
    weights_need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n_weights = sum(w.numel() for w in weights) if weights_need_grad else 0
    of_noise = x.new_empty((0,))
    if noise_needs_grad and noise is not None:
        of_noise = torch.empty_like(noise, memory_format=torch.contiguous_format)
    return x.new_empty(x.shape), of_noise, x.new_empty((n_weights,))


def _save_purify(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any
) -> None:
    x, noise, timesteps, alphas_cumprod, weights = inputs
    ctx.has_noise = noise is not None
    ctx.options = {name: keyword_only_inputs[name] for name in ("eta", "seed", "n_draws")}
    tensors = [x, timesteps, alphas_cumprod, output[1], *weights]
    ctx.save_for_backward(*tensors, *([noise] if ctx.has_noise else []))


def _purify_backward(ctx: Any, grad: Tensor, _grad_signs: Tensor) -> tuple[Any, ...]:
    x, timesteps, alphas_cumprod, signs, *weights = ctx.saved_tensors
    noise = weights.pop() if ctx.has_noise else None
    require_signs("purify", signs)
    weights_need_grad = any(ctx.needs_input_grad[4])
    grad_x, grad_noise, grad_weights = torch.ops.nnmf_cuda.purify_backward.default(
        grad,
        x,
        noise,
        timesteps,
        alphas_cumprod,
        weights,
        signs,
        noise_needs_grad=ctx.needs_input_grad[1],
        weights_need_grad=weights_need_grad,
        **ctx.options,
    )
    return (
        grad_x,
        grad_noise if ctx.needs_input_grad[1] else None,
        None,
        None,
        split_like(grad_weights, weights) if weights_need_grad else [None] * len(weights),
    )


torch.library.register_autograd(
    "nnmf_cuda::purify", _purify_backward, setup_context=_save_purify, lib=LIBRARY
)
raise_in_backward("purify_backward", "it is a gradient already; there is no second one")


# The light classifier of feature vectors: `feature_cnn`.


def feature_cnn(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Classify feature vectors by a light 1-D convolutional network.

    Conv1d (kernel 3, padding 1), ReLU, Conv1d, ReLU, max-pool 2, fully connected, ReLU, fully
    connected: what `nnmf_cuda.models.networks.FeatureCNN` computes, any number of channels.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        float32 or float64; n_features at least 2.
    weights : sequence of Tensor
        Weight and bias of each of the four layers, of x's dtype, in the shapes of
        `torch.nn.Conv1d` and `torch.nn.Linear`: (c1, 1, 3), (c1,), (c2, c1, 3), (c2,),
        (hidden, c2 * (n_features // 2)), (hidden,), (n_classes, hidden), (n_classes,).

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        Logits.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices disagree.

    Notes
    -----
    Differentiable in x and the weights; for x from the signs of the units, kept as bits.

    Examples
    --------
    >>> from nnmf_cuda.models import FeatureCNN
    >>> network = FeatureCNN(15, 2)
    >>> feature_cnn(torch.rand(4, 15), network.weights()).shape
    torch.Size([4, 2])
    """
    weights = list(weights)
    check_features(x)
    check_classifier(x, weights, "weights")
    return call_defence("feature_cnn", x, (weights,), unasked=("weights_need_grad",))


@torch.library.register_fake("nnmf_cuda::feature_cnn", lib=LIBRARY)
def _(x: Tensor, weights: list[Tensor], *, keep_signs: bool = False) -> tuple[Tensor, Tensor]:
    n_words = signs_of_classifier(weights, x.shape[1])
    signs = empty_signs(x, x.shape[0], n_words, keep_signs=keep_signs)
    return x.new_empty((x.shape[0], weights[-1].shape[0])), signs


@torch.library.register_fake("nnmf_cuda::feature_cnn_backward", lib=LIBRARY)
def _(
    grad: Tensor, x: Tensor, weights: list[Tensor], signs: Tensor, *, weights_need_grad: bool
) -> tuple[Tensor, Tensor]:
    n_weights = sum(w.numel() for w in weights) if weights_need_grad else 0
    return x.new_empty(x.shape), x.new_empty((n_weights,))


def _save_feature_cnn(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any
) -> None:
    x, weights = inputs
    ctx.save_for_backward(x, output[1], *weights)


def _backward_feature_cnn(ctx: Any, grad: Tensor, _grad_signs: Tensor) -> tuple[Any, ...]:
    x, signs, *weights = ctx.saved_tensors
    require_signs("feature_cnn", signs)
    weights_need_grad = any(ctx.needs_input_grad[1])
    grad_x, grad_weights = torch.ops.nnmf_cuda.feature_cnn_backward.default(
        grad, x, weights, signs, weights_need_grad=weights_need_grad
    )
    of_weights = split_like(grad_weights, weights) if weights_need_grad else [None] * len(weights)
    return grad_x, of_weights


torch.library.register_autograd(
    "nnmf_cuda::feature_cnn", _backward_feature_cnn, setup_context=_save_feature_cnn, lib=LIBRARY
)
raise_in_backward("feature_cnn_backward", "it is a gradient already; there is no second one")
