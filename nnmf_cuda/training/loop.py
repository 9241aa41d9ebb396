"""The one loop over epochs: history, validation, the best epoch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nnmf_cuda.graphs import Repeated
from nnmf_cuda.training.epochs import Model, Settings, Task, epochs_of


@dataclass(frozen=True)
class TrainingResult(Generic[Model]):
    """A trained model with the record of its training.

    Attributes
    ----------
    model : nn.Module
        In evaluation mode, on the device it was trained on.
    history : dict of str to list of float
        One entry per epoch: "train_loss" (mean over the samples as they were seen), and, with
        validation data, "valid_loss" and for the classifier "valid_accuracy".
    best_epoch : int
        Epoch whose weights the model has, as an index into the lists of `history`.
    """

    model: Model
    history: dict[str, list[float]]
    best_epoch: int


logger = logging.getLogger(__name__)


def fit(
    task: Task[Model],
    settings: Settings,
    *,
    draw_epoch: Callable[[torch.Generator], tuple[Tensor, ...]],
    evaluate: Callable[[nn.Module], dict[str, Tensor]] | None = None,
    rank: Callable[[dict[str, float]], tuple[float, ...]] | None = None,
) -> TrainingResult[Model]:
    """Minimise a task's loss over what `draw_epoch` returns.

    `draw_epoch` returns one epoch's samples in their order; `evaluate` the validation scores of
    the averaged weights; `rank` says how good an epoch is (more is better): without it the last
    one is kept. Losses stay on the device within an epoch and are read once at its end.
    """
    # Drawn on the CPU, a whole epoch at once: the same numbers on every device.
    generator = torch.Generator().manual_seed(settings.seed)
    epochs = epochs_of(task, settings)
    scores_now = _scores_of(epochs.average, evaluate)
    history: dict[str, list[float]] = {}
    best: tuple[float, ...] | None = None
    best_epoch, best_state = settings.epochs - 1, None
    bar = tqdm(
        range(settings.epochs),
        desc=f"train {settings.description}",
        unit="epoch",
        disable=None if settings.progress else True,
    )
    for epoch in bar:
        scores = {"train_loss": epochs.run(draw_epoch(generator))}
        with torch.no_grad():
            scores |= scores_now()
        values = dict(zip(scores, torch.stack(list(scores.values())).tolist(), strict=True))
        _require_finite(values, epoch, settings)
        for name, value in values.items():
            history.setdefault(name, []).append(value)
        if rank is not None and (best is None or rank(values) > best):
            best, best_epoch = rank(values), epoch
            best_state = {name: v.clone() for name, v in epochs.average.state_dict().items()}
        name, value = list(values.items())[-1]
        bar.set_postfix_str(f"{name} {value:.4g}", refresh=False)
    kept = epochs.average.requires_grad_(True)
    if best_state is not None:
        kept.load_state_dict(best_state)
    logger.info(
        "trained %s: kept epoch %d of %d", settings.description, best_epoch + 1, settings.epochs
    )
    return TrainingResult(kept, history, best_epoch)


def _scores_of(
    model: nn.Module, evaluate: Callable[[nn.Module], dict[str, Tensor]] | None
) -> Callable[[], dict[str, Tensor]]:
    """Return what asks for a model's scores at every epoch: on a GPU, a CUDA graph of that."""
    if evaluate is None:
        return dict
    weights = list(model.parameters())
    evaluation = partial(evaluate, model)
    return Repeated(evaluation, weights[0].device, name="validation", holds=weights, n_plain=1)


def initialised(build: Callable[[], Model], seed: int) -> Model:
    """Build a model whose initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the GPUs' generators too.
        torch.default_generator.manual_seed(seed)
        return build()


def _require_finite(values: dict[str, float], epoch: int, settings: Settings) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(
                f"{name} of the {settings.description} became {value} in epoch {epoch + 1}: "
                f"lower lr (now {settings.lr}) or check the features' scale"
            )
