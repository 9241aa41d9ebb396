"""From images to the features that the classifier sees, differentiably."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnmf_cuda import ops


def l2_normalize(x: Tensor) -> Tensor:
    """Scale each row to length 1; a zero row stays zero and has zero gradient.

    Parameters
    ----------
    x : Tensor of shape (..., n_features)

    Returns
    -------
    Tensor
        Of x's shape and dtype.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    empty = norm == 0
    # The inner `where` keeps 1 / 0 out of the gradient, the outer one makes it zero.
    return x * torch.where(empty, 0, 1 / torch.where(empty, 1, norm))


class FeatureExtractor(nn.Module):
    """Project images onto fixed components, normalise, select, normalise again.

    Parameters
    ----------
    components : Tensor of shape (n_components, height * width)
        H of the factorisation, float32 or float64.
    selected : Tensor of shape (n_selected,)
        int64 indices of the components that are kept, ascending.
    image_shape : tuple of two ints
        Height and width of the images.
    """

    components: Tensor
    selected: Tensor

    def __init__(
        self, components: Tensor, selected: Tensor, *, image_shape: tuple[int, int]
    ) -> None:
        super().__init__()
        if components.shape[1] != image_shape[0] * image_shape[1]:
            raise ValueError(
                f"components have {components.shape[1]} features, but image_shape={image_shape}"
                f" has {image_shape[0] * image_shape[1]} pixels"
            )
        self.image_shape = image_shape
        self.register_buffer("components", components.detach())
        self.register_buffer("selected", selected)

    @property
    def n_features(self) -> int:
        """Number of features of an image."""
        return len(self.selected)

    def coefficients(self, images: Tensor) -> Tensor:
        """Return the raw NNLS coefficients (n, n_components) of images.

        Parameters
        ----------
        images : Tensor of shape (n, height, width) or (n, height * width)
            uint8 pixels, or floating point in [0, 1]; moved to the components' device and, where
            floating, dtype.
        """
        return ops.project(self.as_rows(images), self.components)

    def as_rows(self, images: Tensor) -> Tensor:
        """Return images of this shape as rows (n, height * width), as `ops.project` takes them."""
        flat = images.flatten(1).to(self.components.device)
        if flat.shape[1] != self.components.shape[1]:
            raise ValueError(
                f"images must have shape (n, {self.image_shape[0]}, {self.image_shape[1]}), got"
                f" {tuple(images.shape)}: resize them first"
            )
        if flat.dtype != torch.uint8:
            if not flat.is_floating_point():
                raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")
            flat = flat.to(self.components.dtype)
        return flat

    def select(self, normalised: Tensor) -> Tensor:
        """Keep the selected columns of L2-normalised coefficients and normalise again."""
        return l2_normalize(normalised[:, self.selected])

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (n, n_selected) of images, each row of length 1 or zero."""
        return self.select(l2_normalize(self.coefficients(images)))
