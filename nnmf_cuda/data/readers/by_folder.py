"""What folders say of files whose format is told by content: their split and class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnmf_cuda.data.images import is_hidden
from nnmf_cuda.data.readers.base import SPLIT_ALIASES
from nnmf_cuda.data.reading import Account, ReadOptions, first_few, is_special


def walk_files(folder: Path, account: Account | None = None) -> Iterator[Path]:
    """Give the files of a folder and those below it, in sorted order.

    Hidden ones and what lies behind links to folders are left out, of which the account is told,
    as it is of every file. A folder that cannot be read is a ValueError.
    """
    account = Account() if account is None else account

    def refuse(error: OSError) -> None:
        text = f"cannot read folder {str(error.filename)!r}: {error.strerror}"
        raise ValueError(text) from error

    for where, folders, names in os.walk(folder, onerror=refuse):
        for name in folders:
            if is_hidden(Path(name)):
                account.skip(Path(where, name), "hidden")
            elif Path(where, name).is_symlink():
                account.skip(Path(where, name), "a link to a folder, which is not followed")
        folders[:] = sorted(name for name in folders if not is_hidden(Path(name)))
        for name in sorted(names):
            path = Path(where, name)
            if is_hidden(path):
                account.skip(path, "hidden")
            elif is_special(path):
                account.skip(path, "a pipe or a device, no file")
            else:
                account.met(path)
                yield path


def splits_of(below: Sequence[Path]) -> list[str] | None:
    """Return the split that the first folder of each path names; None unless all name one."""
    tops = [path.parts[0].lower() if len(path.parts) > 1 else "" for path in below]
    if not all(top in SPLIT_ALIASES for top in tops):
        return None
    return [SPLIT_ALIASES[top] for top in tops]


def classes_of(
    below: Sequence[Path], root: Path, options: ReadOptions, *, otherwise: str = ""
) -> list[str]:
    """Return the class of each file by its folder, or by the pattern where that has a {label}.

    Parameters
    ----------
    below : sequence of paths
        Relative to the source.
    root : Path
        The source, for messages.
    options : ReadOptions
        Its pattern is asked.
    otherwise : str, default=""
        Another remedy for files that lie in no class folder.
    """
    pattern = options.pattern
    if pattern is not None and "label" in pattern.names:
        return [pattern.match(path)["label"] for path in below]
    level = 0 if splits_of(below) is None else 1
    loose = sorted({path.as_posix() for path in below if len(path.parts) < level + 2})
    if loose:
        raise ValueError(
            f"{root}: {first_few([repr(name) for name in loose])} lie in no class folder; sort "
            f"files into root/class/ or root/split/class/, {otherwise}name them with their labels "
            "in a CSV (columns file and label), or give --patient_from a pattern with {label}"
        )
    return [path.parts[level] for path in below]
