"""A checkpoint of several processes: an index, and beside it a file of the rows of each."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from nnmf_cuda.nnmf.sharded_matrix import Sharded
from nnmf_cuda.nnmf.tensor_file import Content, Kind, read_tensors, write_tensors

_SLOTS = (".rows-a", ".rows-b")
"""Endings of the folders of rows: the index names one, the next checkpoint has the other."""


class DealtFile:
    """What the ranks that have the rows of X write of a fit, and read again, dealt as they may be.

    The file at `path` is the index: all that is the same on every rank, and which files of rows
    belong to it, in a folder beside it, one of each rank. It is replaced when those are there, and
    only then are those of the index before removed: ranks that are killed at any moment leave a
    whole checkpoint. No rank holds rows of others, but for those in a file that has some of its
    own.

    Each method is called by all ranks together.

    Parameters
    ----------
    path : Path
        A place that all ranks see. Where the starts of a fit are dealt among groups of ranks, each
        group has a file of its own, named after it.
    X : Sharded
        Whose rows these are.
    of_rows : tuple of str
        The tensors that have rows: of shape (..., rows of this rank, k).
    """

    def __init__(self, path: Path, X: Sharded, of_rows: tuple[str, ...]) -> None:
        self._given, self._ranks, self._of_rows = path, X.ranks, of_rows
        self._group = "" if X.starts is None else f".starts-{X.starts.rank}-of-{X.starts.size}"
        self.path = path.with_name(path.name + self._group)
        self._rows = X.own_rows
        self._slot = _SLOTS[-1]  # of the checkpoint that is there

    def read(self) -> Content | None:
        """Return what was written, of tensors with rows those of this rank; None if nothing was.

        Raises
        ------
        ValueError
            If a file is damaged, missing or of something else, or if starts were dealt otherwise.
        """
        # The ranks are told, as they may not all see the file.
        index = self._ranks.gathered(self._index() if self._ranks.rank == 0 else None)[0]
        if index is None:
            return None
        self._slot = index.description["slot"]
        tensors = dict(index.tensors)
        for name in self._of_rows:
            if name in tensors:  # of no rows: its type and its other sides
                *batch, _, k = tensors[name].shape
                tensors[name] = tensors[name].new_empty(*batch, self._n_rows, k)
        for first, stop in index.description["parts"]:
            if max(first, self._rows.start) < min(stop, self._rows.stop):
                self._fill(tensors, first, stop, index.description["written"])
        return Content(index.description["of"], tensors)

    def write(self, content: Content) -> None:
        """Write a checkpoint in place of the one before; raises OSError on all ranks."""
        slot = _SLOTS[1 - _SLOTS.index(self._slot)]
        leads = self._ranks.rank == 0
        written = self._ranks.gathered(uuid.uuid4().hex)[0]
        self._together(lambda: _emptied(self._folder(slot)), leads)
        rows = {name: content.tensors[name] for name in self._of_rows if name in content.tensors}
        own = self._rows.start, self._rows.stop
        part = Content({"written": written}, rows)
        self._together(
            lambda: write_tensors(self._part(slot, *own), Kind.ROWS, part), self._n_rows > 0
        )
        parts = [(first, stop) for first, stop in self._ranks.gathered(own) if first < stop]
        index = Content(
            {"of": content.description, "written": written, "slot": slot, "parts": parts},
            content.tensors | {name: tensor[..., :0, :].clone() for name, tensor in rows.items()},
        )

        def write_index() -> None:
            for place in parts:
                if not self._part(slot, *place).exists():
                    raise FileNotFoundError(
                        f"{self._part(slot, *place)} is not there for rank 0, though another rank "
                        "has written it: give checkpoint= a directory that all ranks see"
                    )
            write_tensors(self.path, Kind.INDEX, index)
            shutil.rmtree(self._folder(self._slot), ignore_errors=True)

        self._together(write_index, leads)
        self._slot = slot

    def _index(self) -> Content | None:
        """Return the index, or None where there is none, nor one of starts dealt otherwise."""
        if self.path.exists():
            return read_tensors(self.path, Kind.INDEX)
        of_groups = re.compile(re.escape(self._given.name) + r"(\.starts-\d+(-of-\d+))?")
        of_these = self._group.partition("-of-")[2]
        for beside in self._given.parent.iterdir():
            found = of_groups.fullmatch(beside.name)
            if found and (found[2] or "-of-").removeprefix("-of-") != of_these:
                raise ValueError(
                    f"checkpoint={str(self._given)!r}: {beside.name} is of a fit whose starts were "
                    "dealt among other groups: deal them as before to go on with it, or delete it "
                    "or give another name to begin anew"
                )
        return None

    def _fill(self, tensors: dict[str, Tensor], first: int, stop: int, written: str) -> None:
        """Copy what the file of the rows from `first` to `stop` has of those of this rank."""
        path = self._part(self._slot, first, stop)
        if not path.exists():
            raise ValueError(
                f"{path}, which {self.path} needs, is not there: give checkpoint= a directory that "
                "all ranks see, or delete the latter to begin the fit anew"
            )
        part = read_tensors(path, Kind.ROWS)
        if part.description["written"] != written:
            raise ValueError(
                f"{path} does not belong to {self.path}: copy them together, or delete the latter "
                "to begin the fit anew"
            )
        low, high = max(first, self._rows.start), min(stop, self._rows.stop)
        for name, tensor in part.tensors.items():
            own = tensors[name][..., low - self._rows.start : high - self._rows.start, :]
            own.copy_(tensor[..., low - first : high - first, :])

    def _together(self, call: Callable[[], None], mine: bool) -> None:
        """Make the call where it is `mine`; raise OSError on all ranks where it does on one."""
        error = None
        try:
            if mine:
                call()
        except OSError as raised:
            error = f"rank {self._ranks.rank}: {raised}"
        errors = [words for words in self._ranks.gathered(error) if words is not None]
        if errors:
            raise OSError("; ".join(errors))

    @property
    def _n_rows(self) -> int:
        n_rows: int = self._rows.stop - self._rows.start
        return n_rows

    def _folder(self, slot: str) -> Path:
        return self.path.with_name(self.path.name + slot)

    def _part(self, slot: str, first: int, stop: int) -> Path:
        return self._folder(slot) / f"{first}-{stop}.safetensors"


def _emptied(folder: Path) -> None:
    """Make a folder, without what one of this name held."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
