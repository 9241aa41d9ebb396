"""Chan et al. (2020) for slices: where the components of an image are active, beside the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from nnmf_cuda import ops
from nnmf_cuda.baselines.base import LabelledImages
from nnmf_cuda.baselines.convolutional import blocks_and_dense
from nnmf_cuda.baselines.torch_classifier import TorchImageClassifier, as_images, resized
from nnmf_cuda.nnmf import NNMF


@dataclass(kw_only=True, eq=False, repr=False)
class ActivationMapNetwork(TorchImageClassifier):
    """A shallow convolutional network of an image and of the maps of its components.

    An NNMF of the training images gives components H (n_components, pixels). The amounts w of an
    image x are exact non-negative least squares, and its maps ``w[k] * H[k]``: how much of each
    pixel is due to each component, a soft location. They are further channels of the image. In [1]_
    an NMF's activations in time make strong labels of weak ones for sounds; here the places in a
    slice stand for the times.

    Parameters
    ----------
    n_components : int, default=8
        Of the NNMF.
    nnmf_max_iter : int, default=100
        Its iterations (HALS, Frobenius norm, whose maps are what least squares find again).
    widths : sequence of int, default=(16, 32)
        Filters of each convolution; each is followed by max-pooling that halves height and width.
    n_hidden : int, default=32
        Units of the dense layer before the last one.
    epochs, batch_size, lr, weight_decay, label_smoothing, ema_decay, image_size, augmentation, \
random_state, device, progress
        As of `TorchImageClassifier`. Components are those of images that are not augmented.

    Attributes
    ----------
    components_ : Tensor of shape (n_components, n_pixels)
        H, of images of `image_size`; counted in `n_parameters_`.

    Notes
    -----
    Differentiable to pixels: through the least squares by implicit differentiation
    (:func:`nnmf_cuda.ops.project`).

    References
    ----------
    .. [1] Chan et al. (2020), arXiv:2001.07874.
    """

    n_components: int = 8
    nnmf_max_iter: int = 100
    widths: Sequence[int] = (16, 32)
    n_hidden: int = 32

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Factorise images X (n_images, height, width), then train on them and labels y.

        Raises
        ------
        TypeError, ValueError
            If images, labels or settings do not fit, or the loss stops being finite.
        """
        images = as_images("X", X)
        if self.image_size is not None:
            images = resized(images, (self.image_size, self.image_size))
        self.components_ = components_for(self, images.flatten(1))
        self._deviation, self._mean = torch.std_mean(images, correction=0)
        super().fit(X, y, validation=validation)
        self.n_parameters_ += self.components_.numel()
        return self

    def build(self, n_classes: int, image_shape: tuple[int, int]) -> nn.Module:
        """Return maps, convolutions and two dense layers."""
        n_in = 1 + len(self.components_)
        return nn.Sequential(
            WithMaps(self.components_, self._mean, self._deviation.clamp_min(1e-3)),
            nn.BatchNorm2d(n_in),  # maps are of any scale
            *blocks_and_dense(n_in, self.widths, image_shape, self.n_hidden, n_classes),
        )


class WithMaps(nn.Module):
    """Adds to standardised images the maps of components, as channels.

    Parameters
    ----------
    components : Tensor of shape (n_components, n_pixels)
        Not negative.
    mean, deviation : Tensor of shape ()
        By which images in [0, 1] were standardised.
    """

    components: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, components: Tensor, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("components", components.clone())
        self.register_buffer("mean", mean.clone())
        self.register_buffer("deviation", deviation.clone())

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, 1 + n_components, height, width) of images (n, 1, height, width)."""
        pixels = (images * self.deviation + self.mean).flatten(1)
        amounts = ops.project(pixels, self.components)
        places = self.components.unflatten(1, images.shape[2:])
        return torch.cat([images, amounts[:, :, None, None] * places], dim=1)


class _Factorising(Protocol):
    n_components: int
    nnmf_max_iter: int
    random_state: int
    device: torch.device | str
    progress: bool


def components_for(estimator: _Factorising, rows: Tensor) -> Tensor:
    """Return H (n_components, n_features) of rows (n, n_features), as an estimator's settings say.

    By HALS, for the Frobenius norm, in the float type of the rows.
    """
    nnmf = NNMF(
        estimator.n_components,
        solver="hals",
        beta_loss="frobenius",
        max_iter=estimator.nnmf_max_iter,
        tol=0,
        random_state=estimator.random_state,
        device=estimator.device,
        verbose=int(estimator.progress),
    )
    return torch.from_numpy(nnmf.fit(rows).components_)
