"""Counter-based random numbers: the same on every device, for any batching.

Philox4x32-10 of Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011), in int64 arithmetic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["philox_4x32", "philox_normal"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox_4x32(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Return four 32-bit words for each counter.

    Parameters
    ----------
    counter : Tensor of shape (..., 4)
        int64, each entry in [0, 2**32).
    key : tuple of two ints
        Each in [0, 2**32).

    Returns
    -------
    Tensor of shape (..., 4)
        int64, each entry in [0, 2**32).
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(10):
        # Products wrap modulo 2**64, which leaves both halves right.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = (p0 >> 32) & _WORD, (p1 >> 32) & _WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _WORD, high0 ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return torch.stack((c0, c1, c2, c3), -1)


def philox_normal(
    seed: int,
    shape: tuple[int, int, int, int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw standard normals of shape (steps, rows, draws, features).

    Entry (s, r, d, j) depends on the seed and (s, r, d, j) alone: counter (j, d, r, s), key the
    seed's two halves, Box-Muller in float64 on two 53-bit uniforms, rounded to float32.
    """
    if 0 in shape:
        return torch.empty(shape, dtype=dtype, device=device)
    axes = [torch.arange(size, dtype=torch.int64, device=device) for size in shape]
    step, row, draw, feature = torch.meshgrid(*axes, indexing="ij")
    words = philox_4x32(
        torch.stack((feature, draw, row, step), -1), (seed & _WORD, (seed >> 32) & _WORD)
    )
    # 53 bits each: 27 of one word and 26 of the next; the first uniform is in (0, 1].
    first = ((words[..., 0] >> 5) * 2**26 + (words[..., 1] >> 6) + 1).double() / 2**53
    second = ((words[..., 2] >> 5) * 2**26 + (words[..., 3] >> 6)).double() / 2**53
    normal = torch.sqrt(-2 * torch.log(first)) * torch.cos(2 * math.pi * second)
    return normal.float().to(dtype)
