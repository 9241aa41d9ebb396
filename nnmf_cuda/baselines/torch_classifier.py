"""What every image network of the comparison has in common: its training, and the way to pixels."""

from __future__ import annotations

import copy
import importlib
from abc import abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional

from nnmf_cuda.baselines.augmentation import Augmentation
from nnmf_cuda.baselines.base import ImageClassifier, LabelledImages, PixelNetwork
from nnmf_cuda.data.dataset import check_pixels
from nnmf_cuda.training.epochs import Settings, Task
from nnmf_cuda.training.loop import TrainingResult, fit, initialised

_ROWS = 128
"""Images that answer at once."""


@dataclass(kw_only=True, eq=False, repr=False)
class TorchImageClassifier(ImageClassifier):
    """A network of images, trained from scratch by AdamW in one cycle of the learning rate.

    A subclass says by `build` which network; its own settings are further fields of the class,
    which must be a dataclass with ``kw_only=True, eq=False, repr=False``. Images are brought to
    `image_size` inside the network, so that gradients reach the pixels that were given, and are
    centred and scaled by the mean and the deviation of the training images.

    With validation images the epoch is kept that has the highest accuracy on them, then the lowest
    loss; without, the last one.

    Parameters
    ----------
    epochs : int, default=12
        Times that every training image is seen.
    batch_size : int, default=32
        Images a step.
    lr : float, default=1e-3
        Largest learning rate; it rises in the first tenth of the steps, then falls to 0.
    weight_decay : float, default=1e-2
        Share of the weights times `lr` by which each step shrinks them.
    label_smoothing : float, default=0
        Share of each label that is spread evenly over the classes, in [0, 1).
    ema_decay : float, default=0.99
        Decay of the moving average of the weights; 0 takes the last step's weights.
    image_size : int or None, default=64
        Height and width that the network sees; None leaves images as they are.
    augmentation : Augmentation or None
        How training images are changed at random in every epoch; None leaves them.
    random_state : int, default=0
        Seed of weights, order and augmentation.
    device : torch.device or str, default="cpu"
        Where it is trained and answers.
    progress : bool, default=False
        Show a progress bar, if standard error is a terminal.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_parameters_ : int
    network_ : nn.Module
        Float images (n, height, width) to logits (n, n_classes).
    history_ : dict of str to list of float
        As of `nnmf_cuda.training.TrainingResult`.
    best_epoch_ : int
        Index of the epoch that was kept.
    """

    epochs: int = 12
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    ema_decay: float = 0.99
    image_size: int | None = 64
    augmentation: Augmentation | None = Augmentation()
    random_state: int = 0
    device: torch.device | str = "cpu"
    progress: bool = False

    @abstractmethod
    def build(self, n_classes: int, image_shape: tuple[int, int]) -> nn.Module:
        """Return an untrained network of images (n, 1, height, width) to logits (n, n_classes).

        `image_shape` is what it sees. Weights are drawn from torch's global generator, which is
        seeded.
        """

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return what is drawn for the images (n, height, width) of an epoch, images first.

        What it returns, with as many rows, goes to `loss`.
        """
        if self.augmentation is None:
            return ()
        return (self.augmentation.draw(len(images), generator).to(images.device),)

    def loss(self, network: nn.Module, images: Tensor, y: Tensor, *drawn: Tensor) -> Tensor:
        """Return the mean loss of a batch.

        Images (n, height, width) have the size that the network sees, y (n,) counts from 0.
        """
        seen = images if self.augmentation is None else self.augmentation(images, drawn[0])
        return functional.cross_entropy(network(seen), y, label_smoothing=self.label_smoothing)

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Train on images X (n_images, height, width) and labels y (n_images,).

        Raises
        ------
        TypeError, ValueError
            If images, labels or settings do not fit, or the loss stops being finite.
        """
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.image_size is not None and self.image_size < 8:
            raise ValueError(f"image_size must be at least 8 pixels, got {self.image_size}")
        images = as_images("X", X)
        self.classes_, coded = coded_labels(y, len(images))
        shape = (images.shape[1], images.shape[2])
        size = shape if self.image_size is None else (self.image_size, self.image_size)
        x = resized(images, size).to(self.device)
        labels = coded.to(self.device)
        deviation, mean = torch.std_mean(x, correction=0)
        built = initialised(
            lambda: Standardised(self.build(len(self.classes_), size), mean, deviation),
            self.random_state,
        )
        watched = None
        if validation is not None:
            seen = resized(as_images("validation.images", validation.images, shape), size)
            of_classes = known_labels(self.classes_, validation.labels, len(seen))
            watched = seen.to(self.device), of_classes.to(self.device)
        # Channels last: the faster order on a CPU.
        model = built.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        result = self._train(model, x, labels, watched)
        self.history_, self.best_epoch_ = result.history, result.best_epoch
        self.network_ = Resizing(result.model, size).requires_grad_(False).eval()
        self.n_parameters_ = sum(p.numel() for p in result.model.parameters())
        self.image_shape_ = shape
        return self

    def _train(
        self, model: nn.Module, x: Tensor, y: Tensor, watched: tuple[Tensor, Tensor] | None
    ) -> TrainingResult[nn.Module]:
        # Batch normalisation has no deviation of one image alone.
        n_seen = len(x) - (len(x) > self.batch_size and len(x) % self.batch_size == 1)

        def draw_epoch(generator: torch.Generator) -> tuple[Tensor, ...]:
            order = torch.randperm(len(x), generator=generator)[:n_seen].to(x.device)
            rows = x[order]
            return rows, y[order], *self.draw(rows, generator)

        def evaluate(network: nn.Module) -> dict[str, Tensor]:
            assert watched is not None
            logits = torch.cat([network(rows) for rows in watched[0].split(_ROWS)])
            return {
                "valid_loss": functional.cross_entropy(logits, watched[1]),
                "valid_accuracy": (logits.argmax(1) == watched[1]).float().mean(),
            }

        def rank(scores: dict[str, float]) -> tuple[float, ...]:
            return scores["valid_accuracy"], -scores["valid_loss"]

        settings = Settings(
            type(self).__name__,
            self.epochs,
            self.lr,
            self.batch_size,
            self.ema_decay,
            self.random_state,
            self.progress,
            weight_decay=self.weight_decay,
            one_cycle=True,
        )
        return fit(
            Task(model, self.loss),
            settings,
            draw_epoch=draw_epoch,
            evaluate=None if watched is None else evaluate,
            rank=None if watched is None else rank,
        )

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return class probabilities (n_images, n_classes), in the order of `classes_`."""
        check_is_fitted(self, "network_")
        images = as_images("X", X, self.image_shape_)
        with torch.inference_mode():
            logits = [self.network_(rows.to(self.device)) for rows in images.split(_ROWS)]
        probabilities: NDArray[np.float64] = torch.cat(logits).double().softmax(1).cpu().numpy()
        return probabilities

    def pixel_network(self) -> PixelNetwork:
        """Return a copy of the network, which an attack can differentiate through."""
        check_is_fitted(self, "network_")
        return DifferentiableNetwork(copy.deepcopy(self.network_))


class Standardised(nn.Module):
    """A network of one channel behind the subtraction of a mean and the division by a deviation."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean.clone())
        self.register_buffer("deviation", deviation.clamp_min(1e-3))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, n_classes) of images (n, height, width)."""
        channel = ((images - self.mean) / self.deviation).unsqueeze(1)
        logits: Tensor = self.network(channel.contiguous(memory_format=torch.channels_last))
        return logits


class Resizing(nn.Module):
    """A network behind `resized`."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, n_classes) of images (n, height, width) of any size."""
        logits: Tensor = self.network(resized(images, self.size))
        return logits


class DifferentiableNetwork(PixelNetwork):
    """Any network of float images (n, height, width), in evaluation mode and without training."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n_images, n_classes)."""
        logits: Tensor = self.network(images)
        return logits


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (n, height, width) of another size, differentiably.

    Whole numbers of pixels are averaged; else it is bilinear, over as many pixels as one new pixel
    has below it.
    """
    height, width = images.shape[1:]
    if (height, width) == size:
        return images
    channel = images.unsqueeze(1)
    if height % size[0] == 0 and width % size[1] == 0:
        small = functional.avg_pool2d(channel, (height // size[0], width // size[1]))
    else:
        small = functional.interpolate(channel, size, mode="bilinear", antialias=True)
    return small.squeeze(1)


def as_images(name: str, values: ArrayLike, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return images (n, height, width) as float32 in [0, 1]; raise unless they are such images.

    `shape` is the height and width that they must have, those of the images of `fit`.
    """
    array = np.asarray(values)
    check_pixels(array, name=name)
    if shape is not None and array.shape[1:] != tuple(shape):
        raise ValueError(
            f"{name} have shape {array.shape}, but the images of fit were"
            f" {shape[0]} x {shape[1]}: resize them to that"
        )
    images = torch.from_numpy(np.ascontiguousarray(array))
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def coded_labels(y: ArrayLike, n_images: int) -> tuple[NDArray[np.int64], Tensor]:
    """Return the classes, and labels that count from 0."""
    labels = np.asarray(y)
    if labels.shape != (n_images,):
        raise ValueError(f"y must have shape ({n_images},), one label an image; got {labels.shape}")
    classes, coded = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y holds one class only, {classes[0]}; give images of at least two")
    return classes, torch.from_numpy(coded.astype(np.int64))


def known_labels(classes: NDArray[np.int64], y: ArrayLike, n_images: int) -> Tensor:
    """Return validation labels as indices of `classes`."""
    labels = np.asarray(y)
    if labels.shape != (n_images,):
        raise ValueError(
            f"validation.labels must have shape ({n_images},), one label an image; got"
            f" {labels.shape}"
        )
    strange = np.setdiff1d(labels, classes)
    if len(strange):
        raise ValueError(
            f"validation.labels hold {strange[0]}, which no training image has: leave such images"
            " out, or train on some"
        )
    return torch.from_numpy(np.searchsorted(classes, labels).astype(np.int64))


def need(module: str) -> ModuleType:
    """Import a module of the extra `baselines`; raise ImportError that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} could not be imported ({error}): pip install 'nnmf-cuda[baselines]'"
        ) from error
