"""Checks shared by the wrappers: every message names the argument and what it was given."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)


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
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer >= {low}, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be >= {low}, got {value}")


def require_non_negative(**values: float) -> None:
    """Raise ValueError unless all values are finite numbers >= 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number >= 0, got {value}")
