"""Small DICOM and NIfTI files for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXPLICIT = "1.2.840.10008.1.2.1"


def save_dicom(
    path: Path,
    pixels: NDArray[Any],
    *,
    syntax: str = EXPLICIT,
    preamble: bool = True,
    **elements: Any,
) -> Path:
    """Write a grey or RGB frame (height, width[, 3]), or frames (n, height, width).

    Elements of None are left out; frames are told from colours by `NumberOfFrames`.
    """
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, MRImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = Dataset()
    n_bits = 8 * pixels.dtype.itemsize
    colour = pixels.ndim == 3 and "NumberOfFrames" not in elements
    shape = pixels.shape[1:] if pixels.ndim == 3 and not colour else pixels.shape
    values = {
        "SOPClassUID": MRImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "MR",
        "PatientName": "Mustermann^Erika",
        "PatientID": "PID-4711",
        "PatientBirthDate": "19640812",
        "StudyDate": "20240105",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.1",
        "InstanceNumber": 1,
        "Rows": shape[0],
        "Columns": shape[1],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "PlanarConfiguration": 0 if colour else None,
        "BitsAllocated": n_bits,
        "BitsStored": n_bits,
        "HighBit": n_bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    } | elements
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
    if "PixelData" not in elements:
        order = ">" if syntax == "1.2.840.10008.1.2.2" else "<"
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        dataset["PixelData"].VR = "OB" if n_bits == 8 else "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    if preamble:
        dataset.file_meta = meta
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    else:  # what old archives hold: the data set alone
        implicit = syntax == "1.2.840.10008.1.2"
        pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=True)
    return path


def save_nifti(
    path: Path, voxels: NDArray[Any], affine: NDArray[Any] | None = None, **header: Any
) -> Path:
    """Write a volume; by default its axes run to the right, to the front and up (RAS)."""
    import nibabel

    image = nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path
