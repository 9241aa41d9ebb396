"""The stages of the experiment: functions from inputs and configuration to an artefact.

None of them writes a file, times itself or draws from global random state, so that any stage can
be run again on what another has returned. All take the experiment's seed as it is: what a stage
did can be repeated with the library alone, for example by ``NNMF(random_state=seed)``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnmf_cuda.attacks import AttackResult, run_autoattack
from nnmf_cuda.data import SPLITS, ImageDataset
from nnmf_cuda.evaluation import EvaluatedRows, evaluate_rows
from nnmf_cuda.evaluation.seeds import Purpose, seed_word
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.features import FeatureExtractor
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser
from nnmf_cuda.nnmf.estimator import NNMF
from nnmf_cuda.nnmf.selection import ComponentSelector
from nnmf_cuda.pipeline import stages
from nnmf_cuda.pipeline.config import (
    AttackConfig,
    ClassifierConfig,
    DiffusionConfig,
    ExperimentConfig,
    NNMFConfig,
)
from nnmf_cuda.pipeline.defences import Defence, fit_defence, noise_schedule
from nnmf_cuda.timing import StageTimer
from nnmf_cuda.training import (
    TrainingResult,
    train_classifier,
    train_denoiser,
)

__all__ = [
    "Features",
    "StageOutputs",
    "attack_model",
    "evaluate_stages",
    "extract_features",
    "fit_classifier",
    "fit_denoiser",
    "run_five_stages",
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


# The paper's five stages in their order, each timed: what a run and the stage benchmark share.

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageOutputs:
    """What the five stages leave.

    Attributes
    ----------
    features : Features
        Extractor and features of every split.
    cnn : TrainingResult of FeatureCNN
        The classifier.
    denoiser : TrainingResult of FeatureDenoiser
        The denoiser.
    defence : Defence
        The defence, with its purifier, and its own classifier where it has one.
    attacks : mapping of str to AttackResult
        By model: "baseline" and "defended".
    """

    features: stages.Features
    cnn: TrainingResult[FeatureCNN]
    denoiser: TrainingResult[FeatureDenoiser]
    defence: Defence
    attacks: Mapping[str, AttackResult]

    @property
    def targets(self) -> dict[str, torch.nn.Module]:
        """The attacked models, by the names of their attacks."""
        return {"baseline": self.cnn.model, "defended": self.defence.model}


def run_five_stages(
    dataset: ImageDataset,
    config: ExperimentConfig,
    *,
    device: torch.device,
    timer: StageTimer,
    progress: bool = False,
    say: Callable[[str], object] = logger.info,
) -> StageOutputs:
    """Run the stages of `PAPER_STAGES`, each on what those before it have returned.

    Parameters
    ----------
    dataset : ImageDataset
        Images.
    config : ExperimentConfig
        What to do; ``config.data`` is not looked at.
    device : torch.device
        Where to compute.
    timer : StageTimer
        Gets a row for each stage.
    progress : bool, default=False
        Show progress bars, where stderr is a terminal.
    say : callable, optional
        Takes one line before each stage.

    Returns
    -------
    StageOutputs
    """
    where: dict[str, Any] = {"seed": config.seed, "device": device, "progress": progress}
    say("fitting the components and projecting every image")
    with timer.stage("nnmf_feature_extraction", n_items=len(dataset.images)):
        features = stages.extract_features(dataset, config, **where)
    n_train = len(features.y["train"])
    say("training the classifier")
    with timer.stage("cnn_training", n_items=n_train):
        cnn = stages.fit_classifier(
            features, config.classifier, n_classes=dataset.n_classes, **where
        )
    say("training the denoiser")
    with timer.stage("denoiser_training", n_items=n_train):
        denoiser = stages.fit_denoiser(features, config.diffusion, **where)
    defence = _defence(features, cnn.model, denoiser.model, config, timer, say=say, **where)
    attacks = {}
    for name, target in (("baseline", cnn.model), ("defended", defence.model)):
        say(f"attacking the {name} model ({' + '.join(config.attack.attacks)})")
        with timer.stage(f"autoattack_{name}", n_items=len(features.y["test"])):
            attacks[name] = stages.attack_model(
                target, features, config.attack, seed=config.seed, progress=progress
            )
    return StageOutputs(features, cnn, denoiser, defence, attacks)


def _defence(
    features: stages.Features,
    plain: FeatureCNN,
    denoiser: FeatureDenoiser,
    config: ExperimentConfig,
    timer: StageTimer,
    *,
    say: Callable[[str], object],
    **where: Any,
) -> Defence:
    """Train the defence; the paper's only puts together what is there, which is no stage."""
    settings = config.defence
    fit = partial(
        fit_defence,
        features.x,
        features.y,
        plain,
        denoiser,
        settings,
        config.diffusion,
        norm=config.attack.norm,
        n_classes=plain.n_classes,
        **where,
    )
    if not settings.has_own_classifier:
        return fit()
    say(f"training the defence ({settings.kind})")
    with timer.stage("defence_training", n_items=len(features.y["train"])):
        defence = fit()
    for level in defence.noise_levels:
        say(
            f"  timestep {level['timestep']}: validation {level['clean']:.4f} clean,"
            f" {level['attacked']:.4f} attacked"
        )
    return defence


def evaluate_stages(outputs: StageOutputs, config: ExperimentConfig) -> EvaluatedRows:
    """Return the paper's four rows of what the stages have left, with noise of their own."""
    return evaluate_rows(
        outputs.cnn.model,
        outputs.defence.model,
        outputs.features.x["test"],
        outputs.attacks["baseline"].x_adv,
        outputs.attacks["defended"].x_adv,
        outputs.features.y["test"],
        seed=seed_word(config.seed, Purpose.EVALUATION),
        n_predictions=config.n_predictions,
        random=isinstance(outputs.defence.model, DefendedClassifier),
    )
