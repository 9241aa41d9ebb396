"""Ways to damage a file or a folder, from single bits to values that mean something else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = (0, -1, 1, 2, 255, 2**31 - 1, -(2**31), 2**32, 2**63, 2**64, 10**40, 0.5, -0.0, 1e308)
WORDS = ("", "NaN", "Infinity", "null", "../../etc/passwd", "/dev/zero", "\x00", "\x1b[2J", "$_$")
TEXTS = (*WORDS, "a" * 5000, "\u202e\u4e2d", "\ud800", "%s{0}", "=1+1", "-1", "1e999", "true", "{}")
INTERESTING = (b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\x00\x00\x00")


def bits(rng: random.Random, data: bytes) -> bytes:
    """Flip some bits, most of them near the start, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 200)
        if end:
            changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    """Keep the beginning or the end."""
    at = rng.randrange(len(data) + 1)
    return data[:at] if rng.random() < 0.8 else data[at:]


def patch(rng: random.Random, data: bytes) -> bytes:
    """Overwrite, insert, remove or repeat a piece."""
    at = rng.randrange(len(data) + 1)
    piece = rng.choice((*INTERESTING, rng.randbytes(rng.randrange(1, 40))))
    match rng.randrange(4):
        case 0:
            return data[:at] + piece + data[at + len(piece) :]
        case 1:
            return data[:at] + piece + data[at:]
        case 2:
            return data[:at] + data[at + rng.randrange(1, 64) :]
        case _:
            end = min(len(data), at + rng.randrange(1, 256))
            return data[:end] + data[at:end] * rng.choice((1, 2, 50)) + data[end:]


def nothing(rng: random.Random, data: bytes) -> bytes:
    """Leave no content, or none that means anything."""
    return rng.choice(
        (b"", b"\x00" * len(data), rng.randbytes(len(data)), b"\n", b"{}", b"\xff" * 9)
    )


def encoding(rng: random.Random, data: bytes) -> bytes:
    """Save text in another encoding."""
    text = data.decode("utf-8", "replace")
    return text.encode(
        rng.choice(("utf-16", "utf-16-be", "utf-32", "utf-8-sig", "cp037")), "replace"
    )


def words(rng: random.Random, data: bytes) -> bytes:
    """Replace words of a text by others."""
    parts = re.split(rb"([\w.+-]+|\s+|.)", data, flags=re.DOTALL)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(parts))
        parts[at] = rng.choice(
            (*map(str, NUMBERS), *TEXTS, "\n", ",", '"', "- ", ": ", "[", "*x")
        ).encode("utf-8", "surrogateescape" if rng.random() < 0.1 else "replace")
    return b"".join(parts)


def structure(rng: random.Random, data: bytes) -> bytes:
    """Replace, remove or repeat values of JSON; leave other text to `words`."""
    try:
        content = json.loads(data)
    except ValueError:
        return words(rng, data)
    for _ in range(rng.choice((1, 1, 2))):
        content = _changed(rng, content)
    return json.dumps(content).encode()


def _changed(rng: random.Random, value: Any) -> Any:
    inner = isinstance(value, dict | list) and len(value) > 0
    if inner and rng.random() < 0.85:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        match rng.randrange(8):
            case 0:
                del value[key]
            case 1 if isinstance(value, list):
                value.append(value[key])
            case 2 if isinstance(value, dict):
                value[rng.choice(TEXTS)] = value[key]
            case _:
                value[key] = _changed(rng, value[key])
        return value
    deep: Any = 1
    for _ in range(rng.choice((1, 500, 3000)) if rng.random() < 0.05 else 0):
        deep = [deep]
    return rng.choice((*NUMBERS, *TEXTS, None, True, [], {}, [None], {"a": 1}, deep, float("nan")))


def png_chunk(rng: random.Random, data: bytes) -> bytes:
    """Change a chunk of a PNG and mend its checksum, so that the change is read."""
    starts, at = [], 8
    while at + 12 <= len(data):
        starts.append(at)
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    at = rng.choice(starts[:1] * 2 + starts)
    length = int.from_bytes(data[at : at + 4], "big")
    body = bytearray(data[at + 4 : at + 8 + length])
    if len(body) > 4 and rng.random() < 0.9:
        where = rng.randrange(4, len(body))
        body[where] = rng.choice((0, 1, 2, 3, 4, 16, 127, 255, rng.randrange(256)))
        if at == 8 and rng.random() < 0.4:
            side = rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1, 40_000))
            body[4:8] = struct.pack(">I", side)
    else:
        body[:4] = rng.choice((b"IDAT", b"tEXt", b"acTL", b"PLTE", b"iCCP", b"zTXt"))
    crc = struct.pack(">I", zlib.crc32(bytes(body)))
    return data[: at + 4] + bytes(body) + crc + data[at + 12 + length :]


def zip_member(rng: random.Random, data: bytes) -> bytes:
    """Change a member of an archive, or its name, with right checksums."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as archive:
        names = source.namelist()
        chosen = rng.choice(names)
        for name in names:
            content = source.read(name)
            if name == chosen:
                match rng.randrange(8):
                    case 0:
                        continue
                    case 1:
                        name = rng.choice(
                            ("../evil.npy", "/evil.npy", "images.npy", "labels.npy", "x")
                        )
                    case 2:
                        content = rng.choice((bits, cut, patch, nothing))(rng, content)
                    case _:
                        content = array_header(rng, content)
            archive.writestr(name, content)
    return target.getvalue()


def array_header(rng: random.Random, data: bytes) -> bytes:
    """Change what the header of an .npy says, or put another array in its place."""
    if rng.random() < 0.4:
        array = _odd_array(rng)
        target = io.BytesIO()
        np.save(target, array, allow_pickle=array.dtype.hasobject)
        return target.getvalue()
    length = int.from_bytes(data[8:10], "little")
    header = data[10 : 10 + length].decode("latin-1").rstrip()
    shape = rng.choice(
        ("()", "(0,)", "(-1,)", "(10**12,)", "(1000000000000,)", "(2, 3)", "(99999, 99999)")
    )
    swaps = (
        (r"\(.*?\)", shape),
        (
            r"'descr': '.*?'",
            "'descr': " + rng.choice(("'|O'", "'<f8'", "'<c16'", "'<U9'", "'>i2'", "[]")),
        ),
        ("False", "True"),
        (r"\{.*", rng.choice(("{}", "{" * 50, "(" * 300, "9" * 5000, "__import__('os')"))),
    )
    found, said = rng.choice(swaps)
    header = re.sub(found, lambda _: said, header)
    text = header.encode("latin-1").ljust(length - 1) + b"\n"
    return data[:8] + struct.pack("<H", len(text)) + text + data[10 + length :]


def _odd_array(rng: random.Random) -> np.ndarray:
    n = 12
    kinds: tuple[Callable[[], np.ndarray], ...] = (
        lambda: np.full((n, 24, 24), np.nan),
        lambda: np.full((n, 24, 24), 1e308),
        lambda: np.zeros((n, 24, 24), bool),
        lambda: np.zeros((n, 24, 24, 3), np.uint8),
        lambda: np.zeros((n, 24, 24, 7), np.uint8),
        lambda: np.zeros((n, 0, 24), np.uint8),
        lambda: np.zeros((n, 1, 1), np.uint8),
        lambda: np.zeros((0, 24, 24), np.uint8),
        lambda: np.zeros((n, 24, 24), np.int64) - 7,
        lambda: np.zeros(n, complex),
        lambda: np.array([None, 1] * (n // 2), object),
        lambda: np.array(["a", ""] * (n // 2)),
        lambda: np.array(["train", "test"] * (n // 2)),
        lambda: np.arange(n) - 5,
        lambda: np.arange(n) * 2**60,
        lambda: np.array([0.5, np.inf] * (n // 2)),
        lambda: np.zeros((n, 1), int),
        lambda: np.zeros((), int),
        lambda: np.zeros(n, "datetime64[s]"),
        lambda: np.zeros(n, [("a", int)]),
        lambda: np.array([b"a", b"\xff"] * (n // 2)),
    )
    return rng.choice(kinds)()


def tensor_header(rng: random.Random, data: bytes) -> bytes:
    """Change what the header of a safetensors file says."""
    length = int.from_bytes(data[:8], "little")
    header = structure(rng, data[8 : 8 + length])
    claimed = len(header) if rng.random() < 0.9 else rng.choice((0, 2**32, 2**63))
    return struct.pack("<Q", claimed) + header + data[8 + length :]


def resign(home: Path) -> None:
    """Let a model's description say the checksum that the damaged weights have."""
    for path in home.rglob("model.json"):
        beside = path.with_name("model.safetensors")
        if not (path.is_file() and beside.is_file()):  # but a pipe, perhaps
            continue
        weights = beside.read_bytes()
        said = hashlib.sha256(weights).hexdigest()
        text = re.sub(
            r'("weights_sha256": )"\w+"', rf'\1"{said}"', path.read_text("utf-8", "replace")
        )
        path.write_text(text, encoding="utf-8", errors="replace")


_BY_ENDING: dict[str, tuple[Callable[[random.Random, bytes], bytes], ...]] = {
    ".png": (png_chunk, png_chunk),
    ".npz": (zip_member, zip_member, zip_member),
    ".npy": (array_header, array_header),
    ".safetensors": (tensor_header, tensor_header),
    ".json": (structure, structure, structure, words, encoding),
    ".zarray": (structure, structure, structure),
    ".csv": (words, words, words, encoding),
    ".yaml": (words, words, words, encoding),
    ".cls": (words,),
}


def damage_file(rng: random.Random, path: Path) -> str:
    """Damage a file in place; return how."""
    how = rng.choice((bits, bits, cut, patch, patch, nothing, *_BY_ENDING.get(path.suffix, ())))
    data = path.read_bytes()
    try:
        data = how(rng, data)
    except (ValueError, IndexError, KeyError, OverflowError, struct.error, zipfile.BadZipFile):
        data = bits(rng, data)  # what an earlier change has made of it has no such parts
    path.write_bytes(data)
    return f"{how.__name__} of {path.name}"


def damage_folder(rng: random.Random, path: Path) -> str:
    """Put something else in the place of a file; return what."""
    name = rng.choice(
        ("\udcff\x1b.png", "a\nb.jpg", "-rf", "$_$", "x" * 200, "__MACOSX", ".png", "a b")
    )
    match rng.randrange(8):
        case 0:
            path.unlink()
            path.symlink_to(path)
            return "a link to itself"
        case 1:
            path.unlink()
            path.symlink_to(rng.choice(("/dev/zero", "/dev/full", "/proc/self/mem", "/", "..")))
            return "a link to elsewhere"
        case 2:
            path.unlink()
            os.mkfifo(path)
            return "a pipe"
        case 3:
            path.unlink()
            path.mkdir()
            return "a folder"
        case 4:
            path.chmod(0)
            return "no right to read"
        case 5:
            path.unlink()
            return "nothing"
        case 6 if not (path.parent / "below").exists():
            (path.parent / "below").symlink_to(path.parent)
            return "a loop of folders"
        case _:
            path.rename(path.with_name(name))
            return "another name"


def damage(rng: random.Random, home: Path) -> str:
    """Damage one or two of the files below a folder; return what was done."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        files = sorted(path for path in home.rglob("*") if path.is_file() and not path.is_symlink())
        if files:
            way = damage_folder if rng.random() < 0.12 else damage_file
            done.append(way(rng, rng.choice(files)))
    return "; ".join(done)
