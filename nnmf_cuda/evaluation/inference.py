"""Predictions of a model as an evaluation needs them: evaluation mode, no gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

__all__ = ["device_of", "evaluation_mode", "predict_probabilities"]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set every module to evaluation, without gradients, and put each back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's parameters live."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def predict_probabilities(
    model: nn.Module,
    x: ArrayLike | Tensor,
    *,
    batch_size: int = 1024,
    generator: torch.Generator | None = None,
) -> NDArray[np.float64]:
    """Return the softmax of a model's logits, computed in float64, without gradients.

    Parameters
    ----------
    model : nn.Module
        ``model(x)`` gives logits (n, n_classes); runs in evaluation mode on its own device.
    x : array-like or Tensor of shape (n_samples, n_features)
        Features; read as float32.
    batch_size : int, default=1024
        Rows a call. The noise of a random model depends on it.
    generator : torch.Generator, optional
        Passed on as ``model(x, generator=generator)``: for models that draw noise.

    Returns
    -------
    array of shape (n_samples, n_classes)

    Raises
    ------
    ValueError
        If ``x`` is not two-dimensional, is empty, or the logits are not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; need at least 1")
    features = torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x)).detach()
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(
            f"x has shape {tuple(features.shape)}; give (n_samples, n_features), not empty"
        )
    features = features.to(device_of(model), torch.float32)
    options = {} if generator is None else {"generator": generator}
    with evaluation_mode(model):
        starts = range(0, len(features), batch_size)
        logits = torch.cat([model(features[i : i + batch_size], **options) for i in starts])
    if not torch.isfinite(logits).all():
        raise ValueError("the model returned NaN or infinite logits; check its weights and x")
    return logits.double().softmax(dim=1).cpu().numpy()
