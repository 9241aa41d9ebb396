"""Start values of a factorisation, drawn on the CPU so that every device agrees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from nnmf_cuda import _row_blocks
from nnmf_cuda._randomized_svd import FloatArray, randomized_svd
from nnmf_cuda._row_blocks import factor_dtype

INITS = ("random", "nndsvd", "nndsvda", "nndsvdar", "custom")
_RANDOM_FLOOR = 0.1  # added to the uniform draw: far from the zeros that no update can leave
_NNDSVD_ZERO = 1e-6  # entries of NNDSVD below this are zeros, as in scikit-learn


def initial_factors(
    X: Tensor, n_components: int, *, init: str, n_init: int, random_state: Any
) -> tuple[Tensor, Tensor]:
    """Draw `n_init` starts W (n_init, n, k) and H (n_init, k, f) on X's device.

    Restart 0 is what a single start with the same `random_state` gets. W and H have X's floating
    type (float32 for uint8 pixels).
    """
    starts = iter_starts(X, n_components, init=init, n_init=n_init, random_state=random_state)
    factors = zip(*starts, strict=True)
    W, H = (torch.stack(factor) if n_init > 1 else factor[0][None] for factor in factors)
    return W.to(X.device), H.to(X.device)


def iter_starts(
    X: Tensor, n_components: int, *, init: str, n_init: int, random_state: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the starts of `initial_factors` one at a time, W (n, k) and H (k, f) on the CPU."""
    if n_init > 1 and init not in ("random", "nndsvdar"):
        raise ValueError(
            f"n_init={n_init} with init={init!r} would repeat one start; use init='random' or "
            "'nndsvdar', or n_init=1"
        )
    starts: Iterable[tuple[FloatArray, FloatArray]]
    if init == "random":
        starts = _random(X, n_components, n_init, random_state)
    else:
        starts = _nndsvd(X, n_components, init, n_init, random_state)
    dtype = factor_dtype(X)
    for W, H in starts:
        yield torch.from_numpy(W).to(dtype), torch.from_numpy(H).to(dtype)


def custom_factors(X: Tensor, n_components: int | None, W: Any, H: Any) -> tuple[Tensor, Tensor]:
    """Check the user's start and return it as (1, n, k) and (1, k, f) on X's device."""
    if W is None or H is None:
        missing = " and ".join(name for name, given in (("W", W), ("H", H)) if given is None)
        raise ValueError(f"init='custom' needs both W and H; {missing} is missing: fit(X, W=, H=)")
    W, H = (torch.as_tensor(factor).detach() for factor in (W, H))
    n_samples, n_features = X.shape
    if n_components is None:
        n_components = H.shape[0]
    _check_start("W", W, (n_samples, n_components))
    _check_start("H", H, (n_components, n_features))
    dtype = factor_dtype(X)
    return W.to(X.device, dtype).unsqueeze(0), H.to(X.device, dtype).unsqueeze(0)


def custom_components(X: Tensor, n_components: int | None, H: Any) -> Tensor:
    """Check the user's start of a stream and return it as (k, f) on X's device."""
    if H is None:
        raise ValueError("init='custom' needs H: partial_fit(X, H=)")
    H = torch.as_tensor(H).detach()
    _check_start("H", H, (H.shape[0] if n_components is None else n_components, X.shape[1]))
    components: Tensor = H.to(X.device, factor_dtype(X))
    return components


def _check_start(name: str, factor: Tensor, shape: tuple[int, int]) -> None:
    if tuple(factor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(factor.shape)}")
    if not bool(torch.isfinite(factor).all()) or bool((factor < 0).any()):
        raise ValueError(f"{name} must be finite and >= 0, as every later iterate is")
    if not bool(factor.any()):
        raise ValueError(f"{name} is full of zeros; a start needs positive entries to grow from")


def _random(
    X: Tensor, n_components: int, n_init: int, random_state: Any
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Uniform on [0, 1) plus 0.1, the start of the paper."""
    rng = check_random_state(random_state)
    n_samples, n_features = X.shape
    for _ in range(n_init):  # one start at a time in memory
        yield (
            rng.uniform(_RANDOM_FLOOR, 1 + _RANDOM_FLOOR, size=(n_samples, n_components)),
            rng.uniform(_RANDOM_FLOOR, 1 + _RANDOM_FLOOR, size=(n_components, n_features)),
        )


def _nndsvd(
    X: Tensor, n_components: int, init: str, n_init: int, random_state: Any
) -> list[tuple[FloatArray, FloatArray]]:
    """NNDSVD (Boutsidis & Gallopoulos 2008) with zeros kept, averaged (a) or drawn (ar)."""
    W, H = _nndsvd_factors(X, n_components, random_state)
    if init == "nndsvd":
        return [(W, H)]
    mean = _row_blocks.mean(X)
    if init == "nndsvda":
        return [(np.where(W == 0, mean, W), np.where(H == 0, mean, H))]
    rng = check_random_state(random_state)
    return [(_filled(W, mean, rng), _filled(H, mean, rng)) for _ in range(n_init)]


def _filled(factor: FloatArray, mean: float, rng: np.random.RandomState) -> FloatArray:
    filled = factor.copy()
    zeros = filled == 0
    filled[zeros] = np.abs(mean * rng.standard_normal(size=int(zeros.sum())) / 100)
    return filled


def _nndsvd_factors(
    X: Tensor, n_components: int, random_state: Any
) -> tuple[FloatArray, FloatArray]:
    U, S, V = randomized_svd(X, n_components, random_state)
    W, H = np.zeros_like(U), np.zeros_like(V)
    # The leading singular vectors of a non-negative matrix have one sign each.
    W[:, 0] = np.sqrt(S[0]) * np.abs(U[:, 0])
    H[0] = np.sqrt(S[0]) * np.abs(V[0])
    for j in range(1, n_components):
        u, v, weight = _dominant_part(U[:, j], V[j])
        scale = np.sqrt(S[j] * weight)
        W[:, j] = scale * u
        H[j] = scale * v
    W[W < _NNDSVD_ZERO] = 0
    H[H < _NNDSVD_ZERO] = 0
    return W, H


def _dominant_part(u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray, float]:
    """Return the heavier of the positive and negative parts of u v^T, normalised, its weight."""
    parts = []
    for sign in (1, -1):
        a, b = np.maximum(sign * u, 0), np.maximum(sign * v, 0)
        norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
        parts.append((float(norm_a * norm_b), a, b, norm_a, norm_b))
    # On a tie scikit-learn takes the negative part.
    weight, a, b, norm_a, norm_b = parts[0] if parts[0][0] > parts[1][0] else parts[1]
    if weight == 0:  # a trailing vector of a rank-deficient X: nothing to start from
        return np.zeros_like(u), np.zeros_like(v), 0.0
    return a / norm_a, b / norm_b, weight
