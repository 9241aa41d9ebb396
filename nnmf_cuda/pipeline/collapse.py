"""Adversarial training that ends in one answer for every sample: noticed, and tried again.

Where the ball is large against the distance between classes, or classes are unequal, answering
always the same is a minimum of the loss that training finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from nnmf_cuda.pipeline.config import DefenceConfig
from nnmf_cuda.training import TrainingResult

_CHANCE = 0.02
"""How far above that of one answer a mean accuracy over the classes is still at chance."""

_RAMP = 0.5

Training = TypeVar("Training", bound=TrainingResult[Any])


@dataclass(frozen=True)
class Attempt:
    """One training of a defence's classifier.

    `train_eps` is the radius that it was trained in: of features, or of pixels for kind pixel.
    `balanced_accuracy` is that of the epoch kept on the validation split, without an attack.
    """

    train_eps: float
    class_weight: str | None
    eps_ramp: float
    balanced_accuracy: float
    collapsed: bool

    @property
    def sentence(self) -> str:
        """What was tried, and how it ended."""
        weights = "" if self.class_weight is None else f", class weights {self.class_weight}"
        ramp = "" if self.eps_ramp == 0 else f", radius growing over {self.eps_ramp:g} of training"
        ended = "one answer for every sample" if self.collapsed else "answers that tell classes"
        return (
            f"training at eps {self.train_eps:.3g}{weights}{ramp}: {ended}, balanced validation"
            f" accuracy {self.balanced_accuracy:.3f}"
        )


def train_without_collapse(
    train: Callable[[DefenceConfig], Training],
    settings: DefenceConfig,
    *,
    n_classes: int,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[Training, tuple[Attempt, ...]]:
    """Train, and again in other ways while the answer is one and the same; return all attempts.

    After the settings as they are: balanced class weights and a radius that grows over half of the
    epochs (of kind pixel, whose radius does not grow, weights alone); the same at half, then at a
    quarter of the radius. Where all collapse, the training of the highest balanced validation
    accuracy is returned. `n_classes` is the number of classes that validation has.
    """
    trainings, attempts = list[Training](), list[Attempt]()
    for tried in _ways(settings):
        training = train(tried)
        accuracy = training.history["valid_balanced_accuracy"][training.best_epoch]
        attempt = Attempt(
            train_eps=tried.pixel_eps if tried.kind == "pixel" else tried.radius,
            class_weight=tried.class_weight,
            eps_ramp=tried.eps_ramp,
            balanced_accuracy=accuracy,
            collapsed=n_classes > 1 and accuracy <= 1 / n_classes + _CHANCE,
        )
        trainings.append(training)
        attempts.append(attempt)
        if not attempt.collapsed:
            break
        say(f"  {attempt.sentence}")
    accuracies = [attempt.balanced_accuracy for attempt in attempts]
    best = len(attempts) - 1
    if attempts[-1].collapsed:
        best = accuracies.index(max(accuracies))
    elif best > 0:
        say(f"  {attempts[-1].sentence}")
    return trainings[best], tuple(attempts)


def _ways(settings: DefenceConfig) -> Iterator[DefenceConfig]:
    yield settings
    careful = replace(settings, class_weight="balanced")
    if settings.kind != "pixel":
        careful = replace(careful, eps_ramp=max(settings.eps_ramp, _RAMP))
    for share in (1.0, 0.5, 0.25):
        if settings.kind == "pixel":
            tried = replace(careful, pixel_eps=share * settings.pixel_eps)
        else:
            tried = replace(careful, train_eps=share * settings.radius)
        if tried != settings:
            yield tried
