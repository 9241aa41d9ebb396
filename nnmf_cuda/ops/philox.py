"""Counter-based random numbers: `philox_normal`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnmf_cuda.ops._schema import FLOATS, LIBRARY, require_count, serving

__all__ = ["philox_normal"]

_AXES = ("n_steps", "n_rows", "n_draws", "n_features")


def philox_normal(
    seed: int,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw standard normals, each of which depends on the seed and its own indices alone.

    Parameters
    ----------
    seed : int
        In [0, 2**63).
    shape : sequence of 4 ints
        (n_steps, n_rows, n_draws, n_features), each in [0, 2**32).
    dtype : torch.dtype, default=torch.float32
        float32 or float64, which then holds the same float32 numbers.
    device : torch.device or str, default="cpu"

    Returns
    -------
    Tensor of shape (n_steps, n_rows, n_draws, n_features)
        Without gradient.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    Notes
    -----
    Entry (s, r, d, j) is made of the four words of Philox4x32-10 with the counter (j, d, r, s) and
    the seed's lower and upper half as the key: two uniforms u and v of 53 bits, and
    sqrt(-2 log(u)) cos(2 pi v) in float64, rounded to float32. The words are the same on every
    device; normals can differ in the last bit of a float32. A larger tensor begins with the numbers
    of a smaller one, along every axis. `purify` with a seed draws these numbers as its noise.

    References
    ----------
    .. [1] Salmon, Moraes, Dror & Shaw (2011), Parallel random numbers: as easy as 1, 2, 3, SC.

    Examples
    --------
    >>> draws = philox_normal(0, (1, 4, 2, 3))
    >>> bool((philox_normal(0, (1, 2, 2, 3)) == draws[:, :2]).all())
    True
    """
    require_count("seed", seed, low=0)
    if seed >= 2**63:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}")
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    sizes = tuple(shape)
    if len(sizes) != len(_AXES):
        raise ValueError(f"shape must be ({', '.join(_AXES)}), got {sizes}")
    for name, size in zip(_AXES, sizes, strict=True):
        require_count(f"{name} of shape", size, low=0)
        if size >= 2**32:
            raise ValueError(f"{name} of shape must be < 2**32, got {size}")
    like = torch.empty(0, dtype=dtype, device=device)
    draws: Tensor = serving("philox_normal")(
        like, seed=seed, **dict(zip(_AXES, sizes, strict=True))
    )
    return draws


@torch.library.register_fake("nnmf_cuda::philox_normal", lib=LIBRARY)
def _(
    like: Tensor, *, seed: int, n_steps: int, n_rows: int, n_draws: int, n_features: int
) -> Tensor:
    return like.new_empty((n_steps, n_rows, n_draws, n_features))
