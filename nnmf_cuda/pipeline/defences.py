"""The defences: what each trains, how it is put together, and which noise level it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnmf_cuda.attacks.gradient_ascent import vector_apgd
from nnmf_cuda.attacks.objectives import majority_right
from nnmf_cuda.attacks.surrogates import surrogate
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.networks import FeatureClassifier, FeatureCNN, FeatureDenoiser
from nnmf_cuda.pipeline.collapse import Attempt, train_without_collapse
from nnmf_cuda.pipeline.config import DefenceConfig, DiffusionConfig, ExperimentConfig
from nnmf_cuda.training import (
    ImageSamples,
    TrainingResult,
    train_joint_classifier,
    train_pixel_classifier,
    train_robust_classifier,
)

_SURROGATE_DRAWS, _N_ITER = 64, 40

Labels = Tensor | NDArray[Any]

OwnTraining = TrainingResult[FeatureClassifier] | TrainingResult[FeatureCNN]
"""Of a defence's own classifier."""


@dataclass(frozen=True)
class NoiseLevel:
    """Validation accuracy of a defence that works at one timestep.

    Shares of the samples that the majority of fresh decisions names rightly: `clean` as they are,
    `attacked` also after an attack of 40 steps.
    """

    timestep: int
    clean: float
    attacked: float


@dataclass(frozen=True)
class Defence:
    """A trained defence: features (n, n_features) to logits (n, n_classes).

    It has a purifier, whether it uses it or not. `training` is that of its own classifier, None
    where it takes the plain one, and `attempts` are all of them, more than one where one ended in
    the same answer for every sample; `noise_levels` are the timesteps among which validation chose,
    if it did.
    """

    model: nn.Module
    purifier: DiffusionPurifier
    training: OwnTraining | None
    noise_levels: tuple[NoiseLevel, ...] = ()
    attempts: tuple[Attempt, ...] = ()

    @property
    def classifier(self) -> FeatureClassifier | None:
        """The defence's own classifier."""
        return None if self.training is None else self.training.model


def fit_defence(
    x: Mapping[str, Tensor],
    y: Mapping[str, Labels],
    plain: FeatureCNN,
    denoiser: FeatureDenoiser,
    config: ExperimentConfig,
    *,
    images: ImageSamples | None = None,
    progress: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> Defence:
    """Train what the defence trains, on the training split, and choose on the validation split.

    `x` holds features (n, n_features) and `y` labels (n,) of "train" and "valid". The purifier's
    timesteps are those of ``config.diffusion`` where ``config.defence`` names none to choose from.
    `images` are those of `x`, for the defence that is trained on them. `say` is told of trainings
    that end in one answer for every sample, which are tried again.
    """
    config = config.decided()
    settings, norm, n_classes = config.defence, config.attack.norm, plain.n_classes
    seen = torch.as_tensor(y["valid"]).unique()
    attempts: list[Attempt] = []

    def train(purifier: DiffusionPurifier | None = None) -> OwnTraining:
        def once(settings: DefenceConfig) -> OwnTraining:
            if settings.kind == "joint":
                return _train_jointly(x, y, settings, n_classes, config, progress=progress)
            if settings.kind == "pixel":
                return _train_on_images(images, y, settings, n_classes, config, progress=progress)
            return train_adversarially(
                *(x, y, settings),
                norm=norm,
                n_classes=n_classes,
                seed=config.seed,
                purifier=purifier,
                progress=progress,
            )

        training, tried = train_without_collapse(once, settings, n_classes=len(seen), say=say)
        attempts.extend(tried)
        return training

    training: OwnTraining | None = None
    if settings.has_own_classifier and settings.kind != "smoothing":
        training = train()
    tried = []
    candidates: list[tuple[int, ...]] = [(t,) for t in settings.candidate_timesteps]
    for timesteps in candidates or [config.diffusion.timesteps]:
        purifier = purifier_of(denoiser, replace(config.diffusion, timesteps=timesteps))
        if settings.kind == "smoothing":
            training = train(purifier)
        own = None if training is None else training.model
        tried.append(Defence(assemble(purifier, plain, own, settings), purifier, training))
    best = tried[0] if len(tried) == 1 else _best_of(tried, x["valid"], y["valid"], config)
    return replace(best, attempts=tuple(attempts))


def _train_jointly(
    x: Mapping[str, Tensor],
    y: Mapping[str, Labels],
    settings: DefenceConfig,
    n_classes: int,
    config: ExperimentConfig,
    *,
    progress: bool,
) -> TrainingResult[FeatureCNN]:
    return train_joint_classifier(
        *(of[split] for split in ("train", "valid") for of in (x, y)),
        n_classes=n_classes,
        sigma_max=settings.sigma_max,
        denoising_weight=settings.denoising_weight,
        attack_eps=settings.radius,
        norm=config.attack.norm,
        ema_decay=settings.ema_decay,
        epochs=settings.epochs,
        lr=settings.lr,
        batch_size=settings.batch_size,
        seed=config.seed,
        device=x["train"].device,
        progress=progress,
    )


def _train_on_images(
    images: ImageSamples | None,
    y: Mapping[str, Labels],
    settings: DefenceConfig,
    n_classes: int,
    config: ExperimentConfig,
    *,
    progress: bool,
) -> TrainingResult[FeatureCNN]:
    if images is None:
        raise ValueError("images must be given with defence.kind='pixel', which attacks them")
    return train_pixel_classifier(
        images,
        y["train"],
        y["valid"],
        n_classes=n_classes,
        method="pgd" if settings.method == "pgd" else "trades",
        attack_eps=settings.pixel_eps,
        block=settings.pixel_block,
        n_steps=settings.n_steps,
        trades_beta=settings.trades_beta,
        class_weight=settings.class_weight,
        ema_decay=settings.ema_decay,
        epochs=settings.epochs,
        lr=settings.lr,
        batch_size=settings.batch_size,
        seed=config.seed,
        progress=progress,
    )


def train_adversarially(
    x: Mapping[str, Tensor],
    y: Mapping[str, Labels],
    settings: DefenceConfig,
    *,
    norm: str,
    n_classes: int,
    seed: int,
    purifier: DiffusionPurifier | None = None,
    progress: bool = False,
) -> TrainingResult[FeatureClassifier]:
    """Train a classifier on attacked features, behind a purifier where given.

    `x` holds features (n, n_features) and `y` labels (n,) of "train" and "valid"; `norm` is that of
    the ball in which training attacks.
    """
    return train_robust_classifier(
        *(of[split] for split in ("train", "valid") for of in (x, y)),
        n_classes=n_classes,
        method=settings.method,
        network=settings.network,
        hidden=settings.hidden,
        purifier=purifier,
        attack_eps=settings.radius,
        norm=norm,
        n_steps=settings.n_steps,
        trades_beta=settings.trades_beta,
        ibp_weight=settings.ibp_weight,
        class_weight=settings.class_weight,
        eps_ramp=settings.eps_ramp,
        ema_decay=settings.ema_decay,
        epochs=settings.epochs,
        lr=settings.lr,
        batch_size=settings.batch_size,
        seed=seed,
        device=x["train"].device,
        progress=progress,
    )


def _best_of(tried: list[Defence], x: Tensor, y: Labels, config: ExperimentConfig) -> Defence:
    """Return the defence with the highest sum of clean and attacked validation accuracy."""
    labels = torch.as_tensor(y).to(x.device)
    levels = tuple(_validate(defence, x.clamp(0, 1), labels, config) for defence in tried)
    sums = [level.clean + level.attacked for level in levels]
    return replace(tried[sums.index(max(sums))], noise_levels=levels)


def _validate(defence: Defence, x: Tensor, y: Tensor, config: ExperimentConfig) -> NoiseLevel:
    model, seed = defence.model, config.seed
    target = surrogate(model, _SURROGATE_DRAWS) if isinstance(model, DefendedClassifier) else model
    points = vector_apgd(
        target,
        x,
        y,
        attack_eps=config.defence.radius,
        norm=config.attack.norm,
        n_iter=_N_ITER,
        n_restarts=1,
        judge=model,
        seed=seed,
    )
    clean, attacked = (majority_right(model, rows, y, seed=seed + 1) for rows in (x, points))
    return NoiseLevel(
        timestep=int(defence.purifier.timesteps[0]),
        clean=float(clean.float().mean()),
        attacked=float((clean & attacked).float().mean()),
    )


def noise_schedule(config: DiffusionConfig) -> NoiseSchedule:
    """Build the linear noise schedule."""
    return NoiseSchedule.linear(config.num_timesteps, config.beta_start, config.beta_end)


def purifier_of(denoiser: FeatureDenoiser, config: DiffusionConfig) -> DiffusionPurifier:
    """Put a denoiser to work, on its device."""
    purifier = DiffusionPurifier(
        denoiser,
        noise_schedule(config),
        timesteps=config.timesteps,
        n_draws=config.n_draws,
        eta=config.eta,
    )
    return purifier.to(next(denoiser.parameters()).device)


def assemble(
    purifier: DiffusionPurifier,
    plain: FeatureCNN,
    own: FeatureClassifier | None,
    config: DefenceConfig,
) -> nn.Module:
    """Put a defence together; `own` is the classifier that it has trained, if any."""
    classifier = plain if own is None else own
    return DefendedClassifier(purifier, classifier) if config.purifies else classifier
