r"""Names of files, folders and classes as text: on one line, and harmless where they are shown.

A name may hold what a terminal obeys, what ends a line, and bytes that are no text. A module of its
own, since pages, figures, lists of files and the terminal show names, and have no other in common.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path


def on_one_line(name: str | Path) -> str:
    r"""Return a name as text of one line, which tells any two names apart.

    A byte that is not UTF-8 becomes an escape (``\xff``), so do control characters and separators
    of lines (``\n``, ``\x1b``, ``\u2028``), and a backslash is doubled.
    """
    text = str(name)
    if text.isprintable() and "\\" not in text:
        return text
    return "".join("\\\\" if character == "\\" else _escaped(character) for character in text)


def harmless(text: str, *, keep: str = "\n\t") -> str:
    r"""Return text to be shown, with the same escapes but for a backslash and what is in `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c in keep else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        printable = 0x20 <= code < 0x7F
        return character if printable else character.encode("unicode_escape").decode("ascii")
    # Controls beyond ASCII, what turns the direction of writing, surrogates, separators of lines:
    # as \u, since \x is for bytes.
    unwanted = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    return f"\\u{code:04x}" if unwanted or character in _BIDI else character


_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
