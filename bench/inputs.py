"""What the cases share: drawn inputs, their float64 twins, the paper's sizes.

And noise for which a gradient can be compared: no unit so near a kink that rounding decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.case import Inputs, NotApplicableError, Size
from nnmf_cuda.reference import sinusoidal_embedding

PIXELS = 128 * 128
PAPER = {"n_samples": 1500, "n_features": PIXELS, "n_components": 15}
"""Close to the paper's 1501 training images."""


def uniform(*shape: int, dtype: str, seed: int, device: torch.device) -> Tensor:
    """Draw from (0.01, 1.01), or pixels, on the device: gigabytes are there sooner than copied."""
    generator = torch.Generator(device).manual_seed(seed)
    if dtype == "uint8":
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, device=device)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64, device=device).add_(0.01)
    return drawn.to(getattr(torch, dtype))


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
    """Draw on the device a matrix in [0, 1] of rank k under noise, or such pixels; or a batch."""
    generator = torch.Generator(device).manual_seed(seed)
    # Cubes of uniform numbers: most entries small, as parts of images are.
    left, right = (
        torch.rand(shape, generator=generator, dtype=torch.float64, device=device) ** 3
        for shape in ((*batch, n, k), (*batch, k, f))
    )
    X = (left @ right).float()
    X /= 1.1 * X.max()
    X += 0.09 * torch.rand(X.shape, generator=generator, device=device)
    if dtype == "uint8":
        return (255 * X).round().to(torch.uint8)
    return X.to(getattr(torch, dtype))


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


# Noise for gradients ------------------------------------------------------------------------------

_MARGIN = 1e-5
"""Some ten times the rounding of a unit's input in float32."""
_ROUNDS = 100


def noise_clear_of_kinks(
    x: Tensor,
    n_draws: int,
    *,
    timestep: int,
    alpha_cumprod: float,
    denoiser: Sequence[Tensor],
    classifier: Sequence[Tensor] = (),
    generator: torch.Generator,
) -> Tensor:
    """Draw standard normal noise (1, n, K, M) for one-shot purification of x (n, M).

    The gradient jumps where a ReLU's input is zero, and where the two of a max-pool are equal. In
    float32 some of a million units always come so near that their side is a matter of rounding;
    the noise of their rows is drawn again. float32, on the CPU.
    """
    rows = x.double().repeat_interleave(n_draws, 0)
    noise = torch.randn(rows.shape, generator=generator)
    networks = [[w.double() for w in weights] for weights in (denoiser, classifier)]
    redo = torch.arange(len(rows))
    for _ in range(_ROUNDS):
        x_t = alpha_cumprod**0.5 * rows[redo] + (1 - alpha_cumprod) ** 0.5 * noise[redo].double()
        redo = redo[_distance(x_t, timestep, *networks) < _MARGIN]
        if len(redo) == 0:
            return noise.reshape(1, len(x), n_draws, x.shape[1])
        noise[redo] = torch.randn((len(redo), x.shape[1]), generator=generator)
    raise RuntimeError("these weights leave no noise clear of the kinks; draw others")


def _distance(
    x_t: Tensor, timestep: int, denoiser: list[Tensor], classifier: list[Tensor]
) -> Tensor:
    """Return how far each row (n,) is from the nearest kink of its units."""
    embedding = sinusoidal_embedding(
        torch.tensor([timestep]), denoiser[0].shape[1] - x_t.shape[1]
    ).expand(len(x_t), -1)
    output, nearest = _through_layers(torch.cat((x_t, embedding), 1), denoiser)
    if not classifier:
        return nearest
    first = functional.conv1d(output.unsqueeze(1), classifier[0], classifier[1], padding=1)
    second = functional.conv1d(first.relu(), classifier[2], classifier[3], padding=1)
    n_pairs = second.shape[2] // 2
    pairs = second[..., : 2 * n_pairs].unflatten(2, (n_pairs, 2))
    larger, smaller = pairs.amax(3), pairs.amin(3)
    # The gradient goes to one of a pair only if that is above zero.
    between = torch.where(larger > 0, larger - smaller, torch.inf)
    _, of_head = _through_layers(larger.relu().flatten(1), classifier[4:])
    distances = [nearest, of_head]
    distances += [units.abs().flatten(1).amin(1) for units in (first, larger, between)]
    return torch.stack(distances).amin(0)


def _through_layers(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return a multilayer perceptron's output, and each row's smallest input of a ReLU."""
    nearest = torch.full((len(x),), torch.inf, dtype=x.dtype)
    for i in range(0, len(weights) - 2, 2):
        x = functional.linear(x, weights[i], weights[i + 1])
        nearest = torch.minimum(nearest, x.abs().amin(1))
        x = x.relu()
    return functional.linear(x, weights[-2], weights[-1]), nearest
