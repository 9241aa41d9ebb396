"""What the cases share: drawn inputs, their float64 twins, the paper's sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnmf_cuda.benchmarks.registry import Inputs, NotApplicableError, Size

PIXELS = 128 * 128
PAPER = {"n_samples": 1500, "n_features": PIXELS, "n_components": 15}
"""Close to the paper's 1501 training images."""


def uniform(*shape: int, dtype: str, seed: int, device: torch.device) -> Tensor:
    """Draw from (0.01, 1.01), or pixels; on the CPU, so that every device gets the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == "uint8":
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64).add_(0.01)
    return drawn.to(device, getattr(torch, dtype))


def low_rank(
    n: int,
    f: int,
    k: int,
    *,
    dtype: str,
    seed: int,
    device: torch.device,
    batch: tuple[int, ...] = (),
) -> Tensor:
    """Draw a matrix in [0, 1] of rank k under noise, or such pixels; or a batch of them."""
    generator = torch.Generator().manual_seed(seed)
    # Cubes of uniform numbers: most entries small, as parts of images are.
    left, right = (
        torch.rand(shape, generator=generator, dtype=torch.float64) ** 3
        for shape in ((*batch, n, k), (*batch, k, f))
    )
    X = (left @ right).float()
    X /= 1.1 * X.max()
    X += 0.09 * torch.rand(X.shape, generator=generator)
    if dtype == "uint8":
        return (255 * X).round().to(torch.uint8).to(device)
    return X.to(device, getattr(torch, dtype))


def factor_dtype(size: Size) -> str:
    """Return the type of W and H: float32 for pixels, else X's."""
    return "float32" if size.dtype == "uint8" else size.dtype


def item_bytes(dtype: str) -> int:
    """Return the bytes of one number."""
    return int(getattr(torch, dtype).itemsize)


def doubled(inputs: Inputs) -> dict[str, Any]:
    """Return the inputs in float64; integers (pixels, timesteps) stay."""

    def double(value: Any) -> Any:
        if isinstance(value, list):
            return [double(item) for item in value]
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.double()
        return value

    return {name: double(value) for name, value in inputs.items()}


def array(value: Tensor) -> np.ndarray[Any, Any]:
    """Return a CPU tensor of floats as an array, for a library that knows no other."""
    if value.device.type != "cpu":
        raise NotApplicableError("runs on the CPU only")
    return floats(value).numpy()


def floats(value: Tensor) -> Tensor:
    """Return the tensor, or say that the library takes no pixels."""
    if value.dtype == torch.uint8:
        raise NotApplicableError("takes floating point only")
    return value
