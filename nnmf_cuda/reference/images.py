"""Grey images to another size: `resize_grey`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["resize_grey"]

_BITS = 22


def resize_grey(images: Tensor, *, height: int, width: int) -> Tensor:
    """Resample images (n, rows, columns) of bytes by a triangle, as wide as a pixel of the result.

    Along the rows, then along the columns, each time rounded to bytes.
    """
    between = _rounded(images.double() @ _weights(images.shape[2], width, images.device))
    columns = between.transpose(1, 2) @ _weights(images.shape[1], height, images.device)
    return _rounded(columns).transpose(1, 2).contiguous().to(torch.uint8)


def _rounded(sums: Tensor) -> Tensor:
    # Whole numbers below 2**31, so float64 is exact.
    return sums.add(2 ** (_BITS - 1)).div(2**_BITS).floor().clamp(max=255)


def _weights(size: int, count: int, device: torch.device) -> Tensor:
    """Return for each of `count` outputs the weights (size, count) of its inputs, times 2**22.

    Computed on the CPU, and summed one by one: another order could round a weight otherwise.
    """
    scale = size / count
    stretch = max(scale, 1.0)
    center = (torch.arange(count, dtype=torch.float64) + 0.5) * scale
    begin = (center - stretch + 0.5).trunc().clamp(min=0)
    end = (center + stretch + 0.5).trunc().clamp(max=size)
    shares = []
    for k in range(math.ceil(stretch) * 2 + 1):
        distance = ((k + begin - center + 0.5) * (1.0 / stretch)).abs()
        inside = (begin + k < end) & (distance < 1)
        shares.append(torch.where(inside, 1 - distance, 0.0))
    total = torch.zeros(count, dtype=torch.float64)
    for share in shares:
        total = total + share
    weights = torch.zeros(size, count, dtype=torch.float64)
    for k, share in enumerate(shares):
        at = (begin.long() + k).clamp(max=size - 1)
        weights[at, torch.arange(count)] += (0.5 + share / total * 2**_BITS).floor() * (share > 0)
    return weights.to(device)
