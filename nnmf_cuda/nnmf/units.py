"""The units of X: the floor that fits them, and warnings where a fit or new rows do not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from nnmf_cuda.nnmf.user_warning import warn_user
from nnmf_cuda.reference.nnmf import CLAMP, EPSILON

_MARGIN = 1e4  # entries this much smaller than the mean still count
_BELOW_ALL = 1e-3  # of the smallest entry: so far below it no factorisation needs to come
_FRACTION_MAX = 2.0  # fractions overshoot 1 where they were interpolated, sharpened or attacked


@dataclass(frozen=True)
class Units:
    """What is known of the size of the entries of X; pixels are fractions."""

    pixels: bool  # uint8, read as x / 255
    largest: float
    mean: float
    smallest: float = 0.0  # where it is not known too

    @property
    def scale(self) -> float:
        """The mean that starts are made for: 1 where X has none (all zeros, an overflow)."""
        return self.mean if 0 < self.mean < math.inf else 1.0

    def floor(self, dtype: torch.dtype, beta_loss: float, *, squared: bool = False) -> float:
        """Return the floor of W H for factors of this type: scikit-learn's for a mean from 1 on.

        Below, it is as small beside the mean as it is at 1: what is smaller is lost in float32
        anyway, and scikit-learn's own would cover such data. Where ``beta_loss <= 0`` entries count
        by their ratio to W H, however small they are, so that the floor is below all of them. Where
        its square divides too, as in coordinate descent, X (H / floor)^2, about (mean / floor)^2,
        stays in range: else it would be infinite from a mean of 1e12 in float32.
        """
        limits = torch.finfo(dtype)
        floor = EPSILON * min(1.0, self.scale)
        if squared:
            floor = max(floor, _MARGIN * self.scale / math.sqrt(limits.max))
        if beta_loss <= 0 and self.smallest > 0:
            floor = min(floor, _BELOW_ALL * self.smallest)
        return max(floor, limits.tiny)


UNKNOWN = Units(pixels=False, largest=0.0, mean=1.0)
"""What components that no fit has found are taken to stand for."""


def warn_of_range(units: Units, *, beta_loss: float, dtype: torch.dtype) -> None:
    """Warn where the numbers of a fit leave the range of floating point, or of the kernels.

    Updates form W H and its powers, their product with X, and sums of that times a factor; the
    divergence forms X to the power of `beta_loss`. The factors have entries around sqrt(mean / k),
    of which the kernels make zeros below `CLAMP` where ``beta_loss <= 1``.
    """
    limits = torch.finfo(dtype)
    low, high = math.log10(_MARGIN * limits.tiny), math.log10(limits.max / _MARGIN)
    mean = math.log10(units.scale)
    factor = (mean - 1) / 2
    power = mean * (beta_loss - 1)
    smallest = mean + math.log10(EPSILON) if beta_loss < 2 else mean  # the floor is one, too
    formed = (smallest, mean, power, power + factor, power - mean, power + mean)
    clamped = beta_loss <= 1 and factor < math.log10(_MARGIN * CLAMP)
    if min(formed) < low or max(formed) > high or clamped:
        kind = str(dtype).removeprefix("torch.")
        wider = ", or use float64" if dtype == torch.float32 and not clamped else ""
        warn_user(
            f"X has the mean {units.mean:.3g}, at which numbers that the updates for beta_loss="
            f"{beta_loss:g} form leave the range of {kind} or of the kernels, so that components "
            f"may be lost: scale X to values around 1{wider}",
            UserWarning,
        )


def warn_of_other_units(fitted: Units, *, pixels: bool, largest: float) -> None:
    """Warn where the fit and new rows were given the same numbers as different quantities."""
    if fitted.pixels and not pixels and largest > _FRACTION_MAX:
        warn_user(
            f"the components were learnt from uint8 pixels, which are read as x / 255, but X has "
            f"entries up to {largest:g} in another type: give X.astype('uint8') or X / 255",
            UserWarning,
        )
    elif pixels and not fitted.pixels and fitted.largest > _FRACTION_MAX:
        warn_user(
            f"the components were learnt from entries up to {fitted.largest:g} that were not "
            "uint8, but X is uint8, which is read as x / 255: give X.astype('float32') if it "
            "counts the same things, or fit to uint8",
            UserWarning,
        )
