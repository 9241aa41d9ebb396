"""A warning at the line of the user, who may be many calls away: a pipeline's, a search's."""

from __future__ import annotations

import sys
import warnings

_BETWEEN = ("nnmf_cuda", "sklearn", "joblib")
"""Packages whose lines are not the user's."""


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn, as from the innermost line that is of no package `_BETWEEN`."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _package(frame.f_globals) in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _package(module: dict[str, object]) -> str:
    return str(module.get("__name__", "")).partition(".")[0]
