"""Features of images: the factorisation, the projection, and which components are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnmf_cuda.data import SPLITS, ImageDataset
from nnmf_cuda.models.features import FeatureExtractor
from nnmf_cuda.nnmf.estimator import NNMF
from nnmf_cuda.nnmf.selection import ComponentSelector
from nnmf_cuda.pipeline.config import ExperimentConfig
from nnmf_cuda.pipeline.defences import train_adversarially
from nnmf_cuda.pipeline.radius import decide_radius


@dataclass(frozen=True)
class Features:
    """Features of every image, and what they are made with."""

    extractor: FeatureExtractor
    nnmf: NNMF
    selector: ComponentSelector  # with its statistics
    normalised: Mapping[str, Tensor]  # by split (n_samples, n_components): before the selection
    x: Mapping[str, Tensor]  # by split (n_samples, n_selected), on the device that computes
    y: Mapping[str, NDArray[np.int64]]  # by split (n_samples,)
    n_classes: int  # of the data set, whether or not a split has them all

    def of_selection(self, n_selected: int | None) -> Features:
        """Return the same of another number of components, the most telling ones."""
        whole = self.extractor
        selector = ComponentSelector(n_selected)
        selector.fit(self.normalised["train"].cpu().numpy(), self.y["train"])
        selected = torch.from_numpy(selector.selected_).to(whole.selected.device)
        extractor = FeatureExtractor(whole.components, selected, image_shape=whole.image_shape)
        x = {split: extractor.select(rows) for split, rows in self.normalised.items()}
        return replace(self, extractor=extractor, selector=selector, x=x)


def extract_features(
    dataset: ImageDataset, config: ExperimentConfig, *, device: torch.device, progress: bool = False
) -> Features:
    """Fit the factorisation and the selection on the training split; project every split.

    All three splits are projected by non-negative least squares, so that they carry the same kind
    of feature.
    """
    return features_of(
        {split: torch.from_numpy(dataset.matrix(split)) for split in SPLITS},
        {split: dataset.labels_of(split) for split in SPLITS},
        config,
        image_shape=dataset.image_shape,
        n_classes=dataset.n_classes,
        device=device,
        progress=progress,
    )


def features_of(
    images: Mapping[str, Tensor],
    labels: Mapping[str, NDArray[np.int64]],
    config: ExperimentConfig,
    *,
    image_shape: tuple[int, int],
    n_classes: int,
    device: torch.device,
    progress: bool = False,
) -> Features:
    """Do the same with images (n, height * width) by split, of which "train" must be one."""
    images = {split: rows.to(device) for split, rows in images.items()}
    nnmf = _fit_nnmf(images["train"], config, progress=progress)
    components = torch.from_numpy(nnmf.components_).to(device, torch.float32)
    if config.nnmf.component_scale == "sum":
        components = of_equal_sums(components)
    every = torch.arange(len(components), device=device)
    whole = FeatureExtractor(components, every, image_shape=image_shape)
    normalised = {split: whole(rows) for split, rows in images.items()}
    kept = ComponentSelector(None)  # all of them, until they are chosen
    features = Features(whole, nnmf, kept, normalised, normalised, labels, n_classes)
    return features.of_selection(config.selection.n_selected)


def _fit_nnmf(X: Tensor, config: ExperimentConfig, *, progress: bool) -> NNMF:
    settings = config.nnmf
    if settings.n_components > min(X.shape):
        raise ValueError(
            f"nnmf.n_components={settings.n_components} is above min(n_samples, n_features) ="
            f" {min(X.shape)} of the {len(X)} training images: use fewer components or more images"
        )
    parameters = asdict(settings)
    del parameters["component_scale"]
    return NNMF(**parameters, random_state=config.seed, verbose=int(progress)).fit(X)


def of_equal_sums(components: Tensor) -> Tensor:
    """Scale components (n_components, n_pixels) to the same sum; one that is 0 stays so.

    The mean of the sums stays what it was. What a scaled component gains its coefficients lose, so
    that every product of both is the same; features, which are coefficients of one length, differ.
    """
    sums = components.sum(1, keepdim=True)
    return components * torch.where(sums > 0, sums.mean() / sums, 1)


@dataclass(frozen=True)
class SelectionTrial:
    """A number of components, and what the defence's classifier has on its features.

    Shares of the validation samples at the epoch that training keeps: `clean` as they are,
    `attacked` also under its short attack.
    """

    n_selected: int
    clean: float
    attacked: float


def choose_n_selected(
    features: Features,
    config: ExperimentConfig,
    *,
    progress: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[Features, tuple[SelectionTrial, ...]]:
    """Keep the number of components on which the defence is best on the validation split.

    For each of ``config.selection.candidates`` the defence's classifier is trained; the highest sum
    of clean and attacked validation accuracy decides, then the smaller number. All are attacked at
    one radius: where it is "auto", at that which suits the first candidate.
    """
    candidates = config.selection.candidates
    decided = config.decided()
    if config.attack.attack_eps == "auto":
        decided, _ = decide_radius(features.of_selection(candidates[0]).x, features.y, config)
    trials = []
    for n_selected in sorted(candidates):
        tried = features.of_selection(n_selected)
        training = train_adversarially(
            *(tried.x, tried.y, decided.defence),
            norm=config.attack.norm,
            n_classes=features.n_classes,
            seed=config.seed,
            progress=progress,
        )
        clean, attacked = (
            training.history[name][training.best_epoch]
            for name in ("valid_accuracy", "valid_robust_accuracy")
        )
        say(f"  {n_selected} components: validation {clean:.4f} clean, {attacked:.4f} attacked")
        trials.append(SelectionTrial(n_selected, clean, attacked))
    best = max(trials, key=lambda trial: trial.clean + trial.attacked)
    return features.of_selection(best.n_selected), tuple(trials)
