"""Lee & Pang (2020): what a convolutional network's activations are made of, as features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from nnmf_cuda import ops
from nnmf_cuda.baselines.activation_maps import components_for
from nnmf_cuda.baselines.base import LabelledImages
from nnmf_cuda.baselines.torch_classifier import (
    Resizing,
    Standardised,
    TorchImageClassifier,
    as_images,
    coded_labels,
)

_ROWS = 128
"""Images at once."""


@dataclass(kw_only=True, eq=False, repr=False)
class ActivationFactors(TorchImageClassifier):
    """NNMF of the activations of a trained convolutional network, pooled, and a linear classifier.

    A small network is trained. What its last ReLU says at each place of each training image, one
    row of as many numbers as there are channels, is factorised by NNMF; the amounts of the
    components at each place (exact non-negative least squares) are averaged over the image, and
    their largest taken too. Logistic regression of these replaces the network's last layers.

    Parameters
    ----------
    widths : sequence of int, default=(16, 32, 64)
        Filters of each convolution; all but the last are followed by max-pooling that halves height
        and width.
    n_components : int, default=16
        Of the NNMF.
    nnmf_max_iter : int, default=100
        Its iterations (HALS, Frobenius norm).
    n_places : int, default=50000
        Most places that the NNMF sees, drawn at random.
    C : float, default=1.0
        Of the logistic regression on standardised features, as in scikit-learn.
    epochs, batch_size, lr, weight_decay, label_smoothing, ema_decay, image_size, augmentation, \
random_state, device, progress
        As of `TorchImageClassifier`, for the network.

    Attributes
    ----------
    components_ : Tensor of shape (n_components, widths[-1])
        Of the activations.
    n_parameters_ : int
        Of convolutions, components and logistic regression.

    Notes
    -----
    Differentiable to pixels: through the least squares by implicit differentiation
    (:func:`nnmf_cuda.ops.project`). The logistic regression sees training images as they are, not
    augmented; validation images serve the network's training alone.

    References
    ----------
    .. [1] Lee & Pang (2020), on sounds of domestic activities.
    """

    widths: Sequence[int] = (16, 32, 64)
    n_components: int = 16
    nnmf_max_iter: int = 100
    n_places: int = 50_000
    C: float = 1.0
    lr: float = 3e-3

    def build(self, n_classes: int, image_shape: tuple[int, int]) -> nn.Module:
        """Return convolutions, the mean over all places, and a dense layer."""
        if min(image_shape) >> (len(self.widths) - 1) < 1:
            raise ValueError(
                f"widths={tuple(self.widths)} halve images of {image_shape[0]} x {image_shape[1]}"
                f" {len(self.widths) - 1} times: take fewer, or a larger image_size"
            )
        layers: list[nn.Module] = []
        n_in = 1
        for n_out in self.widths:
            layers += [
                nn.MaxPool2d(2) if layers else nn.Identity(),
                nn.Conv2d(n_in, n_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(n_out),
                nn.ReLU(),
            ]
            n_in = n_out
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))
        return nn.Sequential(nn.Sequential(*layers), head)

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Train on images X (n_images, height, width) and labels y, then factorise.

        Raises
        ------
        TypeError, ValueError
            If images, labels or settings do not fit, or the loss stops being finite.
        """
        super().fit(X, y, validation=validation)
        standardised = self._standardised()
        assert isinstance(standardised.network, nn.Sequential)
        convolutions = standardised.network[0]
        standardised.network = convolutions
        images = as_images("X", X)
        self.components_ = self._factorised(images)
        whole = nn.Sequential(convolutions, PooledAmounts(self.components_)).to(self.device)
        standardised.network = whole
        features = self._answers(images).double().numpy()
        linear = self._linear(features, coded_labels(y, len(images))[1].numpy())
        whole.append(linear)
        self.network_.to(self.device).requires_grad_(False).eval()
        self.n_parameters_ = self.components_.numel() + sum(
            p.numel() for p in self.network_.parameters()
        )
        return self

    def _standardised(self) -> Standardised:
        assert isinstance(self.network_, Resizing)
        assert isinstance(self.network_.network, Standardised)
        return self.network_.network

    def _answers(self, images: Tensor) -> Tensor:
        """Return what the network as it is now makes of all images, on the CPU."""
        with torch.inference_mode():
            return torch.cat(
                [self.network_(rows.to(self.device)).cpu() for rows in images.split(_ROWS)]
            )

    def _factorised(self, images: Tensor) -> Tensor:
        """Return components (n_components, n_channels) of the activations of images."""
        rng = np.random.default_rng(self.random_state)
        # An even share of each image's places: of all images together they may not fit in memory.
        each = max(self.n_places // len(images), 1)
        drawn = []
        for rows in images.split(_ROWS):
            places = self._answers(rows).flatten(2).mT  # (n, places, channels)
            scores = torch.from_numpy(rng.random(places.shape[:2]))
            chosen = scores.argsort(1)[:, :each]
            drawn.append(places.gather(1, chosen[..., None].expand(-1, -1, places.shape[2])))
        return components_for(self, torch.cat(drawn).flatten(0, 1))

    def _linear(self, features: np.ndarray, labels: np.ndarray) -> nn.Linear:
        """Return logistic regression of standardised features as a layer of the features."""
        scaler = StandardScaler().fit(features)
        regression = LogisticRegression(C=self.C, max_iter=2000)
        regression.fit(scaler.transform(features), labels)
        weight, bias = regression.coef_, regression.intercept_
        if (
            len(weight) == 1
        ):  # two classes: half of the log odds for the one, half against the other
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        weight = weight / scaler.scale_
        bias = bias - weight @ scaler.mean_
        layer = nn.Linear(weight.shape[1], len(weight))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
        return layer


class PooledAmounts(nn.Module):
    """Amounts of components at each place of activations: their mean, and the largest of each.

    Parameters
    ----------
    components : Tensor of shape (n_components, n_channels)
        Not negative.
    """

    components: Tensor

    def __init__(self, components: Tensor) -> None:
        super().__init__()
        self.register_buffer("components", components.clone())

    def forward(self, activations: Tensor) -> Tensor:
        """Return (n, 2 * n_components) of activations (n, n_channels, height, width)."""
        places = activations.flatten(2).mT  # (n, places, channels)
        rows = places.reshape(-1, places.shape[2])
        amounts = ops.project(rows, self.components).unflatten(0, places.shape[:2])
        return torch.cat([amounts.mean(1), amounts.amax(1)], dim=1)
