"""All cases, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Iterable

from bench.case import Case
from bench.cases import (
    bounds,
    defence,
    extraction,
    factorization,
    projection,
    purification,
    reading,
    some_entries,
    training,
)

__all__ = ["CASES", "get_cases"]

_FAMILIES = (
    factorization,
    some_entries,
    projection,
    extraction,
    reading,
    purification,
    defence,
    training,
    bounds,
)
CASES: tuple[Case, ...] = tuple(case for family in _FAMILIES for case in family.CASES)


def get_cases(names: Iterable[str] | None = None) -> list[Case]:
    """Return the cases of the given ops, or all.

    Raises
    ------
    ValueError
        If there is no case of that name.
    """
    known = {case.op: case for case in CASES}
    chosen = tuple(known) if names is None else tuple(names)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"there is no benchmark case {unknown}; choose from {', '.join(known)}")
    return [known[name] for name in chosen]
