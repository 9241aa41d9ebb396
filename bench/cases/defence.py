"""`defended_logits`: purification and classifier in one, alone and with the gradient to x.

The reference is the defended classifier inside `reference_path`: the purifier's formula, where the
embedding of t is part of a bias, and the classifier's modules. "torch modules" is what one writes
without this package: both networks as modules, with the embedding beside every row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench import cuda_peers, peers
from bench.case import Call, Case, Inputs, Size, Work
from bench.cases.purification import (
    TIMESTEP,
    denoiser_products,
    forward,
    forward_and_backward,
)
from bench.inputs import doubled, item_bytes, noise_clear_of_kinks
from nnmf_cuda import ops
from nnmf_cuda.models import (
    DefendedClassifier,
    DiffusionPurifier,
    FeatureCNN,
    FeatureDenoiser,
    NoiseSchedule,
)

_N_CLASSES = 2


def _inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    n, m, draws, hidden = (
        size.shape[name] for name in ("n_samples", "n_features", "n_draws", "hidden")
    )
    dtype = getattr(torch, size.dtype)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the GPUs' generators too.
        torch.default_generator.manual_seed(seed)
        denoiser = [w.detach() for w in FeatureDenoiser(m, hidden=hidden).weights()]
        classifier = [w.detach() for w in FeatureCNN(m, _N_CLASSES).weights()]
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, m, generator=generator)
    alphas_cumprod = NoiseSchedule.linear().alphas_cumprod
    noise = noise_clear_of_kinks(
        x,
        draws,
        timestep=TIMESTEP,
        alpha_cumprod=float(alphas_cumprod[TIMESTEP]),
        denoiser=denoiser,
        classifier=classifier,
        generator=generator,
    )
    return {
        "x": x.to(device, dtype),
        "noise": noise.to(device, dtype),
        "timesteps": torch.tensor([TIMESTEP], device=device),
        "alphas_cumprod": alphas_cumprod.to(device),
        "denoiser": [w.to(device, dtype) for w in denoiser],
        "classifier": [w.to(device, dtype) for w in classifier],
        "grad": torch.randn(n, _N_CLASSES, generator=generator).to(device, dtype),
    }


def _fused(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    others = tuple(value for name, value in inputs.items() if name not in ("x", "grad"))
    return lambda x: ops.defended_logits(x, *others)


def _networks(inputs: Inputs) -> tuple[FeatureDenoiser, FeatureCNN]:
    """Return the two networks as modules with the inputs' weights, in evaluation mode."""
    n_features, hidden = inputs["x"].shape[1], len(inputs["denoiser"][0])
    denoiser = FeatureDenoiser(n_features, hidden=hidden).to(inputs["x"])
    classifier = FeatureCNN(n_features, _N_CLASSES).to(inputs["x"])
    for network, weights in ((denoiser, "denoiser"), (classifier, "classifier")):
        for parameter, value in zip(network.weights(), inputs[weights], strict=True):
            parameter.data = value
        network.eval().requires_grad_(False)  # as they are attacked
    return denoiser, classifier


def _reference(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    """Return the defended classifier, to be called inside `reference_path`."""
    denoiser, classifier = _networks(inputs)
    noise = inputs["noise"]
    purifier = DiffusionPurifier(
        denoiser,
        NoiseSchedule.linear(),
        timesteps=inputs["timesteps"].tolist(),
        n_draws=noise.shape[2],
    )
    model = DefendedClassifier(purifier, classifier).to(inputs["x"].device)
    return lambda x: model(x, noise=noise)


def _compiled_reference(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    return peers.compile_for(inputs["x"].device, _reference(inputs))


def _torch_modules(inputs: Inputs) -> Callable[[Tensor], Tensor]:
    """Return noising, both modules and the mean, to be called inside `reference_path`."""
    denoiser, classifier = _networks(inputs)
    n, draws = inputs["noise"].shape[1:3]
    noise = inputs["noise"][0].flatten(0, 1)
    t = inputs["timesteps"].expand(n * draws)
    alpha_cumprod = float(inputs["alphas_cumprod"][TIMESTEP])
    keep, spread = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5

    def logits(x: Tensor) -> Tensor:
        x_t = keep * x.repeat_interleave(draws, 0) + spread * noise
        found: Tensor = classifier(denoiser(x_t, t)).unflatten(0, (n, draws)).mean(1)
        return found

    return logits


def _eagerly(call: Call) -> Call:
    def inside() -> object:
        with ops.reference_path():
            return call()

    return inside


def _rows_and_products(size: Size) -> tuple[int, int]:
    """Return the rows of a call, and the products of one: denoiser, convolutions, head."""
    n, m, draws, hidden = (
        size.shape[name] for name in ("n_samples", "n_features", "n_draws", "hidden")
    )
    convolutions = m * 16 * 3 + m * 32 * 16 * 3
    head = 32 * (m // 2) * 64 + 64 * _N_CLASSES
    return n * draws, denoiser_products(m, hidden) + convolutions + head


def _work(size: Size) -> Work:
    """Count the products of all layers; what is between them could stay in cache."""
    rows, products = _rows_and_products(size)
    n, m = size.shape["n_samples"], size.shape["n_features"]
    traffic = (rows * m + n * (m + _N_CLASSES)) * item_bytes(size.dtype)
    return Work(flops=2.0 * rows * products, bytes=float(traffic), items=rows)


def _gradient_work(size: Size) -> Work:
    """Count the forward pass, and as many products again for the gradient to x."""
    logits = _work(size)
    rows, products = _rows_and_products(size)
    return Work(flops=4.0 * rows * products, bytes=logits.bytes, items=rows)


_PAPER = {"n_samples": 215, "n_features": 15, "n_draws": 8, "hidden": 128}
_SIZES = (Size("paper", _PAPER), Size("draws", {**_PAPER, "n_draws": 64}))
_SMOKE = (Size("smoke", {"n_samples": 9, "n_features": 5, "n_draws": 3, "hidden": 16}),)
_TOLERANCE = {"float32": 1e-5, "float64": 1e-10}

DEFENDED_LOGITS = Case(
    op="defended_logits",
    sizes=_SIZES,
    smoke=_SMOKE,
    inputs=_inputs,
    truth=lambda inputs: _eagerly(forward(_reference, doubled(inputs)))(),
    implementations={
        "reference": lambda inputs: _eagerly(forward(_reference, inputs)),
        "torch modules": lambda inputs: _eagerly(forward(_torch_modules, inputs)),
        "torch.compile": lambda inputs: _eagerly(forward(_compiled_reference, inputs)),
        "ours": lambda inputs: forward(_fused, inputs),
        # The last: a capture that fails can leave the device's queue unusable.
        "ours, CUDA graph": cuda_peers.captured(lambda inputs: forward(_fused, inputs)),
    },
    tolerance=_TOLERANCE,
    work=_work,
)

DEFENDED_LOGITS_GRADIENT = Case(
    op="defended_logits_gradient",
    sizes=_SIZES,
    smoke=_SMOKE,
    inputs=_inputs,
    truth=lambda inputs: _eagerly(forward_and_backward(_reference, doubled(inputs)))(),
    implementations={
        "reference": lambda inputs: _eagerly(forward_and_backward(_reference, inputs)),
        "torch modules": lambda inputs: _eagerly(forward_and_backward(_torch_modules, inputs)),
        "torch.compile": lambda inputs: _eagerly(forward_and_backward(_compiled_reference, inputs)),
        "ours": lambda inputs: forward_and_backward(_fused, inputs),
        "ours, CUDA graph": cuda_peers.captured(
            lambda inputs: forward_and_backward(_fused, inputs)
        ),
    },
    tolerance=_TOLERANCE,
    work=_gradient_work,
)

CASES = (
    DEFENDED_LOGITS,
    DEFENDED_LOGITS_GRADIENT,
)
