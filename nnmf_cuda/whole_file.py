"""One file, written whole or not at all: whoever else writes it, and however the writer ends."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOM = "make room there, or give another path"
_LEAVE = "give a path where you may write"
_REMEDY = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EACCES: _LEAVE,
    errno.EPERM: _LEAVE,
    errno.EROFS: _LEAVE,
    errno.EISDIR: "give the name of a file",
}
_OF_LIBRARIES = re.compile(r"os error (\d+)|errno = (\d+)")  # safetensors; HDF5
_ENDING = "[a-z0-9_]" * 8  # as tempfile ends names
_LONGEST = 48  # characters of a name in that of a folder, of 4 bytes at most; names have 255 bytes


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the name of a new file, which takes the place of `path` when the block ends well.

    Of several that write one file at the same time, the last counts. After an exception the former
    file is there, and nothing else. A process that is killed leaves the former file, and perhaps a
    part of the new one in a folder ``.NAME.partial-*``, which the next to write this file removes.

    Parameters
    ----------
    path : Path
        A file, which may be there, in a folder that is. Of a symbolic link what it points to is
        written.

    Yields
    ------
    Path
        Where to write it, under the same name in a folder that nobody else writes to. It must be
        closed when the block ends.

    Raises
    ------
    OSError
        If the file cannot be written, before the block where that is known then, or for an
        OSError in it: with `path` as its ``filename``, and a remedy. One of another file is left as
        it is.
    """
    target = Path(os.path.realpath(path))
    try:
        _check(target)
        with _folder_beside(target) as folder:
            partial = folder / target.name
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())  # or a stopped machine could keep the name without the data
            os.replace(partial, target)
    except OSError as error:
        if not _is_of(error, target):
            raise
        raise _told(error, path) from error


def os_error(error: Exception) -> OSError:
    """Return the error of the system that a library's error tells of, with its number if known."""
    found = _OF_LIBRARIES.search(str(error))
    if found is None:
        return OSError(str(error))
    number = int(found[1] or found[2])
    return OSError(number, os.strerror(number))


def _check(path: Path) -> None:
    """Raise OSError for what no file can take the place of."""
    if not stat.S_ISDIR(os.stat(path.parent).st_mode):
        raise OSError(errno.ENOTDIR, "")
    if path.is_dir():
        raise OSError(errno.EISDIR, "")
    if path.exists() and not path.is_file():
        raise OSError("not a regular file")  # a device or a pipe: it would be gone


def _prefix(path: Path) -> str:
    return f".{path.name[:_LONGEST]}.partial-"


def _is_of(error: OSError, path: Path) -> bool:
    """Whether an error is of writing this file, as far as it says of which it is."""
    if not isinstance(error.filename, str | bytes):
        return True
    name = Path(os.fsdecode(error.filename))
    return name in (path, path.parent) or _prefix(path) in str(name)


def _told(error: OSError, path: Path) -> OSError:
    """Return the error of a file that cannot be written, by the name that the user knows."""
    number = error.errno or errno.EIO
    said = str(error) if error.errno is None else os.strerror(number)
    remedy = _REMEDY.get(number, "give another path")
    if number in (errno.ENOENT, errno.ENOTDIR) and not os.path.isdir(path.parent):
        said = f"there is no directory {str(path.parent)!r}"
        remedy = "create it first, or give another path"
    return OSError(number, f"{said}; {remedy}", str(path))


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Yield a new folder beside a file, which nobody else writes to; it is removed at the end.

    Folders that writers to the same file have left which were killed are removed: a writer's
    process holds a lock on its own while it lives.
    """
    prefix = _prefix(path)
    for left in path.parent.glob(f"{glob.escape(prefix)}{_ENDING}"):
        _remove_unless_held(left)
    folder, lock = _held_folder(prefix, path.parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _held_folder(prefix: str, parent: Path) -> tuple[Path, int]:
    """Return a new folder and the open file of its lock; on a file system without locks unlocked.

    Another writer may find a folder before it is locked and remove it: then the next is tried.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = folder.exists()
        except OSError as error:
            ours = not isinstance(error, BlockingIOError)
        if ours:
            return folder, lock
        os.close(lock)


def _remove_unless_held(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return  # gone, or none of ours
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # a writer has it, or nobody can tell
    finally:
        os.close(lock)
