"""The commands `nnmf-cuda extract` and `nnmf-cuda predict`: images and a saved run."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveInt

from nnmf_cuda.cli.options import DeviceOption, say, show
from nnmf_cuda.data.names import harmless, on_one_line
from nnmf_cuda.data.reading import ReadOptions

if TYPE_CHECKING:
    from nnmf_cuda.pipeline.artifacts import TrainedModel

IMAGES = ("images", "Image files, folders that are searched for them, or an .npz of images.")


@dataclass(frozen=True, kw_only=True)
class ImagesAndModel(ReadOptions, DeviceOption):
    """Of the commands that take images and what a run has saved."""

    images: list[str]
    model: str
    """The --out directory of `nnmf-cuda run`."""
    batch_size: PositiveInt = 256
    """Images at once."""

    def load(self) -> TrainedModel:
        """Return the saved model on the device that was asked for."""
        from nnmf_cuda.pipeline.artifacts import load_model
        from nnmf_cuda.pipeline.environment import resolve_device

        return load_model(self.model, device=resolve_device(self.device))


@dataclass(frozen=True, kw_only=True)
class Extract(ImagesAndModel):
    """Write the NNMF features of images.

    Columns are the raw NNLS coefficients, one a component.
    """

    out: str
    """features.npy (streamed), .npz or .parquet."""
    normalize: bool = False
    """Write the classifier's features instead: selected and L2-normalised."""
    overwrite: bool = False
    """Replace --out."""


@dataclass(frozen=True, kw_only=True)
class Predict(ImagesAndModel):
    """Print class probabilities of images as CSV, by the defended model.

    Every image gets the noise of --seed, so answers repeat; the robustness of a run was measured
    with fresh noise and does not describe noise that an attacker knows. Not a medical device.
    """

    undefended: bool = False
    """Ask the classifier alone, without the defence."""
    seed: int = 0
    """Seed of the defence's noise."""


def extract(options: Extract) -> None:
    """Write the features of images."""
    from nnmf_cuda.data import iter_images
    from nnmf_cuda.pipeline.extract import extract_to_file

    n_written, n_failed = extract_to_file(
        iter_images(options.images, reading=options),
        options.load().extractor,
        Path(options.out),
        normalize=options.normalize,
        reading=options,
        on_error=options.on_error,
        batch_size=options.batch_size,
        overwrite=options.overwrite,
        progress=True,
    )
    show(f"{n_written} images: {options.out}")
    if n_failed:
        say(f"{n_failed} images could not be read: {options.out}.failed.txt")


def predict(options: Predict) -> None:
    """Print a line of class probabilities for each image."""
    import torch

    from nnmf_cuda.data import iter_image_batches, iter_images
    from nnmf_cuda.pipeline.extract import computed_batches

    model = options.load()
    names = [harmless(name, keep="") for name in model.label_names]
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["file", "label", *(f"p({name})" for name in names)])
    batches = iter_image_batches(
        iter_images(options.images, reading=options),
        batch_size=options.batch_size,
        image_shape=model.image_shape,
        reading=options,
        progress=True,
    )
    for batch, probabilities in computed_batches(
        batches,
        model.answerer(defended=not options.undefended, seed=options.seed),
        device=model.device,
        n_columns=len(model.label_names),
        dtype=torch.float64,
    ):
        for file, row in zip(batch.files, probabilities, strict=True):
            label = names[int(row.argmax())]
            table.writerow([on_one_line(file), label, *(f"{p:.6f}" for p in row)])
    if model.info.synthetic:
        say("this model was trained on synthetic images: its answers mean nothing on real ones")
