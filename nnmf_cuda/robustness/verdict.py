"""How the worst case stands to the constant answer, and how far both are uncertain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.evaluation import Interval, bootstrap_mean, wilson_interval
from nnmf_cuda.robustness.diagnostics import FLAT

__all__ = ["Standing", "cautions", "standing_of", "verdict"]


@dataclass(frozen=True)
class Standing:
    """A robust accuracy beside the accuracy of always naming the larger class.

    Attributes
    ----------
    robust, low, high : float
        Robust accuracy and its 95 % interval.
    method : str
        "bootstrap" or "Wilson".
    drawn : str
        What is drawn as a whole: "patient", "series" or "image".
    constant : float
        Accuracy of the constant answer, on the same samples.
    less_constant : Interval
        Robust accuracy less the constant answer's, each sample with itself.
    """

    robust: float
    low: float
    high: float
    method: str
    drawn: str
    constant: float
    less_constant: Interval


def standing_of(
    robust: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    groupings: Mapping[str, NDArray[Any]],
    seed: int,
) -> Standing:
    """Compare with the constant answer, by a bootstrap of whole groups where they are known.

    Parameters
    ----------
    robust : array of shape (n,)
        For each sample the share of rounds in which it is robust.
    labels : array of shape (n,)
    groupings : mapping of str to array of shape (n,)
        The first is drawn as a whole.
    seed : int
        Of the bootstrap.
    """
    drawn, groups = next(iter(groupings.items()), ("image", None))
    constant = (labels == np.bincount(labels).argmax()).astype(np.float64)
    accuracy = float(robust.mean())
    if groups is None or accuracy in (0, 1):
        # A bootstrap of zeros or ones alone knows no error; Wilson's interval does.
        method, n = "Wilson", len(robust) if groups is None else len(np.unique(groups))
        low, high = wilson_interval(accuracy * n, n)
    else:
        found = bootstrap_mean(robust, groups=groups, seed=seed)
        method, low, high = "bootstrap", found.low, found.high
    less = bootstrap_mean(robust - constant, groups=groups, seed=seed)
    return Standing(accuracy, low, high, method, drawn, float(constant.mean()), less)


def verdict(stands: Standing, *, is_worst_case: bool = True) -> str:
    """Say how the worst case stands to the constant answer.

    Parameters
    ----------
    stands : Standing
    is_worst_case : bool, default=True
        Whether the adaptive attacks were run; else nothing is said but what was counted.
    """
    figures = (
        f"{stands.robust:.4f} (95 % {stands.method} interval by {stands.drawn}"
        f" {stands.low:.3f}-{stands.high:.3f})"
    )
    if not is_worst_case:
        return (
            f"Only the paper's protocol was counted: {figures} is no worst case, and no comparison"
            f" with the constant answer, {stands.constant:.4f}."
        )
    less = stands.less_constant
    if less.low > 0:
        says = "beats"
    elif less.high < 0:
        says = "is below"
    else:
        says = "does not beat"
    return (
        f"The worst case, {figures}, {says} the constant answer, {stands.constant:.4f}: difference"
        f" {less.estimate:+.3f} (95 % {less.low:+.3f} to {less.high:+.3f})."
    )


# What speaks against believing an evaluation: each caution is a sentence beside the verdict.

_ENOUGH = 0.9
"""Share of the planted weaknesses that the attacks together, and those by gradients, must find."""

_TRUE_GRADIENT = 1e-3
"""Largest median error of a directional derivative, relative to the gradient's length."""

_NEAR_SHARE = 0.05
"""Share of test images with a near copy in training above which a figure asks for memory."""


def cautions(points: Mapping[int, Any]) -> list[str]:
    """Return the sentences, none where nothing was found to caution against.

    Parameters
    ----------
    points : mapping of int to Any
        The values of the twenty points; None is "not run".
    """
    return [*_of_curves(points), *_of_attacks(points), *_of_gradients(points), *_of_data(points)]


def _of_curves(points: Mapping[int, Any]) -> Iterator[str]:
    curves = {"draws": points[7] or {}, **(points[8] or {})}
    for name, what in (("steps", "steps"), ("restarts", "restarts"), ("draws", "draws averaged")):
        curve = curves.get(name, {})
        if curve.get("converged", True):
            continue
        before, last = curve["robust_accuracy"][-2:]
        yield (
            f"The attack has not converged in {what}: robust accuracy goes from {before:.4f} to"
            f" {last:.4f} at the last increase, and more may find more."
        )
    eps = points[9]
    if eps is not None and not eps["reaches_zero"]:
        lowest = min(eps["robust_accuracy"])
        yield (
            f"An attack without a bound leaves {lowest:.4f} of the samples, where it must leave"
            " none: gradients are masked or the attack is too weak."
        )
    pixels = points[1]["pixel_space"]
    for name in ("undefended", "defended") if isinstance(pixels, Mapping) else ():
        last, after = pixels[name]["robust_accuracy"][-1], pixels[name]["after_twice_the_steps"]
        if last - after > FLAT:
            yield (
                f"The attack on pixels of the {name} chain has not converged: {last:.4f} at"
                f" {pixels['eps_255'][-1]:g}/255, {after:.4f} after as many steps again."
            )


def _of_attacks(points: Mapping[int, Any]) -> Iterator[str]:
    found, planted = points[10], points[15]
    if found is not None and found["black_box_is_stronger"]:
        yield (
            f"Black-box attacks leave less ({found['black_box']:.4f}) than white-box attacks"
            f" ({found['white_box']:.4f}): gradients are masked."
        )
    if planted is None:
        return
    if not planted["n"]:
        yield "No weakness could be planted in a copy of the defence: the attacks were not tested."
    for who in ("all attacks together", "gradient attacks together") if planted["n"] else ():
        share = planted["broken"][who]
        if share < _ENOUGH:
            yield (
                f"Of the weaknesses planted in a copy of the defence {share:.1%} were found by"
                f" {who}: the worst case may be too high."
            )


def _of_gradients(points: Mapping[int, Any]) -> Iterator[str]:
    gradients = points[6]
    if gradients is None:
        return
    if gradients["zero_gradient_share"] > 0:
        yield (
            f"{gradients['zero_gradient_share']:.1%} of the samples have a gradient of zero, which"
            " no white-box attack can follow."
        )
    if gradients["median_error"] > _TRUE_GRADIENT:
        yield (
            f"Gradients differ from finite differences by {gradients['median_error']:.2g} of their"
            " length: they are not those of the defence."
        )


def _of_data(points: Mapping[int, Any]) -> Iterator[str]:
    test = ((points[18] or {}).get("splits") or {}).get("test")
    if test is None or test.get("parted_by") is not None:
        return
    if test["near_share"] > _NEAR_SHARE:
        yield (
            f"{test['near_share']:.1%} of the test images have a near copy among the training"
            " images: the figures ask for memory too (run --cross_validate keeps patients apart)."
        )
