"""The elements of a DICOM header that matter here, without pydicom, which takes five times as long.

Only what nearly every file is: a preamble, little endian, no element twice. Everything else is
left to pydicom, which knows all of the standard. An element's value is had as text, numbers or a
sequence, whoever has read the header.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any, Literal, NamedTuple

ByteOrder = Literal["little", "big"]

PREAMBLE, MAGIC = 128, b"DICM"
IMPLICIT, BIG_ENDIAN, DEFLATED = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
)
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
"""Elements that hold pixels: floats, doubles, integers."""

_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Value representations whose length has two bytes."""
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations whose length has four bytes, two unused ones before it."""
VALUE_REPRESENTATIONS = _SHORT | _LONG

_TAG, _LENGTH, _SHORT_LENGTH = Struct("<HH"), Struct("<I"), Struct("<H")
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_DEEPEST = 16


class Element(NamedTuple):
    """An element as it stands in the file."""

    value: bytes
    is_little_endian: bool = True


class Elements:
    """Elements by their tag, with what is used of pydicom's `Dataset`.

    Attributes
    ----------
    file_meta : mapping of str to str
        TransferSyntaxUID and MediaStorageSOPClassUID, where they are there.
    is_implicit_VR : bool
        Whether value representations are left out.
    end : int
        Where the element with the pixels begins in the file.
    """

    def __init__(
        self, found: Mapping[int, bytes], file_meta: dict[str, str], *, implicit: bool, end: int
    ) -> None:
        self._found = found
        self.file_meta = file_meta
        self.is_implicit_VR = implicit
        self.end = end

    def get_item(self, tag: int) -> Element:
        """Return an element; KeyError if it is not there."""
        return Element(self._found[tag])

    def __contains__(self, tag: int) -> bool:
        return tag in self._found


class _Unusual(Exception):
    """What is left to pydicom."""


def read_elements(head: bytes, wanted: frozenset[int], unusual: frozenset[int]) -> Elements | None:
    """Return the wanted elements of a file.

    Parameters
    ----------
    head : bytes
        The file's beginning, as far as the pixels.
    wanted, unusual : frozenset of int
        Tags to return, and tags that leave the file to pydicom.

    Returns
    -------
    Elements or None
        None for a file that is left to pydicom: also for text that is not ASCII, and for whatever
        looks damaged.
    """
    if head[PREAMBLE : PREAMBLE + len(MAGIC)] != MAGIC:
        return None
    try:
        meta, start = _meta(head)
        syntax = meta.get("TransferSyntaxUID", "")
        if not syntax.startswith("1.2.840.10008.1.2") or syntax in (BIG_ENDIAN, DEFLATED):
            return None
        implicit = syntax == IMPLICIT
        found: dict[int, bytes] = {}
        position, last = start, 0
        while True:
            tag, value, after = _element(head, position, implicit=implicit)
            if tag in PIXELS:
                return Elements(found, meta, implicit=implicit, end=position)
            if tag <= last or tag in unusual:
                return None
            if tag in wanted:
                content = head[value:after]
                if len(content) < after - value or not _plain(tag, content):
                    return None
                found[tag] = content
            position, last = after, tag
    except _Unusual:
        return None


def _plain(tag: int, content: bytes) -> bool:
    """Tell whether a value is the same in every character set, or one number of two bytes."""
    if tag >> 16 == 0x0028 and len(content) == 2:
        return True
    return content.isascii() and b"\x1b" not in content


def _meta(head: bytes) -> tuple[dict[str, str], int]:
    """Return the file's meta information, and where it ends."""
    names = {0x00020002: "MediaStorageSOPClassUID", 0x00020010: "TransferSyntaxUID"}
    meta: dict[str, str] = {}
    position = PREAMBLE + len(MAGIC)
    while head[position : position + 2] == b"\x02\x00":
        tag, value, position = _element(head, position, implicit=False)
        if tag in names:
            meta[names[tag]] = head[value:position].decode("ascii", "replace").strip("\0 ")
    return meta, position


def _element(head: bytes, at: int, *, implicit: bool, depth: int = 0) -> tuple[int, int, int]:
    """Return the tag of an element, and where its value begins and ends."""
    if len(head) < at + 12:
        raise _Unusual
    group, number = _TAG.unpack_from(head, at)
    tag = group << 16 | number
    if implicit or group == 0xFFFE:
        length, value = _LENGTH.unpack_from(head, at + 4)[0], at + 8
    else:
        kind = head[at + 4 : at + 6]
        if kind in _SHORT:
            return tag, at + 8, at + 8 + _SHORT_LENGTH.unpack_from(head, at + 6)[0]
        if kind not in _LONG:
            raise _Unusual
        length, value = _LENGTH.unpack_from(head, at + 8)[0], at + 12
        if length == _UNDEFINED and kind == b"UN" and tag not in PIXELS:
            raise _Unusual  # its items are implicit
    if length != _UNDEFINED or tag in PIXELS:
        return tag, value, value + length
    return tag, value, _after_sequence(head, value, implicit=implicit, depth=depth + 1)


def _after_sequence(head: bytes, at: int, *, implicit: bool, depth: int) -> int:
    """Return where a sequence or an item of undefined length ends."""
    if depth > _DEEPEST:
        raise _Unusual
    while True:
        tag, value, after = _element(head, at, implicit=implicit, depth=depth)
        if tag in (_END_OF_ITEM, _END_OF_SEQUENCE):
            return value
        at = after


def _raw(dataset: Any, tag: int) -> Any:
    """Return an element as it stands in the file, which costs a tenth of pydicom's conversion."""
    try:
        return dataset.get_item(tag)
    except KeyError:
        return None


def text_of(dataset: Any, tag: int) -> str:
    """Return an element as text, several values divided by a backslash."""
    item = _raw(dataset, tag)
    if item is None or item.value is None:
        return ""
    value = item.value
    if isinstance(value, bytes):
        if value.isascii() and b"\x1b" not in value:
            return value.decode("ascii").strip("\0 ")
        value = dataset[tag].value  # in the character set that the file names
    if isinstance(value, str) or not isinstance(value, Sequence):
        return str(value).strip("\0 ")
    return "\\".join(str(one) for one in value).strip("\0 ")


def numbers_of(dataset: Any, tag: int, default: tuple[float, ...] = ()) -> tuple[float, ...]:
    """Return an element of decimal text as numbers; the default where it holds none."""
    text = text_of(dataset, tag)
    try:
        # Some writers take the decimal comma of their country.
        found = tuple(float(part.replace(",", ".")) for part in text.split("\\") if part.strip())
    except ValueError:
        return default
    return found if found and all(map(math.isfinite, found)) else default


def integer_of(dataset: Any, tag: int, default: int = 0, *, signed: bool = False) -> int:
    """Return a binary element of 16 bits."""
    item = _raw(dataset, tag)
    if item is None or item.value is None or item.value == b"":
        return default
    if not isinstance(item.value, bytes):
        value = item.value
        return int(value[0] if hasattr(value, "__len__") else value)
    order: ByteOrder = "little" if item.is_little_endian else "big"
    return int.from_bytes(item.value[:2], order, signed=signed)


def sequence_of(dataset: Any, tag: int) -> Any:
    """Return the items of a sequence; none where it is not there."""
    return dataset[tag].value if tag in dataset else ()
