from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnmf_cuda.data import (
    Account,
    ArrayImage,
    LazyImage,
    ReadOptions,
    iter_image_batches,
    iter_images,
    load_dataset,
)
from nnmf_cuda.data.readers import Records, reader_of, stacks

pytestmark = pytest.mark.filterwarnings("ignore:The data type .FixedLengthUTF32")

Save = Callable[..., Path]
KINDS = ("npy", "h5", "zarr", "zarr2")


def save_npy(root: Path, arrays: dict[str, np.ndarray], chunk: int) -> Path:
    for key, array in arrays.items():
        np.save(root / (f"{key}.npy" if key == "images" else f"images_{key}.npy"), array)
    return root / "images.npy"


def save_h5(root: Path, arrays: dict[str, np.ndarray], chunk: int) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(root / "set.h5", "w") as file:
        for key, array in arrays.items():
            if array.dtype.kind == "U":
                file.create_dataset(key, data=array.astype(object), dtype=h5py.string_dtype())
            elif key == "images" and array.size:
                file.create_dataset(
                    key, data=array, chunks=(chunk, *array.shape[1:]), compression="gzip"
                )
            else:
                file[key] = array
    return root / "set.h5"


def save_zarr(root: Path, arrays: dict[str, np.ndarray], chunk: int, zarr_format: int = 3) -> Path:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(root / "set.zarr", mode="w", zarr_format=zarr_format)
    for key, array in arrays.items():
        chunks = (chunk, *array.shape[1:]) if key == "images" else array.shape
        stored = group.create_array(key, shape=array.shape, dtype=array.dtype, chunks=chunks)
        stored[...] = array
    return root / "set.zarr"


def save_zarr2(root: Path, arrays: dict[str, np.ndarray], chunk: int) -> Path:
    return save_zarr(root, arrays, chunk, zarr_format=2)


SAVE: dict[str, Save] = {
    "npy": save_npy,
    "h5": save_h5,
    "zarr": save_zarr,
    "zarr2": save_zarr2,
}


def arrays(rng: np.random.Generator, n: int = 40, **changes: Any) -> dict[str, np.ndarray]:
    found: dict[str, Any] = {
        "images": rng.integers(0, 256, (n, 20, 30), dtype=np.uint8),
        "labels": np.arange(n) % 2,
        "patient": np.array([f"P{at // 4}" for at in range(n)]),
        **changes,
    }
    return {key: array for key, array in found.items() if array is not None}


def read(path: Path, label_key: str = "labels", **options: Any) -> Records:
    return stacks.read(path, ReadOptions(**options), Account(), label_key=label_key)


def streamed(path: Path, **options: Any) -> np.ndarray:
    images = iter_images(path, reading=ReadOptions(**options))
    shape = (20, 30)
    batches = iter_image_batches(images, image_shape=shape, batch_size=16)
    return np.concatenate([batch.images for batch in batches])


@pytest.fixture(params=KINDS)
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Save:
    def write(content: dict[str, np.ndarray], *, chunk: int = 7) -> Path:
        return SAVE[request.param](tmp_path, content, chunk)

    return write


def test_a_stack_is_read_as_an_archive_is(save: Save, rng: np.random.Generator) -> None:
    content = arrays(rng, split=np.array(["Train", "val", "test", "train"] * 10))
    path = save(content)
    assert reader_of(path) is stacks
    records = read(path)
    assert records.values.tolist() == [str(at % 2) for at in range(40)]
    assert records.groups["patient"].tolist() == content["patient"].tolist()
    assert records.split is not None
    assert records.split.tolist() == ["train", "valid", "test", "train"] * 10
    for at in (0, 39, 6, 7, 21):
        image = records.images[at]
        assert isinstance(image, LazyImage)
        assert image.name == path / f"images[{at}]"
        np.testing.assert_array_equal(image.read((20, 30)), content["images"][at])
    np.testing.assert_array_equal(streamed(path), content["images"])


def test_a_stack_becomes_a_data_set(save: Save, rng: np.random.Generator) -> None:
    content = arrays(rng)
    dataset = load_dataset(save(content), image_shape=(20, 30))
    np.testing.assert_array_equal(dataset.images, content["images"])
    np.testing.assert_array_equal(dataset.labels, content["labels"])


def test_labels_as_text_and_names(save: Save, rng: np.random.Generator) -> None:
    content = arrays(rng, labels=np.array(["no", "yes"] * 20))
    assert read(save(content)).values.tolist() == ["no", "yes"] * 20
    content = arrays(rng, label_names=np.array(["healthy", "ill"]))
    assert dict(read(save(content)).names) == {"0": "healthy", "1": "ill"}


def test_a_column_of_labels(save: Save, rng: np.random.Generator) -> None:
    records = read(save(arrays(rng, labels=(np.arange(40) % 3).reshape(40, 1))))
    assert records.values.tolist() == [str(at % 3) for at in range(40)]


def test_columns_of_patients_and_folds(save: Save, rng: np.random.Generator) -> None:
    people, folds = np.arange(40) // 4, np.arange(40) // 8
    path = save(arrays(rng, pid=people, part=folds))
    records = read(path, columns="patient=pid,fold=part")
    np.testing.assert_array_equal(records.groups["patient"], people)
    np.testing.assert_array_equal(records.groups["patient_fold"], folds)
    with pytest.raises(ValueError, match=r"no array 'nobody' \(for patient\); it has .*images"):
        read(path, columns="patient=nobody")
    with pytest.raises(ValueError, match="a stack has no mask"):
        read(path, columns="mask=pid")


def test_without_labels_there_is_nothing_to_learn(save: Save, rng: np.random.Generator) -> None:
    path = save(arrays(rng, labels=None))
    assert len(streamed(path)) == 40
    with pytest.raises(ValueError, match=r"has no array 'labels'; it has .*images"):
        read(path)


def test_colours_and_floats(save: Save, rng: np.random.Generator) -> None:
    floats = rng.random((40, 20, 30)).astype(np.float32)
    np.testing.assert_array_equal(streamed(save(arrays(rng, images=floats))), floats)
    colours = rng.integers(0, 256, (40, 20, 30, 3), dtype=np.uint8)
    assert streamed(save(arrays(rng, images=colours))).shape == (40, 20, 30)
    single = rng.integers(0, 256, (40, 20, 30, 1), dtype=np.uint8)
    np.testing.assert_array_equal(streamed(save(arrays(rng, images=single))), single[..., 0])


def test_deep_images_need_a_window(save: Save, rng: np.random.Generator) -> None:
    deep = rng.integers(-1000, 3000, (40, 20, 30), dtype=np.int16)
    path = save(arrays(rng, images=deep))
    with pytest.raises(ValueError, match="are int16; choose which values .* --window LOW:HIGH"):
        streamed(path)
    expected = np.clip((deep.astype(np.float64) + 100) / 500, 0, 1)
    np.testing.assert_allclose(streamed(path, window="-100:400"), expected, atol=1e-6)
    low, high = np.percentile(deep, (10, 90), axis=(1, 2), keepdims=True)
    expected = np.clip((deep - low) / (high - low), 0, 1)
    np.testing.assert_allclose(streamed(path, window="p10:p90"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((20, 30), np.uint8), r"shape \(20, 30\); expected"),
        (np.zeros((40, 3, 20, 30), np.uint8), "move the colours to the end"),
        (np.zeros((40, 20, 30, 4), np.uint8), "expected"),
        (np.zeros((0, 20, 30), np.uint8), "are empty"),
        (np.zeros((40, 20, 30), bool), "are bool; give uint8"),
        (np.full((40, 20, 30, 3), 0.5), "shape"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    save: Save, rng: np.random.Generator, images: np.ndarray, message: str
) -> None:
    path = save({"images": images, "labels": np.arange(len(images)) % 2}, chunk=1)
    with pytest.raises(ValueError, match=message) as caught:
        next(iter_images(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.arange(39)}, r"labels.* has shape \(39,\)"),
        ({"patient": np.array(["a"])}, r"patient.* has shape \(1,\)"),
        ({"labels": np.arange(40) / 2}, "labels.* are float64; give integers or text"),
        ({"split": np.array(["dev"] * 40)}, "split.* holds 'dev'"),
    ],
)
def test_other_arrays_that_do_not_fit_are_refused(
    save: Save, rng: np.random.Generator, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(save(arrays(rng, **changes)))


def test_bad_pixels_are_told_by_their_place(save: Save, rng: np.random.Generator) -> None:
    images = rng.random((40, 20, 30))
    images[23, 4, 5] = np.nan
    path = save(arrays(rng, images=images))
    for options in ({}, {"window": "0:1"}):
        with pytest.raises(ValueError, match="NaN or infinite pixels in image 23"):
            streamed(path, **options)


def test_floats_in_other_units_need_a_window(save: Save, rng: np.random.Generator) -> None:
    path = save(arrays(rng, images=rng.random((40, 20, 30)) * 2000 - 1000))
    with pytest.raises(
        ValueError,
        match=r"hold values from -99\d.* to 99\d.* in image 0;.*--window LOW:HIGH",
    ):
        streamed(path)
    assert len(streamed(path, window="-1000:1000")) == 40


@pytest.mark.parametrize("kind", ["h5", "zarr"])
def test_arrays_of_other_names(kind: str, tmp_path: Path, rng: np.random.Generator) -> None:
    content = arrays(rng)
    path = SAVE[kind](tmp_path, {"x": content["images"], "y": content["labels"]}, 7)
    np.testing.assert_array_equal(streamed(path), content["images"])  # the only one it can be
    assert read(path, columns="file=x,label=y").values.tolist() == ["0", "1"] * 20
    assert read(path, "y").values.tolist() == ["0", "1"] * 20
    with pytest.raises(ValueError, match=r"no array 'z' .for images.; it has x, y"):
        read(path, columns="file=z")
    two = SAVE[kind](tmp_path, {"a": content["images"], "b": content["images"]}, 7)
    with pytest.raises(ValueError, match=r"its arrays: a \(40, 20, 30\), b .*--columns file=KEY"):
        next(iter_images(two))


def test_labels_of_a_npy_may_stand_in_other_places(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    content = arrays(rng)
    np.save(tmp_path / "images.npy", content["images"])
    np.save(tmp_path / "labels.npy", content["labels"])
    assert read(tmp_path / "images.npy").values.tolist() == ["0", "1"] * 20
    np.save(tmp_path / "other.npy", content["images"])
    with pytest.raises(ValueError, match="save it as other_labels.npy beside it"):
        read(tmp_path / "other.npy")


def test_a_bare_zarr_array_is_a_stack(tmp_path: Path, rng: np.random.Generator) -> None:
    zarr = pytest.importorskip("zarr")
    images = arrays(rng)["images"]
    stored = zarr.create_array(tmp_path / "a", shape=images.shape, dtype="u1", chunks=(9, 20, 30))
    stored[...] = images
    np.testing.assert_array_equal(streamed(tmp_path / "a"), images)


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old, new)


ANY_DAMAGE: list[Callable[[bytes], bytes]] = [
    lambda content: b"",
    lambda content: content[:50],
    lambda content: content[: len(content) // 2],
    lambda content: b"PK\x03\x04" + content,
]
NPY_DAMAGE = [replaced(b"|u1", b"|O "), replaced(b"(40, 20, 30)", b"(10**9, 2, 3)")]


@pytest.mark.parametrize(
    ("kind", "damage"),
    [("h5", damage) for damage in ANY_DAMAGE]
    + [("npy", damage) for damage in ANY_DAMAGE + NPY_DAMAGE],
)
def test_damaged_files_are_refused(
    kind: str, tmp_path: Path, rng: np.random.Generator, damage: Callable[[bytes], bytes]
) -> None:
    path = SAVE[kind](tmp_path, arrays(rng), 7)
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert path.read_bytes() != content
    with pytest.raises(ValueError, match=r"images.npy|set.h5"):
        streamed(path)


def test_a_damaged_chunk_is_told_by_its_place(tmp_path: Path, rng: np.random.Generator) -> None:
    path = save_zarr(tmp_path, arrays(rng), 7)
    (path / "images" / "c" / "1" / "0" / "0").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="'images' cannot be read in image 7: "):
        streamed(path)
    path = save_h5(tmp_path, arrays(rng), 7)
    damage_chunk_of_h5(path, 5)
    with pytest.raises(ValueError, match="'images' cannot be read in image 35: "):
        streamed(path)


def damage_chunk_of_h5(path: Path, number: int) -> None:
    with pytest.importorskip("h5py").File(path) as file:
        at = file["images"].id.get_chunk_info(number).byte_offset
    content = bytearray(path.read_bytes())
    content[at + 20 : at + 200] = bytes(180)
    path.write_bytes(bytes(content))


def lost_and_kept(path: Path, n: int, **options: Any) -> tuple[list[int], np.ndarray]:
    """Return which images a data set and a stream leave out, each named once, and the others."""
    reading = ReadOptions(on_error="skip", **options)
    dataset = load_dataset(path, image_shape=(20, 30), reading=reading)
    numbers = [int(name[7:-1]) for name in dataset.files.tolist()]
    np.testing.assert_array_equal(dataset.labels, np.array(numbers) % 2)
    lost = sorted(set(range(n)) - set(numbers))
    named = ", ".join(f"images[{at}]" for at in lost)
    assert f"Left out, unreadable: {len(lost)} ({named})" in dataset.notes
    assert f"Images read: {n - len(lost)}" in dataset.notes
    stream = iter_images(path, reading=reading)
    batches = list(iter_image_batches(stream, image_shape=(20, 30), batch_size=16, on_error="skip"))
    failures = [failure for batch in batches for failure in batch.failures]
    assert [failure.file for failure in failures] == [path / f"images[{at}]" for at in lost]
    for at, failure in zip(lost, failures, strict=True):
        assert re.search(rf"'images' (hold|cannot be read) .*in image {at}\b", failure.message)
    np.testing.assert_array_equal(np.concatenate([b.images for b in batches]), dataset.images)
    assert len(batches[0].images) == 16
    return lost, dataset.images


BAD_PIXELS = {3: np.nan, 7: -np.inf, 8: -0.5, 30: np.nan, 39: 1.5}


@pytest.mark.parametrize("block_bytes", [stacks._BLOCK_BYTES, 16 * 2400])
def test_bad_images_alone_are_left_out(
    save: Save, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(stacks, "_BLOCK_BYTES", block_bytes)
    images = rng.random((40, 20, 30)).astype(np.float32)
    for at, value in BAD_PIXELS.items():
        images[at, 4, 5] = value
    path = save(arrays(rng, images=images))
    lost, kept = lost_and_kept(path, 40)
    assert lost == [3, 7, 8, 30, 39]
    np.testing.assert_array_equal(kept, np.delete(images, lost, axis=0))
    lost, kept = lost_and_kept(path, 40, window="0:1")  # in which all that is finite has a place
    assert lost == [3, 7, 30]
    np.testing.assert_array_equal(kept, np.delete(images.clip(0, 1), lost, axis=0))
    with pytest.raises(
        ValueError,
        match=r"5 of 40 images cannot be read: '[^']*images\[3\]', .*; the first: .*'images' hold"
        r" NaN or infinite pixels in image 3; repair or remove them, or .*--on_error skip",
    ):
        load_dataset(path)


def test_a_block_with_a_bad_image_is_read_once(
    save: Save, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = rng.random((40, 20, 30))
    images[20] = np.nan
    path, starts, block = save(arrays(rng, images=images)), [], stacks._Stack.block

    def counted(self: Any, start: int) -> Any:
        starts.append(start)
        return block(self, start)

    monkeypatch.setattr(stacks._Stack, "block", counted)
    assert len(load_dataset(path, reading=ReadOptions(on_error="skip")).images) == 39
    assert starts == [0]


def test_where_no_image_is_left_the_first_reason_is_told(
    save: Save, rng: np.random.Generator
) -> None:
    path = save(arrays(rng, images=np.full((40, 20, 30), np.nan)))
    with pytest.raises(
        ValueError,
        match="40 of 40 images cannot be read; the first: .*NaN or infinite pixels in image 0",
    ):
        load_dataset(path, reading=ReadOptions(on_error="skip"))


@pytest.mark.parametrize("kind", ["h5", "zarr", "zarr2"])
def test_images_of_a_damaged_chunk_alone_are_left_out(
    kind: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    content = arrays(rng)
    path = SAVE[kind](tmp_path, content, 7)
    if kind == "h5":
        damage_chunk_of_h5(path, 1)
        damage_chunk_of_h5(path, 5)
    for number in (1, 5) if kind != "h5" else ():
        chunk = f"c/{number}/0/0" if kind == "zarr" else f"{number}.0.0"
        (path / "images" / chunk).write_bytes(b"damaged")
    lost, kept = lost_and_kept(path, 40)
    assert lost == [*range(7, 14), *range(35, 40)]
    np.testing.assert_array_equal(kept, np.delete(content["images"], lost, axis=0))


@pytest.mark.parametrize("kind", ["zarr", "zarr2"])
@pytest.mark.parametrize("damaged", ["description", "chunk"])
def test_much_damage_to_zarr_ends_with_one_line(
    kind: str, damaged: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Also of what the library reads in tasks of its own, whose errors it tells at the very end."""
    path = SAVE[kind](tmp_path, arrays(rng), 7)
    (path / "notes").mkdir()
    marks = {"zarr.json", ".zarray", ".zattrs", ".zgroup"}
    files = [file for file in path.glob("*/**/*") if file.is_file()]
    hit = [file for file in files if (file.name in marks) == (damaged == "description")]
    assert len(hit) >= 3
    for file in hit:
        file.write_bytes(b'{"damaged": 1')
    command = (sys.executable, "-m", "nnmf_cuda.cli", "audit", f"--data={path}", "--resolution=8")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(rf"nnmf-cuda: error: .*{re.escape(str(path))}.*'[a-z]+'.*", line)


def test_a_folder_of_no_array_in_a_zarr_group_is_passed_over(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    zarr = pytest.importorskip("zarr")
    content = arrays(rng)
    path = save_zarr(tmp_path, content, 7)
    (path / "notes").mkdir()
    (path / "readme.txt").write_text("no array")
    zarr.open_group(path, mode="a").create_group("more").create_array(
        "images", shape=(1, 2, 3), dtype="u1"
    )
    np.testing.assert_array_equal(streamed(path), content["images"])


def test_shapes_without_content_are_refused(tmp_path: Path) -> None:
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    shape = (10**9, 1000, 1000)
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("images", shape=shape, dtype="u1", chunks=(1, 1000, 1000))
    zarr.create_array(tmp_path / "bomb.zarr", shape=shape, dtype="u1", chunks=(1, 1000, 1000))
    for name in ("bomb.h5", "bomb.zarr"):
        with pytest.raises(ValueError, match="but 0 of 1000000000 chunks are stored"):
            next(iter_images(tmp_path / name))


def test_chunks_that_were_never_written_are_told(tmp_path: Path, rng: np.random.Generator) -> None:
    h5py = pytest.importorskip("h5py")
    images = arrays(rng)["images"]
    with h5py.File(tmp_path / "part.h5", "w") as file:
        stored = file.create_dataset("images", images.shape, "u1", chunks=(8, 20, 30))
        stored[:30] = images[:30]
        file.create_dataset("labels", (10**12,), "i8", chunks=(1000,))
    with pytest.raises(ValueError, match="but 4 of 5 chunks are stored; write it anew"):
        next(iter_images(tmp_path / "part.h5"))
    with h5py.File(tmp_path / "part.h5", "a") as file:
        file["images"][:] = images
    np.testing.assert_array_equal(streamed(tmp_path / "part.h5"), images)
    with pytest.raises(
        ValueError, match=r"'labels' has shape \(1000000000000,\), but there are 40"
    ):
        read(tmp_path / "part.h5")


def test_black_chunks_of_zarr_are_images(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    images = np.zeros((40, 20, 30), np.uint8)
    images[17] = 3
    stored = zarr.create_array(tmp_path / "a", shape=images.shape, dtype="u1", chunks=(2, 20, 30))
    stored[...] = images
    np.testing.assert_array_equal(streamed(tmp_path / "a"), images)


@pytest.mark.parametrize("place", ["labels/zarr.json", "images/c/1/0/0"])
def test_pipes_in_a_zarr_folder_are_refused(
    tmp_path: Path, rng: np.random.Generator, place: str
) -> None:
    path = save_zarr(tmp_path, arrays(rng), 7)
    assert (path / place).is_file()
    (path / place).unlink()
    os.mkfifo(tmp_path / "pipe")
    (path / place).symlink_to(tmp_path / "pipe")
    with pytest.raises(ValueError, match=f"{place}' is a pipe or a device, no file"):
        iter_images(path)
    with pytest.raises(ValueError, match=f"{place}' is a pipe or a device, no file"):
        load_dataset(path)


def test_links_to_other_files_are_not_followed(tmp_path: Path, rng: np.random.Generator) -> None:
    h5py = pytest.importorskip("h5py")
    path = save_h5(tmp_path, {"images": arrays(rng)["images"]}, 7)
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["images"] = h5py.ExternalLink(str(path), "/images")
    with pytest.raises(ValueError, match="has no array 'images'; its arrays: none"):
        next(iter_images(tmp_path / "links.h5"))


def test_a_dataset_without_a_shape_is_no_array(tmp_path: Path, rng: np.random.Generator) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "null.h5", "w") as file:
        file["pictures"] = rng.integers(0, 256, size=(4, 8, 8), dtype=np.uint8)
        file["labels"] = h5py.Empty("i4")
    assert len(list(iter_images(tmp_path / "null.h5"))) == 4
    with pytest.raises(ValueError, match="has no array 'labels'; it has pictures"):
        load_dataset(tmp_path / "null.h5")


def test_memory_does_not_grow_with_the_images(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_BLOCK_BYTES", 16 * 64 * 64)

    def peak(n_images: int) -> int:
        path = save({"images": np.zeros((n_images, 64, 64), np.uint8) + 1}, chunk=8)
        account = Account()
        next(stacks.images(path, ReadOptions(), account))  # imports
        tracemalloc.start()
        count = sum(isinstance(i, ArrayImage) for i in stacks.images(path, ReadOptions(), account))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == n_images
        return found

    # The other 900 images have 3.7 MB; their names, and what zarr keeps of its tasks, some 100 kB.
    assert peak(1000) < peak(100) + 1_500_000


def test_blocks_are_whole_chunks_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.arange(40 * 4, dtype=np.uint8).reshape(40, 2, 2)
    path = save_h5(tmp_path, {"images": images, "labels": np.arange(40) % 2}, 7)
    monkeypatch.setattr(stacks, "_BLOCK_BYTES", 4 * 20)
    records, starts = read(path), []
    block = stacks._Stack.block

    def counted(self: Any, start: int) -> np.ndarray:
        starts.append(start)
        return block(self, start)

    monkeypatch.setattr(stacks._Stack, "block", counted)
    for image, expected in zip(records.images, images, strict=True):
        assert isinstance(image, LazyImage)
        np.testing.assert_array_equal(image.read((2, 2)), expected)
    assert starts == [0, 14, 28]


@pytest.mark.parametrize(("library", "kind"), [("h5py", "h5"), ("zarr", "zarr")])
def test_a_library_that_is_not_there_is_told_by_its_command(
    library: str, kind: str, tmp_path: Path, rng: np.random.Generator, monkeypatch: Any
) -> None:
    path = SAVE[kind](tmp_path, arrays(rng), 7)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"needs {library}: pip install 'nnmf-cuda\[stacks\]'"):
        next(iter_images(path))
