"""Bounds of a classifier over boxes: `crown_bounds`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnmf_cuda.ops._schema import (
    LIBRARY,
    raise_in_backward,
    require_dims,
    require_dtype,
    require_same_device,
    require_shape,
    require_tensor,
    serving,
)
from nnmf_cuda.reference import CrownBounds

__all__ = ["CrownBounds", "crown_bounds"]


def crown_bounds(
    lower: Tensor,
    upper: Tensor,
    weights: Sequence[Tensor],
    objective: Tensor,
    *,
    center: Tensor | None = None,
    radius: Tensor | None = None,
    hidden: tuple[Tensor, Tensor] | None = None,
) -> CrownBounds:
    """Bound a linear functional of a classifier's logits from below, over each of many boxes.

    Parameters
    ----------
    lower, upper : Tensor of shape (n_boxes, n_features)
        float64, finite, `lower` nowhere above `upper`.
    weights : sequence of Tensor
        Of a `FeatureCNN` as its `weights()` gives them, or weight (outputs, inputs) and bias of
        each layer of an MLP with ReLU between its layers, of which there are at least two.
        float32 or float64; taken as the real numbers that they are.
    objective : Tensor of shape (n_boxes, n_classes)
        float64. The functional is the product with the logits: one class's row of the identity less
        another's bounds the margin between the two.
    center : Tensor of shape (n_boxes, n_features), optional
        float64. With `radius`: points are within this L2 distance of it too.
    radius : Tensor of shape (n_boxes,), optional
        float64, not negative.
    hidden : tuple of 2 Tensors of shape (n_boxes, n_hidden), optional
        float64 bounds of the last hidden layer before its ReLU that are known already, such as
        those of a box around. What is found is at least as narrow.

    Returns
    -------
    bound : Tensor of shape (n_boxes,)
        At most the least value of the functional over the points of each region; -inf where weights
        or boxes are so large that float64 cannot tell.
    slope : Tensor of shape (n_boxes, n_features)
        Coefficients of the linear function of the input, below the functional, whose minimum the
        bound is: everywhere in the region the functional exceeds the bound by at least what that
        function exceeds its minimum.
    hidden_lower, hidden_upper : Tensor of shape (n_boxes, n_hidden)
        Bounds of the last hidden layer before its ReLU.

    Raises
    ------
    TypeError, ValueError
        If types, shapes or devices disagree, or a gradient is asked for.

    Notes
    -----
    The bounds of CROWN [1]_, and where a max-pool follows a ReLU the best of several planes through
    the corners of what a pair of units can be. They hold for the real-valued network of the given
    weights: what rounding can have done is taken off them (`nnmf_cuda.reference.crown` has the
    derivation). A network that answers in float32 rounds too, which is not counted here.

    References
    ----------
    .. [1] Zhang et al. (2018), Efficient neural network robustness certification with general
       activation functions, NeurIPS 31.

    Examples
    --------
    >>> from nnmf_cuda.models import FeatureCNN
    >>> weights = [weight.detach() for weight in FeatureCNN(15, 2).weights()]
    >>> x = torch.rand(7, 15, dtype=torch.float64)
    >>> objective = torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(7, 2)
    >>> found = crown_bounds(x - 0.01, x + 0.01, weights, objective)
    >>> found.bound.shape, found.slope.shape, found.hidden_lower.shape
    (torch.Size([7]), torch.Size([7, 15]), torch.Size([7, 64]))
    """
    tensors = {"lower": lower, "upper": upper, "objective": objective}
    if (center is None) != (radius is None):
        raise ValueError("center and radius describe a ball together: give both or neither")
    if center is not None and radius is not None:
        tensors |= {"center": center, "radius": radius}
    if hidden is not None:
        tensors |= {"hidden[0]": hidden[0], "hidden[1]": hidden[1]}
    for name, value in tensors.items():
        require_tensor(name, value)
        require_dtype(name, value, (torch.float64,))
    require_dims("lower", lower, (2,))
    n_boxes, n = lower.shape
    n_hidden, n_classes = _check_weights(weights, n)
    require_same_device(**tensors, **{f"weights[{i}]": w for i, w in enumerate(weights)})
    require_shape("upper", upper, (n_boxes, n), "(n_boxes, n_features)")
    require_shape("objective", objective, (n_boxes, n_classes), "(n_boxes, n_classes)")
    if center is not None and radius is not None:
        require_shape("center", center, (n_boxes, n), "(n_boxes, n_features)")
        require_shape("radius", radius, (n_boxes,), "(n_boxes,)")
    for i in range(2 if hidden is not None else 0):
        shape = (n_boxes, n_hidden)
        require_shape(f"hidden[{i}]", tensors[f"hidden[{i}]"], shape, "(n_boxes, n_hidden)")
    given = [*tensors.values(), *weights]
    if torch.is_grad_enabled() and any(value.requires_grad for value in given):
        raise ValueError("crown_bounds has no gradient: detach() its arguments, or use no_grad")
    wide = [weight.double() for weight in weights]
    low, high = (None, None) if hidden is None else hidden
    op = serving("crown_bounds")
    return CrownBounds(*op(lower, upper, wide, objective, center, radius, low, high))


@torch.library.register_fake("nnmf_cuda::crown_bounds", lib=LIBRARY)
def _(
    lower: Tensor,
    upper: Tensor,
    weights: list[Tensor],
    objective: Tensor,
    center: Tensor | None = None,
    radius: Tensor | None = None,
    hidden_lower: Tensor | None = None,
    hidden_upper: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n_boxes, n = lower.shape
    hidden = (n_boxes, weights[-4].shape[0])
    shapes = ((n_boxes,), (n_boxes, n), hidden, hidden)
    bound, slope, low, high = (lower.new_empty(shape) for shape in shapes)
    return bound, slope, low, high


raise_in_backward("crown_bounds", "detach() its arguments")


def _check_weights(weights: Sequence[Tensor], n_features: int) -> tuple[int, int]:
    """Raise unless these are weights of a CNN or an MLP; return its last hidden units, classes."""
    for i, weight in enumerate(weights):
        require_tensor(f"weights[{i}]", weight)
        require_dtype(f"weights[{i}]", weight, (torch.float32, torch.float64))
    if len(weights) < 4 or len(weights) % 2:
        raise ValueError(
            f"weights must be weight and bias of two layers or more, got {len(weights)} tensors"
        )
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    inputs, first = n_features, 0
    if weights[0].dim() == 3:
        if len(layers) != 4 or n_features < 2:
            raise ValueError(
                "weights that begin with a convolution must be those of a FeatureCNN of 2 features"
                f" or more, got {len(weights)} tensors and {n_features} features"
            )
        channels = [weight.shape[0] for weight, _ in layers]
        require_shape("weights[0]", weights[0], (channels[0], 1, 3), "(channels, 1, 3)")
        window = (channels[1], channels[0], 3)
        require_shape("weights[2]", weights[2], window, "(channels, channels below, 3)")
        inputs, first = channels[1] * (n_features // 2), 2
    for i, (weight, bias) in enumerate(layers):
        if i >= first:
            require_dims(f"weights[{2 * i}]", weight, (2,))
            shape = (weight.shape[0], inputs)
            require_shape(f"weights[{2 * i}]", weight, shape, "(outputs, inputs)")
            inputs = weight.shape[0]
        require_shape(f"weights[{2 * i + 1}]", bias, (weight.shape[0],), "(outputs,)")
    return layers[-2][0].shape[0], layers[-1][0].shape[0]
