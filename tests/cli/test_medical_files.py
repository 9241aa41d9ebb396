"""From DICOM and NIfTI to a report, features and predictions: two commands, nothing converted."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from nnmf_cuda.cli.main import main
from tests.medical_files import save_dicom, save_nifti
from tests.saved_runs import SMALL

Printed = pytest.CaptureFixture[str]

N_PATIENTS = 12


def lit(rng: np.random.Generator, shape: tuple[int, ...], *, ill: bool) -> np.ndarray:
    """Return noise in which illness lights up a corner."""
    voxels = rng.integers(0, 1200, size=shape).astype(np.int16)
    if ill:
        voxels[:8, :8] += 1500
    return voxels


def save_dicom_classes(root: Path) -> None:
    """Half of the files without a suffix, a third MONOCHROME1, names and dates in the headers."""
    rng = np.random.default_rng(0)
    for n in range(N_PATIENTS):
        for k in range(3):
            pixels = lit(rng, (32, 32), ill=n % 2 == 1)
            inverted = n % 3 == 0
            save_dicom(
                root / ("ill" if n % 2 else "well") / f"IM{n:02d}_{k}{'.dcm' if k % 2 else ''}",
                2700 - pixels if inverted else pixels,
                PhotometricInterpretation=f"MONOCHROME{1 if inverted else 2}",
                PatientID=f"PID-{n:04d}",
                SeriesInstanceUID=f"1.2.{n}",
                ImagePositionPatient=[0, 0, 5 * k],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                WindowCenter="1350",
                WindowWidth="2700",
            )


def save_bids(root: Path) -> None:
    rng = np.random.default_rng(1)
    for n in range(N_PATIENTS):
        voxels = rng.integers(0, 1200, size=(32, 32, 4)).astype(np.int16)
        marked = np.zeros(voxels.shape, np.uint8)
        marked[:8, :8, :2] = 1
        voxels[marked > 0] += 1500
        anat = root / f"sub-{n:02d}" / "anat"
        save_nifti(anat / f"sub-{n:02d}_T1w.nii.gz", voxels)
        save_nifti(anat / f"sub-{n:02d}_label-lesion_mask.nii.gz", marked)


@pytest.mark.parametrize(
    ("save", "package", "n_images"),
    [
        (save_dicom_classes, "pydicom", 3 * N_PATIENTS),
        (save_bids, "nibabel", 4 * N_PATIENTS),
    ],
)
def test_files_to_a_report_features_and_predictions(
    tmp_path: Path, capsys: Printed, save: object, package: str, n_images: int
) -> None:
    pytest.importorskip(package)
    assert callable(save)
    data, run = tmp_path / "data", tmp_path / "run"
    save(data)
    assert main(["run", f"--data={data}", f"--out={run}", *SMALL]) == 0
    report = (run / "report.html").read_text()
    config = (run / "metrics.json").read_text()
    capsys.readouterr()
    assert main(["extract", str(data), f"--model={run}", f"--out={tmp_path / 'f.npz'}"]) == 0
    with np.load(tmp_path / "f.npz") as features:
        names = [str(name) for name in features["files"]]
        assert features["features"].shape == (n_images, 4)
    capsys.readouterr()
    assert main(["predict", str(data), f"--model={run}"]) == 0
    printed = capsys.readouterr()
    assert len(list(csv.DictReader(io.StringIO(printed.out)))) == n_images
    if package == "nibabel":  # the same volumes, listed by a dataset.json
        cases = sorted(path.relative_to(data).as_posix() for path in data.rglob("*T1w.nii.gz"))
        training = [{"image": c, "label": c.replace("T1w", "label-lesion_mask")} for c in cases]
        (data / "dataset.json").write_text(json.dumps({"training": training}))
        assert main(["predict", str(data), f"--model={run}"]) == 0
        assert capsys.readouterr().out == printed.out
    shown = " ".join([report, config, *names, printed.out, printed.err]).casefold()
    for secret in ("mustermann", "erika", "19640812", "20240105", "pid-0"):
        assert secret not in shown
