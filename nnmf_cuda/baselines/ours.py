"""The systems of this package: features of NNMF, and a defence on them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from nnmf_cuda.baselines.base import ImageClassifier, LabelledImages, PixelNetwork
from nnmf_cuda.baselines.torch_classifier import (
    DifferentiableNetwork,
    as_images,
    coded_labels,
    known_labels,
)
from nnmf_cuda.evaluation.seeds import Purpose, seed_word
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.features import ImageChain
from nnmf_cuda.pipeline.config import PRESETS, ExperimentConfig
from nnmf_cuda.pipeline.defences import fit_defence
from nnmf_cuda.pipeline.features import choose_n_selected, features_of
from nnmf_cuda.pipeline.stages import fit_classifier, fit_denoiser
from nnmf_cuda.training import ImageSamples

_ROWS = 1024
"""Images that answer at once."""

_VALIDATION = 0.15
"""Share of the training images that validate where no others are given."""


@dataclass(kw_only=True, eq=False, repr=False)
class DefendedFeatures(ImageClassifier):
    """What `nnmf-cuda run` trains: non-negative features of images, and a defence on them.

    With the same seed and images it is the same model. Without validation images, 15 of 100
    training images are taken for them, as many of each class as there are.

    Parameters
    ----------
    preset : str, default="paper"
        A name of `nnmf_cuda.pipeline.config.PRESETS`.
    config : ExperimentConfig or None, default=None
        All settings, in the place of a preset's; its seed and its data are not looked at.
    random_state : int, default=0
        The seed.
    device : torch.device or str, default="cpu"
        Where it is trained and answers.
    progress : bool, default=False
        Show progress bars, if standard error is a terminal.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_parameters_ : int
        Of components, classifier and, where the defence purifies, denoiser.
    extractor_ : FeatureExtractor
        Images to features.
    defence_ : nn.Module
        Features to logits.
    """

    preset: str = "paper"
    config: ExperimentConfig | None = None
    random_state: int = 0
    device: torch.device | str = "cpu"
    progress: bool = False

    def fit(self, X: ArrayLike, y: ArrayLike, *, validation: LabelledImages | None = None) -> Self:
        """Fit components, selection and networks on images X (n_images, height, width).

        Raises
        ------
        TypeError, ValueError
            If images, labels or settings do not fit.
        """
        config = self._decided()
        images, shape = _as_given("X", X)
        self.classes_, labels = coded_labels(y, len(images))
        if validation is None:
            n_held_out = max(len(self.classes_), round(_VALIDATION * len(images)))
            train, held_out = train_test_split(
                np.arange(len(images)),
                test_size=n_held_out,
                random_state=self.random_state,
                stratify=labels,
            )
            given = {"train": images[train], "valid": images[held_out]}
            of_given = {"train": labels[train], "valid": labels[held_out]}
        else:
            seen, _ = _as_given("validation.images", validation.images, shape)
            of_seen = known_labels(self.classes_, validation.labels, len(seen))
            given = {"train": images, "valid": seen}
            of_given = {"train": labels, "valid": of_seen}
        features = features_of(
            {split: rows.flatten(1) for split, rows in given.items()},
            {split: rows.numpy() for split, rows in of_given.items()},
            config,
            image_shape=shape,
            n_classes=len(self.classes_),
            device=torch.device(self.device),
            progress=self.progress,
        )
        if config.selection.candidates:
            features, _ = choose_n_selected(features, config, progress=self.progress)
        classifier = fit_classifier(features, config, progress=self.progress).model
        denoiser = fit_denoiser(features, config, progress=self.progress).model
        samples = None
        if config.defence.kind == "pixel":
            rows = {split: images.flatten(1) for split, images in given.items()}
            samples = ImageSamples(features.extractor, rows)
        defence = fit_defence(
            features.x,
            features.y,
            classifier,
            denoiser,
            config,
            images=samples,
            progress=self.progress,
        )
        self.extractor_, self.defence_ = features.extractor, defence.model.eval()
        self.image_shape_ = shape
        learned = sum(weight.numel() for weight in self.defence_.parameters())
        self.n_parameters_ = learned + self.extractor_.components.numel()
        return self

    def _decided(self) -> ExperimentConfig:
        config = self.config
        if config is None:
            if self.preset not in PRESETS:
                raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {self.preset!r}")
            config = PRESETS[self.preset]
        if config.attack.attack_eps == "auto":
            raise ValueError(
                'config.attack.attack_eps must be a number here, got "auto": see nnmf-cuda run,'
                " which prints one"
            )
        return replace(config, seed=self.random_state).decided()

    @torch.inference_mode()
    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return class probabilities (n_images, n_classes), in the order of `classes_`.

        A purifying defence answers by its noise draws, which are the same at each call.
        """
        check_is_fitted(self, "defence_")
        images, _ = _as_given("X", X, self.image_shape_)
        features = torch.cat([self.extractor_(rows) for rows in images.split(_ROWS)])
        if isinstance(self.defence_, DefendedClassifier):
            generator = torch.Generator(features.device)
            generator.manual_seed(seed_word(self.random_state, Purpose.EVALUATION))
            logits = self.defence_(features, generator=generator)
        else:
            logits = self.defence_(features)
        probabilities: NDArray[np.float64] = logits.double().softmax(1).cpu().numpy()
        return probabilities

    def pixel_network(self) -> PixelNetwork:
        """Return projection, selection and defence, differentiable from pixels to logits."""
        check_is_fitted(self, "defence_")
        parts = copy.deepcopy((self.extractor_, self.defence_))
        network = DifferentiableNetwork(ImageChain(*parts))
        network.is_random = isinstance(self.defence_, DefendedClassifier)
        return network


def _as_given(
    name: str, values: ArrayLike, shape: tuple[int, int] | None = None
) -> tuple[Tensor, tuple[int, int]]:
    """Return images (n, height, width), uint8 as they are or float32, and their shape."""
    array = np.asarray(values)
    images = as_images(name, array, shape)
    given = torch.from_numpy(np.ascontiguousarray(array)) if array.dtype == np.uint8 else images
    return given, (given.shape[1], given.shape[2])
