from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from nnmf_cuda.pipeline import places
from nnmf_cuda.pipeline.places import Place, write_text
from tests.processes import at_once, exit_code, fork


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_place_is_held_by_one(tmp_path: Path) -> None:
    place = Place(tmp_path / "new" / "home", "f.npy")
    assert not place.is_held()
    with place.held("--out f"):
        assert place.is_held()
        expected = rf"--out f is being written by another .*\(process {os.getpid()} on "
        with pytest.raises(ValueError, match=expected):
            with place.held("--out f"):
                pass
        with Place(place.home, "g.npy").held("--out g"), Place(place.home).held("--out"):
            pass  # other places in the same folder
    assert not place.is_held()
    assert names(tmp_path) == set()  # what was made for nothing is gone
    with place.held("--out f"):
        (place.home / "kept").touch()
    assert names(tmp_path) == {"new", "new/home", "new/home/kept"}


def test_a_file_is_no_folder_to_hold(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="--out f is a file: give a directory"):
        with Place(tmp_path / "file").held("--out f"):
            pass


def test_results_come_in_order_and_replace_all_earlier_ones(tmp_path: Path) -> None:
    for name in ("a", "c", "other", "below/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    with Place(tmp_path).held("--out") as place:
        with place.staged(["a", "b", "c"], replaces=lambda: ["below/b"]) as folder:
            (folder / "b").mkdir()
            (folder / "b" / "x").write_text("new")
            (folder / "c").write_text("new")
            (folder / "scratch").write_text("not a result")
            assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == {"b", "b/x", "c", "other"}
    assert (tmp_path / "c").read_text() == "new"


@pytest.mark.parametrize("moved", range(4))
def test_the_next_goes_on_where_one_was_killed_while_it_moved(
    moved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`moved` results are in their place; the process stops at the next."""
    for name in ("a", "b", "c", "old"):
        (tmp_path / name).write_text("old")

    def die() -> int:
        replace, count = os.replace, iter(range(10))

        def stop(source: Path, target: Path) -> None:
            if next(count) == moved:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        monkeypatch.setattr(places.os, "replace", stop)
        with Place(tmp_path).held("--out") as place:
            with place.staged(["a", "b", "c"], replaces=lambda: ["old"]) as folder:
                for name in "abc":
                    (folder / name).write_text("new")
        return 0

    code = exit_code(fork(die, said=tmp_path / "said.txt"))
    assert code == (-signal.SIGKILL if moved < 3 else 0)
    if 0 < moved < 3:
        assert not (tmp_path / "c").exists()  # the sign that all are there comes last
    with Place(tmp_path).held("--out"):
        pass
    assert names(tmp_path) == {"a", "b", "c", "said.txt"}
    assert {(tmp_path / name).read_text() for name in "abc"} == {"new"}


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    mine = [".partial-mine", ".partial", ".other.npy.partial-abcd_123", "partial-abcd1234"]
    for name in (*mine, ".partial-abcd_123", ".partial-zzzzzzzz"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()

    def die() -> int:
        with Place(tmp_path).held("--out") as place, place.staged(["a"]) as folder:
            (folder / "a").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert exit_code(fork(die, said=tmp_path / "said.txt")) == -signal.SIGKILL
    assert not Place(tmp_path).is_held()  # though the file of the lock is there
    with Place(tmp_path).held("--out") as place:
        assert {path.name for path in tmp_path.iterdir()} - {place._lock_path.name} == {
            *mine,
            "said.txt",
        }


@pytest.mark.parametrize("plan", [b"", b"\xff", b"[]", b'{"remove": 1, "move": 2}'])
def test_a_plan_that_cannot_be_read_is_no_plan(plan: bytes, tmp_path: Path) -> None:
    (tmp_path / ".whole-abcdefgh").mkdir()
    (tmp_path / ".whole-abcdefgh" / ".plan.json").write_bytes(plan)
    with Place(tmp_path).held("--out"):
        pass
    assert names(tmp_path) == set()


def test_a_plan_reaches_nothing_outside_its_place(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    for folder in (home, outside):
        folder.mkdir()
    (outside / "precious").write_text("kept")
    (home / "link").symlink_to(outside)
    whole = home / ".whole-abcdefgh"
    whole.mkdir()
    for name in ("a", "b"):
        (whole / name).write_text("evil")
    wanted = ["../outside/precious", str(outside / "precious"), "link/precious"]
    plan = {"remove": wanted, "move": ["a", "../b", "link/b"]}
    (whole / ".plan.json").write_text(json.dumps(plan))
    with Place(home).held("--out"):
        pass
    assert names(outside) == {"precious"}
    assert names(home) == {"a", "link"}


def test_a_lock_does_not_live_on_in_forked_processes(tmp_path: Path) -> None:
    """Workers of a pool may outlive the process that held the place."""
    with Place(tmp_path).held("--out"):
        worker = fork(lambda: time.sleep(30) or 0, said=tmp_path / "said.txt")
        time.sleep(0.2)
    try:
        with Place(tmp_path).held("--out"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        exit_code(worker)


def test_what_several_processes_put_together_is_swept_unless_it_is_gone_on_with(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path, "f.npy")
    place.shared.mkdir()
    (place.shared / "part").touch()
    (tmp_path / ".f.npy.partial-abcdefgh").touch()
    with place.held("--out f", keep_shared=True):
        pass
    assert names(tmp_path) == {place.shared.name, f"{place.shared.name}/part"}
    with place.held("--out f"):
        pass
    assert names(tmp_path) == set()


def test_without_locks_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(places.fcntl, "flock", no_lock)
    (tmp_path / ".partial-abcdefgh").mkdir()
    with Place(tmp_path).held("--out") as place, place.staged(["a"]) as folder:
        (folder / "a").touch()
    assert names(tmp_path) == {"a", ".partial-abcdefgh"}


def test_many_writers_of_one_file_leave_one_whole(tmp_path: Path) -> None:
    def writer(letter: str) -> int:
        for _ in range(20):
            write_text(tmp_path / "x.json", letter * 50_000)
        return 0

    codes = at_once([lambda letter=letter: writer(letter) for letter in "abc"], tmp_path)
    assert [code for code, _ in codes] == [0, 0, 0], codes
    text = (tmp_path / "x.json").read_text()
    assert text in {letter * 50_000 for letter in "abc"}
    assert {name for name in names(tmp_path) if not name.startswith("said")} == {"x.json"}


def test_a_text_that_cannot_be_written_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    expected = r"x\.json cannot be written \(Is a directory; give the name of a file\)"
    with pytest.raises(ValueError, match=expected):
        write_text(tmp_path / "x.json", "")
    assert names(tmp_path) == {"x.json"}
    write_text(tmp_path / "y.html", "\udcff \u00e9")  # a file name of which a byte is no UTF-8
    assert (tmp_path / "y.html").read_bytes() == b"\\udcff \xc3\xa9"
