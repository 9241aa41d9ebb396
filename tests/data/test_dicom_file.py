"""One DICOM file to grey values, against pydicom's own arithmetic and formulas in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnmf_cuda.data.readers.dicom import lazy
from nnmf_cuda.data.readers.dicom_file import NotAnImage, is_dicom, read_header
from nnmf_cuda.data.reading import ReadOptions
from tests.medical_files import save_dicom

pydicom = pytest.importorskip("pydicom")

SHAPE = (24, 20)
_SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "big_endian": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
}


@pytest.fixture
def stored(rng: np.random.Generator) -> np.ndarray:
    """Twelve bits of grey."""
    return rng.integers(0, 4096, size=SHAPE, dtype=np.uint16)


def grey(path: Path, *, frame: int | None = None, **options: Any) -> np.ndarray:
    image = lazy(path, ReadOptions(**options), frame=frame)
    assert image is not None
    return image.read(SHAPE)


def to_unit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)


@pytest.mark.parametrize("syntax", _SYNTAXES)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_stored_values_of_every_width(
    tmp_path: Path, rng: np.random.Generator, syntax: str, dtype: str
) -> None:
    pixels = rng.integers(-100 if dtype.startswith("i") else 0, 120, size=SHAPE).astype(dtype)
    path = save_dicom(tmp_path / "a", pixels, syntax=_SYNTAXES[syntax])
    np.testing.assert_allclose(grey(path, window="-90:100"), to_unit(pixels, -90, 100), atol=1e-6)


@pytest.mark.parametrize("syntax", ["implicit", "explicit"])
def test_without_preamble(tmp_path: Path, stored: np.ndarray, syntax: str) -> None:
    path = save_dicom(tmp_path / "IM1", stored, syntax=_SYNTAXES[syntax], preamble=False)
    assert path.read_bytes()[128:132] != b"DICM"
    assert is_dicom(path)
    np.testing.assert_allclose(grey(path, window="0:4095"), to_unit(stored, 0, 4095), atol=1e-6)


def test_other_files_are_none(tmp_path: Path) -> None:
    for content in (b"", b"\x08\0", b"GIF89a" * 40, b"\x08\0\x05\0\xff\xff\xff\xff" * 30):
        (tmp_path / "x").write_bytes(content)
        assert not is_dicom(tmp_path / "x")
        assert lazy(tmp_path / "x", ReadOptions()) is None
    assert not is_dicom(tmp_path / "missing")
    assert not is_dicom(tmp_path)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_of_the_file_after_rescaling(
    tmp_path: Path, stored: np.ndarray, function: str | None
) -> None:
    path = save_dicom(
        tmp_path / "a.dcm",
        stored,
        RescaleSlope="0.5",
        RescaleIntercept="-1024",
        WindowCenter="-40.5",
        WindowWidth="900",
        VOILUTFunction=function,
    )
    from pydicom.pixels.processing import apply_modality_lut, apply_windowing

    dataset = pydicom.dcmread(path)
    shown = apply_windowing(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = -1024.0, 65535 * 0.5 - 1024  # pydicom maps to all values that could be stored
    np.testing.assert_allclose(grey(path), (shown - low) / (high - low), atol=1e-5)


def test_first_of_several_windows_and_the_option(tmp_path: Path, stored: np.ndarray) -> None:
    path = save_dicom(
        tmp_path / "a.dcm", stored, WindowCenter=["1000", "40"], WindowWidth=["501", "80"]
    )
    np.testing.assert_allclose(grey(path), to_unit(stored, 749.5, 1249.5), atol=1e-6)
    np.testing.assert_allclose(grey(path, window="0:80"), to_unit(stored, 0, 80), atol=1e-6)
    low, high = np.percentile(stored, (5, 60))
    np.testing.assert_allclose(grey(path, window="p5:p60"), to_unit(stored, low, high), atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"WindowCenter": "40", "WindowWidth": "0"},
        {"WindowCenter": "40"},
        {"WindowWidth": "80"},
        {"WindowCenter": "", "WindowWidth": ""},
    ],
)
def test_unusable_window_gives_way_to_percentiles(
    tmp_path: Path, stored: np.ndarray, bad: dict[str, str]
) -> None:
    path = save_dicom(tmp_path / "a.dcm", stored, **bad)
    low, high = np.percentile(stored, (1, 99))
    np.testing.assert_allclose(grey(path), to_unit(stored, low, high), atol=1e-6)


def test_width_of_one_is_a_threshold(tmp_path: Path, stored: np.ndarray) -> None:
    path = save_dicom(tmp_path / "a.dcm", stored, WindowCenter="2000", WindowWidth="1")
    np.testing.assert_array_equal(grey(path), stored > 1999.5)


def test_decimal_comma_and_slope_zero(tmp_path: Path, stored: np.ndarray) -> None:
    path = save_dicom(tmp_path / "a.dcm", stored, RescaleSlope="2.5", WindowCenter="40.5")
    content = path.read_bytes().replace(b"2.5 ", b"2,5 ").replace(b"40.5", b"40,5")
    path.write_bytes(content)
    np.testing.assert_allclose(
        grey(path, window="0:9000"), to_unit(stored * 2.5, 0, 9000), atol=1e-6
    )
    path = save_dicom(tmp_path / "b.dcm", stored, RescaleSlope="0", RescaleIntercept="0")
    assert grey(path).std() > 0.1


def test_monochrome1_is_inverted_after_the_window(tmp_path: Path, stored: np.ndarray) -> None:
    for name, window in (("a", {}), ("b", {"WindowCenter": "2000", "WindowWidth": "3000"})):
        bright = save_dicom(tmp_path / name, stored, **window)
        dark = save_dicom(
            tmp_path / f"{name}1", stored, PhotometricInterpretation="MONOCHROME1", **window
        )
        np.testing.assert_allclose(grey(dark), 1 - grey(bright), atol=1e-6)


def test_eight_bits_without_window_stay_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, size=SHAPE, dtype=np.uint8)
    assert grey(save_dicom(tmp_path / "a", pixels)).dtype == np.uint8
    np.testing.assert_array_equal(grey(save_dicom(tmp_path / "a", pixels)), pixels)
    inverted = save_dicom(tmp_path / "b", pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(grey(inverted), 255 - pixels)
    windowed = save_dicom(tmp_path / "c", pixels, WindowCenter="128", WindowWidth="101")
    np.testing.assert_allclose(grey(windowed), to_unit(pixels, 77.5, 177.5), atol=1e-6)


def test_signed_values_of_twelve_bits_ignore_what_stands_above(tmp_path: Path) -> None:
    values = np.arange(-2048, 2048, 9).astype(np.int16)[: np.prod(SHAPE)]
    values = np.resize(values, SHAPE)
    # An overlay in the highest bits, as old scanners store it.
    pixels = ((values.view(np.uint16) & 0x0FFF) | 0x5000).view(np.int16)
    path = save_dicom(tmp_path / "a", pixels, BitsStored=12, HighBit=11)
    np.testing.assert_allclose(
        grey(path, window="-2048:2047"), to_unit(values, -2048, 2047), atol=1e-6
    )


def test_padding_is_black_and_no_part_of_percentiles(tmp_path: Path, stored: np.ndarray) -> None:
    pixels = stored.astype(np.int16)
    pixels[:10] = -2000
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        path = save_dicom(
            tmp_path / photometric,
            pixels,
            PixelPaddingValue=-2000,
            PhotometricInterpretation=photometric,
        )
        low, high = np.percentile(pixels[10:], (1, 99))
        expected = to_unit(pixels[10:], low, high)
        found = grey(path)
        assert (found[:10] == 0).all()
        np.testing.assert_allclose(
            found[10:], 1 - expected if photometric.endswith("1") else expected, atol=1e-6
        )


@pytest.mark.parametrize("planar", [0, 1])
def test_colours(tmp_path: Path, rng: np.random.Generator, planar: int) -> None:
    from PIL import Image

    pixels = rng.integers(0, 256, size=(*SHAPE, 3), dtype=np.uint8)
    planes = pixels.transpose(2, 0, 1) if planar else pixels
    path = save_dicom(
        tmp_path / "a", pixels, PlanarConfiguration=planar, PixelData=planes.tobytes()
    )
    np.testing.assert_array_equal(grey(path), np.asarray(Image.fromarray(pixels).convert("L")))
    # A window is of grey values; colours are not changed by it.
    np.testing.assert_array_equal(grey(path, window="0:10"), grey(path))


def test_palette(tmp_path: Path, rng: np.random.Generator) -> None:
    from PIL import Image

    indices = rng.integers(0, 256, size=SHAPE, dtype=np.uint8)
    palette = rng.integers(0, 256, size=(3, 256), dtype=np.uint8)
    tables = {
        f"{name}PaletteColorLookupTable{kind}": value
        for name, row in zip(("Red", "Green", "Blue"), palette, strict=True)
        for kind, value in (("Descriptor", [256, 0, 8]), ("Data", row.tobytes()))
    }
    path = save_dicom(tmp_path / "a", indices, PhotometricInterpretation="PALETTE COLOR", **tables)
    expected = Image.fromarray(np.ascontiguousarray(palette.T[indices])).convert("L")
    np.testing.assert_array_equal(grey(path), np.asarray(expected))


def test_lookup_tables(tmp_path: Path, rng: np.random.Generator) -> None:
    from pydicom.dataset import Dataset

    pixels = rng.integers(0, 256, size=SHAPE, dtype=np.uint16)
    modality = np.sort(rng.integers(0, 1024, size=256)).astype(np.uint16)
    shown = np.sort(rng.integers(0, 4096, size=1024)).astype(np.uint16)

    def table(values: np.ndarray, n_bits: int) -> Dataset:
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [len(values), 0, n_bits])
        item.add_new("LUTData", "OW", values.astype("<u2").tobytes())
        return item

    path = save_dicom(
        tmp_path / "a",
        pixels,
        ModalityLUTSequence=[table(modality, 16)],
        VOILUTSequence=[table(shown, 12)],
        WindowCenter="1",
        WindowWidth="2",
    )
    np.testing.assert_allclose(grey(path), shown[modality[pixels]] / 4095, atol=1e-6)
    np.testing.assert_allclose(
        grey(path, window="0:1000"), to_unit(modality[pixels], 0, 1000), atol=1e-6
    )
    without = save_dicom(tmp_path / "b", pixels, VOILUTSequence=[table(shown, 12)])
    np.testing.assert_allclose(grey(without), shown[pixels] / 4095, atol=1e-6)


def test_float_pixels(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.normal(size=SHAPE).astype(np.float32)
    path = save_dicom(
        tmp_path / "a", pixels, PixelData=None, FloatPixelData=pixels.tobytes(), BitsStored=None
    )
    np.testing.assert_allclose(grey(path, window="-1:1"), to_unit(pixels, -1, 1), atol=1e-6)


def test_frames(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 4096, size=(5, *SHAPE), dtype=np.uint16)
    path = save_dicom(tmp_path / "a", pixels, NumberOfFrames=5)
    for frame in range(5):
        np.testing.assert_allclose(
            grey(path, frame=frame, window="0:4095"), to_unit(pixels[frame], 0, 4095), atol=1e-6
        )
    with pytest.raises(ValueError, match="holds 5 frames; name one of them, 0 to 4"):
        grey(path)
    with pytest.raises(ValueError, match="has no frame 5; it holds 5"):
        grey(path, frame=5)


def test_frames_of_an_enhanced_file_have_their_own_window_and_place(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    from pydicom.dataset import Dataset

    def item(**elements: Any) -> Dataset:
        made = Dataset()
        for name, value in elements.items():
            setattr(made, name, value)
        return made

    pixels = rng.integers(0, 4096, size=(3, *SHAPE), dtype=np.uint16)
    groups = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 5 * n])],
            FrameVOILUTSequence=[item(WindowCenter=1000 + n, WindowWidth=501)],
        )
        for n in range(3)
    ]
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-10)],
    )
    path = save_dicom(
        tmp_path / "a",
        pixels,
        NumberOfFrames=3,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=groups,
    )
    header = read_header(path)
    for n in range(3):
        place = header.place(n)
        assert place is not None
        assert place.along_normal() == 5 * n
        low = 1000 + n - 0.5 - 250
        np.testing.assert_allclose(
            grey(path, frame=n), to_unit(pixels[n] * 2.0 - 10, low, low + 500), atol=1e-6
        )


@pytest.mark.parametrize("kind", ["RLE", "JPEG2000", "JPEG"])
def test_compressed(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    import io

    from PIL import Image
    from pydicom.encaps import encapsulate

    pixels = rng.integers(0, 256, size=SHAPE, dtype=np.uint8)
    buffer = io.BytesIO()
    if kind == "RLE":
        path = save_dicom(tmp_path / "a", pixels)
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.RLELossless)
        dataset.save_as(path)
    else:
        Image.fromarray(pixels).save(buffer, format=kind)
        path = save_dicom(
            tmp_path / "a",
            pixels,
            syntax={"JPEG2000": "1.2.840.10008.1.2.4.90", "JPEG": "1.2.840.10008.1.2.4.50"}[kind],
            PixelData=encapsulate([buffer.getvalue()]),
        )
    expected = pixels
    if kind == "JPEG":
        expected = np.asarray(Image.open(buffer).convert("L"))
    np.testing.assert_array_equal(grey(path), expected)


def test_compression_without_a_plugin_names_the_remedy(tmp_path: Path, stored: np.ndarray) -> None:
    from pydicom.encaps import encapsulate

    jpeg_ls = "1.2.840.10008.1.2.4.80"
    if pydicom.pixels.get_decoder(jpeg_ls).is_available:
        pytest.skip("a plugin for JPEG-LS is installed")
    path = save_dicom(
        tmp_path / "a.dcm", stored, syntax=jpeg_ls, PixelData=encapsulate([b"\xff\xd8" * 8])
    )
    with pytest.raises(
        ValueError, match=r"a\.dcm.*JPEG-LS Lossless.* needs a plugin.*pip install pylibjpeg"
    ):
        grey(path)


def test_damaged_files(tmp_path: Path, stored: np.ndarray) -> None:
    path = save_dicom(tmp_path / "a.dcm", stored)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"a\.dcm.*cut short: 860 of 960 bytes"):
        grey(path)
    for length in range(132, len(whole) - stored.nbytes, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.dcm"):
            grey(path)
    path = save_dicom(tmp_path / "b.dcm", stored, Rows=60000, Columns=60000)
    with pytest.raises(ValueError, match="60000 x 60000 pixels"):
        grey(path)
    path = save_dicom(tmp_path / "c.dcm", stored, NumberOfFrames=10**9)
    with pytest.raises(ValueError, match="1000000000 frames"):
        grey(path)


def test_a_deflated_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnmf_cuda.data.readers import dicom_file

    path = save_dicom(
        tmp_path / "a.dcm", np.zeros((500, 500), np.uint16), syntax=_SYNTAXES["deflated"]
    )
    assert path.stat().st_size < 5000
    assert (grey(path) == 0).all()
    monkeypatch.setattr(dicom_file, "_MAX_INFLATED", 100_000)
    with pytest.raises(ValueError, match="deflated, it holds more than 100000 bytes"):
        grey(path)


@pytest.mark.parametrize("modality", ["SR", "SEG", "RTDOSE"])
def test_files_that_hold_no_image(tmp_path: Path, stored: np.ndarray, modality: str) -> None:
    path = save_dicom(tmp_path / "a", stored, Modality=modality)
    with pytest.raises(NotAnImage, match=rf"no image \({modality}\)"):
        read_header(path)
    with pytest.raises(ValueError, match=f"DICOM, but no image .{modality}.; leave it out"):
        lazy(path, ReadOptions())


def test_damage_is_told_without_quoting_the_header(tmp_path: Path, stored: np.ndarray) -> None:
    whole = bytearray(save_dicom(tmp_path / "whole", stored).read_bytes())
    rng = np.random.default_rng(0)
    told = []
    path = tmp_path / "a"
    for n in range(600):
        content = bytearray(whole)
        start = int(rng.integers(132, len(whole) - stored.nbytes))
        content[start : start + 2] = rng.bytes(2) if n % 2 else b"\xff\xff"
        path.write_bytes(content)
        try:
            grey(path)
        except ValueError as error:
            told.append(str(error))
    assert len(told) > 100
    for text in told:
        assert "\n" not in text
        for secret in ("Mustermann", "Erika", "4711", "19640812"):
            assert secret not in text


def test_pydicom_is_named_where_it_is_missing(
    tmp_path: Path, stored: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from nnmf_cuda.data.readers import dicom_file

    path = save_dicom(tmp_path / "a", stored)
    dicom_file.import_pydicom.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"pip install 'nnmf-cuda\[medical\]'"):
        read_header(path)
