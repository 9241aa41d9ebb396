"""SNnet, S-SNnet and PCANet: filters learned from patches, binary hashing, block histograms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, vstack
from sklearn.svm import LinearSVC
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from nnmf_cuda.baselines.base import (
    ImageClassifier,
    LabelledImages,
    probabilities_of_margins,
)
from nnmf_cuda.baselines.torch_classifier import as_images, coded_labels, resized
from nnmf_cuda.nnmf import NNMF

Filters = Literal["semi-nmf", "graph", "pca"]

_ROWS = 64
"""Images at once: bounds the memory of their maps."""


class SNnet(ImageClassifier):
    """Two stages of filters that patches have taught, hashed, counted in blocks, and a linear SVM.

    The frame is that of PCANet [2]_: the mean of each patch is removed, filters are learned from
    patches of the images, then of their maps; the signs of the second stage's maps are the bits of
    a number for each pixel and each map of the first, whose histograms in overlapping blocks are
    the features of a linear support vector machine. Nothing is backpropagated.

    Parameters
    ----------
    filters : {"semi-nmf", "graph", "pca"}, default="semi-nmf"
        How filters come from patches: "semi-nmf" are the components of a Semi-NMF [3]_ of them
        (SNnet [1]_); "graph" the same with a graph that joins patches of images of one class
        (S-SNnet, whose labels are weak: a patch may show nothing of its image's class); "pca" their
        principal components (PCANet).
    n_filters : tuple of two ints, default=(6, 6)
        Of the first and the second stage, the second at most 16.
    patch_size : int, default=7
        Side of the filters in pixels, odd; maps keep the size of the images, padded by zeros.
    block_size : int, default=16
        Side of the blocks in pixels; an image that is smaller is one block.
    overlap : float, default=0.5
        Of neighbouring blocks, a share of their side in [0, 1).
    image_size : int or None, default=64
        Images are brought to this height and width first; None leaves them.
    n_patches : int, default=20000
        Most patches that a stage learns from, drawn at random.
    max_iter : int, default=100
        Iterations of Semi-NMF.
    alpha_graph : float, default=0.1
        Strength of the graph, for "graph".
    alpha_H : float, default=1e-4
        Strength of the penalty of the filters' squares beside the graph, for "graph": without it
        amounts would shrink for the graph's sake, and filters grow.
    C : float, default=1.0
        Of the support vector machine. Its features are the square roots of the counts, scaled to
        length 1 (a kernel of Hellinger's distance).
    random_state : int, default=0
        Seed of patches, Semi-NMF and support vector machine.
    device : torch.device or str, default="cpu"
        Where filters are learned and maps made.
    progress : bool, default=False
        Whether bars show how far it is, where stderr is a terminal.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_parameters_ : int
        Of filters and support vector machine.
    filters_ : tuple of two Tensors (n_filters, patch_size, patch_size)
        Of length 1 and mean 0: so the filtered patches need not have their means removed.
    classifier_ : LinearSVC

    Notes
    -----
    The full text of [1]_ was not reached; this is a reading of its abstract, as of [2]_ with other
    filters.

    "graph" differs from "semi-nmf" by more than its graph: it is fitted by multiplicative updates
    (`NNMF`'s solver "semi"), the other by coordinate descent ("semi-hals"), and its filters are
    penalised. With the default `alpha_graph` the graph does little, the filters are near those of
    a graph of hardly any weight, so that a difference between the two says little about weak
    labels. A graph that turns the filters much costs accuracy, on the digits at least.

    Probabilities are the softmax of the margins, not calibrated. Validation images are not
    used. There is no gradient to pixels: signs are taken.

    References
    ----------
    .. [1] Huang et al. (2019), IEEE Access 7.
    .. [2] Chan et al. (2015), PCANet: a simple deep learning baseline for image classification?,
       IEEE TIP 24(12).
    .. [3] Ding, Li & Jordan (2010), Convex and semi-nonnegative matrix factorizations, IEEE
       TPAMI 32(1).
    """

    def __init__(
        self,
        filters: Filters = "semi-nmf",
        *,
        n_filters: tuple[int, int] = (6, 6),
        patch_size: int = 7,
        block_size: int = 16,
        overlap: float = 0.5,
        image_size: int | None = 64,
        n_patches: int = 20_000,
        max_iter: int = 100,
        alpha_graph: float = 0.1,
        alpha_H: float = 1e-4,
        C: float = 1.0,
        random_state: int = 0,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> None:
        self.filters = filters
        self.n_filters = n_filters
        self.patch_size = patch_size
        self.block_size = block_size
        self.overlap = overlap
        self.image_size = image_size
        self.n_patches = n_patches
        self.max_iter = max_iter
        self.alpha_graph = alpha_graph
        self.alpha_H = alpha_H
        self.C = C
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Learn filters and classifier from images X (n_images, height, width) and labels y.

        Raises
        ------
        TypeError, ValueError
            If images, labels or settings do not fit.
        """
        self._check_settings()
        images = as_images("X", X)
        self.classes_, coded = coded_labels(y, len(images))
        labels = coded.numpy()
        self.image_shape_ = images.shape[1:]
        small = self._resized(images)
        rng = np.random.default_rng(self.random_state)
        first = self._learned(small, None, labels, rng)
        second = self._learned(small, first, labels, rng)
        self.filters_ = (first, second)
        features = self._features(small)
        self.classifier_ = LinearSVC(C=self.C, random_state=self.random_state)
        self.classifier_.fit(features, labels)
        self.n_parameters_ = (
            first.numel()
            + second.numel()
            + self.classifier_.coef_.size
            + self.classifier_.intercept_.size
        )
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return class probabilities (n_images, n_classes), in the order of `classes_`."""
        check_is_fitted(self, "classifier_")
        features = self._features(self._resized(as_images("X", X, self.image_shape_)))
        return probabilities_of_margins(self.classifier_.decision_function(features))

    def _check_settings(self) -> None:
        if self.filters not in get_args(Filters):
            known = ", ".join(get_args(Filters))
            raise ValueError(f"filters must be one of {known}; got {self.filters!r}")
        if min(self.n_filters) < 1 or self.n_filters[1] > 16:
            raise ValueError(
                f"n_filters must be two numbers >= 1, the second at most 16: {self.n_filters}"
            )
        if self.patch_size < 3 or self.patch_size % 2 == 0:
            raise ValueError(f"patch_size must be odd and at least 3, got {self.patch_size}")
        if max(self.n_filters) >= self.patch_size**2:
            raise ValueError(
                f"n_filters={self.n_filters} must be fewer than the pixels of a patch, "
                f"{self.patch_size}^2: give fewer, or larger patches"
            )
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), got {self.overlap}")
        if self.n_patches <= max(self.n_filters):
            raise ValueError(f"n_patches={self.n_patches} must be more than n_filters")

    def _resized(self, images: Tensor) -> Tensor:
        if self.image_size is None:
            return images
        return resized(images, (self.image_size, self.image_size))

    def _learned(
        self,
        images: Tensor,
        first: Tensor | None,
        labels: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> Tensor:
        """Return filters (n_filters, size, size) of mean 0 and length 1, of images or their maps.

        All maps that the filters of the first stage make of an image teach the second stage.
        """
        n_filters = self.n_filters[0 if first is None else 1]
        patches, image = self._drawn_patches(images, first, rng)
        patches = (patches - patches.mean(1, keepdim=True)).to(self.device)
        if self.filters == "pca":
            wide = patches.double()
            learned = torch.linalg.eigh(wide.T @ wide).eigenvectors.flip(1).T[:n_filters].float()
        else:
            learned = self._components(patches, labels[image], n_filters)
        learned = learned - learned.mean(1, keepdim=True)
        learned = functional.normalize(learned, dim=1)
        return learned.cpu().reshape(n_filters, self.patch_size, self.patch_size)

    def _drawn_patches(
        self, images: Tensor, first: Tensor | None, rng: np.random.Generator
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """Return patches (n, size * size) around pixels drawn at random, and their images."""
        n_maps = 1 if first is None else len(first)
        shape = (len(images), n_maps, *images.shape[1:])
        n_all = int(np.prod(shape))
        chosen = np.sort(rng.choice(n_all, min(self.n_patches, n_all), replace=False))
        image, *place = np.unravel_index(chosen, shape)
        patches = []
        for start in range(0, len(images), _ROWS):
            maps = images[start : start + _ROWS].unsqueeze(1)
            maps = maps if first is None else _filtered(maps, first)
            padded = functional.pad(maps, (self.patch_size // 2,) * 4)
            windows = padded.unfold(2, self.patch_size, 1).unfold(3, self.patch_size, 1)
            here = slice(*np.searchsorted(image, (start, start + _ROWS)))
            at = [torch.from_numpy(index[here]) for index in (image - start, *place)]
            patches.append(windows[tuple(at)].flatten(1))
        return torch.cat(patches), image

    def _components(self, patches: Tensor, labels: NDArray[np.int64], n_filters: int) -> Tensor:
        settings: dict[str, Any] = {"solver": "semi-hals"}
        if self.filters == "graph":
            settings = {
                "solver": "semi",
                "graph": "labels",
                "alpha_graph": self.alpha_graph,
                "alpha_H": self.alpha_H,
            }
        model = NNMF(
            n_filters,
            beta_loss="frobenius",
            max_iter=self.max_iter,
            tol=0,
            random_state=self.random_state,
            verbose=int(self.progress),
            **settings,
        )
        return torch.from_numpy(model.fit(patches, labels).components_)

    def _features(self, images: Tensor) -> csr_array:
        """Return block histograms (n, n_features) of length 1, of images of the right size."""
        bar = tqdm(
            total=len(images), desc="maps", unit="image", disable=None if self.progress else True
        )
        with bar:
            parts = []
            for rows in images.split(_ROWS):
                parts.append(csr_array(self._histograms(rows)))
                bar.update(len(rows))
        return vstack(parts, format="csr")

    def _histograms(self, images: Tensor) -> NDArray[np.float32]:
        first, second = self.filters_
        n_bins = 2 ** len(second)
        maps = _filtered(images.unsqueeze(1).to(self.device), first)
        codes = []
        for one in maps.split(1, dim=1):
            bits = _filtered(one, second) > 0
            weights = 2 ** torch.arange(len(second), device=bits.device)
            codes.append((bits * weights[:, None, None]).sum(1))
        numbers = torch.stack(codes, dim=1).cpu().numpy()
        counted = [self._counted(block, n_bins) for block in self._blocks(numbers)]
        features = np.sqrt(np.concatenate(counted, axis=1).astype(np.float32))
        scaled: NDArray[np.float32] = features / np.linalg.norm(features, axis=1, keepdims=True)
        return scaled

    def _blocks(self, numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Yield each block (n, n_maps, height, width); the last ones end where the image does."""
        height, width = numbers.shape[2:]
        sides = min(self.block_size, height), min(self.block_size, width)
        starts = []
        for side, whole in zip(sides, (height, width), strict=True):
            step = max(round(side * (1 - self.overlap)), 1)
            starts.append(sorted({*range(0, whole - side + 1, step), whole - side}))
        for top in starts[0]:
            for left in starts[1]:
                yield numbers[:, :, top : top + sides[0], left : left + sides[1]]

    @staticmethod
    def _counted(block: NDArray[np.int64], n_bins: int) -> NDArray[np.int64]:
        n_images, n_maps = block.shape[:2]
        which = np.arange(n_images * n_maps).reshape(n_images, n_maps, 1, 1) * n_bins
        counts = np.bincount((which + block).ravel(), minlength=n_images * n_maps * n_bins)
        return counts.reshape(n_images, n_maps * n_bins)


def _filtered(maps: Tensor, filters: Tensor) -> Tensor:
    """Return each filter's map (n, n_maps * n_filters, h, w) of maps (n, n_maps, h, w)."""
    n_images, n_maps, height, width = maps.shape
    weight = filters.unsqueeze(1).to(maps.device)
    flat = maps.reshape(n_images * n_maps, 1, height, width)
    made = functional.conv2d(flat, weight, padding=filters.shape[-1] // 2)
    return made.reshape(n_images, n_maps * len(filters), height, width)
