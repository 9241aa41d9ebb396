from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.data import LazyImage, ReadOptions, iter_image_batches
from nnmf_cuda.data.readers import tiff

tifffile = pytest.importorskip("tifffile")


def test_pages_are_counted_as_others_count_them(tmp_path: Path, rng: np.random.Generator) -> None:
    for order in "<>":
        for big in (False, True):
            for n_pages in (1, 2, 7):
                path = tmp_path / "stack.tif"
                stack = rng.integers(0, 256, (n_pages, 17, 23), dtype=np.uint8)
                with tifffile.TiffWriter(path, bigtiff=big, byteorder=order) as file:
                    for page in stack:
                        file.write(page, contiguous=False)
                assert tiff.pages(path) == (list(range(n_pages)), True)
                with tifffile.TiffFile(path) as opened:
                    assert len(opened.pages) == n_pages
                found = list(tiff.frames(path, ReadOptions()))
                if n_pages == 1:
                    assert found == [path]
                    continue
                for image, page, number in zip(found, stack, range(n_pages), strict=True):
                    assert isinstance(image, LazyImage)
                    assert image.name == Path(f"{path}[{number}]")
                    if order == "<" or not big:  # what Pillow can decode
                        np.testing.assert_array_equal(image.read((17, 23)), page)


def test_reduced_copies_and_masks_are_no_pages(tmp_path: Path) -> None:
    path, full = tmp_path / "pyramid.tif", np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    with tifffile.TiffWriter(path) as file:
        file.write(full, contiguous=False)
        file.write(full[::2, ::2], subfiletype=1, contiguous=False)
        file.write(full[::-1], contiguous=False)
        file.write(full > 99, subfiletype=4, photometric="minisblack", contiguous=False)
    assert tiff.pages(path) == ([0, 2], True)
    second = list(tiff.frames(path, ReadOptions()))[1]
    assert isinstance(second, LazyImage)
    np.testing.assert_array_equal(second.read((64, 64)), full[::-1])


def test_deep_pages_need_a_window(tmp_path: Path) -> None:
    path = tmp_path / "deep.tif"
    stack = np.arange(2 * 8 * 8, dtype=np.uint16).reshape(2, 8, 8) * 10
    tifffile.imwrite(path, stack, photometric="minisblack")
    plain = list(tiff.frames(path, ReadOptions()))[1]
    assert isinstance(plain, LazyImage)
    with pytest.raises(ValueError, match=r"deep.tif\[1\]': holds grey values of more than 8 bits"):
        plain.read((8, 8))
    windowed = list(tiff.frames(path, ReadOptions(window="0:1270")))[1]
    assert isinstance(windowed, LazyImage)
    np.testing.assert_allclose(windowed.read((8, 8)), stack[1] / 1270, atol=1e-6)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:4],
        lambda content: b"II\x2a\x00\xff\xff\xff\x7f" + content[8:],
        lambda content: b"II\x2a\x00\x04\x00\x00\x00" + content[8:],
        lambda content: b"no tiff" + content,
        lambda content: content[: len(content) // 2],
    ],
)
def test_damaged_files_never_hang_or_raise(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "damaged.tif"
    tifffile.imwrite(path, np.zeros((3, 20, 20), np.uint8), photometric="minisblack")
    path.write_bytes(damage(path.read_bytes()))
    assert len(tiff.pages(path).places) <= 3


def test_a_chain_that_comes_back_ends(tmp_path: Path) -> None:
    path = tmp_path / "circle.tif"
    # one directory at byte 8 without entries, whose next one is itself
    path.write_bytes(b"II\x2a\x00\x08\x00\x00\x00" + b"\x00\x00" + b"\x08\x00\x00\x00")
    assert tiff.pages(path) == ([0], False)
    assert list(tiff.frames(path, ReadOptions())) == [path]


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    pages = [Image.fromarray(np.full((20, 20), value, np.uint8)) for value in (1, 2)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    images = list(tiff.frames(path, ReadOptions()))
    path.write_bytes(b"II\x2a\x00")
    assert isinstance(images[1], LazyImage)
    with pytest.raises(ValueError, match=r"cannot read image '.*stack.tif\[1\]'"):
        images[1].read((20, 20))


def test_pages_behind_a_break_are_not_lost_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    pages = [Image.fromarray(np.full((20, 20), value, np.uint8)) for value in range(5)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 7 // 10])
    images = list(tiff.frames(path, ReadOptions()))
    assert 3 <= len(images) <= 5
    (batch,) = iter_image_batches(images, image_shape=(20, 20), on_error="skip")
    last = images[-1]
    assert isinstance(last, LazyImage)
    assert batch.failures[-1].file == last.name
    with pytest.raises(ValueError, match="cut short or damaged from this page on"):
        last.read((20, 20))
