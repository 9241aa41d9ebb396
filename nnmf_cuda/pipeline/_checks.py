"""Checks of settings: what is wrong is named as the command line calls it, before any work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

__all__ = ["Checks"]


class Checks:
    """Checks of one group of settings; each raises ValueError with option, value and remedy.

    Parameters
    ----------
    settings : object
        Has the settings as attributes.
    group : str
        What stands before their names on the command line; "" for none.
    """

    def __init__(self, settings: Any, group: str = "") -> None:
        self._settings, self._prefix = settings, f"{group}." if group else ""

    def require(self, holds: bool, name: str, remedy: str) -> None:
        """Raise unless a condition on a setting holds."""
        if not holds:
            value = getattr(self._settings, name)
            raise ValueError(f"{self._prefix}{name} must {remedy}; got {value!r}")

    def at_least(self, low: int, *names: str) -> None:
        """Require integers from `low` upwards."""
        for name in names:
            value = getattr(self._settings, name)
            self.require(_is_integer(value) and value >= low, name, f"be an integer >= {low}")

    def positive(self, *names: str) -> None:
        """Require finite numbers above 0."""
        for name in names:
            value = getattr(self._settings, name)
            self.require(math.isfinite(value) and value > 0, name, "be a finite number > 0")

    def one_of(self, choices: Sequence[str], *names: str) -> None:
        """Require names out of a list."""
        for name in names:
            known = getattr(self._settings, name) in choices
            self.require(known, name, f"be one of {', '.join(choices)}")

    def training(self) -> None:
        """Require what every training has in common: epochs, lr, batch_size, ema_decay."""
        self.at_least(1, "epochs", "batch_size")
        self.positive("lr")
        self.require(0 <= self._settings.ema_decay < 1, "ema_decay", "lie in [0, 1)")

    def timesteps(self, name: str, num_timesteps: int) -> None:
        """Require timesteps that a noise schedule of this length has."""
        inside = all(
            _is_integer(t) and 0 <= t < num_timesteps for t in getattr(self._settings, name)
        )
        self.require(
            inside,
            name,
            f"lie within 0 and {num_timesteps - 1}, the last of"
            f" diffusion.num_timesteps={num_timesteps}",
        )


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
