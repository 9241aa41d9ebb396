"""Features of many images that several processes compute: blocks of them, in files of their own.

A block is some images that follow each other in the stream of all. Each process adds the blocks
that it has computed to a file of its own in a folder that all share, and one reads them from there
in order. What a process has added whole stays when it is killed.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnmf_cuda.data import ImageBatch, ReadFailure

_HEAD = struct.Struct("<qqq")
"""Before a block: its number, the bytes of what is said of it, and those of its features."""

_MARK = b"nnmf-cuda features\n"


@dataclass
class Block:
    """What has become of some images that follow each other.

    Attributes
    ----------
    number : int
        Which block of all.
    n_read : int
        Images that could be read; there are features of fewer where one ends the command that could
        not.
    failures : list of ReadFailure
        The others.
    pieces : list of Piece
        Their names and columns, a piece a batch.
    features : list of array of shape (n of the piece, n_columns)
        float32.
    """

    number: int
    n_read: int = 0
    failures: list[ReadFailure] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    features: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, batch: ImageBatch, features: NDArray[np.float32]) -> None:
        """Add the features of a batch."""
        if len(features):
            columns = [dict(said) for said in batch.columns]
            self.pieces.append(Piece(batch.images.dtype.str, batch.names(), columns))
            self.features.append(features)


class Piece(NamedTuple):
    """Images of one type, as NumPy calls it: their names, and what their sources say of them."""

    dtype: str
    names: list[str]
    columns: Sequence[Mapping[str, str]]


class Parts:
    """The blocks in a folder: those of commands with this key, as settings are one."""

    def __init__(self, folder: Path, key: str, n_columns: int) -> None:
        self._folder, self._n_columns = folder, n_columns
        self._mark = _MARK + sha256(key.encode("utf-8", "backslashreplace")).digest()

    def known(self) -> list[int]:
        """Return the numbers of the blocks that are there."""
        return sorted(self._places())

    def begin(self) -> IO[bytes]:
        """Return a new file in the folder, to which this process adds its blocks."""
        file = tempfile.NamedTemporaryFile("wb", dir=self._folder, prefix="part-", delete=False)
        file.write(self._mark)
        file.flush()
        return file

    def add(self, file: IO[bytes], block: Block) -> None:
        """Add a block to a file of this process."""
        said = {
            "n_read": block.n_read,
            "failures": [[str(failed.file), failed.message] for failed in block.failures],
            "pieces": block.pieces,
        }
        text = json.dumps(said).encode("ascii")
        rows = np.concatenate([np.empty((0, self._n_columns), "<f4"), *block.features])
        values = rows.astype("<f4", copy=False).tobytes()
        file.write(_HEAD.pack(block.number, len(text), len(values)) + text + values)
        file.flush()

    def blocks(self, n_blocks: int) -> Iterator[Block]:
        """Yield blocks 0 to n_blocks - 1; raises ValueError where one is not there."""
        places = self._places()
        missing = n_blocks - len(places.keys() & set(range(n_blocks)))
        if missing:
            raise ValueError(
                f"{self._folder.parent} has {n_blocks - missing} of {n_blocks} blocks of features:"
                " the others are on another machine; give a folder that all machines share"
            )
        opened = {path: path.open("rb") for path in {path for path, _ in places.values()}}
        try:
            for number in range(n_blocks):
                path, start = places[number]
                yield self._read(opened[path], start)
        finally:
            for file in opened.values():
                file.close()

    def _places(self) -> dict[int, tuple[Path, int]]:
        """Return where each block begins that is there as a whole."""
        places: dict[int, tuple[Path, int]] = {}
        for path in sorted(self._folder.glob("part-*")):
            with path.open("rb") as file:
                if file.read(len(self._mark)) != self._mark:
                    continue
                size, start = path.stat().st_size, file.tell()
                while len(head := file.read(_HEAD.size)) == _HEAD.size:
                    number, n_said, n_values = _HEAD.unpack(head)
                    end = start + _HEAD.size + n_said + n_values
                    if end > size:
                        break  # its process was killed in the middle of it
                    places.setdefault(number, (path, start))
                    start = file.seek(end)
        return places

    def _read(self, file: IO[bytes], start: int) -> Block:
        file.seek(start)
        number, n_said, n_values = _HEAD.unpack(file.read(_HEAD.size))
        said = json.loads(file.read(n_said))
        pieces = [Piece(*piece) for piece in said["pieces"]]
        rows = np.frombuffer(file.read(n_values), "<f4").reshape(-1, self._n_columns)
        ends = np.cumsum([len(piece.names) for piece in pieces])
        return Block(
            number,
            said["n_read"],
            [ReadFailure(Path(name), message) for name, message in said["failures"]],
            pieces,
            np.split(rows, ends)[: len(pieces)],
        )


def rebatched(
    blocks: Iterable[Block], batch_size: int
) -> Iterator[tuple[ImageBatch, NDArray[np.float32]]]:
    """Yield the images of blocks in the batches in which one process would have had them.

    Those are full but for the last, and those before the pixels' type changes; of pixels there are
    none here.
    """
    names: list[str] = []
    columns: list[Mapping[str, str]] = []
    rows: list[NDArray[np.float32]] = []
    dtype = ""

    def cut(n: int) -> tuple[ImageBatch, NDArray[np.float32]]:
        nonlocal rows
        features = np.concatenate(rows)
        rows = [features[n:]]
        files = [Path(name) for name in names[:n]]
        batch = ImageBatch(0, np.empty((n, 0, 0), dtype), files, [], columns[:n])
        del names[:n], columns[:n]
        return batch, features[:n]

    for block in blocks:
        for piece, features in zip(block.pieces, block.features, strict=True):
            if names and piece.dtype != dtype:
                yield cut(len(names))
            dtype = piece.dtype
            names += piece.names
            columns += piece.columns
            rows.append(features)
            while len(names) >= batch_size:
                yield cut(batch_size)
    if names:
        yield cut(len(names))
