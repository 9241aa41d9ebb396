"""The list of readers: what can be trained on can be streamed, and a new reader is one entry."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.data import (
    Account,
    ArrayImage,
    ImageSource,
    ReadOptions,
    iter_image_batches,
    iter_images,
    load_dataset,
    readers,
)
from nnmf_cuda.data.readers import Records
from nnmf_cuda.data.readers import npz as npz_reader

SaveNpz = Callable[..., Path]
SaveImage = Callable[..., Path]


def streamed(*paths: Path, **options: Any) -> tuple[np.ndarray, list[Path]]:
    batches = list(iter_image_batches(iter_images(paths), **options))
    files = [file for batch in batches for file in batch.files]
    return np.concatenate([batch.images for batch in batches]), files


def class_folders(root: Path, save_image: SaveImage) -> Path:
    for name in ("train/a/1.png", "train/b/2.png", "valid/a/3.png", "test/b/4.png", "test/a/5.png"):
        save_image(root / name)
    return root


def test_what_is_trained_on_can_be_streamed(
    tmp_path: Path, save_npz: SaveNpz, coco_root: Path, save_image: SaveImage
) -> None:
    folders = class_folders(tmp_path / "folders", save_image)
    colours = np.random.default_rng(0).integers(0, 256, (40, 30, 20, 3), dtype=np.uint8)
    for path in (save_npz(images=colours), coco_root, folders):
        dataset = load_dataset(path, split_by="random" if path.suffix else None)
        images, files = streamed(path)
        by_name = {
            str(file.relative_to(path)): image for file, image in zip(files, images, strict=True)
        }
        prefix = [f"{s}/" if path == coco_root else "" for s in dataset.split]
        for before, name, image in zip(prefix, dataset.files, dataset.images, strict=True):
            np.testing.assert_array_equal(by_name[f"{before}{name}"], image)


def test_an_export_is_streamed_with_the_images_that_have_no_box(coco_root: Path) -> None:
    names = [path.name for path in streamed(coco_root)[1]]
    assert "87.png" in names
    assert len(names) == len(load_dataset(coco_root).files) + 1


def test_archives_need_no_labels_and_keep_floats(save_npz: SaveNpz) -> None:
    values = np.random.default_rng(0).random((40, 8, 9))
    for stored in (values, values.astype(">f4"), np.asfortranarray(values)):
        path = save_npz(images=stored, labels=None)
        images, files = streamed(path, image_shape=(8, 9), batch_size=7)
        assert images.dtype == np.float32
        np.testing.assert_array_equal(images, stored.astype(np.float32))
        assert files[3] == path / "images[3]"
    assert streamed(save_npz(files=np.arange(40).astype(str)))[1][7] == path / "7"


def test_archives_are_read_block_by_block(
    save_npz: SaveNpz, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 64, 64), dtype=np.uint8)
    whole = streamed(save_npz(images=images))[0]
    monkeypatch.setattr(npz_reader, "_BLOCK_BYTES", 3 * 64 * 64)
    np.testing.assert_array_equal(streamed(save_npz(images=images))[0], whole)

    def peak(n_images: int) -> int:
        path = save_npz(images=np.zeros((n_images, 64, 64), np.uint8))
        tracemalloc.start()
        for _ in iter_images(path):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(1000) < peak(100) + 100_000  # the other 900 images have 3.7 MB


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "has no array 'images'; it has labels"),
        ({"images": np.array([object()])}, "'images' holds Python objects"),
        ({"images": np.array(3)}, r"'images' have shape \(\)"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, "are empty"),
        ({"images": np.full((40, 8, 8), 300)}, "'images' are int64; give uint8"),
        ({"file": np.array(["a.png"] * 3)}, r"'file' has shape \(3,\)"),
    ],
)
def test_archives_that_do_not_fit_are_refused_at_once(
    save_npz: SaveNpz, changes: dict[str, Any], message: str
) -> None:
    path = save_npz(**changes)
    with pytest.raises(ValueError, match=f"data.npz.*{message}"):
        iter_images(path)


def test_a_bad_pixel_is_told_by_its_place_in_the_archive(
    save_npz: SaveNpz, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz_reader, "_BLOCK_BYTES", 3 * 8 * 8 * 8)
    images = np.full((40, 8, 8), 0.5)
    images[11, 2, 3] = np.nan
    stream = iter_image_batches(iter_images(save_npz(images=images)))
    with pytest.raises(ValueError, match="NaN or infinite pixels in image 11"):
        list(stream)


def test_a_damaged_archive_ends_the_stream(save_npz: SaveNpz) -> None:
    path = save_npz()
    content = bytearray(path.read_bytes())
    content[5000:5100] = bytes(100)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="'images' is damaged: .*; fetch the file anew"):
        list(iter_images(path))


def test_kinds_of_sources_mix_in_one_stream(
    tmp_path: Path, save_npz: SaveNpz, save_image: SaveImage
) -> None:
    file = save_image(tmp_path / "one.png")
    archive = save_npz(images=np.full((40, 8, 8), 0.5, np.float32))
    sources = iter_images([file, archive, archive, tmp_path])
    batches = list(iter_image_batches(sources, batch_size=30, image_shape=(8, 8)))
    assert [(len(b.images), b.images.dtype) for b in batches] == [
        (1, np.uint8),  # bytes and floats stand in batches of their own
        (30, np.float32),
        (10, np.float32),
    ]
    assert [batch.start for batch in batches] == [0, 1, 31]


def test_a_new_reader_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recognises(path: Path) -> bool:
        return path.suffix == ".flat"

    def images(path: Path, options: ReadOptions, account: Account) -> Iterator[ImageSource]:
        for index, value in enumerate(path.read_bytes()):
            yield ArrayImage(path, str(index), np.full((4, 4), value, np.uint8))

    def read(
        path: Path, options: ReadOptions, account: Account, *, label_key: str = "labels"
    ) -> Records:
        pixels = np.stack([image.pixels for image in images(path, options, account)])
        values = (pixels[:, 0, 0] % 2).astype(str)
        return Records(pixels, values, {"0": "even", "1": "odd"}, None, values)

    reader = SimpleNamespace(recognises=recognises, images=images, read=read, HEEDS=frozenset())
    monkeypatch.setattr(readers, "READERS", (reader, *readers.READERS))
    path = tmp_path / "numbers.flat"
    path.write_bytes(bytes(range(40)))
    assert load_dataset(path).label_names == ("even", "odd")
    assert streamed(path, image_shape=(4, 4))[0][:, 0, 0].tolist() == list(range(40))


def test_options_without_effect_are_told(
    tmp_path: Path, save_npz: SaveNpz, save_image: SaveImage
) -> None:
    assert all(reader.HEEDS <= set(ReadOptions.__dataclass_fields__) for reader in readers.READERS)
    reading = ReadOptions(axis="sagittal", window="p1:p99", on_error="skip")
    dataset = load_dataset(save_npz(), reading=reading)
    note = f"Without effect on {dataset.source}: --window, --axis"
    assert note in dataset.notes
    account = Account()
    folder = class_folders(tmp_path / "folders", save_image)
    list(iter_images([dataset.source, folder], reading=reading, account=account))
    assert account.notes == [note, f"Without effect on {folder}: --axis"]
    assert not any("effect" in note for note in load_dataset(save_npz()).notes)


def test_frames_that_an_earlier_path_has_reached_are_given_once(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (1, 2, 3)]
    for name in ("a/x.tif", "b/y.tif"):
        (tmp_path / name).parent.mkdir()
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    elsewhere = tmp_path.with_name(f"{tmp_path.name}-elsewhere")
    elsewhere.mkdir()
    (elsewhere / "link").symlink_to(tmp_path / "a")
    for given in ([tmp_path, tmp_path], [tmp_path / "b", tmp_path], [tmp_path, tmp_path / "a"]):
        assert len(set(streamed(*given)[1])) == len(streamed(*given)[1]) == 6
    # What is behind a link was not walked.
    assert len(streamed(tmp_path, elsewhere / "link")[1]) == 9
