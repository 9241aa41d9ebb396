"""`extract`: image files on disk to a file of features, with its two halves beside it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.case import (
    Call,
    Case,
    Inputs,
    NotApplicableError,
    Size,
    Work,
)
from bench.cases.projection import phantom_and_components, project_work
from bench.inputs import PIXELS
from nnmf_cuda import reference

_BATCH = 256


def _inputs(size: Size, seed: int, device: torch.device) -> Inputs:
    """Write images as PNG; the folder lives as long as the inputs."""
    from PIL import Image

    n, f, k = (size.shape[name] for name in ("n_samples", "n_features", "n_components"))
    images, components = phantom_and_components(k, f, seed)
    side = int(f**0.5)
    pictures = images.repeat(-(-n // len(images)), 1)[:n].reshape(n, side, side).numpy()
    folder = tempfile.TemporaryDirectory(prefix="nnmf-cuda-bench-")
    files = [Path(folder.name) / f"{index:05d}.png" for index in range(n)]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    return {
        "components": components.to(device),
        "files": files,
        "folder": folder,
        "images": pictures,
        "image_shape": (side, side),
    }


def _truth(inputs: Inputs) -> torch.Tensor:
    X = torch.from_numpy(inputs["images"]).flatten(1).to(inputs["components"].device)
    return reference.project(X, inputs["components"].double()[None])[0][0]


def _reference(inputs: Inputs) -> Call:
    """Decode one file after the other with Pillow, then project in plain torch."""
    from PIL import Image

    components = inputs["components"]

    def call() -> torch.Tensor:
        pictures = np.stack([np.asarray(Image.open(file)) for file in inputs["files"]])
        X = torch.from_numpy(pictures).flatten(1).to(components.device)
        return reference.project(X, components[None])[0][0]

    return call


def _scipy(inputs: Inputs) -> Call:
    """Decode one file and solve for it with SciPy, one after the other."""
    from PIL import Image
    from scipy.optimize import nnls

    if inputs["components"].device.type != "cpu":
        raise NotApplicableError("runs on the CPU only")
    basis = np.ascontiguousarray(inputs["components"].numpy().T, dtype=np.float64)

    def features(file: Path) -> NDArray[np.float64]:
        pixels = np.asarray(Image.open(file)).ravel().astype(np.float64) / 255
        found: NDArray[np.float64] = nnls(basis, pixels)[0]
        return found

    return lambda: np.stack([features(file) for file in inputs["files"]])


def _ours(inputs: Inputs) -> Call:
    """Do what `nnmf-cuda extract` does, writing an .npy."""
    from nnmf_cuda.models import FeatureExtractor
    from nnmf_cuda.pipeline.extract import extract_to_file

    components = inputs["components"]
    selected = torch.arange(len(components), device=components.device)
    extractor = FeatureExtractor(components, selected, image_shape=inputs["image_shape"])
    out = Path(inputs["folder"].name) / "features.npy"

    def call() -> NDArray[np.float32]:
        extract_to_file(inputs["files"], extractor, out, batch_size=_BATCH, overwrite=True)
        features: NDArray[np.float32] = np.load(out, mmap_mode="r")
        return features

    return call


def _decoding(inputs: Inputs) -> Call:
    """Decode the files as `extract` does, and drop the images."""
    from nnmf_cuda.data import iter_image_batches

    options = {"batch_size": _BATCH, "image_shape": inputs["image_shape"]}

    def call() -> NDArray[np.int64]:
        sums = [
            batch.images.sum((1, 2), dtype=np.int64)
            for batch in iter_image_batches(inputs["files"], **options)
        ]
        return np.concatenate(sums)

    return call


def _projection(inputs: Inputs) -> Call:
    """Project decoded images in the batches of `extract`."""
    from nnmf_cuda import ops

    components = inputs["components"]
    X = torch.from_numpy(inputs["images"]).flatten(1)

    def call() -> torch.Tensor:
        batches = X.split(_BATCH)
        return torch.cat(
            [ops.project(batch.to(components.device), components) for batch in batches]
        )

    return call


def _work(size: Size) -> Work:
    """Count what the projection needs; decoding is not arithmetic of ours."""
    return Work(items=project_work(size).items)


EXTRACT = Case(
    op="extract",
    sizes=(Size("png", {"n_samples": 512, "n_features": PIXELS, "n_components": 15}, "uint8"),),
    smoke=(Size("smoke", {"n_samples": 9, "n_features": 256, "n_components": 5}, "uint8"),),
    inputs=_inputs,
    truth=_truth,
    implementations={
        "reference": _reference,
        "ours": _ours,
        "ours, decoding alone": _decoding,
        "ours, projection alone": _projection,
        "pillow and scipy nnls": _scipy,
    },
    truths={"ours, decoding alone": lambda inputs: inputs["images"].sum((1, 2), dtype=np.int64)},
    tolerance={"float32": 1e-4},
    work=_work,
)

CASES = (EXTRACT,)
