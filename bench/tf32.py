"""How exact Kullback-Leibler updates are on tensor cores, in TF32 thrice: bounds, and what is seen.

Tensor cores multiply numbers of eleven significant bits (TF32) and add in float32. A float32 number
is split into two such numbers, x = hi + lo, and a product into hi hi + hi lo + lo hi [1]_; lo lo is
left out. No term is negative but the small ones with lo, so nothing cancels, and every bound is
relative: of an entry of W H, of X / W H, and of a numerator, a sum over at most 512 terms.

How tensor cores round is not documented; published tests [2]_ [3]_ found this: the terms of a block
and what is added to them are cut off at the largest one's last bit, or one to three bits below, and
their sum at 24 bits. `CORES` are such cores, none of them better than what was found on an A100 or
an H100. All is emulated bit by bit in float64, which holds each step exactly.

References
----------
.. [1] Ootomo & Yokota (2022), Recovering single precision accuracy from Tensor Cores while
   surpassing the FP32 theoretical peak performance, arXiv 2203.03341.
.. [2] Fasi, Higham, Mikaitis & Pranesh (2021), Numerical behavior of NVIDIA tensor cores, PeerJ
   Computer Science 7:e330.
.. [3] Li, Li, Fang, Swirydowicz, Laguna & Gopalakrishnan (2024), FTTN: Feature-Targeted Testing for
   Numerical Properties of NVIDIA & AMD Matrix Accelerators, arXiv 2403.00232.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nnmf_cuda import ops
from nnmf_cuda.benchmarks.records import MEASURED, Record, Recorder

__all__ = ["CORES", "Bound", "Core", "HalfStep", "emulated", "mma", "run_tf32_study", "split"]

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

_STEP = 8  # terms of one mma
_GROUP = 16  # terms that are added within tensor cores; groups are added in float32
_LONGEST = 512  # terms that are added in float32; what is longer goes on in float64
_FLOOR = 2.0**-23  # the default floor of W H
_SMALLEST = 2.0**-126  # normal number of float32


@dataclass(frozen=True)
class Core:
    """A tensor core: `block` products are added at once, with `guard` bits below float32's last."""

    block: int
    guard: int

    @property
    def mma_error(self) -> float:
        """Largest relative error of one mma whose terms are not negative."""
        of_block = (1 + (self.block + 1) * 2.0**-self.guard) * 2.0**-23
        return _STEP // self.block * of_block


CORES = {
    "8 at once, 2 bits more": Core(8, 2),
    "4 at once, 1 bit more": Core(4, 1),
    "4 at once, no bit more": Core(4, 0),
}


@dataclass(frozen=True)
class Bound:
    """Largest relative errors where no term is below float32's normal numbers."""

    product: float
    quotient: float
    numerator: float

    @classmethod
    def of(cls, core: Core, k: int, depth: int) -> Bound:
        """Return the bound for `k` components and sums of `depth` terms, 512 at most.

        hi is x rounded to the nearest of eleven bits, so lo is at most x / 2^11 and has twelve
        bits, of which tensor cores read eleven: hi + lo is x but for 2^-23, and lo lo at most
        2^-22.
        In W H terms with lo come first, so that only sums of hi hi are cut off at their full size;
        in a group of a numerator those of its first step do. What is cut off of the small ones is
        within the last factor.
        """
        split_error = 2 * 2.0**-23 + 2.0**-22
        steps = -(-k // _STEP)
        product = split_error + steps * core.mma_error
        quotient = product + 2.0**-23 + 2.0**-24  # a reciprocal within one unit, and a product
        within = (3 * (_GROUP // _STEP) - 2) * core.mma_error
        additions = (-(-depth // _GROUP) - 1) * 2.0**-24
        numerator = quotient + split_error + within + additions
        return cls(*((1 + 2.0**-8) * error for error in (product, quotient, numerator)))


@dataclass(frozen=True)
class HalfStep:
    """What a half-step has: own rows W (n, k), the other factor H (k, depth), X (n, depth)."""

    X: F32
    W: F32
    H: F32
    floor: float = _FLOOR


@dataclass(frozen=True)
class Sums:
    """An entry of W H each, X / W H, and the numerators, as one arithmetic gives them."""

    product: F64
    quotient: F64
    numerator: F64


def split(x: F32) -> tuple[F64, F64]:
    """Return hi and lo as tensor cores read them; both have eleven bits at most."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    mask = np.uint32(0xFFFFE000)
    hi = ((bits + np.uint32(0x1000)) & mask).view(np.float32)
    lo = ((x - hi).view(np.uint32) & mask).view(np.float32)
    return hi.astype(np.float64), lo.astype(np.float64)


def _cut(x: F64, bits_below: int | F64, exponent: NDArray[np.int32] | None = None) -> F64:
    """Cut off what is below 2^(exponent - bits_below), by default the number's own exponent."""
    if exponent is None:
        exponent = np.frexp(x)[1]
    unit = np.ldexp(1.0, np.maximum(exponent - bits_below, -149).astype(np.int32))
    return np.asarray(np.trunc(x / unit) * unit)


def mma(A: F64, B: F64, C: F64, core: Core) -> F64:
    """Return A B + C as a core gives it, for A (n, 8), B (8, f) of TF32 and C (n, f) of float32."""
    total = C
    for first in range(0, A.shape[1], core.block):
        last = first + core.block
        terms = np.concatenate((total[None], A.T[first:last, :, None] * B[first:last, None, :]))
        largest = np.frexp(terms)[1].max(0, where=terms != 0, initial=-300)
        # The unit of the sum may be below float32's smallest: products have its exponents twice.
        unit = np.ldexp(1.0, largest - (24 + core.guard))
        total = _cut((np.trunc(terms / unit) * unit).sum(0), 24)
    total[np.abs(total) >= 2.0**128] = np.inf
    return total


def _padded(x: F32, axis: int, step: int) -> F32:
    short = -x.shape[axis] % step
    widths = [(0, short if at == axis else 0) for at in range(x.ndim)]
    return np.pad(x, widths)


def _thrice(A: F32, B: F32, core: Core, *, together: bool) -> F64:
    """Return A B, the small terms of each step before its hi hi, or `together` before all."""
    A, B = _padded(A, 1, _STEP), _padded(B, 0, _STEP)
    (A_hi, A_lo), (B_hi, B_lo) = split(A), split(B)
    sums = np.zeros((A.shape[0], B.shape[1]))
    steps = [slice(at, at + _STEP) for at in range(0, A.shape[1], _STEP)]
    for group in (steps,) if together else ([at] for at in steps):
        for at in group:
            sums = mma(A_lo[:, at], B_hi[at], sums, core)
            sums = mma(A_hi[:, at], B_lo[at], sums, core)
        for at in group:
            sums = mma(A_hi[:, at], B_hi[at], sums, core)
    return sums


def emulated(step: HalfStep, core: Core) -> Sums:
    """Return what the kernel computes on such tensor cores.

    The reciprocal is one unit too small, which the instruction may be.
    """
    product = _thrice(step.W, step.H, core, together=True)
    safe = np.maximum(product, step.floor).astype(np.float32)
    inverse = np.nextafter(np.float32(1) / safe, np.float32(0))
    quotient = (step.X * inverse).astype(np.float32)
    numerator = np.zeros(step.W.shape)
    for long in range(0, step.X.shape[1], _LONGEST):
        sums = np.zeros(step.W.shape, np.float32)
        for first in range(long, min(long + _LONGEST, step.X.shape[1]), _GROUP):
            group = slice(first, first + _GROUP)
            added = _thrice(quotient[:, group], step.H[:, group].T, core, together=False)
            sums += added.astype(np.float32)
        numerator += sums
    return Sums(product, quotient.astype(np.float64), numerator)


def in_float32(step: HalfStep) -> Sums:
    """Return what the kernel without tensor cores computes: term by term, 512 of them at most."""
    product = np.zeros(step.X.shape, np.float32)
    for j in range(step.W.shape[1]):
        product += step.W[:, j, None] * step.H[j]
    safe = np.maximum(product, np.float32(step.floor))
    quotient = step.X * np.nextafter(np.float32(1) / safe, np.float32(0))
    numerator = np.zeros(step.W.shape)
    for long in range(0, step.X.shape[1], _LONGEST):
        sums = np.zeros(step.W.shape, np.float32)
        for d in range(long, min(long + _LONGEST, step.X.shape[1])):
            sums += quotient[:, d, None] * step.H[:, d]
        numerator += sums
    return Sums(product.astype(np.float64), quotient.astype(np.float64), numerator)


def exact(step: HalfStep) -> Sums:
    """Return the same in float64."""
    W, H = step.W.astype(np.float64), step.H.astype(np.float64)
    product = W @ H
    quotient = step.X / np.maximum(product, step.floor)
    return Sums(product, quotient, quotient @ H.T)


def _errors(step: HalfStep, got: Sums) -> dict[str, float]:
    """Return the largest relative errors of what float32 can hold, by name.

    A term below the normal numbers may count as nothing: so many of them are allowed for. Entries
    of W H below the floor are not looked at, as nobody does.
    """
    true, k = exact(step), step.W.shape[1]
    lost = k * 2 * _SMALLEST
    # A quotient below the normal numbers is lost with all that it adds.
    lost_terms = (step.H.astype(np.float64).sum(1) + step.X.shape[1]) * 2 * _SMALLEST
    found = {}
    for name, allowed, least in (
        ("product", lost, step.floor),
        ("quotient", 2 * _SMALLEST, _SMALLEST),
        ("numerator", lost_terms, _SMALLEST),
    ):
        want, have = getattr(true, name), getattr(got, name)
        seen = (want >= least) & (want < 2.0**127)
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.maximum(np.abs(have - want) - allowed, 0) / want
        found[name] = float(error[seen].max(initial=0))
    return found


# What it is tried on ------------------------------------------------------------------------------


def _between(rng: np.random.Generator, low: float, high: float, *shape: int) -> F32:
    """Draw numbers whose exponents are spread evenly."""
    return (10 ** rng.uniform(low, high, shape)).astype(np.float32)


def _uniform(rng: np.random.Generator, n: int, depth: int, k: int) -> HalfStep:
    X, W, H = (rng.random(shape, np.float32) for shape in ((n, depth), (n, k), (k, depth)))
    return HalfStep(X, W, H)


def _wide(rng: np.random.Generator, n: int, depth: int, k: int) -> HalfStep:
    X, W = _between(rng, -30, 30, n, depth), _between(rng, -30, 30, n, k)
    return HalfStep(X, W, _between(rng, -30, 6, k, depth))


def _midway(rng: np.random.Generator, n: int, depth: int, k: int) -> HalfStep:
    """Draw numbers just below the middle of two of TF32: every lo is large, and of one sign."""

    def draw(*shape: int) -> F32:
        steps = rng.integers(0, 4, shape) / 2.0**10
        return (1 + steps + 2.0**-11 - 2.0**-23).astype(np.float32)

    return HalfStep(draw(n, depth), draw(n, k), draw(k, depth))


def _one_large(rng: np.random.Generator, n: int, depth: int, k: int) -> HalfStep:
    """Draw a term that drowns the bits of all others."""
    step = _uniform(rng, n, depth, k)
    W, H = np.full_like(step.W, 2.0**-25 * 1.999), 1 + step.H
    W[:, 0] = 1
    X = step.X * 2.0**-24
    X[:, ::_GROUP] = 1
    return HalfStep(X, W, H)


def _small(rng: np.random.Generator, n: int, depth: int, k: int) -> HalfStep:
    """Draw products around the smallest normal numbers, with such a floor."""
    X, W = _between(rng, -38, -30, n, depth), _between(rng, -22, -17, n, k)
    return HalfStep(X, W, _between(rng, -22, -17, k, depth), floor=_SMALLEST)


def _denormal(rng: np.random.Generator, n: int, depth: int, k: int) -> HalfStep:
    """Draw own values without a normal lo, or denormal themselves, against large ones."""
    W, H = _between(rng, -44, -33, n, k), _between(rng, 34, 36, k, depth)
    return HalfStep(_between(rng, -4, 0, n, depth), W, H)


Draw = Callable[[np.random.Generator, int, int, int], HalfStep]
_DRAWN: dict[str, tuple[Draw, bool]] = {
    "uniform": (_uniform, True),
    "1e-30 to 1e30": (_wide, True),
    "midway": (_midway, True),
    "one large term": (_one_large, True),
    "near the smallest numbers": (_small, True),
    "lo is denormal": (_denormal, False),  # the bound does not hold: to see what is lost
}
_COMPONENTS = (1, 2, 7, 8, 15, 16, 33, 64)


def _images(*, smoke: bool) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Return the phantom's images as rows, and real ones where they are."""
    from nnmf_cuda.data import load_dataset, phantom

    shape = (16, 16) if smoke else (128, 128)
    yield "phantom", phantom((96, 2, 2), 0, image_shape=shape).matrix("train")
    real = Path(os.environ.get("NNMF_CUDA_DATA", ""), "darabi.npz")
    if not smoke and real.exists():
        yield "darabi", load_dataset(real).matrix("train")[:96]


def _of_images(pixels: NDArray[np.uint8], k: int, rng: np.random.Generator) -> HalfStep:
    """Return a half-step of W on some images after fifty iterations."""
    X = torch.from_numpy(pixels[:, :: max(pixels.shape[1] // 1024, 1)].copy())
    W, H = (
        torch.from_numpy(rng.random(shape, np.float32) + np.float32(0.01))
        for shape in ((len(X), k), (k, X.shape[1]))
    )
    W, H, _ = ops.nnmf_mu(X, W, H, n_iter=50)
    return HalfStep((X.float() / 255).numpy(), W.numpy(), H.numpy())


def run_tf32_study(
    *,
    smoke: bool = False,
    json_path: str | Path | None = None,
    progress: bool = False,
) -> list[Record]:
    """Emulate half-steps in TF32 thrice on real and adversarial data and hold them to the bound.

    Parameters
    ----------
    smoke, json_path, progress
        As for `run_kernel_benchmarks`.

    Returns
    -------
    list of dict
        Records as of `run_kernel_benchmarks`: ``impl`` is one of `CORES`, or "float32" for sums
        without tensor cores; ``errors`` and ``bounds`` are the largest relative errors seen and
        proved, of "product" (W H), "quotient" and "numerator", bounds None where there are none.
        ``status`` is "failed" where an error is above its bound.
    """
    from tqdm import tqdm

    recorder = Recorder("tf32", device=torch.device("cpu"), smoke=smoke, json_path=json_path)
    rng = np.random.default_rng(0)
    n, depth = (8, 40) if smoke else (32, 544)  # more than are added in float32
    work: list[tuple[str, HalfStep, bool]] = []
    for k in (15,) if smoke else _COMPONENTS:
        for name, (draw, bounded) in _DRAWN.items():
            work.append((name, draw(rng, n, depth, k), bounded))
    work += [(name, _of_images(rows, 15, rng), True) for name, rows in _images(smoke=smoke)]
    with np.errstate(over="ignore", under="ignore"):
        for name, step, bounded in tqdm(work, desc="bench", disable=None if progress else True):
            _record(recorder, name, step, bounded=bounded)
    return recorder.records


def _record(recorder: Recorder, name: str, step: HalfStep, *, bounded: bool) -> None:
    (n, depth), k = step.X.shape, step.W.shape[1]
    for impl, core in (*CORES.items(), ("float32", None)):
        errors = _errors(step, emulated(step, core) if core else in_float32(step))
        bounds = None
        if core and bounded:
            bound = Bound.of(core, k, min(depth, _LONGEST))
            bounds = {name: getattr(bound, name) for name in errors}
        beyond = [] if bounds is None else [n for n in errors if not errors[n] <= bounds[n]]
        recorder.add(
            op="half-step of W",
            size=name,
            shape={"n_samples": n, "n_features": depth, "n_components": k},
            dtype="float32",
            options={"beta_loss": 1.0, "floor": step.floor},
            impl=impl,
            served_by="emulation",
            **{
                **MEASURED,
                "status": "failed" if beyond else "ok",
                "reason": f"above the bound: {', '.join(beyond)}" if beyond else None,
                "errors": errors,
                "bounds": bounds,
            },
        )
