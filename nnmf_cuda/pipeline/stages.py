"""The stages of the experiment: functions from inputs and configuration to an artefact.

None of them writes a file, times itself or draws from global random state, so that any stage can
be run again on what another has returned. All take the experiment's seed as it is: what a stage
did can be repeated with the library alone, for example by ``NNMF(random_state=seed)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnmf_cuda.attacks import AttackResult, run_autoattack
from nnmf_cuda.data import SPLITS, ImageDataset
from nnmf_cuda.features import FeatureExtractor
from nnmf_cuda.models import FeatureCNN, FeatureDenoiser
from nnmf_cuda.nnmf import NNMF
from nnmf_cuda.pipeline.config import (
    AttackConfig,
    ClassifierConfig,
    DiffusionConfig,
    ExperimentConfig,
    NNMFConfig,
)
from nnmf_cuda.pipeline.defences import noise_schedule
from nnmf_cuda.selection import ComponentSelector
from nnmf_cuda.training import (
    TrainingResult,
    train_classifier,
    train_denoiser,
)

__all__ = [
    "Features",
    "attack_model",
    "extract_features",
    "fit_classifier",
    "fit_denoiser",
]


@dataclass(frozen=True)
class Features:
    """What the first stages found.

    Attributes
    ----------
    extractor : FeatureExtractor
        Images to features, with the components and the selection inside.
    nnmf : NNMF
        The fitted factorisation.
    selector : ComponentSelector
        The fitted selection, with its statistics.
    x : mapping of str to Tensor of shape (n_samples, n_selected)
        Features of "train", "valid" and "test".
    y : mapping of str to array of shape (n_samples,)
        Their labels.
    """

    extractor: FeatureExtractor
    nnmf: NNMF
    selector: ComponentSelector
    x: Mapping[str, Tensor]
    y: Mapping[str, NDArray[np.int64]]


def extract_features(
    dataset: ImageDataset,
    config: ExperimentConfig,
    *,
    seed: int,
    device: torch.device,
    progress: bool = False,
) -> Features:
    """Fit the factorisation and the selection on the training split; project every split.

    All three splits are projected by non-negative least squares, so that they carry the same kind
    of feature.
    """
    images = {split: torch.from_numpy(dataset.matrix(split)).to(device) for split in SPLITS}
    labels = {split: dataset.labels_of(split) for split in SPLITS}
    nnmf = _fit_nnmf(images["train"], config.nnmf, seed=seed, progress=progress)
    components = torch.from_numpy(nnmf.components_).to(device, torch.float32)
    every = torch.arange(len(components), device=device)
    whole = FeatureExtractor(components, every, image_shape=dataset.image_shape)
    normalised = {split: whole(rows) for split, rows in images.items()}
    selector = ComponentSelector(config.selection.n_selected)
    selector.fit(normalised["train"].cpu().numpy(), labels["train"])
    selected = torch.from_numpy(selector.selected_).to(device)
    extractor = FeatureExtractor(components, selected, image_shape=dataset.image_shape)
    x = {split: extractor.select(rows) for split, rows in normalised.items()}
    return Features(extractor, nnmf, selector, x, labels)


def _fit_nnmf(X: Tensor, config: NNMFConfig, *, seed: int, progress: bool) -> NNMF:
    if config.n_components > min(X.shape):
        raise ValueError(
            f"nnmf.n_components={config.n_components} is above min(n_samples, n_features) ="
            f" {min(X.shape)} of the {len(X)} training images: use fewer components or more images"
        )
    return NNMF(**asdict(config), random_state=seed, verbose=int(progress)).fit(X)


def fit_classifier(
    features: Features,
    config: ClassifierConfig,
    *,
    n_classes: int,
    seed: int,
    device: torch.device,
    progress: bool = False,
) -> TrainingResult[FeatureCNN]:
    """Train the light CNN on the training features, watched on the validation features."""
    return train_classifier(
        features.x["train"],
        features.y["train"],
        features.x["valid"],
        features.y["valid"],
        n_classes=n_classes,
        seed=seed,
        device=device,
        progress=progress,
        **asdict(config),
    )


def fit_denoiser(
    features: Features,
    config: DiffusionConfig,
    *,
    seed: int,
    device: torch.device,
    progress: bool = False,
) -> TrainingResult[FeatureDenoiser]:
    """Train the x0-predicting denoiser on the training features."""
    return train_denoiser(
        features.x["train"],
        noise_schedule(config),
        hidden=config.hidden,
        embedding_dim=config.embedding_dim,
        ema_decay=config.ema_decay,
        epochs=config.epochs,
        lr=config.lr,
        batch_size=config.batch_size,
        valid_features=features.x["valid"],
        seed=seed,
        device=device,
        progress=progress,
    )


def attack_model(
    model: torch.nn.Module,
    features: Features,
    config: AttackConfig,
    *,
    seed: int,
    progress: bool = False,
) -> AttackResult:
    """Attack a model on the test features."""
    device = features.x["test"].device
    labels = torch.from_numpy(features.y["test"]).to(device)
    return run_autoattack(
        model, features.x["test"], labels, seed=seed, progress=progress, **asdict(config)
    )
