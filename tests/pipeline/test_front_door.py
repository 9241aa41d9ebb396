"""From the files that users have to a report in one command, and through extract and predict."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nnmf_cuda.cli.main import main
from tests.medical_files import save_dicom, save_nifti
from tests.saved_runs import SMALL

QUICK = [*SMALL, "--classifier.epochs=2", "--diffusion.epochs=2", "--attack.n_iter=2"]
N_PATIENTS = 12


def picture(patient: int, number: int, *, tumor: bool) -> NDArray[np.uint8]:
    """Return a noisy image, with a bright spot where there is a tumor."""
    rng = np.random.default_rng([patient, number, tumor])
    pixels = rng.integers(0, 120, (40, 40), dtype=np.uint8)
    if tumor:
        pixels[10:20, 12:22] += 110
    return pixels


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def dicom(root: Path) -> tuple[Path, list[str]]:
    """Half of the files without a suffix, some of them dark on light."""
    pytest.importorskip("pydicom")
    for patient in range(N_PATIENTS):
        tumor = patient % 2 == 1
        for number in range(3):
            pixels = picture(patient, number, tumor=tumor)
            inverse = number == 2
            suffix = ".dcm" if (patient + number) % 2 else ""
            save_dicom(
                root / ("yes" if tumor else "no") / f"P{patient}" / f"IM{number}{suffix}",
                (255 - pixels if inverse else pixels).astype(np.uint16),
                PhotometricInterpretation="MONOCHROME1" if inverse else "MONOCHROME2",
                PatientID=f"PID-{patient}",
                StudyInstanceUID=f"1.2.{patient}",
                SeriesInstanceUID=f"1.2.{patient}.1",
                InstanceNumber=number,
            )
    return root, []


def nifti(root: Path) -> tuple[Path, list[str]]:
    """Volumes by BIDS' names, with masks beside them."""
    pytest.importorskip("nibabel")
    for patient in range(N_PATIENTS):
        slices = [picture(patient, number, tumor=number > 1) for number in range(4)]
        masks = np.zeros((40, 40, 4), np.uint8)
        masks[12:22, 10:20, 2:] = 1
        folder = root / f"sub-{patient:02}" / "anat"
        save_nifti(folder / f"sub-{patient:02}_T1w.nii.gz", np.stack(slices, axis=-1))
        save_nifti(folder / f"sub-{patient:02}_mask.nii.gz", masks)
    return root, []


def pairs(root: Path) -> tuple[Path, list[str]]:
    """Patient folders with images and masks: no folder is a class."""
    for patient in range(N_PATIENTS):
        for number in range(4):
            tumor = number > 1
            mask = np.zeros((40, 40), np.uint8)
            mask[10:20, 12:22] = 255 * tumor
            stem = f"TCGA_{patient:02}_{number}"
            save(root / f"TCGA_{patient:02}" / f"{stem}.tif", picture(patient, number, tumor=tumor))
            save(root / f"TCGA_{patient:02}" / f"{stem}_mask.tif", mask)
    return root, []


def four_classes(root: Path) -> tuple[Path, list[str]]:
    """Folders of four classes, of which two are wanted."""
    for split, n in (("Training", 9), ("Testing", 3)):
        for name in ("glioma", "meningioma", "notumor", "pituitary"):
            for number in range(n):
                pixels = picture(n, 10 * len(name) + number, tumor=name != "notumor")
                save(root / split / name / f"{number}.jpg", pixels)
    merged = "notumor=no,glioma=tumor,meningioma=tumor,pituitary=tumor"
    return root, [f"--classes={merged}"]


def table(root: Path) -> tuple[Path, list[str]]:
    """A table of files with columns of the user's own names."""
    rows = []
    for patient in range(N_PATIENTS):
        for number in range(4):
            tumor = (patient + number) % 2 == 1
            save(
                root / "pictures" / f"{patient}_{number}.png", picture(patient, number, tumor=tumor)
            )
            rows.append([f"pictures/{patient}_{number}.png", "yes" if tumor else "no", patient, 50])
    path = root / "table.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path", "diagnosis", "pid", "age"], *rows])
    return path, ["--columns=file=path,label=diagnosis,patient=pid"]


@pytest.mark.parametrize("source", [dicom, nifti, pairs, four_classes, table])
def test_a_starting_point_reaches_a_report_extract_and_predict(
    source: Callable[[Path], tuple[Path, list[str]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, options = source(tmp_path / "data")
    out, features = tmp_path / "run", tmp_path / "features.npz"
    assert main(["run", f"--data={data}", f"--out={out}", *options, *QUICK]) == 0
    report = (out / "report.html").read_text(encoding="utf-8")
    notes = "\n".join(json.loads((out / "metrics.json").read_text())["notes"])
    told = capsys.readouterr().err
    for text in (report, notes, told):
        assert "Images read: " in text
        assert "Labels: " in text
    n_read = int(notes.split("Images read: ")[1].split()[0])
    assert n_read == {"dicom": 36}.get(source.__name__, 48)
    assert ("patients: unknown" in notes) == (source is four_classes)
    assert source is four_classes or f"patients: {N_PATIENTS}" in notes
    if source is dicom:
        assert not any(name in text for name in ("PID-", "Mustermann") for text in (report, told))

    reading = [option for option in options if not option.startswith("--classes")]
    model = [f"--model={out}", *reading]
    assert main(["extract", str(data), *model, f"--out={features}"]) == 0
    with np.load(features) as arrays:
        assert arrays["features"].shape == (n_read, 4)
        assert ("age" in arrays.files) == (source is table)
    capsys.readouterr()
    assert main(["predict", str(data), *model]) == 0
    header, *rows = csv.reader(capsys.readouterr().out.splitlines())
    assert len(rows) == n_read
    assert ("age" in header) == (source is table)


def test_folders_of_patients_without_masks_end_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for patient in range(N_PATIENTS):
        save(tmp_path / "data" / f"P{patient:02}" / "1.png", picture(patient, 0, tumor=False))
    assert main(["run", f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "12 folders, such as 'P00', 'P01', 'P02' and 9 more, which look like patients" in error
    assert "--patient_from '{patient}/{label}/{name}'" in error
