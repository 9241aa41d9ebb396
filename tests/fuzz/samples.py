"""Small good sources of every kind, which the fuzzer damages."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.medical_files import save_dicom, save_nifti

N = 12
SIDE = 24
LABELS = ["no", "yes"]


def _images() -> np.ndarray:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (N, SIDE, SIDE), dtype=np.uint8)
    images[::2, 4:10, 4:12] += 55
    return images


def _splits() -> np.ndarray:
    return np.array(["train"] * 6 + ["valid"] * 3 + ["test"] * 3)


def npz(home: Path) -> Path:
    """Write images, labels, splits and patients."""
    path = home / "data.npz"
    patients = np.array([f"p{i // 2}" for i in range(N)])
    np.savez(path, images=_images(), labels=np.arange(N) % 2, split=_splits(), patient=patients)
    return path


def _folders(home: Path, ending: str, **settings: object) -> Path:
    for i, image in enumerate(_images()):
        folder = home / "classes" / LABELS[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        colours = np.stack([image, image // 2, 255 - image], axis=-1) if i % 3 == 0 else image
        Image.fromarray(colours).save(folder / f"{i:02d}{ending}", **settings)  # type: ignore[arg-type]
    return home / "classes"


def png(home: Path) -> Path:
    """Write class folders."""
    return _folders(home, ".png")


def jpeg(home: Path) -> Path:
    """Write class folders, some of the files progressive."""
    return _folders(home, ".jpg", quality=90, progressive=True)


def tiff(home: Path) -> Path:
    """Write class folders of 16 bits, some of the files with two pages."""
    for i, image in enumerate(_images()):
        folder = home / "classes" / LABELS[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        page = Image.fromarray(image.astype(np.uint16) * 200)
        pages = {"save_all": True, "append_images": [page]} if i % 2 else {}
        page.save(folder / f"{i:02d}.tif", **pages)
    return home / "classes"


def coco(home: Path) -> Path:
    """Write an export with its three splits."""
    for split in ("train", "valid", "test"):
        folder = home / "coco" / split
        folder.mkdir(parents=True)
        listed, marks = [], []
        for i in np.flatnonzero(_splits() == split).tolist():
            Image.fromarray(_images()[i]).save(folder / f"{i}.jpg")
            size = {"width": SIDE, "height": SIDE}
            listed.append({"id": i, "file_name": f"{i}.jpg", **size})
            marks.append({"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [1, 2, 3, 4]})
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(LABELS)]
        content = {"images": listed, "annotations": marks, "categories": categories}
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return home / "coco"


def table(home: Path) -> Path:
    """Write a CSV beside its images."""
    folder = home / "table"
    (folder / "images").mkdir(parents=True)
    file = io.StringIO()
    rows = csv.writer(file)
    rows.writerow(["file", "label", "patient", "split", "age"])
    for i, (image, split) in enumerate(zip(_images(), _splits(), strict=True)):
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        rows.writerow([f"images/{i}.png", LABELS[i % 2], f"p{i}", split, 40 + i])
    (folder / "table.csv").write_text(file.getvalue())
    return folder / "table.csv"


def dicom(home: Path) -> Path:
    """Write class folders of series, every second file without a suffix."""
    for i, image in enumerate(_images()):
        save_dicom(
            home / "dicom" / LABELS[i % 2] / f"P{i // 2}" / f"IM{i}{'.dcm' if i % 2 else ''}",
            image.astype(np.uint16) * 8,
            PatientID=f"P{i // 2}",
            SeriesInstanceUID=f"1.2.{i // 2}",
            InstanceNumber=i,
            PhotometricInterpretation=f"MONOCHROME{1 + i % 2}",
            RescaleSlope="2",
            RescaleIntercept="-100",
        )
    return home / "dicom"


def nifti(home: Path) -> Path:
    """Write a BIDS-like folder with masks."""
    rng = np.random.default_rng(0)
    for patient in range(4):
        folder = home / "nifti" / f"sub-{patient:02d}" / "anat"
        folder.mkdir(parents=True)
        voxels = rng.integers(0, 900, (12, 12, 6), dtype=np.int16)
        mask = np.zeros(voxels.shape, np.uint8)
        mask[3:6, 3:6, 2:4] = 1
        ending = ".nii.gz" if patient % 2 else ".nii"
        save_nifti(folder / f"sub-{patient:02d}_T1w{ending}", voxels)
        save_nifti(folder / f"sub-{patient:02d}_T1w_mask{ending}", mask)
    return home / "nifti"


def pairs(home: Path) -> Path:
    """Write patient folders of images and masks."""
    for i, image in enumerate(_images()):
        folder = home / "pairs" / f"patient{i // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.tif")
        mask = np.zeros(image.shape, np.uint8)
        mask[:8, :8] = 255 * (i % 2)
        Image.fromarray(mask).save(folder / f"{i}_mask.tif")
    return home / "pairs"


def npy(home: Path) -> Path:
    """Write a stack of images with labels beside it."""
    folder = home / "stack"
    folder.mkdir()
    np.save(folder / "images.npy", _images())
    np.save(folder / "labels.npy", np.arange(N) % 2)
    return folder / "images.npy"


def hdf5(home: Path) -> Path:
    """Write images, labels and splits as HDF5."""
    import h5py

    path = home / "stack.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=_images(), chunks=(4, SIDE, SIDE), compression="gzip")
        file["labels"] = np.arange(N) % 2
        file["split"] = _splits().astype("S")
    return path


def zarr(home: Path) -> Path:
    """Write images and labels as Zarr."""
    import zarr as library

    path = home / "stack.zarr"
    group = library.open_group(path, mode="w", zarr_format=2)
    for name, array in (("images", _images()), ("labels", np.arange(N) % 2)):
        group.create_array(name, data=array)
    return path


def tar(home: Path) -> Path:
    """Write a shard as webdataset lays it out."""
    path = home / "shard.tar"
    with tarfile.open(path, "w") as archive:
        for i, image in enumerate(_images()):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="JPEG")
            for ending, content in (("jpg", buffer.getvalue()), ("cls", str(i % 2).encode())):
                member = tarfile.TarInfo(f"{i:04d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {
    made.__name__: made
    for made in (npz, coco, png, jpeg, tiff, table, dicom, nifti, pairs, npy, hdf5, zarr, tar)
}
"""What writes a source of each kind into a folder, and returns what is given to --data."""

NEEDED = {"dicom": "pydicom", "nifti": "nibabel", "hdf5": "h5py", "zarr": "zarr"}
"""The library that the sample of a kind is written with."""
