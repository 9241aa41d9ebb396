"""Plain convolutional networks on images: those of Hossain et al., and of Almuhaimeed et al."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from nnmf_cuda.baselines.augmentation import Augmentation
from nnmf_cuda.baselines.torch_classifier import TorchImageClassifier


@dataclass(kw_only=True, eq=False, repr=False)
class HossainNetwork(TorchImageClassifier):
    """Five layers: convolution, max-pooling, flattening, and two dense ones.

    As the paper describes the network of Hossain et al. [1]_; images are not augmented.

    Parameters
    ----------
    n_filters : int, default=32
        Filters of the convolution, of 3 x 3 pixels.
    n_hidden : int, default=64
        Units of the first dense layer.
    epochs, batch_size, lr, weight_decay, label_smoothing, ema_decay, image_size, augmentation, \
random_state, device, progress
        As of `TorchImageClassifier`.

    References
    ----------
    .. [1] Hossain, Shishir, Ashraf, Al Nasim & Shah (2019), Brain tumor detection using
       convolutional neural network, ICASERT.
    """

    n_filters: int = 32
    n_hidden: int = 64
    epochs: int = 8
    augmentation: Augmentation | None = None

    def build(self, n_classes: int, image_shape: tuple[int, int]) -> nn.Module:
        """Return the five layers."""
        n_units = self.n_filters * (image_shape[0] // 2) * (image_shape[1] // 2)
        return nn.Sequential(
            nn.Conv2d(1, self.n_filters, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(n_units, self.n_hidden),
            nn.ReLU(),
            nn.Linear(self.n_hidden, n_classes),
        )


@dataclass(kw_only=True, eq=False, repr=False)
class AlmuhaimeedNetwork(TorchImageClassifier):
    """Blocks of convolution, batch normalisation, ReLU and max-pooling, on augmented images.

    The paper says of Almuhaimeed et al. [1]_ no more than "convolutional network with data
    augmentation"; their own article has a Swin transformer, for which see `AlmuhaimeedSwin`.

    Parameters
    ----------
    widths : sequence of int, default=(16, 32, 64, 128)
        Filters of each block; each halves height and width.
    n_hidden : int, default=64
        Units of the dense layer before the last one.
    epochs, batch_size, lr, weight_decay, label_smoothing, ema_decay, image_size, augmentation, \
random_state, device, progress
        As of `TorchImageClassifier`.

    References
    ----------
    .. [1] Almuhaimeed et al. (2025), Frontiers in Medicine 12, 1635796.
    """

    widths: Sequence[int] = (16, 32, 64, 128)
    n_hidden: int = 64
    epochs: int = 20
    lr: float = 3e-3

    def build(self, n_classes: int, image_shape: tuple[int, int]) -> nn.Module:
        """Return the blocks and two dense layers."""
        return nn.Sequential(
            *blocks_and_dense(1, self.widths, image_shape, self.n_hidden, n_classes)
        )


def blocks_and_dense(
    n_in: int,
    widths: Sequence[int],
    image_shape: tuple[int, int],
    n_hidden: int,
    n_classes: int,
) -> list[nn.Module]:
    """Return blocks that halve images of `n_in` channels each, then two dense layers to logits.

    A block is convolution to one of the `widths`, batch normalisation, ReLU and max-pooling. Raises
    ValueError where nothing is left of the images.
    """
    height, width = (side >> len(widths) for side in image_shape)
    if min(height, width) < 1:
        raise ValueError(
            f"widths={tuple(widths)} halve images of {image_shape[0]} x {image_shape[1]}"
            f" {len(widths)} times: take fewer, or a larger image_size"
        )
    layers: list[nn.Module] = []
    for n_out in widths:
        layers += [
            nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        n_in = n_out
    return [
        *layers,
        nn.Flatten(),
        nn.Linear(n_in * height * width, n_hidden),
        nn.ReLU(),
        nn.Linear(n_hidden, n_classes),
    ]
