"""All cases, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Iterable

from bench.case import Case
from bench.cases.defence import DEFENDED_LOGITS, DEFENDED_LOGITS_GRADIENT
from bench.cases.extraction import EXTRACT
from bench.cases.factorization import NNMF_DIVERGENCE, NNMF_HALS, NNMF_MU
from bench.cases.projection import NNLS, PROJECT
from bench.cases.purification import PURIFY, PURIFY_GRADIENT
from bench.cases.training import TRAIN_CLASSIFIER, TRAIN_DENOISER

__all__ = ["CASES", "get_cases"]

CASES: tuple[Case, ...] = (
    NNMF_MU,
    NNMF_HALS,
    NNMF_DIVERGENCE,
    NNLS,
    PROJECT,
    EXTRACT,
    PURIFY,
    PURIFY_GRADIENT,
    DEFENDED_LOGITS,
    DEFENDED_LOGITS_GRADIENT,
    TRAIN_CLASSIFIER,
    TRAIN_DENOISER,
)


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
