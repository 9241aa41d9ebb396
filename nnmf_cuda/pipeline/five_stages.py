"""The paper's five stages in their order, each timed: what a run and the stage benchmark share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from nnmf_cuda.attacks import AttackResult
from nnmf_cuda.data import ImageDataset
from nnmf_cuda.evaluation import EvaluatedRows, evaluate_rows
from nnmf_cuda.models import DefendedClassifier, FeatureCNN, FeatureDenoiser
from nnmf_cuda.pipeline import stages
from nnmf_cuda.pipeline.config import ExperimentConfig
from nnmf_cuda.pipeline.defences import Defence, fit_defence
from nnmf_cuda.pipeline.seeds import Purpose, seed_word
from nnmf_cuda.timing import StageTimer
from nnmf_cuda.training import TrainingResult

__all__ = ["StageOutputs", "evaluate_stages", "run_five_stages"]

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
