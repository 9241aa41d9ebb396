"""A file that is written: whole or not at all, by one or several, to a good place or a bad one."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest

from nnmf_cuda import whole_file as module
from nnmf_cuda.whole_file import os_error, whole_file
from tests.processes import at_once, exit_code, fork


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "saved").mkdir()
    return tmp_path / "saved" / "some[1].file"  # of which a part means something else to glob


def write(path: Path, content: bytes) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_half(path: Path, error: BaseException) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(b"half")
        raise error


def test_a_file_comes_whole_under_its_name(path: Path) -> None:
    path.write_bytes(b"former")
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(b"half")
        file.flush()
        assert path.read_bytes() == b"former"
        assert partial.name == path.name  # for who goes by its ending
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_exception_leaves_the_former_file_alone(path: Path) -> None:
    write(path, b"former")
    with pytest.raises(KeyboardInterrupt):
        write_half(path, KeyboardInterrupt())
    assert path.read_bytes() == b"former"
    assert list(path.parent.iterdir()) == [path]


def test_a_writer_among_another_does_not_mix_with_it(path: Path) -> None:
    with whole_file(path) as partial, partial.open("wb") as first:
        first.write(b"A" * 10)
        first.flush()
        write(path, b"BBBB")
        assert path.read_bytes() == b"BBBB"
        first.write(b"A" * 10)
    assert path.read_bytes() == b"A" * 20  # the last counts, and it is whole
    assert list(path.parent.iterdir()) == [path]


def test_many_writers_leave_one_whole(path: Path, tmp_path: Path) -> None:
    def writer(letter: bytes) -> int:
        for _ in range(20):
            write(path, letter * 50_000)
        return 0

    codes = at_once([lambda letter=letter: writer(letter) for letter in (b"a", b"b")], tmp_path)
    assert [code for code, _ in codes] == [0, 0], codes
    assert path.read_bytes() in {b"a" * 50_000, b"b" * 50_000}
    assert list(path.parent.iterdir()) == [path]


def killed_half_way(path: Path, tmp_path: Path) -> None:
    def die() -> int:
        with whole_file(path) as partial:
            partial.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert exit_code(fork(die, said=tmp_path / "said.txt")) == -signal.SIGKILL


def test_what_a_killed_writer_leaves_the_next_removes(path: Path, tmp_path: Path) -> None:
    write(path, b"former")
    killed_half_way(path, tmp_path)
    assert path.read_bytes() == b"former"
    assert len(list(path.parent.iterdir())) == 2
    other = path.with_name("some1.file")
    mine = [path.with_name(f".{path.name}.partial-{end}") for end in ("mine", "of_mine_too")]
    for folder in mine:
        folder.mkdir()
    write(other, b"of which it is not a part")
    assert len(list(path.parent.iterdir())) == 5
    write(path, b"new")
    assert sorted(path.parent.iterdir()) == sorted([*mine, other, path])
    assert path.read_bytes() == b"new"


def test_a_writer_that_lives_is_not_swept(path: Path, tmp_path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(b"of this process")
        # Asked by another one: locks are those of a process' open file.
        assert exit_code(fork(lambda: write(path, b"other") or 0, said=tmp_path / "said.txt")) == 0
        assert partial.exists()
    assert path.read_bytes() == b"of this process"


def test_a_lock_on_the_folder_above_keeps_nobody_waiting(path: Path, tmp_path: Path) -> None:
    """As `flock FOLDER COMMAND` has one for the whole command."""

    def writer() -> int:
        signal.alarm(20)
        write(path, b"whole")
        return 0

    above = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(above, fcntl.LOCK_EX)
        assert exit_code(fork(writer, said=tmp_path / "said.txt")) == 0
    finally:
        os.close(above)
    assert path.read_bytes() == b"whole"


def test_a_folder_that_another_removes_before_it_is_locked_is_made_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = module.tempfile.mkdtemp, []

    def found_by_another(**options: object) -> str:
        made.append(make(**options))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(module.tempfile, "mkdtemp", found_by_another)
    write(path, b"whole")
    assert len(made) == 2
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("when", ["locked", "gone"])
def test_a_folder_that_another_has_locked_is_left_to_it(
    when: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one holds its lock still, or has removed it and let go."""
    lock, n_calls = module.fcntl.flock, 0

    def first_by_another(file: int, how: int) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:
            shutil.rmtree(next(path.parent.iterdir()))
            if when == "locked":
                raise BlockingIOError
        lock(file, how)

    monkeypatch.setattr(module.fcntl, "flock", first_by_another)
    write(path, b"whole")
    assert n_calls == 2
    assert list(path.parent.iterdir()) == [path]


def test_without_locks_files_are_written_and_nothing_is_swept(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_half_way(path, tmp_path)

    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", no_lock)
    write(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert len(list(path.parent.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("none/x", FileNotFoundError, "there is no directory '{0}/none'; create it first, or give"),
        ("file/x", NotADirectoryError, "there is no directory '{0}/file'; create it first, or"),
        ("folder", IsADirectoryError, "Is a directory; give the name of a file"),
        ("pipe", OSError, "not a regular file; give another path"),
    ],
)
def test_a_bad_place_is_named_before_the_work(
    name: str, error: type[OSError], message: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error) as found, whole_file(tmp_path / name):
        pytest.fail("there is work that is lost")
    assert found.value.strerror.startswith(message.format(tmp_path))
    assert found.value.filename == str(tmp_path / name)
    assert "partial" not in str(found.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; make room there, or give another path"),
        (errno.EACCES, "Permission denied; give a path where you may write"),
        (errno.EIO, "Input/output error; give another path"),
    ],
)
def test_what_the_system_says_comes_with_the_path_and_a_remedy(
    path: Path, number: int, remedy: str
) -> None:
    write(path, b"former")
    with pytest.raises(OSError, match=remedy) as found:
        write_half(path, OSError(number, os.strerror(number), str(path)))
    assert found.value.errno == number
    assert str(found.value) == f"[Errno {number}] {remedy}: {str(path)!r}"
    assert path.read_bytes() == b"former"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_leave_is_named(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="give a path where you may write") as found:
            write(path, b"")
    finally:
        path.parent.chmod(0o700)
    assert found.value.filename == str(path)


def test_a_file_that_the_system_cuts_short_is_none(path: Path, tmp_path: Path) -> None:
    def writer() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write(path, bytes(2000))
        except OSError as error:
            return 0 if error.filename == str(path) and error.errno == errno.EFBIG else 2
        return 1

    assert exit_code(fork(writer, said=tmp_path / "said.txt")) == 0
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", 28),
        ("Can't decrement id ref count (unable to extend file properly, errno = 27, error", 27),
        ("something else", None),
    ],
)
def test_the_numbers_in_the_words_of_libraries_are_found(said: str, number: int | None) -> None:
    found = os_error(RuntimeError(said))
    assert found.errno == number
    assert str(found) == (f"[Errno {number}] {os.strerror(number)}" if number else said)


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match="missing-input"),
        whole_file(tmp_path / "out") as partial,
    ):
        partial.write_bytes((tmp_path / "missing-input").read_bytes())
    assert not list(tmp_path.iterdir())


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    with whole_file(path) as partial:
        partial.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_what_a_link_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "file", tmp_path / "link"
    link.symlink_to(target)
    for content in (b"first", b"second"):
        with whole_file(link) as partial:
            partial.write_bytes(content)
        assert link.is_symlink()
        assert target.read_bytes() == content
