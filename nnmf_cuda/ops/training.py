"""Whole epochs of training in one call: `train_feature_cnn_epoch` and `train_mlp_epoch`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nnmf_cuda.ops._schema import (
    FLOATS,
    LIBRARY,
    raise_in_backward,
    require_count,
    require_dims,
    require_dtype,
    require_same_device,
    require_shape,
    require_tensor,
    serving,
)

__all__ = ["train_feature_cnn_epoch", "train_mlp_epoch"]


def train_feature_cnn_epoch(
    x: Tensor,
    labels: Tensor,
    state: Tensor,
    *,
    widths: Sequence[int],
    batch_size: int,
    step: int,
    lr: float,
    ema_decay: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Train the network of `feature_cnn` for one epoch by Adam on the mean cross-entropy.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        float32 or float64, in the order in which it is to be seen; a step takes the next
        `batch_size` rows, the last one what is left.
    labels : Tensor of shape (n_samples,)
        int64, in 0..n_classes-1.
    state : Tensor of shape (4, n_weights)
        Of x's dtype: the weights, Adam's first and second moments, the moving average of the
        weights. Each is the concatenation of what `feature_cnn` takes, flattened. Before the first
        epoch: the initial weights, zeros, zeros, the initial weights.
    widths : sequence of 4 ints
        Channels of both convolutions, hidden units, n_classes.
    batch_size : int
        Samples per step.
    step : int
        Number of steps that `state` has seen, 0 at first.
    lr : float
        Adam's learning rate.
    ema_decay : float, default=0.0
        Share of the average that a step keeps, in [0, 1), but at most n / (9 + n) in step n.

    Returns
    -------
    state : Tensor of shape (4, n_weights)
        After the epoch; the argument is left as it was.
    loss : Tensor of shape ()
        Mean loss over the samples, each before the step in which it was seen; float64.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices disagree, or a setting is out of range.

    Notes
    -----
    Adam is that of `torch.optim.Adam` with its defaults but for `lr` [1]_. Where no kernel is
    compiled, plain torch makes the same steps. Results do not depend on the number of threads.

    References
    ----------
    .. [1] Kingma & Ba (2015), Adam: a method for stochastic optimization, ICLR, algorithm 1.

    Examples
    --------
    >>> from nnmf_cuda.models import FeatureCNN
    >>> weights = torch.cat([w.detach().flatten() for w in FeatureCNN(15, 2).weights()])
    >>> state = torch.stack((weights, 0 * weights, 0 * weights, weights))
    >>> x, labels = torch.rand(40, 15), torch.randint(2, (40,))
    >>> settings = {"widths": (16, 32, 64, 2), "batch_size": 32, "lr": 1e-3}
    >>> state, loss = train_feature_cnn_epoch(x, labels, state, step=0, **settings)
    >>> state, loss = train_feature_cnn_epoch(x, labels, state, step=2, **settings)
    """
    settings = _Settings(list(widths), batch_size, step, lr, ema_decay)
    _check_epoch(x, "labels", labels, state, settings)
    if len(widths) != 4:
        raise ValueError(
            "widths must be (channels, channels, hidden units, n_classes), "
            f"got {len(widths)} numbers"
        )
    n_features = x.shape[1]
    if n_features < 2:
        raise ValueError(f"x must have at least 2 features for the max-pool of 2, got {n_features}")
    require_dtype("labels", labels, (torch.int64,))
    require_shape("labels", labels, (len(x),), "(n_samples,)")
    first, second, hidden, n_classes = widths
    inputs = (3, 3 * first, second * (n_features // 2), hidden)
    _check_state(state, inputs, widths)
    if labels.device.type == "cpu" and not bool(((labels >= 0) & (labels < n_classes)).all()):
        raise ValueError(
            f"labels must be within 0..{n_classes - 1}, the classes of widths, got values from "
            f"{int(labels.min())} to {int(labels.max())}"
        )
    op = serving("train_feature_cnn_epoch", x, state)
    state, loss = op(x, labels, state, **settings._asdict())
    return state, loss


def train_mlp_epoch(
    x: Tensor,
    targets: Tensor,
    state: Tensor,
    *,
    widths: Sequence[int],
    batch_size: int,
    step: int,
    lr: float,
    ema_decay: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Train an MLP with ReLU for one epoch by Adam on the mean squared error.

    `nnmf_cuda.models.networks.FeatureDenoiser` is such a network of noised features followed by the
    embedding of their timesteps.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_inputs)
        As in `train_feature_cnn_epoch`.
    targets : Tensor of shape (n_samples, n_outputs)
        What the network should answer, of x's dtype.
    state : Tensor of shape (4, n_weights)
        As in `train_feature_cnn_epoch`, with weight (outputs, inputs) and bias of each layer.
    widths : sequence of int
        Outputs of each layer, the last of them n_outputs. At most 16 layers, where the compiled
        kernel serves.
    batch_size, step, lr, ema_decay
        As in `train_feature_cnn_epoch`.

    Returns
    -------
    state, loss
        As from `train_feature_cnn_epoch`.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices disagree, or a setting is out of range.

    Examples
    --------
    >>> weights = torch.cat([p.detach().flatten() for p in torch.nn.Linear(3, 2).parameters()])
    >>> state = torch.stack((weights, 0 * weights, 0 * weights, weights))
    >>> x = torch.rand(50, 3)
    >>> state, loss = train_mlp_epoch(
    ...     x, x[:, :2], state, widths=(2,), batch_size=10, step=0, lr=0.01
    ... )
    """
    settings = _Settings(list(widths), batch_size, step, lr, ema_decay)
    _check_epoch(x, "targets", targets, state, settings)
    require_dtype("targets", targets, (x.dtype,))
    require_shape("targets", targets, (len(x), widths[-1]), "(n_samples, last of widths)")
    _check_state(state, (x.shape[1], *widths[:-1]), widths)
    op = serving("train_mlp_epoch", x, targets, state)
    state, loss = op(x, targets, state, **settings._asdict())
    return state, loss


class _Settings(NamedTuple):
    """What both ops take beside tensors."""

    widths: list[int]
    batch_size: int
    step: int
    lr: float
    ema_decay: float


def _check_epoch(x: Tensor, name: str, wanted: Tensor, state: Tensor, settings: _Settings) -> None:
    """Raise unless what both ops take is well."""
    for argument, value in (("x", x), (name, wanted), ("state", state)):
        require_tensor(argument, value)
    require_dtype("x", x, FLOATS)
    require_dims("x", x, (2,))
    if x.numel() == 0:
        raise ValueError(f"x must have at least one sample and one feature, got {tuple(x.shape)}")
    require_dtype("state", state, (x.dtype,))
    require_same_device(**{"x": x, name: wanted, "state": state})
    require_count("batch_size", settings.batch_size, low=1)
    require_count("step", settings.step, low=0)
    if not (math.isfinite(settings.lr) and settings.lr > 0):
        raise ValueError(f"lr must be a finite number > 0, got {settings.lr}")
    if not 0 <= settings.ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {settings.ema_decay}")
    if not settings.widths:
        raise ValueError("widths must have at least one number, one a layer")
    for i, width in enumerate(settings.widths):
        require_count(f"widths[{i}]", width, low=1)


def _check_state(state: Tensor, inputs: Sequence[int], outputs: Sequence[int]) -> None:
    n_weights = sum(n_out * (n_in + 1) for n_in, n_out in zip(inputs, outputs, strict=True))
    require_shape("state", state, (4, n_weights), "(4, n_weights)")


def _fake(x: Tensor, _wanted: Tensor, state: Tensor, **_settings: Any) -> tuple[Tensor, Tensor]:
    return state.new_empty(state.shape), x.new_empty((), dtype=torch.float64)


for _name in ("train_feature_cnn_epoch", "train_mlp_epoch"):
    torch.library.register_fake(f"nnmf_cuda::{_name}", _fake, lib=LIBRARY)
    raise_in_backward(_name, "detach() its arguments")
