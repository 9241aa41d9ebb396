"""The commands `nnmf-cuda extract` and `nnmf-cuda predict`: images and a saved run."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jsonargparse.typing import NonNegativeInt, PositiveInt

from nnmf_cuda.cli.options import DeviceOption, say, show
from nnmf_cuda.data.names import harmless, on_one_line
from nnmf_cuda.data.reading import ReadOptions
from nnmf_cuda.distributed.crew import ALONE, Crew

if TYPE_CHECKING:
    from nnmf_cuda.pipeline.artifacts import TrainedModel

IMAGES = (
    "images",
    "Image files, folders that are searched for them, or anything else that run --data takes.",
)


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


_Options = TypeVar("_Options", bound=ImagesAndModel)


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
    seed: NonNegativeInt = 0
    """Seed of the defence's noise."""


def extract(options: Extract, crew: Crew = ALONE) -> None:
    """Write the features of images."""
    from nnmf_cuda.data import Account, iter_images
    from nnmf_cuda.pipeline.extract import extract_to_file

    account, model = Account(), options.load()
    options = _read_as_trained(options, model)
    account.n_read, n_failed = extract_to_file(
        iter_images(options.images, reading=options, account=account),
        model.extractor,
        Path(options.out),
        normalize=options.normalize,
        reading=options,
        on_error=options.on_error,
        batch_size=options.batch_size,
        overwrite=options.overwrite,
        progress=True,
        crew=crew,
    )
    show(f"{account.n_read} images: {options.out}")
    for line in account.lines():
        say(line)
    if n_failed:
        say(f"{n_failed} images could not be read: {options.out}.failed.txt")
    _say_what_fast_decoding_changes(options, model)


def predict(options: Predict) -> None:
    """Print a line of class probabilities for each image."""
    import torch

    from nnmf_cuda.data import Account, ReadFailure, iter_image_batches, iter_images
    from nnmf_cuda.data.images import failed_images
    from nnmf_cuda.data.reading import UNREADABLE
    from nnmf_cuda.pipeline.extract import computed_batches
    from nnmf_cuda.pipeline.feature_files import PassedColumns

    model, account = options.load(), Account()
    options = _read_as_trained(options, model)
    names = [harmless(name, keep="") for name in model.label_names]
    answers = ["label", *(f"p({name})" for name in names)]
    beside = PassedColumns(["file", *answers])
    table = csv.writer(sys.stdout, lineterminator="\n")
    failures: list[ReadFailure] = []
    batches = iter_image_batches(
        iter_images(options.images, reading=options, account=account),
        batch_size=options.batch_size,
        image_shape=model.image_shape,
        reading=options,
        # So that all are named, and the others answered.
        on_error="skip" if options.on_error == "skip" else "list",
        progress=True,
    )
    for batch, probabilities in computed_batches(
        batches,
        model.answerer(defended=not options.undefended, seed=options.seed),
        device=model.device,
        n_columns=len(model.label_names),
        dtype=torch.float64,
    ):
        failures += batch.failures
        cells = beside.cells(batch.columns)
        if len(batch.images) and not account.n_read:
            header = [harmless(name, keep="") for name in beside.header]
            table.writerow(["file", *header, *answers])
        account.n_read += len(batch.images)
        for file, said, row in zip(batch.files, cells, probabilities, strict=True):
            label = names[int(row.argmax())]
            shown = [harmless(cell, keep="") for cell in said]
            table.writerow([on_one_line(file), *shown, label, *(f"{p:.6f}" for p in row)])
    sys.stdout.flush()
    for failure in failures:
        account.skip(failure.file, UNREADABLE)
    for line in account.lines():
        say(line)
    _say_what_fast_decoding_changes(options, model)
    if model.info.synthetic:
        say("this model was trained on synthetic images: its answers mean nothing on real ones")
    if failures and (options.on_error == "raise" or not account.n_read):
        raise ValueError(failed_images(failures, account.n_read + len(failures)))


def _read_as_trained(options: _Options, model: TrainedModel) -> _Options:
    """Return the options with the window and axis of the model's own images, where none is given.

    In another window an image has other features, which no answer would tell.
    """
    trained = model.info.data
    if options.window is None and trained.window is not None:
        say(f"--window {trained.window}, in which the model's own images were read")
        options = replace(options, window=trained.window)
    elif options.window != trained.window and not model.info.synthetic:
        given = trained.window or "that of the files"
        say(f"Warning: --window {options.window}, but the model's own images were read in {given}")
    if options.axis != trained.axis == "axial":
        say(f"Warning: --axis {options.axis}, but the model's own slices were axial")
    elif options.axis != trained.axis:
        say(f"--axis {trained.axis}, along which the model's own images were read")
        options = replace(options, axis=trained.axis)
    return options


def _say_what_fast_decoding_changes(options: ImagesAndModel, model: TrainedModel) -> None:
    if options.decode == "exact":
        return
    from nnmf_cuda.pipeline.fast_decoding import fast_decoding_note

    say(fast_decoding_note(options.images, options, model.extractor))
