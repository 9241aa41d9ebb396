"""The steps of one epoch, by three ways to the same weights.

`PlainEpochs` is the loop that anyone would write: modules, autograd, an optimiser. The networks are
so small that nearly all its time goes between the operations. `CompiledEpochs` makes an epoch in
one call of a compiled op; `GraphedEpochs` records the plain loop as a CUDA graph and replays it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from nnmf_cuda import ops
from nnmf_cuda.graphs import Repeated
from nnmf_cuda.models.networks import deterministic_convolutions
from nnmf_cuda.ops.show_config import served_by

Model = TypeVar("Model", bound=nn.Module)

_RISE = 0.1
"""Share of the steps over which the learning rate of one cycle rises."""


@dataclass(frozen=True)
class EpochOp:
    """An op of `nnmf_cuda.ops` that trains a network for one epoch."""

    name: str
    widths: Sequence[int]  # of the network, as the op takes them
    inputs: Callable[..., tuple[Tensor, Tensor]]  # an epoch's samples to its rows and their targets


@dataclass(frozen=True)
class Task(Generic[Model]):
    """What is learnt."""

    model: Model  # with its initial weights, on the device of the samples
    batch_loss: Callable[..., Tensor]  # mean loss of a batch, (model, *samples)
    op: EpochOp | None = None  # makes the same steps, where it is compiled, without weight decay


@dataclass(frozen=True)
class Settings:
    """How long and how fast; `description` is what messages call the model."""

    description: str
    epochs: int
    lr: float
    batch_size: int
    ema_decay: float
    seed: int
    progress: bool
    weight_decay: float = 0.0  # share of the weights, times lr, by which a step shrinks them
    one_cycle: bool = False  # lr rises in the first tenth of the steps, then falls to 0 as a cosine

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a finite number > 0, got {self.lr}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be a finite number >= 0, got {self.weight_decay}")


class Epochs(Protocol[Model]):
    """Makes the steps of an epoch, and holds the moving average of the weights."""

    average: Model  # in evaluation mode, without gradients

    def run(self, samples: tuple[Tensor, ...]) -> Tensor:
        """Go once through the samples; return the mean loss, still on the device."""


def epochs_of(task: Task[Model], settings: Settings) -> Epochs[Model]:
    """Return the fastest way there is, but the plain one inside `ops.reference_path`.

    Also one cycle of the learning rate is made by the plain one.
    """
    device = next(task.model.parameters()).device.type
    if not (ops.is_reference_path() or settings.one_cycle):
        op = task.op if settings.weight_decay == 0 else None
        if op is not None and served_by(op.name, device) == "kernel":
            return CompiledEpochs(task, op, settings)
        if device == "cuda":
            return GraphedEpochs(task, settings)
    return PlainEpochs(task, settings)


class CompiledEpochs(Generic[Model]):
    """An epoch is one call of a compiled op."""

    def __init__(self, task: Task[Model], op: EpochOp, settings: Settings) -> None:
        self.average = _frozen_copy(task.model)
        self._op, self._settings, self._step = op, settings, 0
        weights = parameters_to_vector(self.average.parameters())
        nothing = torch.zeros_like(weights)
        self._state = torch.stack((weights, nothing, nothing, weights))

    def run(self, samples: tuple[Tensor, ...]) -> Tensor:
        """Go once through the samples; return the mean loss."""
        x, wanted = self._op.inputs(*samples)
        self._state, loss = getattr(ops, self._op.name)(
            x,
            wanted,
            self._state,
            widths=self._op.widths,
            batch_size=self._settings.batch_size,
            step=self._step,
            lr=self._settings.lr,
            ema_decay=self._settings.ema_decay,
        )
        self._step += math.ceil(len(x) / self._settings.batch_size)
        # A copy: the average's parameters must not become views of the state.
        vector_to_parameters(self._state[3].clone(), self.average.parameters())
        mean_loss: Tensor = loss.float()
        return mean_loss


class PlainEpochs(Generic[Model]):
    """Modules, autograd, an optimiser: one step after the other."""

    def __init__(self, task: Task[Model], settings: Settings, *, capturable: bool = False) -> None:
        self.average = _frozen_copy(task.model)
        self._model = task.model.train()
        self._batch_loss = task.batch_loss
        self._batch_size = settings.batch_size
        self._decay = settings.ema_decay
        self._settings = settings
        self._pairs = list(zip(_averaged(self.average), _averaged(self._model), strict=True))
        self._step = 0
        # Fused: the networks are so small that the plain optimiser takes half of a step.
        self._optimizer = torch.optim.Adam(
            self._model.parameters(),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            decoupled_weight_decay=True,
            fused=True,
            capturable=capturable,
        )

    def run(self, samples: tuple[Tensor, ...]) -> Tensor:
        """Go once through the samples; return the mean loss, still on the device."""
        n_samples = len(samples[0])
        total = torch.zeros((), device=samples[0].device)
        with deterministic_convolutions():
            for start in range(0, n_samples, self._batch_size):
                if self._settings.one_cycle:
                    self._set_lr(math.ceil(n_samples / self._batch_size) * self._settings.epochs)
                batch = [tensor[start : start + self._batch_size] for tensor in samples]
                total += self._take_step(batch) * len(batch[0])
        return total / n_samples

    def _take_step(self, batch: Sequence[Tensor]) -> Tensor:
        loss = self._batch_loss(self._model, *batch)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()
        moves = self._average_moves()
        with torch.no_grad():
            for trailing, ahead in self._pairs:
                trailing.lerp_(ahead, moves)
        return loss.detach()

    def _set_lr(self, n_steps: int) -> None:
        """Set the learning rate of the next step, of so many."""
        done = (self._step + 0.5) / n_steps
        factor = min(1, done / _RISE) * (1 + math.cos(math.pi * done)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.lr * factor

    def _average_moves(self) -> float | Tensor:
        """Return how far the average moves; farther at first: a short run is averaged too."""
        self._step += 1
        return 1 - min(self._decay, self._step / (9 + self._step))


class GraphedEpochs(Generic[Model]):
    """The plain loop, of which an epoch is a CUDA graph from the second one on (`Repeated`).

    Every epoch must have as many samples.
    """

    def __init__(self, task: Task[Model], settings: Settings) -> None:
        plain = _CapturableEpochs(task, settings)
        self.average = plain.average
        device = next(task.model.parameters()).device
        name = f"an epoch of the {settings.description}"
        self._epoch = Repeated(lambda *samples: plain.run(samples), device, name=name, n_plain=1)

    def run(self, samples: tuple[Tensor, ...]) -> Tensor:
        """Go once through the samples; return the mean loss, still on the device."""
        return self._epoch(*samples).clone()


class _CapturableEpochs(PlainEpochs[Model]):
    """The same, where what changes from step to step lives on the device."""

    def __init__(self, task: Task[Model], settings: Settings) -> None:
        super().__init__(task, settings, capturable=True)
        self._n_steps = torch.zeros((), device=next(task.model.parameters()).device)

    def _average_moves(self) -> Tensor:
        self._n_steps += 1
        return 1 - (self._n_steps / (9 + self._n_steps)).clamp_max(self._decay)


def _averaged(model: nn.Module) -> Iterator[Tensor]:
    """Yield the weights, and what layers keep of the samples, as batch normalisation does."""
    yield from model.parameters()
    yield from (buffer for buffer in model.buffers() if buffer.is_floating_point())


def _frozen_copy(model: Model) -> Model:
    return copy.deepcopy(model).requires_grad_(False).eval()
