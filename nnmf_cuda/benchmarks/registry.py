"""Which ops are measured, on what inputs, against which other implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    "case_names",
    "get_cases",
    "register",
    "register_implementation",
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


_CASES: dict[str, Case] = {}


def register(case: Case) -> None:
    """Add a case.

    Raises
    ------
    ValueError
        If the op has one.
    """
    if case.op in _CASES:
        raise ValueError(
            f"op={case.op!r} has a benchmark case; add an implementation to it instead"
        )
    _CASES[case.op] = case


def register_implementation(
    op: str, name: str, implementation: Implementation, *, truth: Truth | None = None
) -> None:
    """Add a competitor to an op's case; `truth` where it is not to return what the others do.

    Raises
    ------
    ValueError
        If there is no such case, or the name is taken.
    """
    (case,) = get_cases([op])
    if name in case.implementations:
        raise ValueError(f"{op!r} has an implementation {name!r}; choose another name")
    case.implementations[name] = implementation
    if truth is not None:
        case.truths[name] = truth


def case_names() -> tuple[str, ...]:
    """Return the ops that have a case."""
    from nnmf_cuda.benchmarks import cases  # noqa: F401  (registers ours)

    return tuple(_CASES)


def get_cases(names: Iterable[str] | None = None) -> list[Case]:
    """Return the cases of the given ops, or all.

    Raises
    ------
    ValueError
        If there is no case of that name.
    """
    known = case_names()
    chosen = known if names is None else tuple(names)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"there is no benchmark case {unknown}; choose from {', '.join(known)}")
    return [_CASES[name] for name in chosen]
