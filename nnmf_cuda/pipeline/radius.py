"""The radius of a run's attack: how it is decided, and what can be had at it, before any training.

Above is the ceiling, which no classifier exceeds; below, what a linear classifier is proven to have
on the validation split. What the second says is surely gained; above the first nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnmf_cuda.data import SPLITS
from nnmf_cuda.evaluation.ceiling import ceiling, largest_eps
from nnmf_cuda.evaluation.linear_probe import fit_linear_probe, largest_gaining_eps
from nnmf_cuda.evaluation.metrics import majority_class_accuracy
from nnmf_cuda.pipeline.config import ExperimentConfig

_CEILING, _GAIN, _WORTH = 0.95, 0.15, 0.05
"""The least ceiling on training, and the least gain of a linear classifier over the constant answer
on validation, that "auto" asks for; the gain from which a radius is called worth having."""

_MOST = 10_000
"""Samples of a split that are looked at: every pair of them is."""


@dataclass(frozen=True)
class Prospects:
    """What can be had at a radius, as shares of the samples.

    Attributes
    ----------
    attack_eps, norm
        The ball.
    decided_by : str
        Where the radius comes from.
    ceilings, constants : mapping of str to float
        By split: what no classifier exceeds, and the share of its most frequent class.
    linear_clean, linear_proven : float
        Right, and proven right in the whole ball, of a linear classifier on the validation split.
    worth_having : float or None
        The largest radius, up to this one, at which a linear classifier is proven to have 0.05 more
        than the constant answer on the validation split; None where there is none.
    """

    attack_eps: float
    norm: str
    decided_by: str
    ceilings: Mapping[str, float]
    constants: Mapping[str, float]
    linear_clean: float
    linear_proven: float
    worth_having: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `prospects` in `metrics.json`."""
        return {**asdict(self), "warning": self.warning}

    @property
    def summary(self) -> str:
        """Radius, ceilings, constant answer and what a linear classifier has, in a sentence."""
        ceilings = ", ".join(f"{share:.3f} {split}" for split, share in self.ceilings.items())
        return (
            f"eps {self.attack_eps:g} ({self.norm}, {self.decided_by}): ceiling {ceilings}; the"
            f" constant answer has {self.constants['test']:.3f} of test; a linear classifier has"
            f" {self.linear_clean:.3f} of valid, {self.linear_proven:.3f} proven at this eps"
        )

    @property
    def warning(self) -> str | None:
        """What speaks against training at this radius, and at which one something is gained."""
        is_hopeless = self.ceilings["test"] <= self.constants["test"]
        if not is_hopeless and self.worth_having == self.attack_eps:
            return None
        says = (
            f"at eps {self.attack_eps:g} it is not sure that a defence gains anything: a linear"
            f" classifier is proven on {self.linear_proven:.3f} of valid, the constant answer has"
            f" {self.constants['valid']:.3f}"
        )
        if is_hopeless:
            says = (
                f"at eps {self.attack_eps:g} no classifier exceeds {self.ceilings['test']:.3f} of"
                f" test, and the constant answer has {self.constants['test']:.3f}: nothing can be"
                " gained"
            )
        return f"{says}; {self.way_out}"

    @property
    def way_out(self) -> str:
        """At which radius something is surely gained."""
        if self.worth_having is None:
            return (
                f"a linear classifier gains {_WORTH:.2f} over the constant answer at no eps at all:"
                " these features hardly tell the classes apart in a straight way; try others"
                " (--nnmf.n_components, --selection.n_selected) or a much smaller eps"
            )
        return (
            f"at eps {_rounded_down(self.worth_having):g} a linear classifier is proven to gain"
            f" {_WORTH:.2f}: give --attack.attack_eps auto, or {_rounded_down(self.worth_having):g}"
        )


def decide_radius(
    x: Mapping[str, Tensor], y: Mapping[str, Any], config: ExperimentConfig
) -> tuple[ExperimentConfig, Prospects]:
    """Put a number in the place of an "auto" radius, and say what can be had at it.

    "auto" is the largest radius at which the ceiling of the training features is at least 0.95 and
    a linear classifier is proven to have 0.15 more than the constant answer on the validation
    split, rounded down to two digits; where a linear classifier gains as much at no radius, the
    ceiling decides alone.

    Parameters
    ----------
    x, y
        Features (n, n_features) and labels (n,) of "train", "valid" and "test".
    config : ExperimentConfig
        With "auto" or a number.

    Returns
    -------
    config, prospects

    Raises
    ------
    ValueError
        If "auto" finds no radius: with one class, or equal features in different classes.
    """
    x = {split: x[split].float().clamp(0, 1) for split in SPLITS}
    labels = {split: torch.as_tensor(y[split]).to(x[split].device) for split in SPLITS}
    few = {split: _few(x[split], labels[split]) for split in SPLITS}
    n_classes = 1 + max(int(of.max()) for of in labels.values())
    norm = config.attack.norm
    probe = {"n_classes": max(n_classes, 2), "norm": norm}
    constants = {split: majority_class_accuracy(of.cpu().numpy()) for split, of in labels.items()}
    decided_by = "as given"
    if config.attack.attack_eps == "auto":
        largest = largest_eps(*few["train"], _CEILING, norm)
        if not 0 < largest < math.inf:
            raise ValueError(
                'attack.attack_eps="auto" finds no radius: '
                + (
                    "more than 5 % of the training samples have the features of one of another"
                    " class; choose other features or give a number"
                    if largest == 0
                    else "no two training samples of different classes; give a number"
                )
            )
        gaining = largest_gaining_eps(
            few["train"],
            few["valid"],
            accuracy=constants["valid"] + _GAIN,
            up_to=largest,
            **probe,  # type: ignore[arg-type]
        )
        decided_by = (
            "auto: the largest at which a linear classifier is proven to gain 0.15"
            if gaining is not None and gaining < largest
            else "auto: the largest at which the ceiling of train is 0.95"
        )
        config = config.decided(_rounded_down(largest if gaining is None else gaining))
    config = config.decided()
    eps = config.attack.radius
    plain, robust = (
        fit_linear_probe(*few["train"], radius, **probe)  # type: ignore[arg-type]
        for radius in (0.0, eps)
    )
    return config, Prospects(
        attack_eps=eps,
        norm=norm,
        decided_by=decided_by,
        ceilings={split: ceiling(*rows, eps, norm).accuracy for split, rows in few.items()},
        constants=constants,
        linear_clean=plain.accuracy(*few["valid"], 0.0),
        linear_proven=robust.accuracy(*few["valid"], eps),
        worth_having=largest_gaining_eps(
            few["train"],
            few["valid"],
            accuracy=constants["valid"] + _WORTH,
            up_to=eps,
            **probe,  # type: ignore[arg-type]
        ),
    )


def _few(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows, or `_MOST` of them, drawn always alike."""
    if len(x) <= _MOST:
        return x, y
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(x), generator=generator)[:_MOST].to(x.device)
    return x[chosen], y[chosen]


def _rounded_down(radius: float) -> float:
    """Return the radius to two digits, towards 0."""
    digits = 1 - math.floor(math.log10(radius))
    return float(np.round(math.floor(radius * 10**digits * (1 + 1e-12)) / 10**digits, digits))
