"""The paper's five stages in their order, each timed: what a run and the stage benchmark share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nnmf_cuda.attacks import AttackResult
from nnmf_cuda.data import ImageDataset
from nnmf_cuda.diffusion import DiffusionPurifier
from nnmf_cuda.evaluation import EvaluatedRows, evaluate_rows
from nnmf_cuda.models import DefendedClassifier, FeatureCNN, FeatureDenoiser
from nnmf_cuda.pipeline import stages
from nnmf_cuda.pipeline.config import ExperimentConfig
from nnmf_cuda.timing import StageTimer
from nnmf_cuda.training import TrainingResult

__all__ = ["StageOutputs", "evaluate_stages", "evaluation_seed", "run_five_stages"]

logger = logging.getLogger(__name__)

_EVALUATION = 1
"""Sets the evaluation's noise apart from that of every other stage; see `evaluation_seed`."""


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
    robust_cnn : TrainingResult of FeatureCNN or None
        The adversarially trained classifier, where the defence has one.
    purifier : DiffusionPurifier
        The denoiser at work.
    defended : nn.Module
        The defence.
    attacks : mapping of str to AttackResult
        By model: "baseline" and "defended".
    """

    features: stages.Features
    cnn: TrainingResult[FeatureCNN]
    denoiser: TrainingResult[FeatureDenoiser]
    robust_cnn: TrainingResult[FeatureCNN] | None
    purifier: DiffusionPurifier
    defended: torch.nn.Module
    attacks: Mapping[str, AttackResult]

    @property
    def targets(self) -> dict[str, torch.nn.Module]:
        """The attacked models, by the names of their attacks."""
        return {"baseline": self.cnn.model, "defended": self.defended}


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
    robust_cnn = None
    if config.defence.trains_robustly:
        say("training the robust classifier")
        with timer.stage("adversarial_training", n_items=n_train):
            robust_cnn = stages.fit_robust_classifier(
                features,
                config.defence,
                norm=config.attack.norm,
                n_classes=dataset.n_classes,
                **where,
            )
    purifier = stages.purifier_of(denoiser.model, config.diffusion)
    robust_model = None if robust_cnn is None else robust_cnn.model
    defended = stages.defend(purifier, cnn.model, robust_model, config.defence)
    attacks = {}
    for name, target in (("baseline", cnn.model), ("defended", defended)):
        say(f"attacking the {name} model ({' + '.join(config.attack.attacks)})")
        with timer.stage(f"autoattack_{name}", n_items=len(features.y["test"])):
            attacks[name] = stages.attack_model(
                target, features, config.attack, seed=config.seed, progress=progress
            )
    return StageOutputs(features, cnn, denoiser, robust_cnn, purifier, defended, attacks)


def evaluate_stages(outputs: StageOutputs, config: ExperimentConfig) -> EvaluatedRows:
    """Return the paper's four rows of what the stages have left, with noise of their own."""
    return evaluate_rows(
        outputs.cnn.model,
        outputs.defended,
        outputs.features.x["test"],
        outputs.attacks["baseline"].x_adv,
        outputs.attacks["defended"].x_adv,
        outputs.features.y["test"],
        seed=evaluation_seed(config.seed),
        n_predictions=config.n_predictions,
        random=isinstance(outputs.defended, DefendedClassifier),
    )


def evaluation_seed(seed: int) -> int:
    """Return the seed of the evaluation's noise, which no attack may have seen.

    A word of its own: torch's generator on the CPU reads the low 32 bits of a seed only, so no sum
    of the seed and a constant above them would do.
    """
    return int(np.random.SeedSequence([seed, _EVALUATION]).generate_state(1)[0])
