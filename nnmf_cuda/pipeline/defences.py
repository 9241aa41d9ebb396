"""The defences: what each trains, what stands before it, and which noise level it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnmf_cuda.attacks.gradient_ascent import vector_apgd
from nnmf_cuda.attacks.objectives import majority_right
from nnmf_cuda.attacks.surrogates import surrogate
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier, NoiseSchedule
from nnmf_cuda.models.networks import FeatureCNN, FeatureDenoiser
from nnmf_cuda.pipeline.config import DefenceConfig, DiffusionConfig
from nnmf_cuda.training import TrainingResult, train_joint_classifier, train_robust_classifier

__all__ = [
    "Defence",
    "assemble",
    "fit_defence",
    "noise_schedule",
    "purifier_of",
    "train_adversarially",
]

_SURROGATE_DRAWS, _N_ITER = 64, 40


@dataclass(frozen=True)
class Defence:
    """What stands between an attacker and the answer, trained.

    Attributes
    ----------
    model : nn.Module
        Features to logits.
    purifier : DiffusionPurifier
        The denoiser at work, whether the defence uses it or not.
    training : TrainingResult of FeatureCNN or None
        Of the defence's own classifier; None where it takes the plain one.
    noise_levels : list of dict
        For each timestep among which validation chose, "timestep", "clean" and "attacked" accuracy
        there; empty where none was chosen.
    """

    model: nn.Module
    purifier: DiffusionPurifier
    training: TrainingResult[FeatureCNN] | None
    noise_levels: list[dict[str, float]]

    @property
    def classifier(self) -> FeatureCNN | None:
        """The defence's own classifier."""
        return None if self.training is None else self.training.model


def fit_defence(
    x: Mapping[str, Tensor],
    y: Mapping[str, Any],
    plain: FeatureCNN,
    denoiser: FeatureDenoiser,
    defence: DefenceConfig,
    diffusion: DiffusionConfig,
    *,
    norm: str,
    n_classes: int,
    seed: int,
    device: torch.device,
    progress: bool = False,
) -> Defence:
    """Train what the defence trains, on the training split, and choose on the validation split.

    Parameters
    ----------
    x, y : mapping of str to Tensor and array
        Features and labels of "train" and "valid".
    plain : FeatureCNN
        The plainly trained classifier.
    denoiser : FeatureDenoiser
    defence : DefenceConfig
        What to do.
    diffusion : DiffusionConfig
        Schedule and purification; its timesteps are those of a defence that chooses none.
    norm : str
        Of the ball in which training attacks.
    n_classes : int
    seed, device, progress
        As for the other stages.
    """
    where: dict[str, Any] = {
        "norm": norm,
        "n_classes": n_classes,
        "seed": seed,
        "device": device,
        "progress": progress,
    }
    training = None
    if defence.kind == "joint":
        training = _train_jointly(x, y, defence, **where)
    elif defence.kind.startswith("adversarial"):
        training = train_adversarially(x, y, defence, **where)
    tried = []
    for timesteps in _timesteps(defence, diffusion):
        purifier = purifier_of(denoiser, replace(diffusion, timesteps=timesteps))
        if defence.kind == "smoothing":
            training = train_adversarially(x, y, defence, purifier=purifier, **where)
        own = None if training is None else training.model
        model = assemble(purifier, plain, own, defence)
        tried.append(Defence(model, purifier, training, []))
    return _best_of(tried, x["valid"], y["valid"], defence.train_eps, norm, seed)


def _timesteps(defence: DefenceConfig, diffusion: DiffusionConfig) -> list[tuple[int, ...]]:
    if not (defence.purifies and defence.candidate_timesteps):
        return [diffusion.timesteps]
    return [(t,) for t in defence.candidate_timesteps]


def train_adversarially(
    x: Mapping[str, Tensor],
    y: Mapping[str, Any],
    config: DefenceConfig,
    *,
    norm: str,
    n_classes: int,
    seed: int,
    device: torch.device,
    purifier: DiffusionPurifier | None = None,
    progress: bool = False,
) -> TrainingResult[FeatureCNN]:
    """Train a CNN of the plain one's size on attacked features, behind a purifier where given."""
    return train_robust_classifier(
        x["train"],
        y["train"],
        x["valid"],
        y["valid"],
        n_classes=n_classes,
        method=config.method,
        purifier=purifier,
        attack_eps=config.train_eps,
        norm=norm,
        n_steps=config.n_steps,
        trades_beta=config.trades_beta,
        ema_decay=config.ema_decay,
        epochs=config.epochs,
        lr=config.lr,
        batch_size=config.batch_size,
        seed=seed,
        device=device,
        progress=progress,
    )


def _train_jointly(
    x: Mapping[str, Tensor], y: Mapping[str, Any], config: DefenceConfig, **options: Any
) -> TrainingResult[FeatureCNN]:
    return train_joint_classifier(
        x["train"],
        y["train"],
        x["valid"],
        y["valid"],
        sigma_max=config.sigma_max,
        denoising_weight=config.denoising_weight,
        attack_eps=config.train_eps,
        ema_decay=config.ema_decay,
        epochs=config.epochs,
        lr=config.lr,
        batch_size=config.batch_size,
        **options,
    )


def _best_of(
    tried: Sequence[Defence], x: Tensor, y: Any, attack_eps: float, norm: str, seed: int
) -> Defence:
    """Return the defence with the highest sum of clean and attacked validation accuracy."""
    if len(tried) == 1:
        return tried[0]
    labels = torch.as_tensor(y).to(x.device)
    levels = [
        {
            "timestep": int(found.purifier.timesteps[0]),
            **_accuracies(found.model, x.clamp(0, 1), labels, attack_eps, norm, seed),
        }
        for found in tried
    ]
    sums = [level["clean"] + level["attacked"] for level in levels]
    return replace(tried[sums.index(max(sums))], noise_levels=levels)


def _accuracies(
    model: nn.Module, x: Tensor, y: Tensor, attack_eps: float, norm: str, seed: int
) -> dict[str, float]:
    """Return clean and attacked accuracy by the majority of fresh decisions."""
    target = surrogate(model, _SURROGATE_DRAWS) if isinstance(model, DefendedClassifier) else model
    points = vector_apgd(
        target, x, y, attack_eps=attack_eps, norm=norm, n_iter=_N_ITER, n_restarts=1, judge=model,
        seed=seed,
    )  # fmt: skip
    clean, attacked = (majority_right(model, rows, y, seed=seed + 1) for rows in (x, points))
    return {
        "clean": float(clean.float().mean()),
        "attacked": float((clean & attacked).float().mean()),
    }


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
    purifier: DiffusionPurifier, plain: FeatureCNN, own: FeatureCNN | None, config: DefenceConfig
) -> nn.Module:
    """Put a defence together; `own` is the classifier that it has trained, if any."""
    classifier = plain if own is None else own
    return DefendedClassifier(purifier, classifier) if config.purifies else classifier
