from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.data import (
    Account,
    LazyImage,
    ReadOptions,
    iter_image_batches,
    iter_images,
    load_dataset,
)
from nnmf_cuda.data.readers import Records, reader_of, tar

Members = list[tuple[str, bytes]]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def save_tar(path: Path, members: Members, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def stack(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (40, 20, 30), dtype=np.uint8)


def samples(stack: np.ndarray, *, first: int = 0) -> Members:
    """Return images with a label and a description."""
    members: Members = []
    for at, pixels in enumerate(stack, first):
        about = {"patient": f"P{at // 4}", "age": at, "boxes": [1, 2]}
        members += [
            (f"a/{at:04d}.png", png(pixels)),
            (f"a/{at:04d}.cls", f"{at % 2}\n".encode()),
            (f"a/{at:04d}.json", json.dumps(about).encode()),
        ]
    return members


def read(path: Path, label_key: str = "labels", account: Account | None = None) -> Records:
    account = Account() if account is None else account
    return tar.read(path, ReadOptions(), account, label_key=label_key)


def test_a_shard_is_read_at_its_places(tmp_path: Path, stack: np.ndarray) -> None:
    path = save_tar(tmp_path / "shard.tar", samples(stack))
    assert reader_of(path) is tar
    account = Account()
    records = read(path, account=account)
    assert records.values.tolist() == ["0", "1"] * 20
    assert records.groups["patient"].tolist() == [f"P{at // 4}" for at in range(40)]
    assert records.columns["age"].tolist() == [str(at) for at in range(40)]
    assert list(records.columns) == ["age"]
    for at in (39, 0, 17):
        image = records.images[at]
        assert isinstance(image, LazyImage)
        assert image.name == path / f"a/{at:04d}.png"
        np.testing.assert_array_equal(image.read((20, 30)), stack[at])
    assert account.by_ending == {".tar": 1, ".png": 40, ".cls": 40, ".json": 40}
    dataset = load_dataset(path, image_shape=(20, 30))
    np.testing.assert_array_equal(dataset.images, stack)


@pytest.mark.parametrize("name", ["shard.tar", "shard.tar.gz", "shard.tgz"])
def test_shards_are_streamed(tmp_path: Path, stack: np.ndarray, name: str) -> None:
    mode = "w" if name.endswith(".tar") else "w:gz"
    path = save_tar(tmp_path / name, samples(stack), mode)
    images = list(iter_images(path))
    assert [image.name for image in images if isinstance(image, LazyImage)] == [
        path / f"a/{at:04d}.png" for at in range(40)
    ]
    first = images[0]
    assert isinstance(first, LazyImage)
    assert dict(first.columns) == {"label": "0", "patient": "P0", "age": "0"}
    (batch,) = iter_image_batches(images, image_shape=(20, 30))
    np.testing.assert_array_equal(batch.images, stack)


def test_compressed_shards_are_not_for_training(tmp_path: Path, stack: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"shard.tgz is compressed, .*: unpack it to a plain .tar"):
        read(save_tar(tmp_path / "shard.tgz", samples(stack[:2]), "w:gz"))


def test_a_folder_of_shards(tmp_path: Path, stack: np.ndarray) -> None:
    home = tmp_path / "shards"
    home.mkdir()
    save_tar(home / "1.tar", samples(stack[20:], first=20))
    save_tar(home / "0.tar", samples(stack[:20]))
    (home / "README").write_text("shards")
    assert reader_of(home) is tar
    account = Account()
    records = read(home, account=account)
    assert records.files.tolist()[19:21] == ["0.tar/a/0019.png", "1.tar/a/0020.png"]
    assert [(failure.file.name, failure.message) for failure in account.skipped] == [
        ("README", "files beside tar shards")
    ]
    assert len(list(iter_images(home))) == 40


def test_what_another_program_writes(tmp_path: Path, stack: np.ndarray) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "shard.tar"
    with webdataset.TarWriter(str(path)) as sink:
        for at, pixels in enumerate(stack):
            sink.write(
                {"__key__": f"k{at}", "png": pixels, "cls": at % 3, "json": {"split": "val"}}
            )
    records = read(path)
    assert records.values.tolist() == [str(at % 3) for at in range(40)]
    assert records.split is not None
    assert set(records.split.tolist()) == {"valid"}
    image = records.images[7]
    assert isinstance(image, LazyImage)
    np.testing.assert_array_equal(image.read((20, 30)), stack[7])


def test_labels_by_description(tmp_path: Path, stack: np.ndarray) -> None:
    members: Members = []
    for at, pixels in enumerate(stack[:4]):
        about = {"label": "ny"[at % 2], "grade": at + 9}
        members += [(f"{at}.png", png(pixels)), (f"{at}.json", json.dumps(about).encode())]
    members += [("bare.png", png(stack[5]))]
    path = save_tar(tmp_path / "shard.tar", members)
    records = read(path)
    assert records.values.tolist() == ["n", "y", "n", "y"]
    assert records.notes == ("1 images without a label are left out",)
    assert list(read(path, "grade").names) == ["9", "10", "11", "12"]
    with pytest.raises(ValueError, match="none of 5 images has a label .'stage'"):
        read(path, "stage")
    assert len(list(iter_images(path))) == 5


def test_compound_endings_are_no_images(tmp_path: Path, stack: np.ndarray) -> None:
    members = [("x.png", png(stack[0])), ("x.mask.png", png(stack[1])), ("x.cls", b"1")]
    path = save_tar(tmp_path / "shard.tar", members)
    (image,) = iter_images(path)
    assert isinstance(image, LazyImage)
    np.testing.assert_array_equal(image.read((20, 30)), stack[0])


def test_nothing_is_written_wherever_names_point(
    tmp_path: Path, stack: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    names = ["../../evil.png", f"{tmp_path}/evil.png", "/evil.png", "~/evil.png", "ok.png"]
    path = home / "shard.tar"
    with tarfile.open(path, "w") as archive:
        for at, name in enumerate(names):
            info, content = tarfile.TarInfo(name), png(stack[at])
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for kind, name in ((tarfile.SYMTYPE, "link.png"), (tarfile.LNKTYPE, "hard.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for kind in (tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type = kind
            archive.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    account = Account()
    images = list(iter_images(path, account=account))
    assert all(isinstance(image, LazyImage) and image.name.is_relative_to(path) for image in images)
    (batch,) = iter_image_batches(images, image_shape=(20, 30))
    np.testing.assert_array_equal(batch.images, stack[:5])
    assert sorted(tmp_path.rglob("*")) == before
    assert "2 links in shard.tar are left out" in account.notes


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "holds no image"),
        ([("x.txt", b"")], "holds no image"),
        ([("x.png", b"1"), ("x.jpg", b"2")], "'x' has two images, 'x.png' and 'x.jpg'"),
        ([("x.png", b"1"), ("x.json", b"{")], "'x.json' is not JSON"),
        ([("x.png", b"1"), ("x.json", b"[" * 100_000)], "'x.json' is not JSON"),
        ([("x.png", b"1"), ("x.cls", b"\xff")], "'x.cls' is not UTF-8"),
        ([("x.cls", bytes(2**20 + 1))], "too many for a label"),
    ],
)
def test_shards_that_do_not_fit_are_refused(tmp_path: Path, members: Members, message: str) -> None:
    path = save_tar(tmp_path / "shard.tar", members)
    with pytest.raises(ValueError, match=f"shard.tar.*{message}"):
        list(iter_images(path))


def test_a_claim_of_size_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("bomb.png")
    info.size = 2**40
    path = tmp_path / "shard.tar"
    path.write_bytes(info.tobuf() + bytes(10_240))
    with pytest.raises(ValueError, match="'bomb.png' claims 1099511627776 bytes, which no image"):
        list(iter_images(path))


@pytest.mark.parametrize("name", ["shard.tar", "shard.tgz"])
def test_damaged_shards_are_refused(tmp_path: Path, stack: np.ndarray, name: str) -> None:
    path = tmp_path / name
    save_tar(path, samples(stack), "w" if name.endswith("tar") else "w:gz")
    whole = path.read_bytes()
    damaged: list[bytes] = [b"", b"no archive" * 200, whole[:700], whole[: len(whole) // 2]]
    if name.endswith(".tar"):
        # Cut between two members, and a header in the midst of it overwritten.
        at = whole.index(b"a/0020.png")
        damaged += [whole[:at], whole[:at] + b"\xff" * 512 + whole[at + 512 :]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"cannot read '.*{name}': .*; fetch the file anew"):
            list(iter_images(path))


def test_a_damaged_image_is_named(tmp_path: Path, stack: np.ndarray) -> None:
    members = samples(stack[:3])
    members[3] = (members[3][0], members[3][1][:60])
    path = save_tar(tmp_path / "shard.tar", members)
    for images in (list(iter_images(path)), list(read(path).images)):
        with pytest.raises(ValueError, match=r"cannot read image '.*shard.tar/a/0001.png'"):
            list(iter_image_batches(images, image_shape=(20, 30)))
        (batch,) = iter_image_batches(images, image_shape=(20, 30), on_error="skip")
        assert len(batch.images) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient": None}, r"a/0001.png says nothing of 'patient', which 2 of 3 images do"),
        ({"split": "dev"}, r"a/0000.png says nothing of 'split', which 1 of 3"),
    ],
)
def test_what_only_some_say(
    tmp_path: Path, stack: np.ndarray, change: dict[str, Any], message: str
) -> None:
    members = samples(stack[:3])
    members[5] = ("a/0001.json", json.dumps({"patient": "P", "age": 1, **change}).encode())
    with pytest.raises(ValueError, match=message):
        read(save_tar(tmp_path / "shard.tar", members))


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    content = png(np.zeros((20, 30), np.uint8))

    def peak(n_images: int) -> int:
        members = [(f"{at:06d}.png", content) for at in range(n_images)]
        path = save_tar(tmp_path / f"{n_images}.tar", members)
        tracemalloc.start()
        count = sum(1 for _ in tar.images(path, ReadOptions(), Account()))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == n_images
        return found

    peak(10)
    assert peak(3000) < peak(300) + 200_000  # the other 2700 headers have 1.5 MB


def test_packed_class_folders(tmp_path: Path, stack: np.ndarray) -> None:
    members = [
        (f"./set/{'ny'[at % 2]}/P{at // 4}_{at}.png", png(pixels))
        for at, pixels in enumerate(stack)
    ]
    path = save_tar(tmp_path / "set.tar", members)
    with pytest.raises(ValueError, match="none of 40 images has a label .*--patient_from"):
        read(path)
    options = ReadOptions(patient_from="*/{label}/{patient}_*")
    records = tar.read(path, options, Account())
    assert records.values.tolist() == ["n", "y"] * 20
    assert records.groups["patient"].tolist() == [f"P{at // 4}" for at in range(40)]
    assert records.columns == {}


def test_folds_are_numbers_where_they_can_be(tmp_path: Path, stack: np.ndarray) -> None:
    members: Members = []
    for at, pixels in enumerate(stack[:12]):
        about = json.dumps({"label": at % 2, "fold": at}).encode()
        members += [(f"{at}.png", png(pixels)), (f"{at}.json", about)]
    found = read(save_tar(tmp_path / "shard.tar", members)).groups["patient_fold"]
    assert found.tolist() == list(range(12))
