"""NIfTI volumes to slices: orientation, intensity, masks, and files that are odd or damaged."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnmf_cuda.data.readers.volume import Volume, open_volume, shares_in_masks, slices
from nnmf_cuda.data.reading import ReadOptions, Window
from tests.medical_files import save_nifti

nibabel = pytest.importorskip("nibabel")

SHAPE = (7, 9, 5)


@pytest.fixture
def voxels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-1000, 3000, size=SHAPE).astype(np.int16)


def grey(volume: Volume, axis: Any, index: int, window: str | None = None) -> np.ndarray:
    shape = {
        "axial": (volume.shape[1], volume.shape[0]),
        "coronal": (volume.shape[2], volume.shape[0]),
        "sagittal": (volume.shape[2], volume.shape[1]),
    }[axis]
    return volume.grey(axis, index, shape, Window.parse(window) if window else None)


def to_unit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)


def every_orientation() -> list[str]:
    from itertools import permutations, product

    return [
        "".join(pair[sign] for pair, sign in zip(order, signs, strict=True))
        for order in permutations(("LR", "PA", "IS"))
        for signs in product((0, 1), repeat=3)
    ]


@pytest.mark.parametrize("axes", every_orientation())
def test_a_slice_looks_the_same_however_it_is_stored(tmp_path: Path, axes: str) -> None:
    """Each voxel's value tells where it lies in the patient: 100 right + 10 front + up."""
    right, front, up = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    ras = (100 * right + 10 * front + up).astype(np.int16)
    there = nibabel.orientations.axcodes2ornt(axes)
    turn = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), there)
    stored = nibabel.orientations.apply_orientation(ras, turn)
    affine = np.diag([2.0, 3, 4, 1]) @ nibabel.orientations.inv_ornt_aff(turn, SHAPE)
    volume = open_volume(save_nifti(tmp_path / "a.nii.gz", stored, affine))
    assert volume.shape == SHAPE
    assert not volume.oblique
    axial = volume.stored("axial", 2)
    # Top left is the front right of the patient; down goes to the back, right to the left.
    assert axial.shape == (9, 7)
    assert axial[0, 0] == 100 * 6 + 10 * 8 + 2
    assert axial[1, 0] == 100 * 6 + 10 * 7 + 2
    assert axial[0, 1] == 100 * 5 + 10 * 8 + 2
    coronal = volume.stored("coronal", 3)
    assert coronal.shape == (5, 7)
    assert coronal[0, 0] == 100 * 6 + 10 * 3 + 4
    assert coronal[1, 2] == 100 * 4 + 10 * 3 + 3
    sagittal = volume.stored("sagittal", 1)
    assert sagittal.shape == (5, 9)
    assert sagittal[0, 0] == 100 * 1 + 10 * 8 + 4
    assert sagittal[1, 2] == 100 * 1 + 10 * 6 + 3


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "float32", "f8"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_percentiles_of_the_volume(
    tmp_path: Path, rng: np.random.Generator, dtype: str, suffix: str
) -> None:
    voxels = rng.integers(0, 100, size=SHAPE).astype(dtype)
    volume = open_volume(save_nifti(tmp_path / f"a{suffix}", voxels))
    low, high = np.percentile(voxels, (1, 99))
    expected = to_unit(voxels[::-1, ::-1, 3].T, low, high)
    np.testing.assert_allclose(grey(volume, "axial", 3), expected, atol=1e-6)
    expected = to_unit(voxels[::-1, ::-1, 3].T, 10, 70)
    np.testing.assert_allclose(grey(volume, "axial", 3, "10:70"), expected, atol=1e-6)


@pytest.mark.parametrize("slope", [0.5, -0.5])
def test_scaling_of_the_file(tmp_path: Path, voxels: np.ndarray, slope: float) -> None:
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    image.header.set_slope_inter(slope, -10)
    nibabel.save(image, tmp_path / "a.nii")
    scaled = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj)
    volume = open_volume(tmp_path / "a.nii")
    assert (volume.slope, volume.intercept) == (slope, -10)
    expected = to_unit(scaled[::-1, ::-1, 0].T, -100, 400)
    np.testing.assert_allclose(grey(volume, "axial", 0, "-100:400"), expected, atol=1e-5)
    low, high = np.percentile(scaled, (1, 99))
    expected = to_unit(scaled[::-1, ::-1, 0].T, low, high)
    np.testing.assert_allclose(grey(volume, "axial", 0), expected, atol=1e-5)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_slope_that_means_none(tmp_path: Path, voxels: np.ndarray, slope: float) -> None:
    path = save_nifti(tmp_path / "a.nii", voxels)
    content = bytearray(path.read_bytes())
    content[112:116] = np.float32(slope).tobytes()  # scl_slope
    path.write_bytes(content)
    expected = to_unit(voxels[::-1, ::-1, 0].T, -1000, 3000)
    found = grey(open_volume(path), "axial", 0, "-1000:3000")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_voxels_that_are_no_numbers_are_black_or_white(tmp_path: Path) -> None:
    voxels = np.linspace(0, 1, np.prod(SHAPE)).reshape(SHAPE).astype(np.float32)
    voxels[0, 0, 0], voxels[1, 0, 0], voxels[2, 0, 0] = np.nan, np.inf, -np.inf
    volume = open_volume(save_nifti(tmp_path / "a.nii", voxels))
    found = grey(volume, "axial", 0)
    assert np.isfinite(found).all()
    assert [found[-1, -1], found[-1, -2], found[-1, -3]] == [0, 1, 0]
    finite = voxels[np.isfinite(voxels)].astype(np.float64)
    low, high = np.percentile(finite, (1, 99))
    np.testing.assert_allclose(found[:-1], to_unit(voxels[::-1, :0:-1, 0].T, low, high), atol=1e-6)


def test_mostly_background_and_constant_volumes(tmp_path: Path) -> None:
    voxels = np.zeros((20, 20, 20), np.float32)
    voxels[3, 3, 3] = 5
    volume = open_volume(save_nifti(tmp_path / "a.nii", voxels))
    assert grey(volume, "axial", 3).max() == 1
    constant = open_volume(save_nifti(tmp_path / "b.nii", np.full(SHAPE, 7, np.float32)))
    assert (grey(constant, "axial", 0) == 0).all()
    nothing = open_volume(save_nifti(tmp_path / "c.nii", np.full(SHAPE, np.nan, np.float32)))
    assert (grey(nothing, "axial", 0) == 0).all()


def test_first_of_several_volumes(tmp_path: Path, rng: np.random.Generator) -> None:
    voxels = rng.integers(0, 1000, size=(*SHAPE, 3)).astype(np.int16)
    volume = open_volume(save_nifti(tmp_path / "a.nii.gz", voxels))
    assert volume.n_volumes == 3
    expected = to_unit(voxels[::-1, ::-1, 2, 0].T, 0, 999)
    np.testing.assert_allclose(grey(volume, "axial", 2, "0:999"), expected, atol=1e-6)
    five = open_volume(save_nifti(tmp_path / "b.nii.gz", voxels[..., None, :]))
    np.testing.assert_allclose(grey(five, "axial", 2, "0:999"), expected, atol=1e-6)
    one = open_volume(save_nifti(tmp_path / "c.nii.gz", voxels[..., :1]))
    assert one.n_volumes == 1
    np.testing.assert_allclose(grey(one, "axial", 2, "0:999"), expected, atol=1e-6)


def test_a_plane_is_a_volume_of_one_slice(tmp_path: Path, voxels: np.ndarray) -> None:
    volume = open_volume(save_nifti(tmp_path / "a.nii", voxels[..., 0]))
    assert volume.shape == (7, 9, 1)
    assert len(slices(volume, ReadOptions())) == 1
    expected = to_unit(voxels[::-1, ::-1, 0].T, -1000, 3000)
    np.testing.assert_allclose(grey(volume, "axial", 0, "-1000:3000"), expected, atol=1e-6)


def test_colours(tmp_path: Path, rng: np.random.Generator) -> None:
    from PIL import Image

    colours = rng.integers(0, 256, size=(*SHAPE, 3), dtype=np.uint8)
    rgb = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    volume = open_volume(save_nifti(tmp_path / "a.nii", colours.view(rgb).reshape(SHAPE)))
    shown = np.ascontiguousarray(colours[::-1, ::-1, 1].transpose(1, 0, 2))
    found = grey(volume, "axial", 1)
    np.testing.assert_array_equal(found, np.asarray(Image.fromarray(shown).convert("L")))


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_slices_have_names_and_read_alike(tmp_path: Path, voxels: np.ndarray, axis: Any) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", voxels)
    volume = open_volume(path)
    images = slices(volume, ReadOptions(axis=axis, window="-1000:3000"))
    assert len(images) == {"axial": 5, "coronal": 9, "sagittal": 7}[axis]
    assert images[3].name == tmp_path / "a.nii.gz[3]"
    np.testing.assert_array_equal(
        images[3].read((30, 40)),
        volume.grey(axis, 3, (30, 40), Window(-1000, 3000)),
    )
    assert images[3].read((30, 40)).shape == (30, 40)


def test_oblique_volumes_are_told(tmp_path: Path, voxels: np.ndarray) -> None:
    def turned(degrees: float) -> np.ndarray:
        affine = np.eye(4)
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        affine[1:3, 1:3] = [[c, -s], [s, c]]
        return affine

    for degrees, oblique in ((10, False), (30, True)):
        volume = open_volume(save_nifti(tmp_path / "a.nii", voxels, turned(degrees)))
        assert volume.oblique is oblique
        assert volume.shape == SHAPE


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_affine_that_is_none_leaves_the_order_of_the_file(
    tmp_path: Path, voxels: np.ndarray, value: float
) -> None:
    path = save_nifti(tmp_path / "a.nii", voxels)
    content = bytearray(path.read_bytes())
    content[280:328] = np.full(12, value, np.float32).tobytes()  # srow_x, _y, _z
    path.write_bytes(content)
    volume = open_volume(path)
    assert volume.affine is None
    np.testing.assert_array_equal(volume.stored("axial", 0), voxels[::-1, ::-1, 0].T)


def test_masks(tmp_path: Path, voxels: np.ndarray, rng: np.random.Generator) -> None:
    flips = np.diag([-1.0, 1, 1, 1])  # LAS
    volume = open_volume(save_nifti(tmp_path / "a.nii", voxels, flips))
    marked = (rng.random(SHAPE) > 0.9).astype(np.uint8)
    mask = open_volume(save_nifti(tmp_path / "m.nii", marked, flips))
    for axis, others in (("axial", (0, 1)), ("coronal", (0, 2)), ("sagittal", (1, 2))):
        shares, note = shares_in_masks(volume, [mask], axis)  # type: ignore[arg-type]
        expected = marked.mean(axis=others)
        # Stored from right to left, and counted from left to right.
        np.testing.assert_allclose(shares, expected[::-1] if axis == "sagittal" else expected)
        assert note == ""
    # The same mask, stored in RAS and placed right.
    turned = np.diag([1.0, 1, 1, 1])
    turned[0, 3] = -(SHAPE[0] - 1)
    other = open_volume(save_nifti(tmp_path / "n.nii", marked[::-1].copy(), turned))
    shares, _ = shares_in_masks(volume, [other], "sagittal")
    np.testing.assert_allclose(shares, marked.mean(axis=(1, 2))[::-1])
    # And stored as an array without any affine: voxel lies on voxel.
    for affine in (np.eye(4), None):
        bare = save_nifti(tmp_path / "o.nii", marked, affine)
        shares, note = shares_in_masks(volume, [open_volume(bare)], "sagittal")
        np.testing.assert_allclose(shares, marked.mean(axis=(1, 2))[::-1])
        assert "matched one by one" in note
    second = np.zeros(SHAPE, np.float32)
    second[2, 2, 2] = np.nan
    second[3, 3, 3] = 4
    more = open_volume(save_nifti(tmp_path / "p.nii", second, flips))
    shares, _ = shares_in_masks(volume, [mask, more], "axial")
    np.testing.assert_allclose(shares, ((marked > 0) | (second > 0)).mean(axis=(0, 1)))


def test_a_mask_of_another_shape_is_refused(tmp_path: Path, voxels: np.ndarray) -> None:
    volume = open_volume(save_nifti(tmp_path / "a.nii", voxels))
    mask = open_volume(save_nifti(tmp_path / "m.nii", np.ones((7, 9, 6), np.uint8)))
    with pytest.raises(
        ValueError, match=r"m\.nii' has 7 x 9 x 6 voxels, .*a\.nii' 7 x 9 x 5; resample the mask"
    ):
        shares_in_masks(volume, [mask], "axial")


def test_damaged_files(tmp_path: Path, voxels: np.ndarray) -> None:
    path = save_nifti(tmp_path / "a.nii", voxels)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"a\.nii': its header says 7 x 9 x 5 voxels, in 972"):
        open_volume(path)
    for length in (0, 1, 2, 100, 347):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cannot read volume .*a\.nii"):
            open_volume(path)
    packed = gzip.compress(whole)
    path = tmp_path / "b.nii.gz"
    path.write_bytes(packed[:-200])
    with pytest.raises(ValueError, match=r"cannot read volume .*b\.nii\.gz"):
        open_volume(path).stored("axial", 0)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"b\.nii\.gz.* not packed by gzip.*rename"):
        open_volume(path)
    path = tmp_path / "c.nii"
    path.write_bytes(packed)
    with pytest.raises(ValueError, match=r"c\.nii.* packed by gzip, against its name.*\.nii\.gz"):
        open_volume(path)


def test_mended_headers_are_no_noise(
    tmp_path: Path, voxels: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_nifti(tmp_path / "a.nii", voxels)
    content = bytearray(path.read_bytes())
    content[252:254] = np.int16(77).tobytes()  # qform_code
    path.write_bytes(content)
    open_volume(path)
    assert not caplog.records
    nibabel.load(path)
    assert caplog.records


def test_complex_voxels_are_refused(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", np.ones(SHAPE, np.complex64))
    with pytest.raises(ValueError, match="complex64; save their magnitude"):
        open_volume(path)


def test_a_header_cannot_ask_for_all_memory(tmp_path: Path, voxels: np.ndarray) -> None:
    path = save_nifti(tmp_path / "a.nii", voxels)
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([30000] * 3, np.int16).tobytes()
    for name, written in (("a.nii", bytes(content)), ("b.nii.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(written)
        with pytest.raises(ValueError, match="30000 x 30000 x 30000 voxels"):
            open_volume(tmp_path / name)


def test_no_more_than_some_volumes_are_kept(tmp_path: Path, voxels: np.ndarray) -> None:
    from nnmf_cuda.data.readers import volume

    volumes = [open_volume(save_nifti(tmp_path / f"{n}.nii", voxels)) for n in range(6)]
    for each in (*volumes, *volumes):
        each.stored("axial", 0)
    assert list(volume._in_memory) == volumes[3:]


def test_nibabel_is_named_where_it_is_missing(
    tmp_path: Path, voxels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    path = save_nifti(tmp_path / "a.nii", voxels)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ImportError, match=r"pip install 'nnmf-cuda\[medical\]'"):
        open_volume(path)
