from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.data import ImageSource, iter_images, read_image, resize_images

SaveImage = Callable[..., Path]


def find_images(paths: str | Path | Iterable[str | Path]) -> list[ImageSource]:
    return list(iter_images(paths))


def pillow_grey(path: Path, size: tuple[int, int] = (128, 128)) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize(size, Image.Resampling.BILINEAR))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_eight_bit_modes_are_converted_as_pillow_does(
    tmp_path: Path, rng: np.random.Generator, mode: str
) -> None:
    pixels = rng.integers(0, 256, size=(40, 60, 3), dtype=np.uint8)
    path = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    Image.fromarray(pixels).convert(mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    grey = read_image(path)
    assert (grey.shape, grey.dtype) == ((128, 128), np.uint8)
    np.testing.assert_array_equal(grey, pillow_grey(path))


def test_image_shape_is_height_and_width(tmp_path: Path, save_image: SaveImage) -> None:
    path = save_image(tmp_path / "image.png")
    assert read_image(path, image_shape=(10, 24)).shape == (10, 24)
    np.testing.assert_array_equal(
        read_image(path, image_shape=(10, 24)), pillow_grey(path, (24, 10))
    )


def test_an_image_of_the_right_size_is_unchanged(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, size=(128, 128), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), pixels)


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.png", np.uint16), ("a.tif", np.int32), ("a.tif", np.float32)]
)
def test_more_than_eight_bits_are_refused(tmp_path: Path, name: str, dtype: type) -> None:
    path = tmp_path / name
    Image.fromarray(np.full((8, 8), 300, dtype=dtype)).save(path)
    with pytest.raises(ValueError, match=r"cannot read image '.*a\.\w+': .*more than 8 bits"):
        read_image(path)


@pytest.mark.parametrize("name", ["image.jpg", "image.png", "image.bmp"])
def test_a_truncated_file_is_refused(tmp_path: Path, save_image: SaveImage, name: str) -> None:
    path = save_image(tmp_path / name, size=(90, 90), mode="RGB")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"cannot read image '.*{name}': .*truncated"):
        read_image(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match="empty.png': cannot identify image file"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(ValueError, match="none.png': No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="cannot read image .*: Is a directory"):
        read_image(tmp_path)


def test_an_image_that_would_fill_the_memory_is_refused(
    tmp_path: Path, save_image: SaveImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_image(tmp_path / "huge.png", size=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"huge.png': Image size \(1600 pixels\) exceeds limit"):
        read_image(path)


def test_resize_images_does_as_read_image(tmp_path: Path, rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, size=(3, 30, 50, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    read = [read_image(path, image_shape=(20, 33)) for path in find_images(tmp_path)]
    np.testing.assert_array_equal(resize_images(images, (20, 33)), np.stack(read))


def test_folders_are_walked_in_order(tmp_path: Path, save_image: SaveImage) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "a/z/3.png", "c.png", ".hidden/4.png", "b/.5.png"):
        save_image(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    found = find_images(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "c.png",
        "a/z/3.png",
        "b/1.jpg",
        "b/2.PNG",
    ]


def test_files_keep_the_order_given_and_come_once(tmp_path: Path, save_image: SaveImage) -> None:
    first, second = save_image(tmp_path / "z.png"), save_image(tmp_path / "a" / "1.png")
    odd = tmp_path / "scan.dat"
    odd.touch()
    assert find_images([odd, str(first), tmp_path]) == [odd, first, second]


def test_arguments_that_overlap_give_each_file_once(tmp_path: Path, save_image: SaveImage) -> None:
    inner = tmp_path / "a" / "b"
    names = ("a/0.png", "a/b/1.png", "a/.hidden/2.png", "c/3.png")
    top, deep, hidden, other = (save_image(tmp_path / name) for name in names)
    linked = tmp_path / "a" / "linked"
    linked.symlink_to(tmp_path / "c")
    for arguments, want in (
        ([tmp_path / "a", inner, inner], [top, deep]),
        ([inner, tmp_path / "a"], [deep, top]),
        ([tmp_path / "a", deep, hidden], [top, deep, hidden]),
        ([hidden.parent, tmp_path / "a", hidden], [hidden, top, deep]),
        ([tmp_path / "a", linked, other], [top, deep, linked / "3.png", other]),
    ):
        assert find_images(arguments) == want


def test_folders_are_walked_as_the_caller_goes_on(tmp_path: Path, save_image: SaveImage) -> None:
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        save_image(tmp_path / name)
    stream = iter_images(tmp_path)
    assert next(stream).name == "1.png"
    save_image(tmp_path / "c" / "4.png")
    assert [path.name for path in stream] == ["2.png", "3.png", "4.png"]


def test_a_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, save_image: SaveImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        save_image(tmp_path / name)
    scandir = os.scandir

    def refuse(path: str) -> object:  # permissions do not stop the superuser
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    stream = iter_images(tmp_path)
    assert next(stream).name == "1.png"
    with pytest.raises(ValueError, match="cannot read folder '.*/b': Permission denied"):
        next(stream)
    with pytest.raises(ValueError, match="cannot read folder '.*/b': Permission denied"):
        iter_images([tmp_path / "a", tmp_path / "b"])


def test_links_to_folders_are_not_followed(tmp_path: Path, save_image: SaveImage) -> None:
    inside, outside = save_image(tmp_path / "in" / "1.png"), save_image(tmp_path / "out" / "2.png")
    link = tmp_path / "in" / "link"
    link.symlink_to(outside.parent)
    assert find_images(tmp_path / "in") == [inside]
    assert find_images(link) == [link / "2.png"]


def test_arguments_are_checked_before_the_first_file(tmp_path: Path, save_image: SaveImage) -> None:
    image = save_image(tmp_path / "1.png")
    with pytest.raises(ValueError, match="no such file or folder: '.*/none'"):
        iter_images([image, tmp_path / "none"])


def test_nothing_to_find_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder: '.*/none'"):
        find_images([tmp_path / "none"])
    with pytest.raises(ValueError, match="no images in folder .*looked for .bmp, .jpeg"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match="no images given"):
        find_images([])
