"""Places that a command writes to: held by one process at a time, and changed whole or not at all.

A place is held by a lock that the kernel lets go when its process ends, however it ends. Whoever
holds it may therefore take away what lies there unfinished. What is finished becomes so in one
step, the renaming of a folder: what is to be moved after that, the next start moves if this one
cannot.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nnmf_cuda.whole_file import whole_file

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a file system answers that has no locks."""

_PARTIAL, _WHOLE = "partial-", "whole-"
_SHARED = f"{_PARTIAL}of_ranks"
_OURS = re.compile(rf"({_PARTIAL}|{_WHOLE})[a-z0-9_]{{8}}")  # as tempfile ends names
_PLAN = ".plan.json"

_locks: set[int] = set()
"""Open files of locks, which a forked process must not keep held after the one that took them."""


def _close_in_child() -> None:
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_close_in_child)


@dataclass(frozen=True)
class Place:
    """A folder, or with `name` one file in it and what stands beside that file."""

    home: Path
    name: str = ""

    @property
    def prefix(self) -> str:
        """How the names of temporary files of this place begin."""
        return f".{self.name}." if self.name else "."

    @property
    def shared(self) -> Path:
        """A folder of the place for what several processes put together; unfinished as any."""
        return self.home / f"{self.prefix}{_SHARED}"

    @contextmanager
    def held(self, called: str, *, keep_shared: bool = False) -> Iterator[Place]:
        """Hold the place: its folder is made, and what others left unfinished in it is swept.

        Folders that were made and are empty at the end are removed. Raises ValueError, which names
        what the place is `called`, if it cannot be written or another process holds it.
        """
        if not self.name and self.home.exists() and not self.home.is_dir():
            raise ValueError(f"{called} is a file: give a directory")
        made = [folder for folder in (self.home, *self.home.parents) if not folder.exists()]
        try:
            file = self._lock()
        except BlockingIOError as error:
            raise ValueError(
                f"{called} is being written by another nnmf-cuda{self._holder()}: wait until it has"
                " ended, or give another place"
            ) from error
        except OSError as error:
            raise cannot_write(called, error) from error
        try:
            if file is not None:
                self._sweep(keep=[self.shared] if keep_shared else [])
            yield self
        finally:
            if file is not None:
                self._lock_path.unlink(missing_ok=True)  # before another process can hold it
                _locks.discard(file)
                # Said, and not left to the closing: a forked process may have the file open too.
                fcntl.flock(file, fcntl.LOCK_UN)
                os.close(file)
            for folder in made:
                remove_if_empty(folder)

    def is_held(self) -> bool:
        """Return whether a process holds the place."""
        if not self._lock_path.exists():
            return False
        try:
            with self._lock_path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def is_empty(self) -> bool:
        """Return whether nothing but the lock is in the folder of the place."""
        return all(entry == self._lock_path for entry in self.home.iterdir())

    @contextmanager
    def staged(
        self, results: Sequence[str], *, replaces: Callable[[], Iterable[str]] = tuple
    ) -> Iterator[Path]:
        """Yield a folder in a held place; what is in it moves there when the block ends well.

        Of what the folder then holds, `results` are moved, in this order: the last is for others
        the sign that all are there. Before the first is moved, all `results` of earlier and what
        `replaces` returns, relative to the place's folder, are removed, that sign first. After an
        exception nothing of the folder is left. If the process is killed while it moves, the next
        that holds the place goes on.
        """
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{self.prefix}{_PARTIAL}", dir=self.home))
        except OSError as error:
            raise cannot_write(f"--out {self.home / self.name}", error) from error
        try:
            yield folder
            there = [name for name in results if os.path.lexists(folder / name)]
            plan = {"remove": [*reversed(results), *replaces()], "move": there}
            (folder / _PLAN).write_text(json.dumps(plan), encoding="ascii")
            ending = folder.name.removeprefix(f"{self.prefix}{_PARTIAL}")
            whole = folder.with_name(f"{self.prefix}{_WHOLE}{ending}")
            os.rename(folder, whole)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._publish(whole)

    @property
    def _lock_path(self) -> Path:
        return self.home / f"{self.prefix}nnmf-cuda-lock"

    def _lock(self) -> int | None:
        """Return the open file of the lock, or None where the file system has no locks."""
        while True:
            self.home.mkdir(parents=True, exist_ok=True)
            try:
                file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # another process has just removed the folder that it made
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_lock(file):
                    os.ftruncate(file, 0)
                    os.write(file, f"{os.getpid()} {socket.gethostname()}\n".encode())
                    _locks.add(file)
                    return file
            except BlockingIOError:
                os.close(file)
                raise
            except OSError as error:
                os.close(file)
                self._lock_path.unlink(missing_ok=True)
                if error.errno in _NO_LOCKS:
                    return None
                raise
            os.close(file)

    def _is_lock(self, file: int) -> bool:
        """Return whether the file still has its name: who lets a lock go removes it."""
        try:
            named = os.stat(self._lock_path)
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(file), named)

    def _holder(self) -> str:
        try:
            said = self._lock_path.read_bytes()[:300].decode("ascii", "replace")
        except OSError:
            return ""
        found = re.fullmatch(r"(\d+) ([\w.-]+)\n", said)
        return f" (process {found[1]} on {found[2]})" if found else ""

    def _sweep(self, keep: Sequence[Path]) -> None:
        """Remove what processes that have ended left unfinished; finish what was whole."""
        for entry in sorted(self.home.iterdir()):
            known = _OURS.fullmatch(entry.name.removeprefix(self.prefix))
            if known is None or not entry.name.startswith(self.prefix) or entry in keep:
                continue
            if known[1] == _WHOLE and entry.is_dir() and not entry.is_symlink():
                self._publish(entry)
            else:
                remove(entry)

    def _publish(self, whole: Path) -> None:
        try:
            plan = json.loads((whole / _PLAN).read_text(encoding="ascii"))
            unwanted, there = list(map(str, plan["remove"])), list(map(str, plan["move"]))
        except (OSError, ValueError, KeyError, TypeError):
            remove(whole)  # the machine stopped before it was on the disk, or it is none of ours
            return
        if there and os.path.lexists(whole / there[0]):  # nothing has been moved so far
            for name in filter(self._is_inside, unwanted):
                remove_below(self.home, name)
        for name in there:
            if os.path.lexists(whole / name) and self._is_inside(name):
                os.replace(whole / name, self.home / name)
        remove(whole)

    def _is_inside(self, name: str) -> bool:
        """Return whether a name stays in the place: others may have written the plan."""
        parent = (self.home / name).parent.resolve()
        return ".." not in Path(name).parts and parent.is_relative_to(self.home.resolve())


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with what is in it, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_below(home: Path, name: str) -> None:
    """Remove what has this name below a folder, and the folders between that are empty then."""
    remove(home / name)
    for folder in (home / name).parents:
        if folder == home:
            break
        remove_if_empty(folder)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing is."""
    try:
        folder.rmdir()
    except OSError:
        return  # not empty, or gone


def reason(error: Exception) -> str:
    """Return what is wrong in a few words: what the system says, and of which file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return f"{type(error).__name__}: {error}"


def cannot_write(called: str, error: OSError) -> ValueError:
    """Return what to raise where a place cannot be written."""
    return ValueError(f"{called} cannot be written ({error.strerror or error})")


def write_text(path: Path, text: str) -> None:
    """Write a `whole_file` of text; ValueError with its name where it cannot be written."""
    try:
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise cannot_write(str(path), error) from error
