"""One schema per op, with the reference as the fallback for every device; what wrappers share.

The ops exist whether or not the extension was built: a compiled CPU or CUDA kernel registers
itself for its dispatch key and then outranks the reference (`CompositeExplicitAutograd`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from nnmf_cuda import _extension, reference
from nnmf_cuda.ops._transforms import find_op, no_forward_mode, register_gradient

LIBRARY = torch.library.Library("nnmf_cuda", "FRAGMENT")
FLOATS = (torch.float32, torch.float64)


def _philox_normal(
    like: Tensor, *, seed: int, n_steps: int, n_rows: int, n_draws: int, n_features: int
) -> Tensor:
    """Call the reference, which has no tensor argument that could choose a device for an op."""
    shape = (n_steps, n_rows, n_draws, n_features)
    return reference.philox_normal(seed, shape, dtype=like.dtype, device=like.device)


def _crown_bounds(
    lower: Tensor,
    upper: Tensor,
    weights: list[Tensor],
    objective: Tensor,
    center: Tensor | None = None,
    radius: Tensor | None = None,
    hidden_lower: Tensor | None = None,
    hidden_upper: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Call the reference, which takes a pair of bounds as one argument; a schema has none such."""
    pair = None if hidden_lower is None or hidden_upper is None else (hidden_lower, hidden_upper)
    found = reference.crown_bounds(
        lower, upper, weights, objective, center=center, radius=radius, hidden=pair
    )
    return tuple(found)


def _nnmf_weighted_mu(
    X: Tensor,
    W: Tensor,
    H: Tensor,
    weights: Tensor,
    active: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Call the reference, one for both ops; a schema has tensors first, and these have weights."""
    return reference.nnmf_mu(X, W, H, active, weights=weights, **options)


def _nnmf_weighted_hals(
    X: Tensor, W: Tensor, H: Tensor, weights: Tensor, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Call the reference, as above."""
    return reference.nnmf_hals(X, W, H, weights=weights, **options)


OPS: dict[str, tuple[str, Callable[..., Any]]] = {
    "nnmf_mu": (
        "(Tensor X, Tensor W, Tensor H, Tensor? active=None, *, float beta_loss, int n_iter,"
        " bool update_H=True,"
        " float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,"
        f" bool compute_divergence=False, float floor={reference.EPSILON}, int n_fixed=0,"
        ' str precision="float32") -> (Tensor, Tensor, Tensor)',
        reference.nnmf_mu,
    ),
    "nnmf_divergence": (
        f"(Tensor X, Tensor W, Tensor H, *, float beta_loss, float floor={reference.EPSILON})"
        " -> Tensor",
        reference.nnmf_divergence,
    ),
    "nnmf_hals": (
        "(Tensor X, Tensor W, Tensor H, *, int n_iter, int n_inner=1, bool update_H=True,"
        " float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,"
        " bool compute_divergence=False, int n_fixed=0) -> (Tensor, Tensor, Tensor)",
        reference.nnmf_hals,
    ),
    "nnmf_weighted_mu": (
        "(Tensor X, Tensor W, Tensor H, Tensor weights, Tensor? active=None, *, float beta_loss,"
        " int n_iter, bool update_H=True,"
        " float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,"
        f" bool compute_divergence=False, float floor={reference.EPSILON}, int n_fixed=0)"
        " -> (Tensor, Tensor, Tensor)",
        _nnmf_weighted_mu,
    ),
    "nnmf_weighted_divergence": (
        "(Tensor X, Tensor W, Tensor H, Tensor weights, *, float beta_loss,"
        f" float floor={reference.EPSILON}) -> Tensor",
        reference.nnmf_divergence,
    ),
    "nnmf_weighted_hals": (
        "(Tensor X, Tensor W, Tensor H, Tensor weights, *, int n_iter, int n_inner=1,"
        " bool update_H=True,"
        " float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,"
        " bool compute_divergence=False, int n_fixed=0) -> (Tensor, Tensor, Tensor)",
        _nnmf_weighted_hals,
    ),
    "nnmf_sparse_mu": (
        "(Tensor crow, Tensor col, Tensor values, Tensor W, Tensor H, Tensor? active=None, *,"
        " float beta_loss, int n_iter, bool update_H=True,"
        " float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,"
        f" bool compute_divergence=False, float floor={reference.EPSILON}, int n_fixed=0)"
        " -> (Tensor, Tensor, Tensor)",
        reference.nnmf_sparse_mu,
    ),
    "nnmf_sparse_divergence": (
        "(Tensor crow, Tensor col, Tensor values, Tensor W, Tensor H, *, float beta_loss,"
        f" float floor={reference.EPSILON}) -> Tensor",
        reference.nnmf_sparse_divergence,
    ),
    "nnmf_sparse_hals": (
        "(Tensor crow, Tensor col, Tensor values, Tensor W, Tensor H, *, int n_iter,"
        " int n_inner=1, bool update_H=True,"
        " float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,"
        " bool compute_divergence=False, int n_fixed=0) -> (Tensor, Tensor, Tensor)",
        reference.nnmf_sparse_hals,
    ),
    "nnmf_sparse_cd": (
        "(Tensor crow, Tensor col, Tensor values, Tensor ccol, Tensor row, Tensor column_values,"
        " Tensor W, Tensor H, *, int n_iter, int n_inner=1, bool update_H=True,"
        " float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,"
        f" bool compute_divergence=False, float floor={reference.EPSILON}, int n_fixed=0)"
        " -> (Tensor, Tensor, Tensor)",
        reference.nnmf_sparse_cd,
    ),
    "nnls": (
        "(Tensor gram, Tensor cross, Tensor? passive=None, *, float tol=0.)"
        " -> (Tensor, Tensor, Tensor)",
        reference.nnls,
    ),
    "nnls_backward": (
        "(Tensor gram, Tensor h, Tensor grad) -> Tensor",
        reference.nnls_backward,
    ),
    "prepare_components": ("(Tensor H) -> (Tensor, Tensor)", reference.prepare_components),
    "project": (
        "(Tensor X, Tensor H, Tensor? passive=None, Tensor? packed=None, Tensor? grams=None, *,"
        " float tol=0.) -> (Tensor, Tensor, Tensor)",
        reference.project,
    ),
    "philox_normal": (
        "(Tensor like, *, int seed, int n_steps, int n_rows, int n_draws, int n_features)"
        " -> Tensor",
        _philox_normal,
    ),
    "purify": (
        "(Tensor x, Tensor? noise, Tensor timesteps, Tensor alphas_cumprod, Tensor[] weights, *,"
        " float eta=0., int seed=0, int n_draws=1, bool keep_signs=False, bool prepares=False)"
        " -> (Tensor, Tensor)",
        reference.purify,
    ),
    "purify_backward": (
        "(Tensor grad, Tensor x, Tensor? noise, Tensor timesteps, Tensor alphas_cumprod,"
        " Tensor[] weights, Tensor signs, *, float eta, int seed, int n_draws,"
        " bool noise_needs_grad, bool weights_need_grad) -> (Tensor, Tensor, Tensor)",
        reference.purify_backward,
    ),
    "feature_cnn": (
        "(Tensor x, Tensor[] weights, *, bool keep_signs=False, bool prepares=False)"
        " -> (Tensor, Tensor)",
        reference.feature_cnn,
    ),
    "feature_cnn_backward": (
        "(Tensor grad, Tensor x, Tensor[] weights, Tensor signs, *, bool weights_need_grad)"
        " -> (Tensor, Tensor)",
        reference.feature_cnn_backward,
    ),
    "defended_logits": (
        "(Tensor x, Tensor? noise, Tensor timesteps, Tensor alphas_cumprod, Tensor[] denoiser,"
        " Tensor[] classifier, *, float eta=0., int seed=0, int n_draws=1,"
        " bool keep_signs=False, bool prepares=False) -> (Tensor, Tensor)",
        reference.defended_logits,
    ),
    "defended_logits_backward": (
        "(Tensor grad, Tensor x, Tensor? noise, Tensor timesteps, Tensor alphas_cumprod,"
        " Tensor[] denoiser, Tensor[] classifier, Tensor signs, *, float eta, int seed,"
        " int n_draws, bool noise_needs_grad, bool weights_need_grad)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        reference.defended_logits_backward,
    ),
    "crown_bounds": (
        "(Tensor lower, Tensor upper, Tensor[] weights, Tensor objective, Tensor? center=None,"
        " Tensor? radius=None, Tensor? hidden_lower=None, Tensor? hidden_upper=None)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        _crown_bounds,
    ),
    "train_feature_cnn_epoch": (
        "(Tensor x, Tensor labels, Tensor state, *, int[] widths, int batch_size, int step,"
        " float lr, float ema_decay) -> (Tensor, Tensor)",
        reference.train_feature_cnn_epoch,
    ),
    "train_mlp_epoch": (
        "(Tensor x, Tensor targets, Tensor state, *, int[] widths, int batch_size, int step,"
        " float lr, float ema_decay) -> (Tensor, Tensor)",
        reference.train_mlp_epoch,
    ),
    "resize_grey": (
        "(Tensor images, *, int height, int width) -> Tensor",
        reference.resize_grey,
    ),
}
"""Name of each op, its schema and its reference."""

for _name, (_schema, _reference) in OPS.items():
    LIBRARY.define(_name + _schema)
    LIBRARY.impl(_name, _reference, "CompositeExplicitAutograd")

_extension.load()

_on_reference_path = False


@contextmanager
def reference_path() -> Iterator[None]:
    """Compute everything in plain eager torch inside the block, as if nothing was compiled.

    What is served by a kernel or a fused loop elsewhere then runs as the reference: for
    comparisons of speed and of results. Holds for the whole process, all threads.

    Examples
    --------
    >>> with reference_path():
    ...     logits = defended(features)
    """
    global _on_reference_path
    before, _on_reference_path = _on_reference_path, True
    try:
        yield
    finally:
        _on_reference_path = before


def is_reference_path() -> bool:
    """Whether the call is inside `reference_path`."""
    return _on_reference_path


def serving(name: str, *arguments: Tensor) -> Callable[..., Any]:
    """Return what serves an op: the op, or inside `reference_path` its reference.

    `arguments` are those that may ask for gradients which only the op has.
    """
    if not _on_reference_path:
        op = find_op(name)
        # Inside torch.autograd.forward_ad.dual_level, where torch.func.jvp is too.
        return partial(_without_tangents, name, op) if forward_ad._current_level >= 0 else op
    if torch.is_grad_enabled() and any(argument.requires_grad for argument in arguments):
        raise RuntimeError(
            f"{name} has no gradient on the reference path: leave reference_path() for it, or "
            "detach its arguments"
        )
    return OPS[name][1]


def _without_tangents(name: str, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call an op in forward mode, which would take a missing tangent for zero."""
    for argument in args:
        for value in argument if isinstance(argument, list) else (argument,):
            if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
                raise no_forward_mode(name)
    return op(*args, **kwargs)


def raise_in_backward(name: str, remedy: str) -> None:
    """Give an op a gradient that raises; no gradient at all would be taken for zero."""

    def backward(_ctx: Any, *_grads: Tensor) -> None:
        raise RuntimeError(f"nnmf_cuda.ops.{name} is not differentiable: {remedy}")

    register_gradient(LIBRARY, name, backward)


def require_tensor(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got layout {value.layout}: use .to_dense()")


def require_dtype(name: str, value: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """Raise TypeError unless `value` has one of the dtypes."""
    if value.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"{name} must be {names}, got {value.dtype}")


def require_dims(name: str, value: Tensor, allowed: tuple[int, ...]) -> None:
    """Raise ValueError unless `value` has one of the numbers of dimensions."""
    if value.dim() not in allowed:
        counts = " or ".join(map(str, allowed))
        raise ValueError(f"{name} must have {counts} dimensions, got shape {tuple(value.shape)}")


def require_shape(name: str, value: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless `value` has exactly this shape."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {meaning} = {shape}, got {tuple(value.shape)}")


def require_same_device(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors live on one device."""
    if len({tensor.device for tensor in tensors.values()}) > 1:
        where = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"all tensors must be on one device, got {where}")


def require_count(name: str, value: object, *, low: int) -> None:
    """Raise unless `value` is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer >= {low}, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be >= {low}, got {value}")


def require_non_negative(**values: float) -> None:
    """Raise ValueError unless all values are finite numbers >= 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number >= 0, got {value}")
