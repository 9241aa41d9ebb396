"""`crown_bounds`: boxes around features, as branch and bound asks for them."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.case import Call, Case, Inputs, Size, Work
from nnmf_cuda import ops, reference
from nnmf_cuda.models import FeatureCNN


def _layers(size: Size, seed: int) -> list[Tensor]:
    """Draw a network: the light CNN, or where `hidden` is given an MLP of two such layers."""
    n, hidden = size.shape["n_features"], size.shape.get("hidden", 0)
    generator = torch.Generator().manual_seed(seed)
    if hidden:
        shapes = [(hidden, n), (hidden,), (hidden, hidden), (hidden,), (2, hidden), (2,)]
    else:
        shapes = [tuple(weight.shape) for weight in FeatureCNN(n, 2).weights()]
    drawn = []
    for shape in shapes:
        fan_in = torch.Size(shape[1:]).numel()
        drawn.append(torch.randn(shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
    return drawn


def _inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    n_boxes, n = size.shape["n_boxes"], size.shape["n_features"]
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.rand((n_boxes, n), generator=generator, dtype=torch.float64)
    x /= x.norm(dim=1, keepdim=True)  # features have length 1
    eps = 0.05
    objective = torch.tensor([[1.0, -1.0]], dtype=torch.float64).expand(n_boxes, 2)
    return {
        "lower": (x - eps).clamp(0, 1).to(device),
        "upper": (x + eps).clamp(0, 1).to(device),
        "weights": [weight.to(device) for weight in _layers(size, seed)],
        "objective": objective.contiguous().to(device),
    }


def _ours(inputs: Inputs) -> Call:
    given = [inputs[name] for name in ("lower", "upper", "weights", "objective")]
    return lambda: ops.crown_bounds(*given)[:2]


def _reference(inputs: Inputs) -> Call:
    given = [inputs[name] for name in ("lower", "upper", "weights", "objective")]
    return lambda: reference.crown_bounds(*given)[:2]


CROWN_BOUNDS = Case(
    op="crown_bounds",
    sizes=(
        Size("cnn", {"n_boxes": 256, "n_features": 15}, "float64"),
        Size("mlp", {"n_boxes": 256, "n_features": 15, "hidden": 64}, "float64"),
        Size("a box", {"n_boxes": 1, "n_features": 15}, "float64"),
    ),
    cuda_sizes=(
        Size("cnn", {"n_boxes": 4096, "n_features": 15}, "float64"),
        Size("mlp", {"n_boxes": 4096, "n_features": 15, "hidden": 64}, "float64"),
    ),
    smoke=(
        Size("smoke cnn", {"n_boxes": 3, "n_features": 5}, "float64"),
        Size("smoke mlp", {"n_boxes": 3, "n_features": 5, "hidden": 7}, "float64"),
    ),
    inputs=_inputs,
    truth=lambda inputs: _reference(inputs)(),
    implementations={"reference": _reference, "ours": _ours},
    tolerance={"float64": 1e-7},
    # How many operations a box takes depends on which of its units are settled.
    work=lambda size: Work(items=size.shape["n_boxes"]),
)

CASES = (CROWN_BOUNDS,)
