"""Figures as PNG, alone or inside a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from matplotlib.figure import Figure

__all__ = ["Picture"]

_DPI = 130


@dataclass(frozen=True)
class Picture:
    """A figure as a page shows it."""

    png: bytes
    alt: str
    caption: str

    @classmethod
    def of(cls, figure: Figure, alt: str, caption: str) -> Picture:
        """Draw a figure."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
        return cls(buffer.getvalue(), alt, caption)

    @property
    def uri(self) -> str:
        """The image as an address that needs no file."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")
