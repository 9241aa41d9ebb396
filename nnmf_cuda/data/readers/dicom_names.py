"""Names of DICOM files and folders, without what headers say of a patient.

Who exports files writes names, dates and numbers in ways of his own: MUELLER for Müller, BelaNagy,
17.03.1962, an id without its zeros. Both sides are folded to plain small letters and compared so.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

_SHORTEST = 3
"""Shorter words of a header are left in names of files: they are everywhere."""
_DISTINCT = 5
"""From as many letters on a word is found within others too."""
_DISTINCT_DIGITS = 6
"""From as many digits on a number is found beside letters too."""
_FIRST_IDEOGRAPH = "\u2e80"
"""From it on a letter says as much as three others."""
_NOT_DECOMPOSED = str.maketrans("øæœłđð", "oaoldd")
"""Letters that Unicode does not take apart."""
_WRITTEN_OUT = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "æ": "ae", "œ": "oe", "þ": "th"}
)
"""How letters are written where there are only those of English."""


def hashed(word: str) -> str:
    """Return 12 digits of the SHA-256 of a word."""
    return hashlib.sha256(word.encode()).hexdigest()[:12]


def masked_path(path: Path, secrets: frozenset[str]) -> Path:
    """Return a path with every secret in it hashed, level by level."""
    return Path(*(masked(part, secrets) for part in path.parts))


@lru_cache(maxsize=2**12)  # folders come again with each of their files
def masked(part: str, secrets: frozenset[str]) -> str:
    """Return the name of a file or folder with every secret in it hashed.

    Parameters
    ----------
    part : str
        One level of a path.
    secrets : frozenset of str
        Texts of headers in small letters: names as DICOM writes them, words, dates as YYYYMMDD,
        ids.
    """
    if part.casefold() in secrets:
        return hashed(part.casefold())
    finder = _finder(secrets)
    if finder is None:
        return part
    folded, places = _folded(part)
    shown, end = "", 0
    for match in finder.finditer(folded):
        first, last = places[match.start()], places[match.end() - 1]
        if match.lastgroup == "word" and not _stands_alone(part, first, last):
            continue
        while last + 1 < len(part) and unicodedata.combining(part[last + 1]):
            last += 1  # an accent that stands behind its letter
        shown += part[end:first] + hashed(part[first : last + 1].casefold())
        end = last + 1
    return shown + part[end:]


class NamesNearby:
    """Names of files whose own headers say nothing: secrets are those of the files around them."""

    def __init__(self, secrets: Mapping[Path, frozenset[str]], root: Path) -> None:
        """Take the secrets of every header below a folder, by the file."""
        self._root = root
        self._below: dict[Path, set[str]] = {}
        for file, words in secrets.items():
            for folder in file.parents:
                self._below.setdefault(folder, set()).update(words)
                if folder == root:
                    break

    def masked(self, file: Path) -> Path:
        """Return a file's path, below the source, as it may be shown."""
        for folder in file.parents:
            if folder in self._below or folder == self._root:
                return masked_path(file, frozenset(self._below.get(folder, ())))
        return file


def _stands_alone(part: str, first: int, last: int) -> bool:
    """Tell whether no letter goes on with a word; a capital behind a small letter begins one."""
    before, after = part[:first], part[last + 1 :]
    begins = not before[-1:].isalpha() or (before[-1].islower() and part[first].isupper())
    ends = not after[:1].isalpha() or (after[0].isupper() and part[last].islower())
    return begins and ends


def _folded(text: str) -> tuple[str, list[int]]:
    """Return a text in plain small letters, and of each from which letter of the text it is."""
    if text.isascii():
        return text.lower(), list(range(len(text)))
    folded, places = "", []
    for place, letter in enumerate(text):
        plain = _plain(letter)
        folded += plain
        places += [place] * len(plain)
    return folded, places


def _plain(text: str) -> str:
    """Return a text in small letters without accents."""
    apart = unicodedata.normalize("NFKD", text.casefold().translate(_NOT_DECOMPOSED))
    return "".join(letter for letter in apart if not unicodedata.combining(letter))


@lru_cache(maxsize=2**12)
def _finder(secrets: frozenset[str]) -> re.Pattern[str] | None:
    """Return what finds secrets in folded names; None if there is nothing to find."""
    anywhere: set[str] = set()
    words: set[str] = set()
    for secret in secrets:
        composed = unicodedata.normalize("NFC", secret)
        for spelling in {_plain(composed), _plain(composed.translate(_WRITTEN_OUT))}:
            anywhere |= _of_dates(spelling) | _of_ids(spelling) | _of_names(spelling)
            if spelling.isalpha() and _SHORTEST <= _weight(spelling) < _DISTINCT:
                words.add(re.escape(spelling))
    groups = [("anywhere", anywhere), ("word", words)]
    alternatives = [f"(?P<{name}>{_either(found)})" for name, found in groups if found]
    return re.compile("|".join(alternatives)) if alternatives else None


def _weight(text: str) -> int:
    """Return how many letters a text has, or is worth."""
    return sum(3 if letter >= _FIRST_IDEOGRAPH else 1 for letter in text)


def _either(expressions: Iterable[str]) -> str:
    """Return an expression of all, the longest first, so that no part of a secret stays."""
    return "|".join(sorted(expressions, key=lambda one: (-len(one), one)))


def _of_names(text: str) -> set[str]:
    """Return expressions of names: long words, and all of a name's in a row, however joined."""
    found = {re.escape(text)} if text.isalpha() and _weight(text) >= _DISTINCT else set()
    if "^" not in text:
        return found
    for name in text.split("="):  # in several scripts
        parts = [re.escape(part) for part in re.findall(r"\w+", name)]
        if _weight("".join(parts)) >= _DISTINCT:
            gap = r"[\W_]{0,3}"
            found |= {gap.join(parts), gap.join(reversed(parts))}
    return found


def _of_dates(text: str) -> set[str]:
    """Return expressions of a day in the orders and with the signs that are in use."""
    fitting = re.fullmatch(r"((?:18|19|20)\d\d)(\d\d)(\d\d)", text)
    if fitting is None:
        return set()
    year, month, day = fitting.groups()
    orders = [(year, month, day), (day, month, year), (month, day, year)]
    found = {"".join(order) for order in orders}
    short = [(year[2:], month, day), (day, month, year[2:]), (month, day, year[2:])]
    found |= {rf"(?<!\d){''.join(order)}(?!\d)" for order in short}
    for order in orders + short:
        parts = [f"0?{part[1]}" if part[0] == "0" else part for part in order]
        found.add(rf"(?<!\d){'[-_. ]'.join(parts)}(?!\d)")
    return found


def _of_ids(text: str) -> set[str]:
    """Return expressions of ids: with or without signs in them, and numbers without zeros."""
    pieces = re.findall(r"[^\W\d_]+|\d+", text)
    n_signs = sum(map(len, pieces))
    if text.isalpha() or "^" in text or n_signs < _SHORTEST + text.isdigit():
        return set()  # a number of three digits is a slice's more often than a patient's
    joined = r"[\W_]?".join(map(re.escape, pieces))
    found = {rf"(?<![^\W_]){joined}(?![^\W_])"}
    for number in {*pieces, "".join(p for p in pieces if p.isdigit())}:
        plain = number.lstrip("0")
        if number.isdigit() and len(plain) >= _DISTINCT_DIGITS:
            found.add(rf"(?<!\d)0*{r'[-_. ]?'.join(plain)}(?!\d)")
        elif number.isdigit() and text.isdigit() and len(plain) > _SHORTEST:
            found.add(rf"(?<![^\W_])0*{plain}(?![^\W_])")
    return found
