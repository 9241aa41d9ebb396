"""Decoding against Pillow's plain way: open, convert to grey, resize."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from nnmf_cuda.data import ReadOptions, decoding, iter_image_batches, read_image, read_images
from nnmf_cuda.data.decoding import decode_image

FAST = ReadOptions(decode="fast")


def plain(content: bytes, image_shape: tuple[int, int] = (128, 128)) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        grey = image.convert("L").resize(image_shape[::-1], Image.Resampling.BILINEAR)
    return np.asarray(grey)


def saved(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def picture(
    rng: np.random.Generator, size: tuple[int, int] = (301, 203), *, amplitude: int = 60
) -> Image.Image:
    """Return a smooth coloured image; with this amplitude no colour leaves its range."""
    coarse = rng.integers(128 - amplitude, 128 + amplitude, size=(9, 13, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)


@pytest.fixture(params=["simplejpeg", "pillow"], autouse=True)
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:2:0"},
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2", "quality": 30},
        {"progressive": True},
        {"progressive": True, "subsampling": "4:4:4", "quality": 95},
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 3, "progressive": True},
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
        {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()},
        {"comment": b"a remark", "optimize": True},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("mode", ["L", "grey RGB", "RGB", "CMYK", "RGB kept"])
def test_jpegs_are_what_pillow_makes_of_them(
    rng: np.random.Generator, mode: str, options: dict[str, Any]
) -> None:
    image = picture(rng)
    match mode:
        case "L" | "CMYK":
            image = image.convert(mode)
        case "grey RGB":
            image = image.convert("L").convert("RGB")
        case "RGB kept":
            if "subsampling" in options:
                options = options | {"subsampling": "4:4:4"}  # others give three equal colours
            options = options | {"keep_rgb": True}  # without luma: Adobe's transform 0
    content = saved(image, **options)
    for shape in ((128, 128), (203, 301), (31, 400)):
        np.testing.assert_array_equal(
            decode_image(content, name="x", image_shape=shape), plain(content, shape)
        )


def test_saturated_jpegs_give_the_luma_of_the_file(rng: np.random.Generator) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
    image = Image.fromarray(colours[rng.integers(4, size=(9, 13))])
    content = saved(image.resize((301, 203), Image.Resampling.NEAREST), quality=40)
    with Image.open(io.BytesIO(content)) as image:
        image.draft("YCbCr", None)
        luma = image.getchannel(0)
    assert luma.size == (301, 203)
    found = decode_image(content, name="x", image_shape=(203, 301))
    np.testing.assert_array_equal(found, np.asarray(luma))
    difference = np.abs(found.astype(int) - plain(content, (203, 301)))
    assert 1 < difference.max() < 60
    assert difference.mean() < 6


def test_the_sample_is_what_pillow_makes_of_it(real_data: Path) -> None:
    files = sorted((real_data / "darabi-sample").glob("*/*.jpg"))
    assert len(files) == 36
    images = read_images(files)
    np.testing.assert_array_equal(images, [plain(file.read_bytes()) for file in files])
    fast = read_images(files, reading=FAST)
    difference = np.abs(fast.astype(int) - images)
    assert 0 < difference.mean() < 1.5
    assert difference.max() < 40


def test_a_jpeg_cut_anywhere_is_refused_in_the_same_words(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    for progressive in (False, True):
        content = saved(picture(rng, (61, 45)), progressive=progressive)
        for length in (*range(4, len(content), 97), len(content) - 3):
            with pytest.raises(ValueError, match="cannot read image 'cut.jpg': ") as error:
                decode_image(content[:length], name="cut.jpg")
            with pytest.raises((OSError, SyntaxError)) as want:
                plain(content[:length])
            wanted = str(want.value).partition(" <_io")[0]
            assert str(error.value) == f"cannot read image 'cut.jpg': {wanted}"
    path = tmp_path / "cut.jpg"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut.jpg': image file is truncated"):
        read_image(path)


def test_damaged_jpegs_are_read_or_refused_as_by_pillow(rng: np.random.Generator) -> None:
    whole = [
        saved(picture(rng, (61, 45)).convert("L"), progressive=progressive)
        for progressive in (False, True)
    ]
    refused = 0
    for _ in range(300):
        content = bytearray(whole[rng.integers(2)])
        for place in rng.integers(2, len(content), size=2):
            content[place] = rng.integers(256)
        try:
            want = plain(bytes(content))
        except (OSError, SyntaxError, ValueError):
            refused += 1
            with pytest.raises(ValueError, match="cannot read image 'x': "):
                decode_image(bytes(content), name="x")
        else:
            found = decode_image(bytes(content), name="x")
            assert found.shape == want.shape
    assert 10 < refused < 290


def test_a_jpeg_that_would_fill_the_memory_is_refused(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(picture(rng))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="cannot read image 'x': Image size .* exceeds limit"):
        decode_image(content, name="x")


@pytest.mark.parametrize(
    ("size", "scale"),
    [
        ((512, 512), 4),
        ((509, 640), 4),
        ((508, 640), 2),
        ((300, 255), 2),
        ((254, 640), 1),
        ((100, 90), 1),
    ],
)
def test_fast_reduces_no_further_than_to_the_result(
    rng: np.random.Generator, size: tuple[int, int], scale: int
) -> None:
    content = saved(picture(rng, size).convert("L"))
    found = decode_image(content, name="x", reading=FAST)
    assert found.shape == (128, 128)
    if scale == 1:
        np.testing.assert_array_equal(found, plain(content))
        return
    with Image.open(io.BytesIO(content)) as image:
        image.draft("L", (size[0] // scale, size[1] // scale))
        assert image.size == (-(-size[0] // scale), -(-size[1] // scale))
        reduced = np.asarray(image.resize((128, 128), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found, reduced)
    difference = np.abs(found.astype(int) - plain(content))
    assert 0 < difference.max() <= 8


def test_fast_leaves_jpegs_without_luma_as_they_are(rng: np.random.Generator) -> None:
    content = saved(picture(rng, (640, 640)).convert("CMYK"))
    np.testing.assert_array_equal(decode_image(content, name="x", reading=FAST), plain(content))


def test_a_jpeg_of_several_pictures_gives_the_first(rng: np.random.Generator) -> None:
    first, second = picture(rng, (90, 70)), picture(rng, (90, 70))
    file = io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=[second])
    content = file.getvalue()
    np.testing.assert_array_equal(decode_image(content, name="x"), plain(content))


# More than eight bits --------------------------------------------------------------------------


def windowed(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    return scaled.astype(np.float32)


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.png", "u2"), ("a.tif", "u2"), ("a.tif", "i4"), ("a.tif", "f4")]
)
@pytest.mark.parametrize(("window", "limits"), [("500:3000", (500, 3000)), ("p5:p95", None)])
def test_a_window_makes_grey_of_more_than_eight_bits(
    tmp_path: Path,
    rng: np.random.Generator,
    name: str,
    dtype: str,
    window: str,
    limits: tuple[int, int] | None,
) -> None:
    values = rng.integers(0, 4096, size=(40, 30)).astype(dtype)
    Image.fromarray(values).save(tmp_path / name)
    reading = ReadOptions(window=window)
    found = read_image(tmp_path / name, image_shape=(40, 30), reading=reading)
    low, high = limits or np.sort(values, axis=None)[[60, 1140]]
    assert found.dtype == np.float32
    # Percentiles interpolate between neighbours: these are 3 grey values apart.
    np.testing.assert_allclose(found, windowed(values, low, high), atol=1e-6 if limits else 5e-3)
    smaller = read_image(tmp_path / name, image_shape=(20, 15), reading=reading)
    assert smaller.shape == (20, 15)
    assert abs(float(smaller.mean()) - float(found.mean())) < 0.02


def test_a_tiff_whose_zero_is_white_is_turned(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(0, 4096, size=(20, 20), dtype=np.uint16)
    image = Image.fromarray(values)
    image.save(tmp_path / "a.tif", tiffinfo={262: 0})
    reading = ReadOptions(window="0:4095")
    found = read_image(tmp_path / "a.tif", image_shape=(20, 20), reading=reading)
    np.testing.assert_allclose(found, 1 - windowed(values, 0, 4095), atol=1e-6)


def test_eight_bit_images_have_their_window(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(0, 256, size=(20, 20), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    found = read_image(
        tmp_path / "a.png", image_shape=(20, 20), reading=ReadOptions(window="0:4095")
    )
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    values = np.ones((8, 8), np.float32)
    values[3, 4] = value
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="a.tif': .*infinite or not a number; replace"):
        read_image(tmp_path / "a.tif", reading=ReadOptions(window="0:1"))


def test_without_a_window_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 300, dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png': .*more than 8 bits .*--window LOW:HIGH"):
        read_image(tmp_path / "a.png")


def test_streams_read_as_they_are_told(tmp_path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(rng.integers(0, 4096, size=(20, 20), dtype=np.uint16)).save(
        tmp_path / "deep.png"
    )
    (tmp_path / "large.jpg").write_bytes(saved(picture(rng, (640, 640))))
    reading = ReadOptions(window="0:4095", decode="fast")
    files = [tmp_path / "deep.png", tmp_path / "large.jpg"]
    batches = list(iter_image_batches(files, reading=reading))
    assert [batch.images.dtype for batch in batches] == [np.float32, np.uint8]
    for batch, file in zip(batches, files, strict=True):
        np.testing.assert_array_equal(batch.images[0], read_image(file, reading=reading))
