"""The stages of the experiment, each a function of inputs and configuration, and all in order.

No stage writes a file, times itself or draws from global random state, so that it can be run again
on what another has returned. All take the experiment's seed as it is: what a stage did can be
repeated with the library alone, for example by ``NNMF(random_state=seed)``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch

from nnmf_cuda.attacks import AttackResult, run_autoattack
from nnmf_cuda.data import ImageDataset
from nnmf_cuda.evaluation import EvaluatedRows, evaluate_rows
from nnmf_cuda.evaluation.seeds import Purpose, seed_word
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser
from nnmf_cuda.pipeline.config import ExperimentConfig
from nnmf_cuda.pipeline.defences import Defence, fit_defence, noise_schedule
from nnmf_cuda.pipeline.features import (
    Features,
    SelectionTrial,
    choose_n_selected,
    extract_features,
)
from nnmf_cuda.pipeline.radius import Prospects, decide_radius
from nnmf_cuda.timing import StageTimer
from nnmf_cuda.training import ImageSamples, TrainingResult, train_classifier, train_denoiser

logger = logging.getLogger(__name__)


def fit_classifier(
    features: Features, config: ExperimentConfig, *, progress: bool = False
) -> TrainingResult[FeatureCNN]:
    """Train the light CNN on the training features, watched on the validation features."""
    return train_classifier(
        features.x["train"],
        features.y["train"],
        features.x["valid"],
        features.y["valid"],
        n_classes=features.n_classes,
        seed=config.seed,
        device=features.x["train"].device,
        progress=progress,
        **asdict(config.classifier),
    )


def fit_denoiser(
    features: Features, config: ExperimentConfig, *, progress: bool = False
) -> TrainingResult[FeatureDenoiser]:
    """Train the x0-predicting denoiser on the training features."""
    settings = config.diffusion
    return train_denoiser(
        features.x["train"],
        noise_schedule(settings),
        hidden=settings.hidden,
        embedding_dim=settings.embedding_dim,
        ema_decay=settings.ema_decay,
        epochs=settings.epochs,
        lr=settings.lr,
        batch_size=settings.batch_size,
        valid_features=features.x["valid"],
        seed=config.seed,
        device=features.x["train"].device,
        progress=progress,
    )


def attack_model(
    model: torch.nn.Module, features: Features, config: ExperimentConfig, *, progress: bool = False
) -> AttackResult:
    """Attack a model on the test features."""
    x = features.x["test"]
    labels = torch.from_numpy(features.y["test"]).to(x.device)
    return run_autoattack(
        model, x, labels, seed=config.seed, progress=progress, **asdict(config.attack)
    )


@dataclass(frozen=True)
class StageOutputs:
    """What `run_stages` returns."""

    features: Features
    cnn: TrainingResult[FeatureCNN]
    denoiser: TrainingResult[FeatureDenoiser]
    defence: Defence
    attacks: Mapping[str, AttackResult]  # by model: "baseline" and "defended"
    config: ExperimentConfig  # with radii that are numbers
    prospects: Prospects
    selection_trials: tuple[SelectionTrial, ...]  # numbers of components that validation compared

    @property
    def targets(self) -> dict[str, torch.nn.Module]:
        """The attacked models, by the names of their attacks."""
        return {"baseline": self.cnn.model, "defended": self.defence.model}


def run_stages(
    dataset: ImageDataset,
    config: ExperimentConfig,
    *,
    device: torch.device,
    timer: StageTimer,
    progress: bool = False,
    say: Callable[[str], object] = logger.info,
) -> StageOutputs:
    """Run the stages of `PAPER_STAGES`, each on what those before it have returned.

    A defence with a classifier of its own is trained before the attacks, as a stage more. The timer
    gets a row for each stage, `say` takes a line before it; ``config.data`` is not looked at.
    Before anything is trained, the radius is decided and what can be had at it is said.
    """
    say("fitting the components and projecting every image")
    with timer.stage("nnmf_feature_extraction", n_items=len(dataset.images)):
        features = extract_features(dataset, config, device=device, progress=progress)
    n_train = len(features.y["train"])
    trials: tuple[SelectionTrial, ...] = ()
    if config.selection.candidates:
        say("choosing the number of components on the validation split")
        with timer.stage("component_choice", n_items=n_train):
            features, trials = choose_n_selected(features, config, progress=progress, say=say)
    with timer.stage("prospects", n_items=n_train):
        config, prospects = decide_radius(features.x, features.y, config)
    say(prospects.summary)
    if prospects.warning is not None:
        say(f"! {prospects.warning}")
    say("training the classifier")
    with timer.stage("cnn_training", n_items=n_train):
        cnn = fit_classifier(features, config, progress=progress)
    say("training the denoiser")
    with timer.stage("denoiser_training", n_items=n_train):
        denoiser = fit_denoiser(features, config, progress=progress)
    trains = config.defence.has_own_classifier
    if trains:
        say(f"training the defence ({config.defence.kind})")
    with timer.stage("defence_training", n_items=n_train) if trains else nullcontext():
        defence = fit_defence(
            features.x,
            features.y,
            cnn.model,
            denoiser.model,
            config,
            images=_images_of(dataset, features) if config.defence.kind == "pixel" else None,
            progress=progress,
            say=say,
        )
    for level in defence.noise_levels:
        say(
            f"  timestep {level.timestep}: validation {level.clean:.4f} clean,"
            f" {level.attacked:.4f} attacked"
        )
    attacks = {}
    for name, target in (("baseline", cnn.model), ("defended", defence.model)):
        say(f"attacking the {name} model ({' + '.join(config.attack.attacks)})")
        with timer.stage(f"autoattack_{name}", n_items=len(features.y["test"])):
            attacks[name] = attack_model(target, features, config, progress=progress)
    return StageOutputs(features, cnn, denoiser, defence, attacks, config, prospects, trials)


def _images_of(dataset: ImageDataset, features: Features) -> ImageSamples:
    images = {split: torch.from_numpy(dataset.matrix(split)) for split in ("train", "valid")}
    return ImageSamples(features.extractor, images)


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
