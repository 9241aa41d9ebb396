"""`purify`: the fused forward noising and denoiser, alone and with the gradient to x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench import peers
from bench.case import Call, Case, Inputs, Size, Work
from bench.inputs import doubled, item_bytes, noise_clear_of_kinks
from nnmf_cuda import ops, reference

TIMESTEP = 41
_EMBEDDING = 32
Build = Callable[[Inputs], Callable[[Tensor], Tensor]]


def _inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    n, m, draws, hidden = (
        size.shape[name] for name in ("n_samples", "n_features", "n_draws", "hidden")
    )
    dtype = getattr(torch, size.dtype)
    generator = torch.Generator().manual_seed(seed)
    widths = (m + _EMBEDDING, hidden, hidden, m)
    weights = []
    for before, after in zip(widths, widths[1:], strict=False):
        scale = before**-0.5
        weights.append(scale * torch.randn(after, before, generator=generator))
        weights.append(scale * torch.randn(after, generator=generator))
    x = torch.rand(n, m, generator=generator)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas_cumprod = torch.cumprod(1 - betas, 0)
    noise = noise_clear_of_kinks(
        x,
        draws,
        timestep=TIMESTEP,
        alpha_cumprod=float(alphas_cumprod[TIMESTEP]),
        denoiser=weights,
        generator=generator,
    )
    return {
        "x": x.to(device, dtype),
        "noise": noise.to(device, dtype),
        "timesteps": torch.tensor([TIMESTEP], device=device),
        "alphas_cumprod": alphas_cumprod.to(device),
        "weights": [w.to(device, dtype) for w in weights],
        "grad": torch.randn(n, draws, m, generator=generator).to(device, dtype),
    }


def _ours(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    others = _others(inputs)
    return lambda x: ops.purify(x, *others)


def _reference(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    others = _others(inputs)
    return lambda x: reference.purify(x, *others)[0]


def _compiled(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    return peers.compile_for(inputs["x"].device, _reference(inputs))


def _others(inputs: Inputs) -> tuple[Any, ...]:
    return tuple(value for name, value in inputs.items() if name not in ("x", "grad"))


def forward(build: Build, inputs: Inputs) -> Call:
    """Return a call of what `build` makes of the inputs, a function of x."""
    function, x = build(inputs), inputs["x"]
    return lambda: function(x)


def forward_and_backward(build: Build, inputs: Inputs) -> Call:
    """Return the same with its backward pass to x from the inputs' "grad"; the call gives both."""
    function, grad = build(inputs), inputs["grad"]
    x = inputs["x"].detach().clone().requires_grad_()

    def call() -> tuple[Tensor, Tensor]:
        output = function(x)
        (gradient,) = torch.autograd.grad(output, x, grad)
        return output, gradient

    return call


def denoiser_products(n_features: int, hidden: int) -> int:
    """Return the multiplications of one row; the embedding of t is part of a bias, once a call."""
    return n_features * hidden + hidden * hidden + hidden * n_features


def _work(size: Size) -> Work:
    """Count the products of the three layers; the activations could stay in cache."""
    n, m, draws, hidden = (
        size.shape[name] for name in ("n_samples", "n_features", "n_draws", "hidden")
    )
    products = denoiser_products(m, hidden)
    traffic = (n * m + 2 * n * draws * m + products) * item_bytes(size.dtype)
    return Work(flops=2.0 * n * draws * products, bytes=float(traffic), items=n * draws)


def _gradient_work(size: Size) -> Work:
    """Count the forward pass, and as many products again for the gradient to x."""
    n, m, draws, hidden = (
        size.shape[name] for name in ("n_samples", "n_features", "n_draws", "hidden")
    )
    purified, products = _work(size), denoiser_products(m, hidden)
    gradients = (n * m + n * draws * m) * item_bytes(size.dtype)
    return Work(
        flops=4.0 * n * draws * products,
        bytes=(purified.bytes or 0.0) + gradients,
        items=n * draws,
    )


_SMOKE = (Size("smoke", {"n_samples": 9, "n_features": 5, "n_draws": 3, "hidden": 16}),)
_TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
_PAPER = {"n_samples": 215, "n_features": 15, "n_draws": 8, "hidden": 128}

PURIFY = Case(
    op="purify",
    sizes=(
        Size("paper", _PAPER),
        Size("draws", {**_PAPER, "n_samples": 2145, "n_draws": 64}),
    ),
    smoke=_SMOKE,
    inputs=_inputs,
    truth=lambda inputs: forward(_reference, doubled(inputs))(),
    implementations={
        "reference": lambda inputs: forward(_reference, inputs),
        "torch.compile": lambda inputs: forward(_compiled, inputs),
        "ours": lambda inputs: forward(_ours, inputs),
    },
    tolerance=_TOLERANCE,
    work=_work,
)

PURIFY_GRADIENT = Case(
    op="purify_gradient",
    sizes=(Size("paper", _PAPER), Size("draws", {**_PAPER, "n_draws": 64})),
    smoke=_SMOKE,
    inputs=_inputs,
    truth=lambda inputs: forward_and_backward(_reference, doubled(inputs))(),
    implementations={
        "reference": lambda inputs: forward_and_backward(_reference, inputs),
        "torch.compile": lambda inputs: forward_and_backward(_compiled, inputs),
        "ours": lambda inputs: forward_and_backward(_ours, inputs),
    },
    tolerance=_TOLERANCE,
    work=_gradient_work,
)

CASES = (
    PURIFY,
    PURIFY_GRADIENT,
)
