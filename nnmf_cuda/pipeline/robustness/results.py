"""What an evaluation writes beside a run, and the images that it attacks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnmf_cuda.data import ImageDataset, load_dataset
from nnmf_cuda.pipeline.artifacts import TrainedModel
from nnmf_cuda.pipeline.robustness.evaluation import Robustness
from nnmf_cuda.pipeline.robustness.subject import Subject
from nnmf_cuda.pipeline.run_directory import write_text

__all__ = ["pixels_of_test", "test_images", "write_results"]


def test_images(home: Path, data: str | None, subject: Subject) -> Tensor:
    """Return the run's test images (n, height * width) in [0, 1], on the model's device.

    `data` is a path, or None for the built-in phantom.

    Raises
    ------
    ValueError
        If the images are not those of the run.
    """
    settings: dict[str, Any] = subject.model.info.get("data", {})
    names = ("classes", "label_key", "split_by", "test_fold")
    dataset = load_dataset(
        data,
        seed=subject.seed,
        image_shape=subject.model.image_shape,
        **{name: settings[name] for name in names if name in settings},
    )
    if dataset.sha256() != subject.model.info["data_sha256"]:
        raise ValueError(
            f"--data {data} does not hold the images, labels and split that the model in {home} was"
            f" trained and tested on ({subject.model.info['source']}): give the same data"
        )
    return pixels_of_test(dataset, subject.model)


def pixels_of_test(dataset: ImageDataset, model: TrainedModel) -> Tensor:
    """Return the test images (n, height * width) in [0, 1], float32 on the model's device."""
    pixels = torch.from_numpy(dataset.matrix("test"))
    if pixels.dtype == torch.uint8:
        pixels = pixels.float() / 255
    return pixels.to(model.device, torch.float32)


def write_results(home: Path, result: Robustness, *, named: Path | None = None) -> dict[str, Path]:
    """Write `robustness.json`, `robustness.npz` and `robustness.html`; returns their paths.

    `named` is what the page calls the directory.
    """
    from nnmf_cuda.report.robustness import robustness_page

    page = robustness_page(result.content, examples=result.examples, home=named)
    texts = {"robustness.html": page, "robustness.json": json.dumps(result.content, indent=2)}
    arrays = home / "robustness.npz"
    partial = arrays.with_name(".robustness.partial.npz")
    np.savez(partial, **result.arrays())  # type: ignore[arg-type]
    os.replace(partial, arrays)
    for name, text in texts.items():
        write_text(home / name, text)
    return {
        "numbers": home / "robustness.json",
        "points": arrays,
        "page": home / "robustness.html",
    }
