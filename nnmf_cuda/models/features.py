"""From images to the features that the classifier sees, differentiably."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnmf_cuda import ops
from nnmf_cuda.ops._transforms import is_transforming


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


@dataclass(frozen=True)
class _Ready:
    """Components that were made ready: of which tensor, in which state, on which stream."""

    of: Tensor
    version: int
    stream: int
    components: ops.PreparedComponents

    def serves(self, H: Tensor) -> bool:
        """Whether H still is what it was, where kernels are launched in the same order.

        Each change in place that torch makes counts up a tensor's version. On the CPU memory can
        also be written to past torch, as by NumPy: there the numbers are compared, which takes a
        small part of what is spared.
        """
        if self.of is not H or self.version != H._version or self.stream != _stream_of(H):
            return False
        return H.device.type != "cpu" or torch.equal(H, self.components.H)


def _stream_of(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def _is_plain(H: Tensor) -> bool:
    """Whether what is made of H now may be used again in another call."""
    if type(H) is not Tensor or H.requires_grad or H.is_inference():
        return False
    if torch.compiler.is_compiling() or is_transforming() or ops.is_reference_path():
        return False
    # A graph would use it again when it is gone.
    return not (H.is_cuda and torch.cuda.is_current_stream_capturing())


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
    _ready: _Ready | None = None

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
        return ops.project(self.as_rows(images), self._ready_components())

    def __getstate__(self) -> dict[str, object]:
        """Leave out what can be made anew."""
        return {**self.__dict__, "_ready": None}

    def _ready_components(self) -> Tensor | ops.PreparedComponents:
        """Return the components made ready, the same ones until they change."""
        H = self.components
        if not _is_plain(H):
            return H
        ready = self._ready
        if ready is None or not ready.serves(H):
            ready = _Ready(H, H._version, _stream_of(H), ops.prepare_components(H))
            self._ready = ready
        return ready.components

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


class ImageChain(nn.Module):
    """Images to features to logits, differentiably: the projection is differentiated implicitly."""

    def __init__(self, extractor: FeatureExtractor, classifier: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, n_classes) of images as `FeatureExtractor` takes them."""
        logits: Tensor = self.classifier(self.extractor(images))
        return logits
