"""The templates of the pages, and figures as pages hold them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

_DPI = 130


def environment() -> Environment:
    """Return the templates' environment."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@dataclass(frozen=True)
class Picture:
    """A figure as a page shows it."""

    png: bytes
    alt: str = ""
    caption: str = ""

    @classmethod
    def of(cls, figure: Figure, alt: str = "", caption: str = "") -> Picture:
        """Draw a figure; what it shows is said here, or by the page."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
        return cls(buffer.getvalue(), alt, caption)

    @property
    def uri(self) -> str:
        """The image as an address that needs no file."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")
