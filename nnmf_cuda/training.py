"""Training of classifier and denoiser: one loop, reproducible, no hidden random state."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from nnmf_cuda.diffusion import NoiseSchedule
from nnmf_cuda.models import FeatureCNN, FeatureDenoiser, deterministic_convolutions

__all__ = ["TrainingResult", "train_classifier", "train_denoiser"]

Model = TypeVar("Model", bound=nn.Module)
Array = Tensor | NDArray[Any]
logger = logging.getLogger(__name__)


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


def train_classifier(
    features: Array,
    labels: Array,
    valid_features: Array,
    valid_labels: Array,
    *,
    n_classes: int,
    ema_decay: float = 0.998,
    epochs: int = 100,
    lr: float = 1e-3,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> TrainingResult[FeatureCNN]:
    """Train a `FeatureCNN` by cross-entropy and keep its best validation epoch.

    What is validated and kept is the moving average of the weights over the steps: the best of
    many single epochs on a small validation split would be a matter of luck. The best epoch has
    the highest validation accuracy; among equals the lowest validation loss; among equals the
    earliest.

    Parameters
    ----------
    features, valid_features : array of shape (n_samples, n_features)
        Finite; used in float32.
    labels, valid_labels : array of shape (n_samples,)
        Integers in 0..n_classes-1.
    n_classes : int
        Number of classes.
    ema_decay : float, default=0.998
        Share of the average that each step keeps, in [0, 1), less in the first steps; 0 keeps the
        last step's weights.
    epochs, lr, batch_size
        Passes over the data, Adam's learning rate, samples per step.
    seed : int, default=0
        Determines initial weights and batches, the same on every device. The global random
        state is neither used nor changed.
    device : torch.device or str, default="cpu"
        Where to train.
    progress : bool, default=False
        Show a bar, if the standard error is a terminal.

    Returns
    -------
    TrainingResult

    Raises
    ------
    TypeError, ValueError
        If data or settings do not fit, or the loss stops being finite.
    """
    x = _as_features("features", features, device)
    y = _as_labels("labels", labels, len(x), n_classes, device)
    valid_x = _as_features("valid_features", valid_features, device, n_features=x.shape[1])
    valid_y = _as_labels("valid_labels", valid_labels, len(valid_x), n_classes, device)
    model = _initialised(lambda: FeatureCNN(x.shape[1], n_classes), seed).to(x)

    def draw_epoch(generator: torch.Generator) -> tuple[Tensor, ...]:
        order = torch.randperm(len(x), generator=generator).to(x.device)
        return x[order], y[order]

    def evaluate(network: nn.Module) -> dict[str, Tensor]:
        logits = network(valid_x)
        return {
            "valid_loss": functional.cross_entropy(logits, valid_y),
            "valid_accuracy": (logits.argmax(1) == valid_y).float().mean(),
        }

    return _fit(
        model,
        draw_epoch=draw_epoch,
        batch_loss=lambda batch_x, batch_y: functional.cross_entropy(model(batch_x), batch_y),
        evaluate=evaluate,
        rank=lambda scores: (scores["valid_accuracy"], -scores["valid_loss"]),
        settings=_Settings("classifier", epochs, lr, batch_size, ema_decay, seed, progress),
    )


def train_denoiser(
    features: Array,
    schedule: NoiseSchedule,
    *,
    hidden: int = 128,
    embedding_dim: int = 32,
    ema_decay: float = 0.998,
    epochs: int = 300,
    lr: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
    valid_features: Array | None = None,
    progress: bool = False,
) -> TrainingResult[FeatureDenoiser]:
    """Train a `FeatureDenoiser` to predict x_0 from x_t.

    The loss is the mean squared error on x_0, with t uniform on 0..T-1 and fresh noise for every
    sample of every epoch. The model returned has the moving average of the weights over the steps,
    as is usual for diffusion [1]_: the last step's weights carry the noise of its (t, noise).
    Validation features are only watched: one draw of (t, noise) for each, the same in every epoch.

    Parameters
    ----------
    features : array of shape (n_samples, n_features)
        Finite; used in float32.
    schedule : NoiseSchedule
        Noise schedule.
    hidden, embedding_dim : int
        Widths of the `FeatureDenoiser`.
    ema_decay, epochs, lr, batch_size, seed, device, progress
        As in `train_classifier`; the seed determines timesteps and noise too.
    valid_features : array of shape (n_valid, n_features), optional
        Adds "valid_loss" to the history.

    Returns
    -------
    TrainingResult

    Raises
    ------
    TypeError, ValueError
        If data or settings do not fit, or the loss stops being finite.

    References
    ----------
    .. [1] Ho, Jain & Abbeel (2020), Denoising diffusion probabilistic models, NeurIPS 33,
       appendix B.
    """
    x = _as_features("features", features, device)
    model = _initialised(
        lambda: FeatureDenoiser(x.shape[1], hidden=hidden, embedding_dim=embedding_dim), seed
    ).to(x)
    schedule = schedule.to(device)

    def draw(x_start: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        t = torch.randint(schedule.num_timesteps, (len(x_start),), generator=generator)
        noise = torch.randn(x_start.shape, generator=generator, dtype=x.dtype)
        return x_start, t.to(x.device), noise.to(x.device)

    def draw_epoch(generator: torch.Generator) -> tuple[Tensor, ...]:
        order = torch.randperm(len(x), generator=generator).to(x.device)
        return draw(x[order], generator)

    def loss_of(network: nn.Module, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return functional.mse_loss(network(schedule.q_sample(x_start, t, noise), t), x_start)

    evaluate = None
    if valid_features is not None:
        valid_x = _as_features("valid_features", valid_features, device, n_features=x.shape[1])
        valid_batch = draw(valid_x, torch.Generator().manual_seed(seed + 1))

        def evaluate(network: nn.Module) -> dict[str, Tensor]:
            return {"valid_loss": loss_of(network, *valid_batch)}

    return _fit(
        model,
        draw_epoch=draw_epoch,
        batch_loss=partial(loss_of, model),
        evaluate=evaluate,
        rank=None,
        settings=_Settings("denoiser", epochs, lr, batch_size, ema_decay, seed, progress),
    )


@dataclass(frozen=True)
class _Settings:
    description: str
    epochs: int
    lr: float
    batch_size: int
    ema_decay: float
    seed: int
    progress: bool

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a finite number > 0, got {self.lr}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")


def _fit(
    model: Model,
    *,
    draw_epoch: Callable[[torch.Generator], tuple[Tensor, ...]],
    batch_loss: Callable[..., Tensor],
    evaluate: Callable[[nn.Module], dict[str, Tensor]] | None,
    rank: Callable[[dict[str, float]], tuple[float, ...]] | None,
    settings: _Settings,
) -> TrainingResult[Model]:
    """Minimise `batch_loss` over slices of what `draw_epoch` returns, by Adam.

    `draw_epoch` returns one epoch's samples in their order; `evaluate` the validation scores of
    the averaged weights; `rank` says how good an epoch is (more is better): without it the last
    one is kept. Losses stay on the device within an epoch and are read once at its end.
    """
    # Drawn on the CPU, a whole epoch at once: the same numbers on every device.
    generator = torch.Generator().manual_seed(settings.seed)
    # Fused: the networks are so small that the plain optimiser takes half of a step.
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    average = _MovingAverage(model, settings.ema_decay)
    history: dict[str, list[float]] = {}
    best: tuple[float, ...] | None = None
    best_epoch, best_state = settings.epochs - 1, None
    bar = tqdm(
        range(settings.epochs),
        desc=f"train {settings.description}",
        unit="epoch",
        disable=None if settings.progress else True,
    )
    with deterministic_convolutions():
        for epoch in bar:
            model.train()
            samples = draw_epoch(generator)
            loss = _run_epoch(samples, batch_loss, optimizer, settings.batch_size, average)
            scores = {"train_loss": loss}
            if evaluate is not None:
                with torch.no_grad():
                    scores |= evaluate(average.model)
            values = dict(zip(scores, torch.stack(list(scores.values())).tolist(), strict=True))
            _require_finite(values, epoch, settings)
            for name, value in values.items():
                history.setdefault(name, []).append(value)
            if rank is not None and (best is None or rank(values) > best):
                best, best_epoch = rank(values), epoch
                best_state = {name: v.clone() for name, v in average.model.state_dict().items()}
            name, value = list(values.items())[-1]
            bar.set_postfix_str(f"{name} {value:.4g}", refresh=False)
    kept = average.model.requires_grad_(True)
    if best_state is not None:
        kept.load_state_dict(best_state)
    logger.info(
        "trained %s: kept epoch %d of %d", settings.description, best_epoch + 1, settings.epochs
    )
    return TrainingResult(kept, history, best_epoch)


class _MovingAverage(Generic[Model]):
    """A copy of a model whose weights trail the original's."""

    def __init__(self, model: Model, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._source = model
        self._decay = decay
        self._step = 0

    def update(self) -> None:
        """Move towards the original; faster at first, so that a short run is averaged too."""
        decay = min(self._decay, (1 + self._step) / (10 + self._step))
        self._step += 1
        with torch.no_grad():
            for mine, its in zip(self.model.parameters(), self._source.parameters(), strict=True):
                mine.lerp_(its, 1 - decay)


def _run_epoch(
    samples: tuple[Tensor, ...],
    batch_loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    average: _MovingAverage[Any],
) -> Tensor:
    """Step through one epoch; return the mean loss per sample, still on the device."""
    n_samples = len(samples[0])
    total = torch.zeros((), device=samples[0].device)
    for start in range(0, n_samples, batch_size):
        batch = [tensor[start : start + batch_size] for tensor in samples]
        loss = batch_loss(*batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        average.update()
        total += loss.detach() * len(batch[0])
    return total / n_samples


def _require_finite(values: dict[str, float], epoch: int, settings: _Settings) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(
                f"{name} of the {settings.description} became {value} in epoch {epoch + 1}: "
                f"lower lr (now {settings.lr}) or check the features' scale"
            )


def _initialised(build: Callable[[], Model], seed: int) -> Model:
    """Build a model whose initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the GPUs' generators too.
        torch.default_generator.manual_seed(seed)
        return build()


def _as_features(
    name: str, values: Array, device: torch.device | str, *, n_features: int | None = None
) -> Tensor:
    x = torch.as_tensor(values).detach().to(device=device, dtype=torch.float32)
    if x.dim() != 2 or x.numel() == 0 or n_features not in (None, x.shape[1]):
        expected = "n_features" if n_features is None else n_features
        raise ValueError(
            f"{name} must have shape (n_samples, {expected}) with at least one sample, "
            f"got {tuple(x.shape)}"
        )
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity: check the features")
    return x


def _as_labels(
    name: str, values: Array, n_samples: int, n_classes: int, device: torch.device | str
) -> Tensor:
    y = torch.as_tensor(values)
    if y.is_floating_point() or y.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {y.dtype}")
    if y.shape != (n_samples,):
        raise ValueError(f"{name} must have shape ({n_samples},), got {tuple(y.shape)}")
    if int(y.min()) < 0 or int(y.max()) >= n_classes:
        raise ValueError(
            f"{name} must be within 0..{n_classes - 1} for n_classes={n_classes}, got values "
            f"from {int(y.min())} to {int(y.max())}"
        )
    return y.to(device=device, dtype=torch.int64)
