"""`purify`: the fused forward noising and denoiser."""

from __future__ import annotations

import torch

from nnmf_cuda import ops, reference
from nnmf_cuda.benchmarks import peers
from nnmf_cuda.benchmarks.inputs import doubled, item_bytes
from nnmf_cuda.benchmarks.registry import Call, Case, Inputs, Size, Work

_EMBEDDING = 32


def _purify_inputs(size: Size, seed: int, device: torch.device) -> Inputs:
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
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return {
        "x": torch.rand(n, m, generator=generator).to(device, dtype),
        "noise": torch.randn(1, n, draws, m, generator=generator).to(device, dtype),
        "timesteps": torch.tensor([41], device=device),
        "alphas_cumprod": torch.cumprod(1 - betas, 0).to(device),
        "weights": [w.to(device, dtype) for w in weights],
    }


def _purify_ours(inputs: Inputs) -> Call:
    arguments = tuple(inputs.values())
    return lambda: ops.purify(*arguments)


def _purify_reference(inputs: Inputs) -> Call:
    arguments = tuple(inputs.values())
    return lambda: reference.purify(*arguments)[0]


def _purify_work(size: Size) -> Work:
    """Count the products of the three layers; the activations could stay in cache."""
    n, m, draws, hidden = (
        size.shape[name] for name in ("n_samples", "n_features", "n_draws", "hidden")
    )
    weights = (m + _EMBEDDING) * hidden + hidden * hidden + hidden * m
    traffic = (n * m + 2 * n * draws * m + weights) * item_bytes(size.dtype)
    return Work(flops=2.0 * n * draws * weights, bytes=float(traffic), items=n * draws)


PURIFY = Case(
    op="purify",
    sizes=(
        Size("paper", {"n_samples": 215, "n_features": 15, "n_draws": 8, "hidden": 128}),
        Size("draws", {"n_samples": 2145, "n_features": 15, "n_draws": 64, "hidden": 128}),
    ),
    smoke=(Size("smoke", {"n_samples": 9, "n_features": 5, "n_draws": 3, "hidden": 16}),),
    inputs=_purify_inputs,
    truth=lambda inputs: _purify_reference(doubled(inputs))(),
    implementations={
        "reference": _purify_reference,
        "torch.compile": peers.compiled(_purify_reference),
        "ours": _purify_ours,
    },
    tolerance={"float32": 1e-5, "float64": 1e-10},
    work=_purify_work,
)

CASES = (PURIFY,)
