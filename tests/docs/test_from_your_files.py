"""The commands of docs/from_your_files.md, on small files that are made as each section says."""

from __future__ import annotations

import json
import re
import shlex
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnmf_cuda.cli.main import main
from tests.medical_files import save_dicom, save_nifti

PAGE = Path(__file__).parents[2] / "docs" / "from_your_files.md"
SECTIONS = {
    title: re.findall(r"^\$ nnmf-cuda (.*)$", text, re.MULTILINE)
    for title, text in re.findall(
        r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
}

N_PATIENTS, N_EACH = 12, 3


def save(path: Path, rng: np.random.Generator, *, mode: str = "L") -> None:
    """Write an image of 40 x 40 pixels."""
    shape = (40, 40) if mode == "L" else (40, 40, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)


def class_folders(rng: np.random.Generator) -> None:
    for name in ("no", "yes"):
        for index in range(8):
            save(Path("images", name, f"{index}.png"), rng)


def deep_and_large(rng: np.random.Generator) -> None:
    for name, suffix, dtype in (("no", "png", np.uint16), ("yes", "tif", np.float32)):
        Path("deep", name).mkdir(parents=True)
        for index in range(8):
            values = rng.integers(0, 4096, (40, 40)).astype(dtype)
            Image.fromarray(values).save(Path("deep", name, f"{index}.{suffix}"))
    Path("large").mkdir()
    for index in range(3):
        pixels = rng.integers(0, 256, (640, 640), dtype=np.uint8)
        Image.fromarray(pixels).convert("RGB").save(Path("large", f"{index}.jpg"))


def four_class_folders(rng: np.random.Generator) -> None:
    for name in ("glioma", "meningioma", "notumor", "pituitary"):
        for index in range(8):
            save(Path("images", name, f"{index}.jpg"), rng)


def patient_folders(rng: np.random.Generator) -> None:
    for patient in range(N_PATIENTS):
        for label in ("no", "yes"):
            for index in range(N_EACH):
                save(Path("images", f"P{patient:02}", label, f"{index}.png"), rng)


def arrays(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (40, 32, 32), dtype=np.uint8)
    labels = np.arange(40) % 2
    np.savez("set.npz", images=images, labels=labels)
    parts = {"train": slice(0, 24), "val": slice(24, 30), "test": slice(30, 40)}
    medmnist = {f"{split}_images": images[rows] for split, rows in parts.items()}
    medmnist |= {f"{split}_labels": labels[rows, None] for split, rows in parts.items()}
    np.savez("breastmnist.npz", **medmnist)


def coco(rng: np.random.Generator) -> None:
    for split in ("train", "valid", "test"):
        for index in range(6):
            save(Path("export", split, f"{index}.jpg"), rng, mode="RGB")
        content = {
            "images": [{"id": index, "file_name": f"{index}.jpg"} for index in range(6)],
            "annotations": [
                {"image_id": index, "category_id": 1 + index % 2, "bbox": [1, 2, 9, 9]}
                for index in range(6)
            ],
            "categories": [{"id": 1, "name": "0"}, {"id": 2, "name": "1"}],
        }
        Path("export", split, "_annotations.coco.json").write_text(json.dumps(content))


def tables(rng: np.random.Generator) -> None:
    lines = {"patients": ["file,label,patient,age"], "export": ["image_id;diagnosis;pid"]}
    for index in range(24):
        label = ("healthy", "ill")[index % 2]
        save(Path("jpegs", f"{index}.jpg"), rng)
        lines["patients"].append(f"jpegs/{index}.jpg,{label},P{index // 3},{index}")
        lines["export"].append(f"{index};{label};P{index // 3}")
    for name, rows in lines.items():
        Path(f"{name}.csv").write_text("\n".join(rows), encoding="utf-8")


def masks(rng: np.random.Generator) -> None:
    for patient in range(N_PATIENTS):
        for index in range(N_EACH):
            mask = np.zeros((40, 40), np.uint8)
            mask[:10] = 255 * (index % 2)
            for image in (
                f"kaggle/TCGA_{patient}/{index}.tif",
                f"scans/images/P{patient}_{index}.png",
            ):
                save(Path(image), rng)
            Path("scans/masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(f"kaggle/TCGA_{patient}/{index}_mask.tif")
            Image.fromarray(mask).save(f"scans/masks/P{patient}_{index}.png")


def stacks(rng: np.random.Generator) -> None:
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    images = rng.integers(0, 256, (24, 40, 40), dtype=np.uint8)
    labels, patients = np.arange(24) % 2, np.arange(24) // 3
    np.save("scans.npy", images.astype(np.int16) * 5 - 900)
    np.save("scans_labels.npy", labels)
    np.save("scans_patient.npy", patients)
    with h5py.File("camelyon.h5", "w") as file:
        file["x"], file["y"] = images, labels
    zarr.save_group("scans.zarr", images=images, labels=labels)


def shards(rng: np.random.Generator) -> None:
    Path("shards").mkdir()
    for shard in range(2):
        with tarfile.open(f"shards/00{shard}.tar", "w") as archive:
            for index in range(12):
                name = f"{shard}{index:03}"
                save(Path(f"{name}.jpg"), rng)
                Path(f"{name}.json").write_text(json.dumps({"label": index % 2, "patient": name}))
                for suffix in ("jpg", "json"):
                    archive.add(f"{name}.{suffix}")


def pages(rng: np.random.Generator) -> None:
    for name in ("no", "yes"):
        for index in range(8):
            stack = rng.integers(0, 256, (3, 40, 40), dtype=np.uint8)
            first, *others = (Image.fromarray(page) for page in stack)
            path = Path("stacks", name, f"{index}.tif")
            path.parent.mkdir(parents=True, exist_ok=True)
            first.save(path, save_all=True, append_images=others)


def dicom(rng: np.random.Generator) -> None:
    pytest.importorskip("pydicom")
    for patient in range(N_PATIENTS):
        for index in range(N_EACH):
            folder = Path("scans", "yes" if patient % 2 else "no")
            save_dicom(
                folder / f"IM{patient:02}{index}{'.dcm' if index else ''}",
                rng.integers(0, 4096, (40, 40), dtype=np.uint16),
                PatientID=f"P{patient:02}",
                SeriesInstanceUID=f"1.2.{patient}",
                InstanceNumber=index,
            )


def cases(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give volumes and masks that mark half of the slices along each axis."""
    for _ in range(N_PATIENTS):
        marked = np.zeros((12, 12, 4), np.uint8)
        marked[:6, :6, :2] = 1
        yield rng.integers(0, 1000, marked.shape).astype(np.int16), marked


def nifti(rng: np.random.Generator) -> None:
    pytest.importorskip("nibabel")
    for patient, (voxels, marked) in enumerate(cases(rng)):
        save_nifti(Path("cases", f"c{patient:02}.nii.gz"), voxels)
        save_nifti(Path("cases", f"c{patient:02}_mask.nii.gz"), marked)
        subject = f"sub-{patient:02}"
        for study in ("study", "study2"):
            save_nifti(Path(study, subject, "anat", f"{subject}_T1w.nii.gz"), voxels)
        save_nifti(
            Path("study/derivatives/manual", subject, f"{subject}_label-lesion_mask.nii.gz"), marked
        )
    rows = [f"sub-{n:02}\t{'ill' if n % 2 else 'well'}\n" for n in range(N_PATIENTS)]
    Path("study2/participants.tsv").write_text("participant_id\tdiagnosis\n" + "".join(rows))


def decathlon(rng: np.random.Generator) -> None:
    pytest.importorskip("nibabel")
    names = [f"{patient}.nii.gz" for patient in range(N_PATIENTS)]
    for name, (voxels, marked) in zip(names, cases(rng), strict=True):
        save_nifti(Path("Task01/imagesTr", name), voxels)
        save_nifti(Path("Task01/labelsTr", name), marked)
    listed = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    Path("Task01/dataset.json").write_text(json.dumps({"training": listed}))


MAKERS: dict[str, Callable[[np.random.Generator], None]] = {
    "Class folders": class_folders,
    "More than 8 bits, and large JPEGs": deep_and_large,
    "Several classes that are one": four_class_folders,
    "Patients in folders or names": patient_folders,
    "Arrays: .npz and MedMNIST": arrays,
    "COCO exports": coco,
    "Tables: CSV, TSV and parquet": tables,
    "Images with masks": masks,
    "Stacks: .npy, HDF5 and Zarr": stacks,
    "Tar shards": shards,
    "Pages of TIFF": pages,
    "DICOM": dicom,
    "NIfTI and BIDS": nifti,
    "dataset.json: medical decathlon, MONAI, nnU-Net": decathlon,
}


@pytest.mark.parametrize("title", SECTIONS)
def test_the_commands_of_a_section_work(
    title: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """`audit` stands for `run`, whose options on data it has: a run of each format takes long."""
    assert SECTIONS[title]
    monkeypatch.chdir(tmp_path)
    MAKERS[title](rng)
    for command in SECTIONS[title]:
        name, *options = shlex.split(command)
        if name == "run":
            name = "audit"
        else:  # extract and predict, of a model that is called RUN there
            run = str(request.getfixturevalue("small_run")[0])
            options = [run if option == "RUN" else option for option in options]
        assert main([name, *options]) == 0, capsys.readouterr().err
        printed = capsys.readouterr()
        assert "Images read: " in printed.err


def test_every_section_has_a_command() -> None:
    assert set(SECTIONS) == set(MAKERS)
