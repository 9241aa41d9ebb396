"""Adversarial training of the classifier: on the worst points that a quick attack finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnmf_cuda.attacks._balls import BALLS
from nnmf_cuda.attacks.checks import frozen
from nnmf_cuda.attacks.objectives import margin_loss
from nnmf_cuda.attacks.pgd import pgd
from nnmf_cuda.models import FeatureCNN
from nnmf_cuda.training._arguments import Array, as_features, as_labels
from nnmf_cuda.training.epochs import Settings, Task
from nnmf_cuda.training.loop import TrainingResult, fit, initialised

__all__ = ["Method", "train_robust_classifier"]

Method = Literal["pgd", "trades"]
_N_VALID_STEPS = 20


def train_robust_classifier(
    features: Array,
    labels: Array,
    valid_features: Array,
    valid_labels: Array,
    *,
    n_classes: int,
    method: Method = "pgd",
    attack_eps: float = 0.10,
    norm: str = "Linf",
    n_steps: int = 10,
    trades_beta: float = 6.0,
    ema_decay: float = 0.998,
    epochs: int = 100,
    lr: float = 1e-3,
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> TrainingResult[FeatureCNN]:
    """Train a `FeatureCNN` to answer alike within a ball around each sample.

    "pgd" minimises the cross-entropy of attacked samples (Madry et al.), "trades" the cross-entropy
    of the samples as they are plus `trades_beta` times the divergence of the answers on attacked
    samples from those (Zhang et al.). The epoch kept is that whose averaged weights have the
    highest mean of clean and attacked validation accuracy.

    Parameters
    ----------
    features, valid_features : array of shape (n_samples, n_features)
        Finite, in [0, 1]; used in float32.
    labels, valid_labels : array of shape (n_samples,)
        Integers in 0..n_classes-1.
    n_classes : int
        Number of classes.
    method : {"pgd", "trades"}, default="pgd"
        What is minimised.
    attack_eps : float, default=0.10
        Radius of the ball, in units of the features.
    norm : {"Linf", "L2"}, default="Linf"
        Norm of the ball.
    n_steps : int, default=10
        Steps of the attack on each batch.
    trades_beta : float, default=6
        Weight of the divergence.
    ema_decay, epochs, lr, batch_size, seed, device, progress
        As for `train_classifier`.

    Returns
    -------
    TrainingResult
        With "valid_robust_accuracy" in the history.

    Raises
    ------
    TypeError, ValueError
        If data or settings do not fit, or the loss stops being finite.

    References
    ----------
    .. [1] Madry, Makelov, Schmidt, Tsipras & Vladu (2018), Towards deep learning models resistant
       to adversarial attacks, ICLR.
    .. [2] Zhang, Yu, Jiao, Xing, El Ghaoui & Jordan (2019), Theoretically principled trade-off
       between robustness and accuracy, ICML, equation 5.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    if norm not in BALLS:
        raise ValueError(f"norm must be one of {', '.join(BALLS)}; got {norm!r}")
    for name, value in (("attack_eps", attack_eps), ("trades_beta", trades_beta)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0, got {value}")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    x = as_features("features", features, device)
    y = as_labels("labels", labels, len(x), n_classes, device)
    valid_x = as_features("valid_features", valid_features, device, n_features=x.shape[1])
    valid_y = as_labels("valid_labels", valid_labels, len(valid_x), n_classes, device)
    model = initialised(lambda: FeatureCNN(x.shape[1], n_classes), seed).to(x)
    ball = _BallSettings(attack_eps, norm, n_steps)
    losses: dict[str, Callable[..., Tensor]] = {
        "pgd": lambda *batch: _pgd_loss(ball, *batch),
        "trades": lambda *batch: _trades_loss(ball, trades_beta, *batch),
    }

    def draw_epoch(generator: torch.Generator) -> tuple[Tensor, ...]:
        order = torch.randperm(len(x), generator=generator)
        jitter = torch.rand(x.shape, generator=generator) * 2 - 1
        return x[order.to(x.device)], y[order.to(x.device)], jitter.to(x)

    def evaluate(network: nn.Module) -> dict[str, Tensor]:
        logits = network(valid_x)
        attacked = _attacked(
            _BallSettings(attack_eps, norm, _N_VALID_STEPS),
            network,
            valid_x,
            valid_x,
            lambda answers: margin_loss(answers, valid_y),
        )
        right = network(attacked).argmax(1) == valid_y
        return {
            "valid_loss": functional.cross_entropy(logits, valid_y),
            "valid_accuracy": (logits.argmax(1) == valid_y).float().mean(),
            "valid_robust_accuracy": (right & (logits.argmax(1) == valid_y)).float().mean(),
        }

    return fit(
        Task(model, losses[method]),
        Settings("robust classifier", epochs, lr, batch_size, ema_decay, seed, progress),
        draw_epoch=draw_epoch,
        evaluate=evaluate,
        rank=lambda scores: (
            scores["valid_accuracy"] + scores["valid_robust_accuracy"],
            -scores["valid_loss"],
        ),
    )


@dataclass(frozen=True)
class _BallSettings:
    radius: float
    norm: str
    n_steps: int


def _pgd_loss(
    ball: _BallSettings, model: nn.Module, x: Tensor, y: Tensor, jitter: Tensor
) -> Tensor:
    attacked = _attacked(
        ball,
        model,
        x,
        x + ball.radius * jitter,
        lambda logits: functional.cross_entropy(logits, y, reduction="none"),
    )
    return functional.cross_entropy(model(attacked), y)


def _trades_loss(
    ball: _BallSettings, beta: float, model: nn.Module, x: Tensor, y: Tensor, jitter: Tensor
) -> Tensor:
    with torch.no_grad():
        clean = model(x).softmax(1)
    attacked = _attacked(
        ball, model, x, x + ball.radius * jitter, lambda logits: _divergence(logits, clean)
    )
    logits = model(torch.cat((x, attacked)))
    of_clean, of_attacked = logits.chunk(2)
    divergence = _divergence(of_attacked, of_clean.softmax(1)).mean()
    return functional.cross_entropy(of_clean, y) + beta * divergence


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence (n,) of answers from target probabilities."""
    return functional.kl_div(logits.log_softmax(1), target, reduction="none").sum(1)


def _attacked(
    settings: _BallSettings,
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    loss_of: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the points that a few steps of PGD reach in the ball around x."""
    ball = BALLS[settings.norm](x, settings.radius)
    with frozen(model):
        return pgd(lambda points: loss_of(model(points)), ball, start, n_iter=settings.n_steps)
