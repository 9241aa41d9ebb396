"""What a case is: an op, its inputs, the truth, and the implementations that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = [
    "Call",
    "Case",
    "Implementation",
    "Inputs",
    "NotApplicableError",
    "Size",
    "Truth",
    "Work",
]

Inputs = Mapping[str, Any]
Call = Callable[[], Any]
Implementation = Callable[[Inputs], Call]
"""Takes the inputs, does what need not be timed, and returns the call that is."""
Truth = Callable[[Inputs], Any]
"""Gives from the inputs what an implementation must return, in float64."""


class NotApplicableError(Exception):
    """Raised by an implementation that cannot take these inputs; the text says why."""


@dataclass(frozen=True)
class Size:
    """One problem.

    Attributes
    ----------
    name : str
        Such as "paper".
    shape : mapping of str to int
        Sizes by name, such as ``n_samples``.
    dtype : str
        Of the data, such as "float32".
    options : mapping
        Anything else that the inputs need, such as ``beta_loss``.
    """

    name: str
    shape: Mapping[str, int]
    dtype: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What one call has to do, whoever does it: the yardstick for the machine's ceilings.

    Attributes
    ----------
    flops : float, optional
        Floating-point operations; None where they depend on the data.
    bytes : float, optional
        Memory that must be read or written at least, each pass over X counted.
    items : int, optional
        Things a user counts, such as images.
    """

    flops: float | None = None
    bytes: float | None = None
    items: int | None = None


@dataclass(frozen=True)
class Case:
    """An op to measure.

    Attributes
    ----------
    op : str
        Name in `nnmf_cuda.ops`, or of something made from them.
    sizes : tuple of Size
        What is measured.
    smoke : tuple of Size
        Tiny problems, to show that everything works.
    inputs : callable
        ``inputs(size, seed, device)`` gives the arguments by name.
    truth : callable
        Gives from the inputs what every implementation must return, in float64.
    implementations : dict of str to Implementation
        "reference" and "ours" among them. Each returns a tensor or array, or a tuple of them.
    tolerance : mapping of str to float
        By dtype of the floating-point arguments: the largest error allowed, as a share of the
        largest true value of each output.
    truths : dict of str to callable
        By implementation: the truth of one that does something else in the same time, such as
        another solver. Written out in float64 like the other, and held to the same tolerance.
    work : callable
        ``work(size)`` says what a call has to do.
    cuda_sizes : tuple of Size
        What is measured on CUDA instead of `sizes`, where there is anything.
    """

    op: str
    sizes: tuple[Size, ...]
    smoke: tuple[Size, ...]
    inputs: Callable[[Size, int, torch.device], Inputs]
    truth: Truth
    implementations: dict[str, Implementation]
    tolerance: Mapping[str, float]
    truths: dict[str, Truth] = field(default_factory=dict)
    work: Callable[[Size], Work] = lambda size: Work()
    cuda_sizes: tuple[Size, ...] = ()

    def sizes_on(self, device: torch.device, *, smoke: bool) -> tuple[Size, ...]:
        """Return the problems to measure on a device."""
        if smoke:
            return self.smoke
        return self.cuda_sizes if device.type == "cuda" and self.cuda_sizes else self.sizes
