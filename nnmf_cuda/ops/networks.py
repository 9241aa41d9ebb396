"""The light classifier of feature vectors: `feature_cnn`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnmf_cuda.ops._call_defence import call_defence
from nnmf_cuda.ops._defence_arguments import (
    check_classifier,
    check_features,
    empty_signs,
    require_signs,
    signs_of_classifier,
    split_like,
)
from nnmf_cuda.ops._schema import LIBRARY, raise_in_backward

__all__ = ["feature_cnn"]


def feature_cnn(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Classify feature vectors by a light 1-D convolutional network.

    Conv1d (kernel 3, padding 1), ReLU, Conv1d, ReLU, max-pool 2, fully connected, ReLU, fully
    connected: what `nnmf_cuda.models.FeatureCNN` computes, any number of channels.

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
    Differentiable in x and the weights; for x from the signs of the units, kept as bits.

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
    return call_defence("feature_cnn", x, (weights,), unasked=("weights_need_grad",))


@torch.library.register_fake("nnmf_cuda::feature_cnn", lib=LIBRARY)
def _(x: Tensor, weights: list[Tensor], *, keep_signs: bool = False) -> tuple[Tensor, Tensor]:
    n_words = signs_of_classifier(weights, x.shape[1])
    signs = empty_signs(x, x.shape[0], n_words, keep_signs=keep_signs)
    return x.new_empty((x.shape[0], weights[-1].shape[0])), signs


@torch.library.register_fake("nnmf_cuda::feature_cnn_backward", lib=LIBRARY)
def _(
    grad: Tensor, x: Tensor, weights: list[Tensor], signs: Tensor, *, weights_need_grad: bool
) -> tuple[Tensor, Tensor]:
    n_weights = sum(w.numel() for w in weights) if weights_need_grad else 0
    return x.new_empty(x.shape), x.new_empty((n_weights,))


def _save(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any
) -> None:
    x, weights = inputs
    ctx.save_for_backward(x, output[1], *weights)


def _backward(ctx: Any, grad: Tensor, _grad_signs: Tensor) -> tuple[Any, ...]:
    x, signs, *weights = ctx.saved_tensors
    require_signs("feature_cnn", signs)
    weights_need_grad = any(ctx.needs_input_grad[1])
    grad_x, grad_weights = torch.ops.nnmf_cuda.feature_cnn_backward.default(
        grad, x, weights, signs, weights_need_grad=weights_need_grad
    )
    of_weights = split_like(grad_weights, weights) if weights_need_grad else [None] * len(weights)
    return grad_x, of_weights


torch.library.register_autograd(
    "nnmf_cuda::feature_cnn", _backward, setup_context=_save, lib=LIBRARY
)
raise_in_backward("feature_cnn_backward", "it is a gradient already; there is no second one")
