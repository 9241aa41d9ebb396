"""`extract` from what people have: JPEG files, stacks of arrays, DICOM and NIfTI.

Beside each stands what the library of the format alone takes to read the same pixels.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from bench.case import Call, Case, Implementation, Inputs, Size, Truth, Work
from bench.cases.projection import phantom_and_components, project_work
from bench.inputs import PIXELS
from nnmf_cuda import ops, reference
from nnmf_cuda.data import ImageSource, LazyImage, ReadOptions, decoding, iter_images

_BATCH = 256
_WHITE = 4095  # of 12-bit slices
_SLICES = 100  # of a volume


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="nnmf-cuda-bench-")


def _pictures(size: Size, seed: int) -> tuple[NDArray[np.uint8], torch.Tensor]:
    """Return images (n, side, side) of the phantom, repeated, and components."""
    n, f, k = (size.shape[name] for name in ("n_samples", "n_features", "n_components"))
    images, components = phantom_and_components(k, f, seed)
    side = int(f**0.5)
    pixels: NDArray[np.uint8] = images.repeat(-(-n // len(images)), 1)[:n].numpy()
    return pixels.reshape(n, side, side), components


def _extract(
    inputs: Inputs, sources: Callable[[], Iterable[str | ImageSource]], reading: ReadOptions
) -> NDArray[np.float32]:
    """Do what `nnmf-cuda extract` does, writing an .npy."""
    from nnmf_cuda.models import FeatureExtractor
    from nnmf_cuda.pipeline.extract import extract_to_file

    components = inputs["components"]
    selected = torch.arange(len(components), device=components.device)
    extractor = FeatureExtractor(components, selected, image_shape=inputs["image_shape"])
    out = Path(inputs["folder"].name) / "features.npy"
    extract_to_file(sources(), extractor, out, reading=reading, batch_size=_BATCH, overwrite=True)
    features: NDArray[np.float32] = np.load(out)
    return features


def _features(inputs: Inputs, X: NDArray[Any]) -> torch.Tensor:
    pixels = torch.from_numpy(X).flatten(1).to(inputs["components"].device)
    return reference.project(pixels, inputs["components"].double()[None])[0][0]


def _work(size: Size) -> Work:
    """Count what the projection needs; decoding is not arithmetic of ours."""
    return Work(items=project_work(size).items)


# JPEG ------------------------------------------------------------------------------------------


def _jpegs(size: Size, seed: int, device: torch.device) -> Inputs:
    """Name the sample of the paper's set over and over, or as large ones of the phantom."""
    from PIL import Image

    n, f = size.shape["n_samples"], size.shape["n_features"]
    pictures, components = _pictures(size, seed)
    folder, side = _folder(), size.options["jpeg_side"]
    sample = Path(os.environ.get("NNMF_CUDA_DATA", "none")) / "darabi-sample"
    files = sorted(sample.glob("*/*.jpg"))
    if not files or size.name == "smoke":
        files = [Path(folder.name) / f"{index}.jpg" for index in range(min(n, 36))]
        for file, picture in zip(files, pictures, strict=False):
            large = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
            large.convert("RGB").save(file, quality=90)
    return {
        "components": components.to(device),
        "files": files,
        "n": n,
        "folder": folder,
        "image_shape": (int(f**0.5), int(f**0.5)),
    }


def _by_pillow(file: Path, image_shape: tuple[int, int], *, scale: int = 1) -> NDArray[np.uint8]:
    """Decode colours, then make them grey; reduced while decoding where a scale is given."""
    from PIL import Image

    with Image.open(file) as image:
        if scale > 1:
            image.draft("L", (image.width // scale, image.height // scale))
        grey = image.convert("L").resize(image_shape[::-1], Image.Resampling.BILINEAR)
        return np.array(grey)


def _jpeg_truth(scale: int) -> Truth:
    def truth(inputs: Inputs) -> torch.Tensor:
        images = [_by_pillow(f, inputs["image_shape"], scale=scale) for f in inputs["files"]]
        rows = np.resize(np.arange(len(images)), inputs["n"])
        return _features(inputs, np.stack(images))[torch.from_numpy(rows)]

    return truth


def _repeated(inputs: Inputs) -> list[Path]:
    files: list[Path] = inputs["files"]
    n: int = inputs["n"]
    return (files * -(-n // len(files)))[:n]


def _colours_first(inputs: Inputs) -> Call:
    """Do as this package did before luma was decoded alone: the same threads, Pillow's pixels."""

    def lazy(file: Path) -> LazyImage:
        return LazyImage(file, lambda image_shape: _by_pillow(file, image_shape))

    return lambda: _extract(inputs, lambda: map(lazy, _repeated(inputs)), ReadOptions())


def _decoded(reading: ReadOptions) -> Implementation:
    def implementation(inputs: Inputs) -> Call:
        return lambda: _extract(inputs, lambda: _repeated(inputs), reading)

    return implementation


def _without_simplejpeg(inputs: Inputs) -> Call:
    def call() -> NDArray[np.float32]:
        with mock.patch.object(decoding, "_simplejpeg", return_value=None):
            return _extract(inputs, lambda: _repeated(inputs), ReadOptions())

    return call


EXTRACT_JPEGS = Case(
    op="extract_jpegs",
    sizes=(
        Size(
            "640 x 640",
            {"n_samples": 3600, "n_features": PIXELS, "n_components": 15},
            "uint8",
            {"jpeg_side": 640},
        ),
    ),
    smoke=(
        Size(
            "smoke",
            {"n_samples": 7, "n_features": 256, "n_components": 5},
            "uint8",
            {"jpeg_side": 64},
        ),
    ),
    inputs=_jpegs,
    truth=_jpeg_truth(1),
    implementations={
        "reference": _colours_first,
        "ours": _decoded(ReadOptions()),
        "ours, without simplejpeg": _without_simplejpeg,
        "ours, --decode fast": _decoded(ReadOptions(decode="fast")),
    },
    # Of 640 or 64 pixels a quarter is still larger than the result.
    truths={"ours, --decode fast": _jpeg_truth(4)},
    tolerance={"float32": 1e-4},
    work=_work,
)


# Stacks ----------------------------------------------------------------------------------------


def _stacks(size: Size, seed: int, device: torch.device) -> Inputs:
    pictures, components = _pictures(size, seed)
    folder = _folder()
    np.save(Path(folder.name) / "images.npy", pictures)
    return {
        "components": components.to(device),
        "images": pictures,
        "folder": folder,
        "image_shape": pictures.shape[1:],
    }


def _of(name: str) -> Implementation:
    """Extract from the file or folder of that name."""

    def implementation(inputs: Inputs) -> Call:
        path = Path(inputs["folder"].name) / name
        return lambda: _extract(inputs, lambda: iter_images(path), ReadOptions())

    return implementation


def _written(write: Callable[[Path, NDArray[Any]], None], then: Implementation) -> Implementation:
    """Have the pixels written before, in a format that not everybody can read."""

    def implementation(inputs: Inputs) -> Call:
        write(Path(inputs["folder"].name), inputs["images"])
        return then(inputs)

    return implementation


def _write_zarr(folder: Path, images: NDArray[Any]) -> None:
    import zarr

    if not (folder / "images.zarr").exists():
        chunks = (min(64, len(images)), *images.shape[1:])
        array = zarr.create_array(
            folder / "images.zarr", shape=images.shape, dtype=images.dtype, chunks=chunks
        )
        array[...] = images


def _write_hdf5(folder: Path, images: NDArray[Any]) -> None:
    import h5py

    with h5py.File(folder / "images.h5", "w") as file:
        file["images"] = images


def _zarr_alone(inputs: Inputs) -> Call:
    import zarr

    array: Any = zarr.open_array(Path(inputs["folder"].name) / "images.zarr", mode="r")

    def call() -> NDArray[np.int64]:
        blocks = (array[start : start + 1024] for start in range(0, array.shape[0], 1024))
        return np.concatenate([np.asarray(b).sum((1, 2), dtype=np.int64) for b in blocks])

    return call


def _projection(inputs: Inputs) -> Call:
    """Project images that are in memory, in the batches of `extract`."""
    components = inputs["components"]
    batches = torch.from_numpy(inputs["images"]).flatten(1).split(_BATCH)
    return lambda: torch.cat([ops.project(b.to(components.device), components) for b in batches])


def _in_plain_torch(inputs: Inputs) -> Call:
    components = inputs["components"]
    path = Path(inputs["folder"].name) / "images.npy"

    def call() -> torch.Tensor:
        X = torch.from_numpy(np.load(path)).flatten(1).to(components.device)
        return reference.project(X, components[None])[0][0]

    return call


def _sums(inputs: Inputs) -> NDArray[np.int64]:
    sums: NDArray[np.int64] = inputs["images"].sum((1, 2), dtype=np.int64)
    return sums


EXTRACT_STACKS = Case(
    op="extract_stacks",
    sizes=(Size("many", {"n_samples": 8192, "n_features": PIXELS, "n_components": 15}, "uint8"),),
    smoke=(Size("smoke", {"n_samples": 9, "n_features": 256, "n_components": 5}, "uint8"),),
    inputs=_stacks,
    truth=lambda inputs: _features(inputs, inputs["images"]),
    implementations={
        "reference": _in_plain_torch,
        "ours": _of("images.npy"),
        "ours, HDF5": _written(_write_hdf5, _of("images.h5")),
        "ours, Zarr": _written(_write_zarr, _of("images.zarr")),
        "ours, projection alone": _projection,
        "zarr alone": _written(_write_zarr, _zarr_alone),
    },
    truths={"zarr alone": _sums},
    tolerance={"float32": 1e-4},
    work=_work,
)


# DICOM and NIfTI -------------------------------------------------------------------------------


def _volumes(size: Size, seed: int, device: torch.device) -> Inputs:
    """Make 12-bit slices; what reads them writes the files, so that no library is a must."""
    pictures, components = _pictures(size, seed)
    noise = np.random.default_rng(seed).integers(0, 16, size=pictures.shape, dtype=np.uint16)
    return {
        "components": components.to(device),
        "images": pictures.astype(np.uint16) * 16 + noise,
        "folder": _folder(),
        "image_shape": pictures.shape[1:],
    }


def _write_dicom(folder: Path, images: NDArray[Any]) -> None:
    """Write a file a slice, `_SLICES` of them a series."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

    if (folder / "dicom").exists():
        return
    for index, image in enumerate(images):
        patient, number = divmod(index, _SLICES)
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = MRImageStorage
        slice_.SOPInstanceUID = UID(f"1.2.9.{index + 1}")
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID
        slice_.PatientID, slice_.SeriesInstanceUID = f"P{patient}", f"1.2.3.{patient + 1}"
        slice_.InstanceNumber = number + 1
        slice_.ImagePositionPatient = [0, 0, number]
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.Rows, slice_.Columns = image.shape
        slice_.SamplesPerPixel, slice_.PixelRepresentation = 1, 0
        slice_.PhotometricInterpretation = "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 12, 11
        slice_.PixelData = image.tobytes()
        file = folder / "dicom" / f"{patient:04d}" / f"{number:04d}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        slice_.save_as(file, enforce_file_format=True)


def _write_nifti(folder: Path, images: NDArray[Any]) -> None:
    """Write volumes of `_SLICES` slices, so that they are seen as they are in the array."""
    import nibabel

    if (folder / "nifti").exists():
        return
    (folder / "nifti").mkdir()
    for start in range(0, len(images), _SLICES):
        # Rows run from front to back, columns from the patient's right to the left.
        voxels = images[start : start + _SLICES].transpose(2, 1, 0)[:, ::-1]
        affine = np.diag([-1.0, 1.0, 1.0, 1.0])
        volume = nibabel.Nifti1Image(voxels, affine)
        nibabel.save(volume, folder / "nifti" / f"case{start // _SLICES:04d}.nii")


def _windowed(name: str) -> Implementation:
    reading = ReadOptions(window=f"0:{_WHITE}")

    def implementation(inputs: Inputs) -> Call:
        path = Path(inputs["folder"].name) / name
        return lambda: _extract(inputs, lambda: iter_images(path, reading=reading), reading)

    return implementation


def _pydicom_alone(inputs: Inputs) -> Call:
    import pydicom

    files = sorted((Path(inputs["folder"].name) / "dicom").rglob("*.dcm"))
    return lambda: np.array(
        [pydicom.dcmread(file).pixel_array.sum(dtype=np.int64) for file in files]
    )


def _nibabel_alone(inputs: Inputs) -> Call:
    import nibabel

    files = sorted((Path(inputs["folder"].name) / "nifti").glob("*.nii"))
    return lambda: np.concatenate(
        [np.asarray(nibabel.load(file).dataobj).sum((0, 1), dtype=np.int64) for file in files]
    )


def _in_unit_range(inputs: Inputs) -> NDArray[np.float64]:
    scaled: NDArray[np.float64] = inputs["images"] / float(_WHITE)
    return scaled


def _floats_in_plain_torch(inputs: Inputs) -> Call:
    """Project slices that are in memory, in float32."""
    components = inputs["components"]

    def call() -> torch.Tensor:
        X = torch.from_numpy(_in_unit_range(inputs)).float().flatten(1).to(components.device)
        return reference.project(X, components[None])[0][0]

    return call


EXTRACT_VOLUMES = Case(
    op="extract_volumes",
    sizes=(
        Size("slices", {"n_samples": 10_000, "n_features": PIXELS, "n_components": 15}, "uint16"),
    ),
    smoke=(Size("smoke", {"n_samples": 9, "n_features": 256, "n_components": 5}, "uint16"),),
    inputs=_volumes,
    truth=lambda inputs: _features(inputs, _in_unit_range(inputs)),
    implementations={
        "reference": _floats_in_plain_torch,
        "ours": _written(_write_dicom, _windowed("dicom")),
        "ours, NIfTI": _written(_write_nifti, _windowed("nifti")),
        "pydicom alone": _written(_write_dicom, _pydicom_alone),
        "nibabel alone": _written(_write_nifti, _nibabel_alone),
    },
    truths={"pydicom alone": _sums, "nibabel alone": _sums},
    tolerance={"float32": 1e-4},
    work=_work,
)

CASES = (EXTRACT_JPEGS, EXTRACT_STACKS, EXTRACT_VOLUMES)
