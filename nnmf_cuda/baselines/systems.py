"""The systems of the comparison: whose they are, what is built here, and what they reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from nnmf_cuda.baselines.base import ImageClassifier


@dataclass(frozen=True)
class Setting:
    """In which setting a system is made."""

    seed: int = 0
    device: torch.device = torch.device("cpu")
    smoke: bool = False
    """Whether it shall only show that it works: as small and as short as it can be."""
    progress: bool = False


@dataclass(frozen=True)
class System:
    """One row of the comparison.

    Attributes
    ----------
    name : str
        As `--systems` takes it.
    title : str
        What is built, in a few words.
    authors : str
        "Hossain et al. 2019", or "this package".
    source : str
        Where it was published.
    described : str
        How the paper describes it, which is what is built.
    really : str
        What the system's own authors did, where that differs or could not be read; else "".
    reported : str
        The authors' own figures and on which data; "" where there are none.
    make : callable
        Takes a `Setting`, returns an `ImageClassifier` that is not fitted yet.
    extra : str or None
        The extra of this package that it needs.
    proof : str or None
        By what its robustness is proved, where it can be.
    """

    name: str
    title: str
    authors: str
    source: str
    described: str
    really: str
    reported: str
    make: Callable[[Setting], ImageClassifier]
    extra: str | None = None
    proof: str | None = None


_ALL: tuple[System, ...] = ()

SYSTEMS: Mapping[str, System] = {system.name: system for system in _ALL}
"""By name, in the order of the table."""
