"""Diffusion in feature space: `purify`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnmf_cuda import reference
from nnmf_cuda.ops._arguments import (
    FLOATS,
    require_dims,
    require_dtype,
    require_same_device,
    require_shape,
    require_tensor,
)
from nnmf_cuda.ops._schema import LIBRARY, serving

__all__ = ["purify"]


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
    _check_chain(x, timesteps, alphas_cumprod, eta)
    _check_weights(x, weights)
    tensor, seed = None, 0
    if isinstance(noise, Tensor):
        tensor = noise.unsqueeze(0) if noise.dim() == 3 else noise
        _check_noise(x, tensor, len(timesteps) if eta > 0 else 1, n_draws)
    else:
        seed = _check_seed(noise, n_draws)
    purified: Tensor = serving("purify")(
        x,
        tensor,
        timesteps,
        alphas_cumprod,
        weights,
        eta=float(eta),
        seed=seed,
        n_draws=n_draws or 1,
    )
    return purified


def _check_chain(x: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, eta: float) -> None:
    require_tensor("x", x)
    require_dtype("x", x, FLOATS)
    require_dims("x", x, (2,))
    require_tensor("timesteps", timesteps)
    require_dtype("timesteps", timesteps, (torch.int64,))
    require_dims("timesteps", timesteps, (1,))
    require_tensor("alphas_cumprod", alphas_cumprod)
    require_dtype("alphas_cumprod", alphas_cumprod, (torch.float64,))
    require_dims("alphas_cumprod", alphas_cumprod, (1,))
    require_same_device(x=x, timesteps=timesteps, alphas_cumprod=alphas_cumprod)
    if alphas_cumprod.requires_grad:
        raise ValueError("alphas_cumprod must not require gradients: detach() it")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    if len(timesteps) == 0:
        raise ValueError("timesteps must have at least one entry")
    if timesteps.device.type == "cpu" and not torch.compiler.is_compiling():
        steps = timesteps.tolist()
        if not all(0 <= t < len(alphas_cumprod) for t in steps) or any(
            later >= earlier for earlier, later in zip(steps, steps[1:], strict=False)
        ):
            raise ValueError(
                f"timesteps must descend strictly within [0, {len(alphas_cumprod) - 1}],"
                f" got {steps}"
            )


def _check_weights(x: Tensor, weights: list[Tensor]) -> None:
    if len(weights) < 2 or len(weights) % 2:
        raise ValueError(f"weights must be [W1, b1, W2, b2, ...], got {len(weights)} tensors")
    for i, value in enumerate(weights):
        require_tensor(f"weights[{i}]", value)
        require_dtype(f"weights[{i}]", value, (x.dtype,))
        require_dims(f"weights[{i}]", value, (1,) if i % 2 else (2,))
    require_same_device(x=x, **{f"weights[{i}]": value for i, value in enumerate(weights)})
    width = weights[0].shape[1]
    if width < x.shape[1]:
        raise ValueError(f"weights[0] takes {width} inputs, fewer than x's {x.shape[1]} features")
    for i in range(0, len(weights), 2):
        out = x.shape[1] if i + 2 == len(weights) else weights[i].shape[0]
        require_shape(f"weights[{i}]", weights[i], (out, width), "(outputs, inputs)")
        require_shape(f"weights[{i + 1}]", weights[i + 1], (out,), "(outputs,)")
        width = out


def _check_noise(x: Tensor, noise: Tensor, expected: int, n_draws: int | None) -> None:
    require_dtype("noise", noise, (x.dtype,))
    require_dims("noise", noise, (4,))
    require_same_device(x=x, noise=noise)
    draws = noise.shape[2] if n_draws is None else n_draws
    require_shape(
        "noise",
        noise,
        (expected, x.shape[0], draws, x.shape[1]),
        "(noised steps, n_samples, n_draws, n_features)",
    )


def _check_seed(seed: object, n_draws: int | None) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"noise must be a torch.Tensor or an int seed, got {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"noise as a seed must be in [0, 2**63), got {seed}")
    if n_draws is None or n_draws < 1:
        raise ValueError(f"n_draws must be given, and >= 1, with a seed; got {n_draws}")
    return seed


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
) -> Tensor:
    draws = n_draws if noise is None else noise.shape[2]
    return x.new_empty((x.shape[0], draws, x.shape[1]))


def _save_purify(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor
) -> None:
    x, noise, timesteps, alphas_cumprod, weights = inputs
    ctx.has_noise = noise is not None
    ctx.options = keyword_only_inputs
    tensors = [x, timesteps, alphas_cumprod, *weights]
    ctx.save_for_backward(*tensors, *([noise] if ctx.has_noise else []))


def _purify_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, timesteps, alphas_cumprod, *weights = ctx.saved_tensors
    noise = weights.pop() if ctx.has_noise else None
    grad_x, grad_noise, grad_weights = reference.purify_backward(
        grad,
        x,
        noise,
        timesteps,
        alphas_cumprod,
        weights,
        weights_need_grad=any(ctx.needs_input_grad[4]),
        **ctx.options,
    )
    none_of_weights = [None] * len(weights)
    return (
        grad_x,
        grad_noise if ctx.has_noise else None,
        None,
        None,
        none_of_weights if grad_weights is None else grad_weights,
    )


torch.library.register_autograd(
    "nnmf_cuda::purify", _purify_backward, setup_context=_save_purify, lib=LIBRARY
)
