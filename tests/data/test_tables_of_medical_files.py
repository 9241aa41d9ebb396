"""Tables whose rows name DICOM files and slices of NIfTI volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnmf_cuda.data import iter_image_batches, iter_images, load_dataset
from nnmf_cuda.data.reading import ReadOptions
from tests.medical_files import save_dicom, save_nifti


def test_dicom_files_of_a_table(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("pydicom")
    rows = ["file,label,patient,age"]
    for n in range(20):
        name = f"IM{n}" if n % 2 else f"IM{n}.dcm"
        pixels = rng.integers(0, 4096, size=(16, 16), dtype=np.uint16)
        save_dicom(tmp_path / name, pixels, PhotometricInterpretation=f"MONOCHROME{1 + n % 2}")
        rows.append(f"{name},{'ill' if n % 4 < 2 else 'well'},p{n // 2},{n}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    dataset = load_dataset(tmp_path / "list.csv", reading=ReadOptions(window="0:4095"))
    assert dataset.label_names == ("ill", "well")
    assert dataset.images.shape == (20, 128, 128)
    assert set(dataset.groups["patient"].tolist()) == {f"p{n}" for n in range(10)}
    (batch,) = iter_image_batches(iter_images(tmp_path / "list.csv"))
    assert batch.columns[3]["age"] == "3"
    (tmp_path / "IM4.dcm").write_bytes((tmp_path / "IM4.dcm").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"cannot read DICOM file .*IM4\.dcm.* cut short"):
        load_dataset(tmp_path / "list.csv")


def test_slices_of_a_table(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("nibabel")
    rows = ["file,frame,label,patient"]
    for n in range(6):
        voxels = rng.integers(0, 1000, size=(8, 9, 4)).astype(np.int16)
        save_nifti(tmp_path / f"v{n}.nii.gz", voxels)
        rows += [f"v{n}.nii.gz,{k},{'a' if k < 2 else 'b'},p{n}" for k in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    reading = ReadOptions(window="0:999")
    dataset = load_dataset(tmp_path / "list.csv", image_shape=(9, 8), reading=reading)
    assert dataset.images.shape == (24, 9, 8)
    expected = np.clip(voxels[::-1, ::-1, 3].T / 999, 0, 1)
    np.testing.assert_allclose(dataset.images[-1], expected, atol=1e-6)
    rows[1] = "v0.nii.gz,4,a,p0"
    (tmp_path / "list.csv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="there are 4 axial slices, counted from 0"):
        load_dataset(tmp_path / "list.csv")
