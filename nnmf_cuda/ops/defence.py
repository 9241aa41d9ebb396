"""The defence as ops: `purify`, `feature_cnn`, and both in one with the mean, `defended_logits`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nnmf_cuda.ops._defence import (
    call_defence,
    check_chain,
    check_classifier,
    check_denoiser,
    check_features,
    empty_kept,
    register_defence,
)

__all__ = ["defended_logits", "feature_cnn", "purify"]


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
    noise tensor and the weights; for x from the signs of the units, a bit each, and on a GPU a copy
    of the weights.

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
    chain = check_chain(x, noise, timesteps, alphas_cumprod, eta, n_draws)
    check_denoiser(x, weights, "weights")
    return call_defence("purify", x, chain, weights)


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
    Differentiable in x and the weights; for x from the signs of the units, a bit each, and on a GPU
    a copy of the weights.

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
    return call_defence("feature_cnn", x, None, weights)


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
    signs of the units are kept, a bit each; on a GPU, where x alone needs a gradient, also a copy
    of the weights.

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
    chain = check_chain(x, noise, timesteps, alphas_cumprod, eta, n_draws)
    check_denoiser(x, denoiser, "denoiser")
    check_classifier(x, classifier, "classifier")
    return call_defence("defended_logits", x, chain, denoiser, classifier)


def _fake_purify(
    x: Tensor,
    noise: Tensor | None,
    timesteps: Tensor,
    _alphas_cumprod: Tensor,
    weights: list[Tensor],
    *,
    n_draws: int = 1,
    keep_signs: bool = False,
    prepares: bool = False,
    **_options: Any,
) -> tuple[Tensor, Tensor]:
    draws = n_draws if noise is None else noise.shape[2]
    n_rows, n_steps = x.shape[0] * draws, timesteps.shape[0]
    kept = empty_kept(x, n_rows, weights, [], n_steps, keep_signs=keep_signs, prepares=prepares)
    return x.new_empty((x.shape[0], draws, x.shape[1])), kept


def _fake_feature_cnn(
    x: Tensor, weights: list[Tensor], *, keep_signs: bool = False, prepares: bool = False
) -> tuple[Tensor, Tensor]:
    kept = empty_kept(x, x.shape[0], [], weights, keep_signs=keep_signs, prepares=prepares)
    return x.new_empty((x.shape[0], weights[-1].shape[0])), kept


def _fake_defended_logits(
    x: Tensor,
    noise: Tensor | None,
    timesteps: Tensor,
    _alphas_cumprod: Tensor,
    denoiser: list[Tensor],
    classifier: list[Tensor],
    *,
    n_draws: int = 1,
    keep_signs: bool = False,
    prepares: bool = False,
    **_options: Any,
) -> tuple[Tensor, Tensor]:
    draws = n_draws if noise is None else noise.shape[2]
    n_rows, n_steps = x.shape[0] * draws, timesteps.shape[0]
    kept = empty_kept(
        x, n_rows, denoiser, classifier, n_steps, keep_signs=keep_signs, prepares=prepares
    )
    return x.new_empty((x.shape[0], classifier[-1].shape[0])), kept


register_defence("purify", _fake_purify)
register_defence("feature_cnn", _fake_feature_cnn)
register_defence("defended_logits", _fake_defended_logits)
