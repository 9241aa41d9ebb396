"""The templates of the pages, and figures as pages hold them."""

from __future__ import annotations

import base64
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from nnmf_cuda.data.names import harmless

logger = logging.getLogger(__name__)

_DPI = 130


def environment() -> Environment:
    """Return the templates' environment."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _harmless(value: Any) -> Any:
    """Return what a template prints without bytes and controls that no page can hold."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return harmless(value) if is_text else value


@dataclass(frozen=True)
class Picture:
    """A figure as a page shows it."""

    png: bytes
    alt: str = ""
    caption: str = ""
    failure: str = ""  # why there is none, where it could not be drawn

    @classmethod
    def of(cls, draw: Callable[[], Figure], alt: str = "", caption: str = "") -> Picture:
        """Draw a figure; what it shows is said here, or by the page.

        Whatever goes wrong is said in place of the figure: what it shows has taken hours, perhaps,
        and stands elsewhere too.
        """
        buffer = io.BytesIO()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box is shown
                draw().savefig(buffer, format="png", dpi=_DPI)
        except Exception as error:  # the drawing library raises of every kind
            failure = harmless(f"could not be drawn ({type(error).__name__}: {error})", keep="")
            logger.warning("a figure %s", failure)
            return cls(b"", alt, caption, failure)
        return cls(buffer.getvalue(), alt, caption)

    @property
    def uri(self) -> str:
        """The image as an address that needs no file."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")
