"""Where factorisations start: drawn on the CPU so that every device agrees, or from the user."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils.extmath import svd_flip
from torch import Tensor

from nnmf_cuda.nnmf.matrix import Matrix, numpy_dtype, real_tensor, refuse_entries
from nnmf_cuda.nnmf.projection import constant_W
from nnmf_cuda.nnmf.semi import least_squares_H
from nnmf_cuda.nnmf.sharded_matrix import Sharded
from nnmf_cuda.nnmf.sharded_svd import array_product, independent_columns, sharded_svd

FloatArray = NDArray[Any]

INITS = ("random", "nndsvd", "nndsvda", "nndsvdar", "custom")

_AUTO_COMPONENTS = 15  # the paper's number
_RANDOM_FLOOR = 0.1  # added to the uniform draw: far from the zeros that no update can leave
_DRAWN = 2**14  # numbers that are drawn together
_NNDSVD_ZERO = 1e-6  # entries of NNDSVD below this are zeros, as in scikit-learn, at the mean 1
_OVERSAMPLES = 10  # singular vectors computed beside those asked for


@dataclass(frozen=True)
class Origin:
    """How starts are made."""

    init: str  # of `INITS`
    n_init: int = 1
    random_state: Any = None
    mean: float = 1.0  # of X, see `Units.scale`: starts that are not the user's scale with it
    fixed: Tensor | None = None  # (m, n_features), of X's factors: the first rows of every H
    signed: bool = False  # X and H may have any sign: Semi-NMF

    @property
    def n_fixed(self) -> int:
        """How many rows of H are given and held."""
        return 0 if self.fixed is None else len(self.fixed)


def initial_factors(
    X: Matrix,
    n_components: Any,
    origin: Origin,
    *,
    W: Any = None,
    H: Any = None,
    own: slice | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the starts W (n_init, n, k) and H (n_init, k, f) of a fit, on X's device.

    Restart 0 is what a single start with the same `random_state` gets. W and H have X's floating
    type (float32 for uint8 pixels). Given W and H are the one start of ``init="custom"``. `own`
    says which of the starts are wanted.
    """
    wanted = _requested(n_components, X, origin)
    if origin.init == "custom":
        if origin.n_init > 1:
            raise ValueError(f"n_init={origin.n_init} with init='custom': give one start, n_init=1")
        if W is None or H is None:
            missing = " and ".join(name for name, given in (("W", W), ("H", H)) if given is None)
            raise ValueError(
                f"init='custom' needs both W and H; {missing} is missing: fit(X, W=, H=)"
            )
        wanted = len(H) if wanted is None else wanted
        W = _given("W", W, X, (X.shape[0], wanted))
        H = _given("H", H, X, (wanted, X.shape[1]), signed=origin.signed)
        return W[None], _holding(origin, H)[None]
    if W is not None or H is not None:
        raise ValueError(f"W and H are starts of init='custom', but init={origin.init!r}")
    k = wanted or max(min(_AUTO_COMPONENTS, *X.whole_shape), origin.n_fixed)
    # All are drawn, so that a generator ends alike in all processes.
    own = slice(0, origin.n_init) if own is None else own
    every = enumerate(iter_starts(X, k, origin))
    factors = zip(*(start for i, start in every if own.start <= i < own.stop), strict=True)
    W, H = (torch.stack(factor) if len(factor) > 1 else factor[0][None] for factor in factors)
    return W.to(X.device), H.to(X.device)


def initial_components(X: Matrix, n_components: Any, origin: Origin, *, H: Any = None) -> Tensor:
    """Return the components H (k, f) from which a stream that begins with X (n, f) starts."""
    init = origin.init
    wanted = _requested(n_components, X, origin)
    if init == "custom":
        if H is None:
            raise ValueError("init='custom' needs H: partial_fit(X, H=)")
        H = _given("H", H, X, (len(H) if wanted is None else wanted, X.shape[1]))
        return _holding(origin, H)
    if H is not None:
        raise ValueError(f"H is the start of init='custom', but init={init!r}")
    # Only singular vectors need rows: else the first mini-batch may have few.
    limit = min(X.whole_shape) if _of_singular_vectors(init) else X.shape[1]
    k = wanted or max(min(_AUTO_COMPONENTS, limit), origin.n_fixed)
    (start,) = iter_starts(X, k, replace(origin, n_init=1))
    return start[1].to(X.device)


def iter_starts(X: Matrix, n_components: int, origin: Origin) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `n_init` starts that are not the user's, W (n, k) and H (k, f) on the CPU."""
    if origin.n_init > 1 and origin.init not in ("random", "nndsvdar"):
        raise ValueError(
            f"n_init={origin.n_init} with init={origin.init!r} would repeat one "
            "start; use init='random' or 'nndsvdar', or n_init=1"
        )
    if origin.n_fixed and _of_singular_vectors(origin.init):
        raise ValueError(
            f"init={origin.init!r} knows nothing of fixed_components; use init='random', or "
            "init='custom' with a W and H of your own"
        )
    if origin.signed:
        yield from _fitted_starts(X, n_components, origin)
        return
    draw = _random if origin.init == "random" else _nndsvd
    dtype = X.factor_dtype
    for drawn in draw(X, n_components, origin):
        W, H = (torch.from_numpy(factor).to(dtype) for factor in drawn)
        if origin.fixed is not None:
            fixed, n_fixed = origin.fixed.cpu(), origin.n_fixed
            # The parts of W H that they make are as large as those of the rows drawn.
            W[:, :n_fixed] *= H[:n_fixed].mean(1) / fixed.mean(1)
            H[:n_fixed] = fixed
        yield W, H


def held_factors(
    X: Matrix, n_components: Any, *, W: Any = None, H: Any = None, signed: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the start W (n, k) and the components H (k, f) of a fit that holds H.

    Without a W each row starts from a constant.
    """
    if H is None:
        raise ValueError("update_H=False needs the components to hold: fit(X, H=, update_H=False)")
    shape = (len(H) if n_components == "auto" else n_components, X.shape[1])
    H = _given("H", H, X, shape, signed=signed)
    W = constant_W(X, H, signed=signed) if W is None else _given("W", W, X, (X.shape[0], len(H)))
    return W, H


def fixed_rows(fixed_components: Any, X: Matrix, *, signed: bool = False) -> Tensor:
    """Return the components (m, f) that all fits to X are to hold, checked."""
    fixed_components = real_tensor("fixed_components", fixed_components)
    if fixed_components.ndim != 2:
        raise ValueError(
            f"fixed_components must have shape (n_fixed, {X.shape[1]}), one component a row, got "
            f"{tuple(fixed_components.shape)}"
        )
    shape = (len(fixed_components), X.shape[1])
    fixed = _given("fixed_components", fixed_components, X, shape, signed=signed)
    if not bool(fixed.any(dim=1).all()):
        raise ValueError("fixed_components has a row of zeros, which no data can be made of")
    return fixed


def _requested(n_components: Any, X: Matrix, origin: Origin) -> int | None:
    """Return the number of components asked for, None for "auto"; raise where it cannot be had."""
    if n_components == "auto":
        return None
    limit = min(X.whole_shape)
    if n_components > limit and _of_singular_vectors(origin.init):
        raise ValueError(
            f"n_components={n_components} is above min(n_samples, n_features) = {limit}, so that "
            f"init={origin.init!r} has no more starts for X of shape {X.whole_shape}; use "
            f"n_components <= {limit} or init='random'"
        )
    if n_components < origin.n_fixed:
        raise ValueError(
            f"n_components={n_components} is below the {origin.n_fixed} rows of fixed_components, "
            "which are among them"
        )
    return int(n_components)


def _of_singular_vectors(init: str) -> bool:
    return init.startswith("nndsvd")


def _holding(origin: Origin, H: Tensor) -> Tensor:
    """Return the user's H (k, f), its first rows replaced by those that are held."""
    if len(H) < origin.n_fixed:
        raise ValueError(
            f"H has {len(H)} rows, fewer than the {origin.n_fixed} rows of fixed_components, which "
            "take the place of its first; give H with all n_components rows"
        )
    return H if origin.fixed is None else torch.cat((origin.fixed, H[origin.n_fixed :]))


def _given(
    name: str, factor: Any, X: Matrix, shape: tuple[int, int], *, signed: bool = False
) -> Tensor:
    """Return the user's factor, checked, in the type and on the device of X's factors."""
    factor = real_tensor(name, factor)
    if tuple(factor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(factor.shape)}")
    refuse_entries(
        name,
        factor,
        ~torch.isfinite(factor) if signed else ~(torch.isfinite(factor) & (factor >= 0)),
        "must be finite" if signed else "must be finite and >= 0, as every later iterate is",
    )
    if factor.numel() and not bool(factor.any()):
        raise ValueError(
            f"{name} is full of zeros, all {factor.numel()}; a start needs positive entries to grow"
            " from"
        )
    moved: Tensor = factor.to(X.device, X.factor_dtype)
    return moved


def _random(
    X: Matrix, n_components: int, origin: Origin
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Uniform on [0, 1) plus 0.1, the start of the paper, scaled so that W H has the mean of X."""
    rng = X.same_generator(check_random_state(origin.random_state))
    n_samples, n_features = X.whole_shape
    scale = math.sqrt(origin.mean / n_components) / (0.5 + _RANDOM_FLOOR)
    dtype = numpy_dtype(X.factor_dtype)
    for _ in range(origin.n_init):  # one start at a time in memory
        yield (
            _drawn(rng, (n_samples, n_components), scale, dtype, X.own_rows),
            _drawn(rng, (n_components, n_features), scale, dtype, slice(0, n_components)),
        )


def _drawn(
    rng: np.random.RandomState,
    shape: tuple[int, int],
    scale: float,
    dtype: np.dtype[Any],
    rows: slice,
) -> FloatArray:
    """Draw a factor and return some of its rows.

    The float64 that is drawn is there for a few entries at a time. All of them are drawn: a row is
    the same whoever has it.
    """
    width = shape[1]
    own = slice(rows.start * width, rows.stop * width)
    draw = partial(rng.uniform, _RANDOM_FLOOR, 1 + _RANDOM_FLOOR)
    entries = np.empty(own.stop - own.start, dtype)
    for place, part in drawn_parts(draw, math.prod(shape), own):
        entries[place] = scale * part
    return entries.reshape(-1, width)


def drawn_parts(
    draw: Callable[..., Any], total: int, own: slice
) -> Iterator[tuple[slice, FloatArray]]:
    """Draw `total` numbers and yield those that are one's `own`, with their places among them."""
    for first in range(0, total, _DRAWN):
        part = draw(size=min(_DRAWN, total - first))
        low, high = max(first, own.start), min(first + len(part), own.stop)
        if low < high:
            yield slice(low - own.start, high - own.start), part[low - first : high - first]


def _fitted_starts(X: Matrix, n_components: int, origin: Origin) -> Iterator[tuple[Tensor, Tensor]]:
    """Uniform W on [0, 1) plus 0.1, and the H of any sign that fits it best."""
    rng = X.same_generator(check_random_state(origin.random_state))
    shape = (X.whole_shape[0], n_components)
    for _ in range(origin.n_init):
        drawn = _drawn(rng, shape, 1.0, np.dtype(np.float64), X.own_rows)
        W = torch.from_numpy(drawn).to(X.factor_dtype)
        H = torch.zeros(n_components, X.shape[1], dtype=W.dtype, device=X.device)
        if origin.fixed is not None:
            H[: origin.n_fixed] = origin.fixed
        moved = W[None].to(X.device)
        yield W, least_squares_H(X, moved, H[None], n_fixed=origin.n_fixed)[0].cpu()


def _nndsvd(
    X: Matrix, n_components: int, origin: Origin
) -> Iterable[tuple[FloatArray, FloatArray]]:
    """NNDSVD (Boutsidis & Gallopoulos 2008) with zeros kept, averaged (a) or drawn (ar).

    These are sqrt(mean) times the starts of scikit-learn for X / mean: its own fill W and H, which
    have the units of sqrt(X), by the mean of X.
    """
    unit = math.sqrt(origin.mean)
    W, H = _nndsvd_factors(X, n_components, origin.random_state, zero=_NNDSVD_ZERO * unit)
    if origin.init == "nndsvd":
        return [(W, H)]
    if origin.init == "nndsvda":
        return [(np.where(W == 0, unit, W), np.where(H == 0, unit, H))]
    rng = X.same_generator(check_random_state(origin.random_state))
    n_zeros = int((W == 0).sum())
    before, total = X.place(n_zeros)
    of_W = slice(before, before + n_zeros), total
    n_zeros = int((H == 0).sum())
    of_H = slice(0, n_zeros), n_zeros
    return [
        (_filled(W, unit, rng, *of_W), _filled(H, unit, rng, *of_H)) for _ in range(origin.n_init)
    ]


def _filled(
    factor: FloatArray, average: float, rng: np.random.RandomState, own: slice, total: int
) -> FloatArray:
    """Return the factor with small random numbers for its zeros, its `own` of those in all rows."""
    filled = factor.copy()
    numbers = np.empty(own.stop - own.start)
    for place, part in drawn_parts(rng.standard_normal, total, own):
        numbers[place] = np.abs(average * part / 100)
    filled[filled == 0] = numbers
    return filled


def _nndsvd_factors(
    X: Matrix, n_components: int, random_state: Any, *, zero: float
) -> tuple[FloatArray, FloatArray]:
    U, S, V = randomized_svd(X, n_components, random_state)
    norms = _norms_of_parts(X, U)
    W, H = np.zeros_like(U), np.zeros_like(V)
    # The leading singular vectors of a non-negative matrix have one sign each.
    W[:, 0] = np.sqrt(S[0]) * np.abs(U[:, 0])
    H[0] = np.sqrt(S[0]) * np.abs(V[0])
    for j in range(1, n_components):
        u, v, weight = _dominant_part(U[:, j], V[j], norms[j])
        scale = np.sqrt(S[j] * weight)
        W[:, j] = scale * u
        H[j] = scale * v
    W[W < zero] = 0
    H[H < zero] = 0
    return W, H


def _norms_of_parts(X: Matrix, U: FloatArray) -> FloatArray:
    """Return the norms (k, 2) of the positive and negative parts of U's columns, of all rows."""
    parts = ((np.maximum(u, 0), np.maximum(-u, 0)) for u in U.T)
    squares = np.array([(a.dot(a), b.dot(b)) for a, b in parts], U.dtype)
    (total,) = X.totals(torch.from_numpy(squares).to(X.device))
    norms: FloatArray = np.sqrt(total.cpu().numpy())
    return norms


def _dominant_part(
    u: FloatArray, v: FloatArray, norms_of_u: FloatArray
) -> tuple[FloatArray, FloatArray, float]:
    """Return the heavier of the positive and negative parts of u v^T, normalised, its weight."""
    parts = []
    for sign, norm_a in zip((1, -1), norms_of_u, strict=True):
        a, b = np.maximum(sign * u, 0), np.maximum(sign * v, 0)
        norm_b = np.linalg.norm(b)
        parts.append((float(norm_a * norm_b), a, b, norm_a, norm_b))
    # On a tie scikit-learn takes the negative part.
    weight, a, b, norm_a, norm_b = parts[0] if parts[0][0] > parts[1][0] else parts[1]
    if weight == 0:  # a trailing vector of a rank-deficient X: nothing to start from
        return np.zeros_like(u), np.zeros_like(v), 0.0
    return a / norm_a, b / norm_b, weight


def randomized_svd(
    X: Matrix, n_components: int, random_state: Any
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return U (n, k), S (k,) and V^T (k, f) of the leading singular vectors of X.

    The algorithm of Halko, Martinsson & Tropp (2011) with the choices and the random draw of
    :func:`sklearn.utils.extmath.randomized_svd`, which needs X as a floating-point array. Here
    products with X run on its device, block by block; all else has the size of the factors.
    """
    n_power = 7 if n_components < 0.1 * min(X.whole_shape) else 4
    if isinstance(X, Sharded):
        return sharded_svd(
            X, n_components, random_state, n_oversamples=_OVERSAMPLES, n_power=n_power
        )
    wide = X.shape[0] < X.shape[1]
    times = partial(array_product, X.product, X.device)
    transposed = partial(array_product, X.transposed_product, X.device)
    if wide:  # work on the transpose, as scikit-learn does
        times, transposed = transposed, times
    rng = check_random_state(random_state)
    size = n_components + _OVERSAMPLES
    dtype = numpy_dtype(X.factor_dtype)
    Q = rng.normal(size=(min(X.shape), size)).astype(dtype, copy=False)
    for _ in range(n_power):
        Q = independent_columns(times(Q))
        Q = independent_columns(transposed(Q))
    Q, _ = scipy.linalg.qr(times(Q), mode="economic", check_finite=False)
    U, S, Vt = scipy.linalg.svd(transposed(Q).T, full_matrices=False)
    U, Vt = svd_flip(Q @ U, Vt, u_based_decision=not wide)
    U, S, Vt = U[:, :n_components], S[:n_components], Vt[:n_components]
    return (Vt.T, S, U.T) if wide else (U, S, Vt)
