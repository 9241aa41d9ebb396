from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nnmf_cuda.data import ArrayImage, iter_image_batches, read_image, read_images
from nnmf_cuda.data import images as streams

SHAPE = (8, 8)


@pytest.fixture
def files(tmp_path: Path, save_image: Callable[..., Path]) -> list[Path]:
    return [save_image(tmp_path / f"{index}.png", size=SHAPE) for index in range(11)]


@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_batches_hold_every_image_in_order(files: list[Path], batch_size: int) -> None:
    batches = list(iter_image_batches(files, batch_size=batch_size, image_shape=SHAPE))
    assert [len(batch.images) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [batch.start for batch in batches] == list(range(0, 11, batch_size))
    assert [file for batch in batches for file in batch.files] == files
    images = np.concatenate([batch.images for batch in batches])
    np.testing.assert_array_equal(images, [read_image(file, image_shape=SHAPE) for file in files])


def test_order_is_kept_when_early_files_are_slow(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_first(path: Path, *, image_shape: tuple[int, int], **_: object) -> np.ndarray:
        time.sleep(0.1 if path == files[0] else 0.0)
        return np.full(image_shape, int(path.stem), dtype=np.uint8)

    monkeypatch.setattr(streams, "read_image", slow_first)
    batches = iter_image_batches(files, batch_size=3, image_shape=SHAPE, n_workers=4)
    assert [image[0, 0] for batch in batches for image in batch.images] == list(range(11))


@pytest.mark.parametrize(
    ("rows", "shared"), [([2, 3, 4, 5], True), ([2, 4, 3, 5], False), ([2, 3, 3, 5], False)]
)
def test_rows_of_a_stack_that_follow_each_other_are_not_copied(
    rows: list[int], shared: bool, rng: np.random.Generator
) -> None:
    stack = rng.integers(0, 256, (9, *SHAPE), dtype=np.uint8)
    sources = [ArrayImage(Path("a.npy"), str(row), stack[row], stack, row) for row in rows]
    (batch,) = iter_image_batches(sources, image_shape=SHAPE)
    np.testing.assert_array_equal(batch.images, stack[rows])
    assert np.shares_memory(batch.images, stack) == shared


def test_rows_of_two_stacks_and_resized_ones_are_copied(rng: np.random.Generator) -> None:
    one, other = rng.integers(0, 256, (2, 4, *SHAPE), dtype=np.uint8)
    sources = [ArrayImage(Path("a.npy"), str(row), one[row], one, row) for row in range(2)]
    sources += [ArrayImage(Path("b.npy"), str(row), other[row], other, row) for row in (2, 3)]
    (batch,) = iter_image_batches(sources, image_shape=SHAPE)
    np.testing.assert_array_equal(batch.images, np.concatenate([one[:2], other[2:]]))
    (batch,) = iter_image_batches(sources[:2], image_shape=(4, 4))
    assert batch.images.shape == (2, 4, 4)
    assert not np.shares_memory(batch.images, one)


def test_skipped_files_leave_no_gap(files: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    for bad in (0, 4, 10):
        files[bad].write_text("no image")
    with caplog.at_level(logging.WARNING):
        batches = list(iter_image_batches(files, batch_size=4, image_shape=SHAPE, on_error="skip"))
    assert [batch.start for batch in batches] == [0, 4, 8]
    assert [len(batch.images) for batch in batches] == [4, 4, 0]
    failures = [[failure.file for failure in batch.failures] for batch in batches]
    assert failures == [[files[0], files[4]], [], [files[10]]]
    assert "10.png" in caplog.text


def test_failures_after_the_last_full_batch_are_told(files: list[Path]) -> None:
    files[10].write_text("no image")
    batches = list(iter_image_batches(files, batch_size=5, image_shape=SHAPE, on_error="skip"))
    assert batches[-1].images.shape == (0, *SHAPE)
    assert [failure.file for failure in batches[-1].failures] == [files[10]]
    assert "cannot identify" in batches[-1].failures[0].message


def test_an_unreadable_file_raises_by_default(files: list[Path]) -> None:
    files[5].write_text("no image")
    stream = iter_image_batches(files, batch_size=2, image_shape=SHAPE)
    assert len(next(stream).images) == len(next(stream).images) == 2
    with pytest.raises(ValueError, match=r"cannot read image '.*/5.png'"):
        next(stream)


def test_no_more_than_two_batches_are_decoded_ahead(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []

    def counted(path: Path, *, image_shape: tuple[int, int], **_: object) -> np.ndarray:
        decoded.append(path)
        return np.zeros(image_shape, dtype=np.uint8)

    monkeypatch.setattr(streams, "read_image", counted)
    stream = iter_image_batches(files, batch_size=2, image_shape=SHAPE)
    next(stream)
    time.sleep(0.1)
    assert 2 <= len(decoded) <= 2 + 4


def test_files_are_asked_for_two_batches_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def endless() -> Iterator[str]:
        nonlocal asked
        while True:
            asked += 1
            yield f"{asked}.png"

    def unread(path: Path, *, image_shape: tuple[int, int], **_: object) -> np.ndarray:
        return np.zeros(image_shape, dtype=np.uint8)

    monkeypatch.setattr(streams, "read_image", unread)
    stream = iter_image_batches(endless(), batch_size=16, image_shape=SHAPE)
    for count in range(1, 200):
        assert len(next(stream).files) == 16
        assert asked <= 16 * count + 32
    stream.close()  # type: ignore[attr-defined]


def test_failures_do_not_pile_up(files: list[Path]) -> None:
    for file in files[1:]:
        file.write_text("no image")
    stream = iter_image_batches(files, batch_size=3, image_shape=SHAPE, on_error="skip")
    batches = list(stream)
    assert [len(batch.failures) for batch in batches] == [3, 3, 3, 1]
    assert [len(batch.images) for batch in batches] == [0, 0, 0, 1]
    failed = [failure.file for batch in batches for failure in batch.failures]
    assert failed == files[1:]


def test_threads_end_when_the_caller_stops_early(files: list[Path]) -> None:
    stream = iter_image_batches(files, batch_size=2, image_shape=SHAPE)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if "decode" in thread.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"on_error": "ignore"}, "on_error='ignore': choose 'raise', 'skip' or 'list'"),
        ({"n_workers": 0}, "n_workers=0 must be at least 1"),
    ],
)
def test_arguments_are_checked_before_any_work(
    files: list[Path], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        iter_image_batches(files, **arguments)  # type: ignore[arg-type]


def test_read_images_returns_one_array(files: list[Path]) -> None:
    images = read_images(files, image_shape=SHAPE)
    np.testing.assert_array_equal(images, [read_image(file, image_shape=SHAPE) for file in files])
    files[3].write_text("no image")
    with pytest.raises(ValueError, match="3.png"):
        read_images(files, image_shape=SHAPE)


def test_the_progress_bar_is_quiet_when_not_a_terminal(
    files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    read_images(files, image_shape=SHAPE, progress=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
