"""From files as people have them to a report, features and predictions, by the commands alone."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.cli.main import main
from tests.saved_runs import SMALL

Printed = pytest.CaptureFixture[str]

N_PATIENTS, N_SLICES = 12, 4


def slice_of(patient: int, number: int, *, dtype: type = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of 40 x 32 pixels and the mask of its lesion, in every second one."""
    rng = np.random.default_rng(100 * patient + number)
    image, mask = rng.integers(0, 120, (40, 32)), np.zeros((40, 32), np.uint8)
    if number % 2:
        mask[8:20, 10:22] = 255
        image[mask > 0] += 100
    return image.astype(dtype), mask


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def patient_folders(root: Path) -> Path:
    for patient in range(N_PATIENTS):
        for number in range(N_SLICES):
            image, mask = slice_of(patient, number)
            save(root / f"TCGA_{patient:02d}" / f"{number}.tif", image)
            save(root / f"TCGA_{patient:02d}" / f"{number}_mask.tif", mask)
    return root


def parallel_folders(root: Path) -> Path:
    for patient in range(N_PATIENTS):
        for number in range(N_SLICES):
            image, mask = slice_of(patient, number)
            save(root / "images" / f"P{patient:02d}_{number}.png", image)
            save(root / "masks" / f"P{patient:02d}_{number}.png", mask)
    return root


def table(root: Path) -> Path:
    lines = ["image_id;diagnosis;pid;age"]
    for patient in range(N_PATIENTS):
        for number in range(N_SLICES):
            save(root / "jpegs" / f"x{patient}_{number}.jpg", slice_of(patient, number)[0])
            diagnosis = "ill" if number % 2 else "healthy"
            lines.append(f"x{patient}_{number};{diagnosis};P{patient};{40 + patient}")
    (root / "patients.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    return root / "patients.csv"


def stack(root: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    slices = [
        slice_of(patient, number, dtype=np.int16)[0]
        for patient in range(N_PATIENTS)
        for number in range(N_SLICES)
    ]
    root.mkdir()
    with h5py.File(root / "set.h5", "w") as file:
        file["x"] = np.stack(slices) * 10 - 500
        file["y"] = np.tile(np.arange(N_SLICES) % 2, N_PATIENTS)
        file["patient"] = np.repeat(np.arange(N_PATIENTS), N_SLICES)
    return root / "set.h5"


def shards(root: Path) -> Path:
    root.mkdir()
    for patient in range(N_PATIENTS):
        with tarfile.open(root / f"{patient:02d}.tar", "w") as archive:
            for number in range(N_SLICES):
                image, about = io.BytesIO(), {"label": number % 2, "patient": patient}
                Image.fromarray(slice_of(patient, number)[0]).save(image, "png")
                for suffix, content in (
                    ("png", image.getvalue()),
                    ("json", json.dumps(about).encode()),
                ):
                    info = tarfile.TarInfo(f"{patient}_{number}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return root


STARTS = {
    "patient folders with masks": (patient_folders, []),
    "images beside masks": (parallel_folders, ["--patient_from=*/P{patient}_*"]),
    "a table": (table, ["--columns=file=jpegs/{image_id}.jpg,label=diagnosis,patient=pid"]),
    "a stack": (stack, ["--columns=file=x,label=y", "--window=-500:1700"]),
    "shards": (shards, []),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_report_features_and_predictions(start: str, tmp_path: Path, capsys: Printed) -> None:
    make, options = STARTS[start]
    data, out = make(tmp_path / "data"), tmp_path / "out"
    assert main(["run", f"--data={data}", f"--out={out}", *options, *SMALL]) == 0
    assert (out / "report.html").stat().st_size > 10_000
    n_images, report = N_PATIENTS * N_SLICES, (out / "report.html").read_text()
    # That no patient is divided is tested where splits are made.
    assert f"by patient: none is in two splits ({N_PATIENTS} of them)" in report

    # A model takes any images: of the options only those that say how files are read.
    reading = [option for option in options if not option.startswith("--patient_from")]
    capsys.readouterr()
    features = tmp_path / "features.npz"
    command = ["extract", str(data), f"--model={out}", f"--out={features}", *reading]
    assert main(command) == 0
    with np.load(features) as saved:
        assert saved["features"].shape == (n_images, 4)
        assert len(set(saved["files"].tolist())) == n_images
    capsys.readouterr()
    assert main(["predict", str(data), f"--model={out}", *reading]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == n_images
    assert not any("mask" in row["file"] for row in rows)
    if start == "a table":
        assert [row["age"] for row in rows][::N_SLICES] == [str(40 + p) for p in range(N_PATIENTS)]
        assert {row["diagnosis"] for row in rows} == {"ill", "healthy"}


def test_images_are_read_as_those_of_the_model(tmp_path: Path, capsys: Printed) -> None:
    data, out = stack(tmp_path / "data"), tmp_path / "out"
    columns, window = "--columns=file=x,label=y", "--window=-500:1700"
    assert main(["run", f"--data={data}", f"--out={out}", columns, window, *SMALL]) == 0

    def predict(*options: str) -> tuple[str, str]:
        capsys.readouterr()
        assert main(["predict", str(data), f"--model={out}", columns, *options]) == 0
        printed = capsys.readouterr()
        return printed.out, printed.err

    as_trained, told = predict(window)
    assert "window" not in told
    by_itself, told = predict()
    assert by_itself == as_trained
    assert "--window -500:1700, in which the model's own images were read" in told
    other, told = predict("--window=0:900", "--axis=coronal")
    assert other != as_trained
    assert "Warning: --window 0:900, but the model's own images were read in -500:1700" in told
    assert "Warning: --axis coronal, but the model's own slices were axial" in told


def test_slices_lie_as_those_of_the_model(
    tmp_path: Path, rng: np.random.Generator, capsys: Printed
) -> None:
    nibabel = pytest.importorskip("nibabel")
    volumes, out = tmp_path / "data", tmp_path / "out"
    for patient in range(N_PATIENTS):
        values = rng.random((7, 6, 5))
        mask = (values > 0.5) * (np.arange(6) % 2)[:, None]
        for name, content in (("", values), ("_mask", mask)):
            path = volumes / f"p{patient}{name}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(content.astype(np.float32), np.eye(4)), path)
    assert main(["run", f"--data={volumes}", f"--out={out}", "--axis=coronal", *SMALL]) == 0
    capsys.readouterr()
    assert main(["predict", str(volumes), f"--model={out}"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 + 6 * N_PATIENTS
    assert "--axis coronal, along which the model's own images were read" in printed.err
