"""What `purify`, `feature_cnn` and `defended_logits` share: checks, the call, signs and gradients.

All three take features first, two of them a chain, then a list of weights for each network. They
return a result and the signs of the hidden units as bits (on a GPU, with `prepares`, in rows behind
them also what kernels have prepared of the weights), from which `NAME_backward` has the gradients:
to x, to the noise of a chain, and in one vector to the weights of each network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnmf_cuda.ops._schema import (
    FLOATS,
    LIBRARY,
    is_reference_path,
    raise_in_backward,
    require_dims,
    require_dtype,
    require_same_device,
    require_shape,
    require_tensor,
    serving,
)
from nnmf_cuda.ops._transforms import find_op, is_transforming, register_gradient

_BLOCK_ROWS = 32


class Chain(NamedTuple):
    """Noise and steps of a chain, as the ops take them: three tensors, then three options."""

    noise: Tensor | None  # (S', n, K, M); None where it is drawn from the seed
    timesteps: Tensor
    alphas_cumprod: Tensor
    eta: float
    seed: int
    n_draws: int


def check_chain(
    x: Tensor,
    noise: Tensor | int,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    eta: float,
    n_draws: int | None,
) -> Chain:
    """Raise unless features, steps and noise, or its seed, fit; return the chain."""
    _check_chain_tensors(x, timesteps, alphas_cumprod)
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
    draws = _noise_or_seed(x, noise, len(timesteps) if eta > 0 else 1, n_draws)
    return Chain(draws[0], timesteps, alphas_cumprod, float(eta), *draws[1:])


def _check_chain_tensors(x: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> None:
    if (
        isinstance(x, Tensor)
        and isinstance(timesteps, Tensor)
        and isinstance(alphas_cumprod, Tensor)
        and x.layout is timesteps.layout is alphas_cumprod.layout is torch.strided
        and x.dtype in FLOATS
        and timesteps.dtype is torch.int64
        and alphas_cumprod.dtype is torch.float64
        and x.dim() == 2
        and timesteps.dim() == alphas_cumprod.dim() == 1
        and x.device == timesteps.device == alphas_cumprod.device
        and not alphas_cumprod.requires_grad
    ):
        return  # nearly always; what follows finds the words, at several times the cost
    check_features(x)
    require_tensor("timesteps", timesteps)
    require_dtype("timesteps", timesteps, (torch.int64,))
    require_dims("timesteps", timesteps, (1,))
    require_tensor("alphas_cumprod", alphas_cumprod)
    require_dtype("alphas_cumprod", alphas_cumprod, (torch.float64,))
    require_dims("alphas_cumprod", alphas_cumprod, (1,))
    require_same_device(x=x, timesteps=timesteps, alphas_cumprod=alphas_cumprod)
    if alphas_cumprod.requires_grad:
        raise ValueError("alphas_cumprod must not require gradients: detach() it")


def check_features(x: Tensor) -> None:
    """Raise unless x can be features."""
    require_tensor("x", x)
    require_dtype("x", x, FLOATS)
    require_dims("x", x, (2,))


def check_denoiser(x: Tensor, weights: list[Tensor], name: str) -> None:
    """Raise unless weights are those of an MLP from features and an embedding to features."""
    if len(weights) < 2 or len(weights) % 2:
        raise ValueError(f"{name} must be [W1, b1, W2, b2, ...], got {len(weights)} tensors")
    _check_parameters(x, weights, name, [2, 1] * (len(weights) // 2))
    n_features, width = x.shape[1], weights[0].shape[1]
    if width < n_features:
        raise ValueError(f"{name}[0] takes {width} inputs, fewer than x's {n_features} features")
    shapes = []
    for weight in weights[:-2:2]:
        out = weight.shape[0]
        shapes.append((out, width))
        width = out
    shapes.append((n_features, width))
    _check_layers(weights, name, shapes, ["(outputs, inputs)"] * len(shapes))


def check_classifier(x: Tensor, weights: list[Tensor], name: str) -> None:
    """Raise unless weights are those of a `FeatureCNN` of x's features."""
    if len(weights) != 8:
        raise ValueError(
            f"{name} must be the weights and biases of two convolutions and two fully connected "
            f"layers, 8 tensors, got {len(weights)}"
        )
    _check_parameters(x, weights, name, [3, 1, 3, 1, 2, 1, 2, 1])
    n_features = x.shape[1]
    if n_features < 2:
        raise ValueError(f"x must have at least 2 features for the max-pool of 2, got {n_features}")
    first, second, hidden, classes = [weight.shape[0] for weight in weights[::2]]
    shapes = [
        (first, 1, 3),
        (second, first, 3),
        (hidden, second * (n_features // 2)),
        (classes, hidden),
    ]
    meanings = [
        "(channels, 1, kernel)",
        "(channels, channels before, kernel)",
        "(outputs, channels * n_features // 2)",
        "(n_classes, inputs)",
    ]
    _check_layers(weights, name, shapes, meanings)


def _check_layers(
    weights: list[Tensor], name: str, shapes: Sequence[tuple[int, ...]], meanings: Sequence[str]
) -> None:
    """Raise unless these are weight and bias of layers whose weights have these shapes."""
    for i, shape in enumerate(shapes):
        # Not by `all`: a generator takes as long as what it is asked.
        if weights[2 * i].shape != shape or weights[2 * i + 1].shape != shape[:1]:
            break
    else:
        return  # nearly always
    for i, (shape, meaning) in enumerate(zip(shapes, meanings, strict=True)):
        require_shape(f"{name}[{2 * i}]", weights[2 * i], shape, meaning)
        require_shape(f"{name}[{2 * i + 1}]", weights[2 * i + 1], shape[:1], "(outputs,)")


def _check_parameters(x: Tensor, weights: list[Tensor], name: str, dims: list[int]) -> None:
    dtype, device, strided = x.dtype, x.device, torch.strided
    for value, dim in zip(weights, dims, strict=True):
        if not (
            isinstance(value, Tensor)
            and value.dtype is dtype
            and value.dim() == dim
            and value.device == device
            and value.layout is strided
        ):
            break
    else:
        return  # nearly always; what follows finds the words, at ten times the cost
    for i, (value, dim) in enumerate(zip(weights, dims, strict=True)):
        require_tensor(f"{name}[{i}]", value)
        require_dtype(f"{name}[{i}]", value, (dtype,))
        require_dims(f"{name}[{i}]", value, (dim,))
    require_same_device(x=x, **{f"{name}[{i}]": value for i, value in enumerate(weights)})


def _noise_or_seed(
    x: Tensor, noise: Tensor | int, n_noised: int, n_draws: int | None
) -> tuple[Tensor | None, int, int]:
    """Return noise as (S', n, K, M) or None, the seed, and the number of draws K."""
    if not isinstance(noise, Tensor):
        seed = _check_seed(noise, n_draws)
        return None, seed, n_draws or 1
    noise = noise.unsqueeze(0) if noise.dim() == 3 else noise
    if noise.dtype is not x.dtype or noise.device != x.device or noise.dim() != 4:
        require_dtype("noise", noise, (x.dtype,))
        require_dims("noise", noise, (4,))
        require_same_device(x=x, noise=noise)
    draws = noise.shape[2] if n_draws is None else n_draws
    shape = (n_noised, x.shape[0], draws, x.shape[1])
    if noise.shape != shape:
        meaning = "(noised steps, n_samples, n_draws, n_features)"
        require_shape("noise", noise, shape, meaning)
    return noise, 0, draws


def _check_seed(seed: object, n_draws: int | None) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"noise must be a torch.Tensor or an int seed, got {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"noise as a seed must be in [0, 2**63), got {seed}")
    if n_draws is None or n_draws < 1:
        raise ValueError(f"n_draws must be given, and >= 1, with a seed; got {n_draws}")
    return seed


def signs_of_denoiser(weights: list[Tensor], n_steps: int) -> int:
    """Return how many words of signs 32 rows of `purify` have."""
    return n_steps * sum(weight.shape[0] for weight in weights[:-2:2])


def signs_of_classifier(weights: list[Tensor], n_features: int) -> int:
    """Return how many words of signs 32 rows of `feature_cnn` have."""
    first, second, hidden = (weight.shape[0] for weight in weights[:-2:2])
    return n_features * first + 2 * second * (n_features // 2) + hidden


def _has_cuda_kernels() -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("nnmf_cuda::purify", "CUDA")


def prepared_rows(
    x: Tensor,
    n_words: int,
    denoiser: list[Tensor],
    classifier: list[Tensor],
    n_steps: int,
) -> int:
    """Return how many rows of `n_words` words hold what CUDA kernels prepare for a backward pass.

    The steps' five coefficients, then weights, whose units (a layer's inputs) come 16 at a time:
    csrc/diffusion/cuda/prepare.cuh, and KeptShape of csrc/diffusion/params.h.
    """
    if n_words == 0:
        return 0
    layers = [(w.shape[1], w.shape[0]) for w in denoiser[::2]]
    if layers:
        layers[0] = (x.shape[1], layers[0][1])  # without the embedding
    if classifier:
        layers += [(w.shape[1], w.shape[2:].numel() * w.shape[0]) for w in classifier[2::2]]
    numbers = (5 * n_steps + 3) // 4 * 4 if denoiser else 0
    numbers += sum((units + 15) // 16 * 16 * inputs for units, inputs in layers)
    return (numbers * (x.element_size() // 4) + 3 + n_words - 1) // n_words


def empty_kept(
    x: Tensor,
    n_rows: int,
    denoiser: list[Tensor],
    classifier: list[Tensor],
    n_steps: int = 0,
    *,
    keep_signs: bool,
    prepares: bool,
) -> Tensor:
    """Return memory for what a forward pass keeps: signs, and on a GPU what it has prepared.

    Not every word of the latter is written: only what calls the backward pass itself asks for it.
    """
    if not keep_signs:
        return x.new_empty((0,), dtype=torch.int32)
    n_words = signs_of_denoiser(denoiser, n_steps) if denoiser else 0
    n_words += signs_of_classifier(classifier, x.shape[1]) if classifier else 0
    n_blocks = (n_rows + _BLOCK_ROWS - 1) // _BLOCK_ROWS
    if prepares and n_rows and x.device.type == "cuda" and _has_cuda_kernels():
        n_blocks += prepared_rows(x, n_words, denoiser, classifier, n_steps)
    return x.new_empty((n_blocks, n_words), dtype=torch.int32)


def call_defence(name: str, x: Tensor, chain: Chain | None, *networks: list[Tensor]) -> Tensor:
    """Return the first result of an op on features, a chain where it has one, and weights."""
    op = serving(name)
    others = [weight for weights in networks for weight in weights]
    unasked = {"weights_need_grad": False}
    options: dict[str, Any] = {}
    arguments: tuple[Any, ...] = networks
    if chain is not None:
        others += [tensor for tensor in chain[:3] if tensor is not None]
        unasked["noise_needs_grad"] = False
        options = {"eta": chain.eta, "seed": chain.seed, "n_draws": chain.n_draws}
        arguments = (*chain[:3], *networks)
    if is_reference_path():
        return op(x, *arguments, keep_signs=False, **options)[0]  # type: ignore[no-any-return]
    if is_transforming():  # where tensors of inner levels do not say what outer ones ask for
        return op(x, *arguments, keep_signs=True, **options)[0]  # type: ignore[no-any-return]
    of_others, enabled = any([t.requires_grad for t in others]), torch.is_grad_enabled()
    wanted = enabled and (of_others or x.requires_grad)
    if torch.compiler.is_compiling() or (enabled and of_others):
        return op(x, *arguments, keep_signs=wanted, **options)[0]  # type: ignore[no-any-return]
    if not wanted:
        with _below_autograd():
            return op(x, *arguments, keep_signs=False, **options)[0]  # type: ignore[no-any-return]
    backward_op = getattr(torch.ops.nnmf_cuda, f"{name}_backward").default

    def backward(grad: Tensor, x: Tensor, signs: Tensor) -> Tensor:
        return backward_op(grad, x, *arguments, signs, **unasked, **options)[0]  # type: ignore[no-any-return]

    result: Tensor = _InputGradient.apply(  # type: ignore[no-untyped-call]
        x, others, lambda x: op(x, *arguments, keep_signs=True, prepares=True, **options), backward
    )
    return result


def _below_autograd() -> AbstractContextManager[None]:
    """Call kernels directly inside the block; nobody may ask for a gradient through them.

    As torch.library's own wrappers do, but without the time that these take in Python.
    """
    return torch._C._AutoDispatchBelowAutograd()


class _InputGradient(torch.autograd.Function):
    """A change of one of `others` between the passes raises.

    Their versions are compared here: to save so many tensors, and unpack them, takes the host
    longer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        others: Sequence[Tensor],
        forward: Callable[[Tensor], tuple[Tensor, Tensor]],
        backward: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        try:
            ctx.others, ctx.versions = others, [t._version for t in others]
        except RuntimeError as error:
            raise RuntimeError(
                "weights, noise or schedule were made in torch.inference_mode, and cannot be kept"
                " for a backward pass: clone() them outside of it, or call this in torch.no_grad"
            ) from error
        with _below_autograd():
            result, kept = forward(x)
        ctx.save_for_backward(x, kept)
        ctx.through = backward
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        # Without a graph of its own it need not refuse to be differentiated, which takes time.
        return _only_gradient(ctx, grad) if torch.is_grad_enabled() else _gradient(ctx, grad)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    x, kept = ctx.saved_tensors
    for value, version in zip(ctx.others, ctx.versions, strict=True):
        if value._version != version:
            raise RuntimeError(
                "one of the weights, noise or schedule that this gradient needs, of shape"
                f" {tuple(value.shape)}, has been modified by an inplace operation (version"
                f" {value._version}, not {version}): change it after the backward pass, or give"
                " a clone()"
            )
    with _below_autograd():
        return ctx.through(grad, x, kept), None, None, None


_only_gradient = once_differentiable(_gradient)


def register_defence(name: str, fake: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Give an op its fake kernel, its gradients to features, noise and weights, and their fake."""
    qualified = f"nnmf_cuda::{name}"

    def save(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Any) -> None:
        x, *others = inputs
        chain, networks = _chain_and_networks(others)
        kept = ("keep_signs", "prepares")
        ctx.options = {k: v for k, v in keyword_only_inputs.items() if k not in kept}
        ctx.given, ctx.sizes = [t is not None for t in chain], [len(w) for w in networks]
        weights = [weight for network in networks for weight in network]
        ctx.save_for_backward(output[1], x, *(t for t in chain if t is not None), *weights)

    def backward(ctx: Any, grad: Tensor, _grad_signs: Tensor) -> tuple[Any, ...]:
        signs, x, *tensors = ctx.saved_tensors
        if signs.dim() == 1:
            raise RuntimeError(
                f"{name} was called without keep_signs=True, which its gradient needs: call it "
                f"through nnmf_cuda.ops.{name}"
            )
        saved = iter(tensors)
        chain = [next(saved) if given else None for given in ctx.given]
        networks = [list(islice(saved, size)) for size in ctx.sizes]
        wanted = any(map(any, ctx.needs_input_grad[1 + len(chain) :]))
        flags = {"weights_need_grad": wanted}
        if chain:
            flags["noise_needs_grad"] = ctx.needs_input_grad[1]
        backward_op = find_op(f"{name}_backward")
        grads = list(backward_op(grad, x, *chain, *networks, signs, **flags, **ctx.options))
        of_chain = (
            (grads.pop(1) if flags["noise_needs_grad"] else None, None, None) if chain else ()
        )
        return (
            grads[0],
            *of_chain,
            *(
                _split_like(flat, weights) if wanted else [None] * len(weights)
                for flat, weights in zip(grads[-len(networks) :], networks, strict=True)
            ),
        )

    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    torch.library.register_fake(f"{qualified}_backward", _fake_backward, lib=LIBRARY)
    register_gradient(LIBRARY, name, backward, save=save)
    raise_in_backward(f"{name}_backward", "it is a gradient already; there is no second one")


def _chain_and_networks(
    arguments: Sequence[Any],
) -> tuple[list[Tensor | None], list[list[Tensor]]]:
    """Tell noise and steps of a chain, if there is one, from the networks' weights."""
    networks = [list(value) for value in arguments if isinstance(value, (list, tuple))]
    return list(arguments[: -len(networks)]), networks


def _fake_backward(
    _grad: Tensor,
    x: Tensor,
    *arguments: Any,
    weights_need_grad: bool,
    noise_needs_grad: bool = False,
    **_options: Any,
) -> tuple[Tensor, ...]:
    chain, networks = _chain_and_networks(arguments[:-1])
    results = [x.new_empty(x.shape)]
    if chain:
        noise = chain[0] if noise_needs_grad else None
        empty = x.new_empty((0,)) if noise is None else x.new_empty(noise.shape)
        results.append(empty)
    for weights in networks:
        results.append(x.new_empty((sum(w.numel() for w in weights) if weights_need_grad else 0,)))
    return tuple(results)


def _split_like(flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Cut one vector into tensors of the shapes of these."""
    parts = flat.split([t.numel() for t in tensors])
    return [part.reshape(t.shape) for part, t in zip(parts, tensors, strict=True)]
