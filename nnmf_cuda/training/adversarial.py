"""Adversarial training of the classifier: on the worst points that a quick attack finds."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnmf_cuda.attacks.balls import BALLS
from nnmf_cuda.attacks.gradient_ascent import pgd
from nnmf_cuda.models.defended import DefendedClassifier
from nnmf_cuda.models.diffusion import DiffusionPurifier
from nnmf_cuda.models.networks import FeatureClassifier, Network, build_classifier, frozen
from nnmf_cuda.training.epochs import Settings, Task
from nnmf_cuda.training.intervals import margin_bounds
from nnmf_cuda.training.loop import TrainingResult, fit, initialised
from nnmf_cuda.training.validation import Answer, Array, RobustScores, Samples

Method = Literal["pgd", "trades", "mtl-ibp", "trades-ibp"]
ClassWeight = Literal["balanced"]

Worst = Callable[[Callable[[Tensor], Tensor]], Tensor]
"""Losses of points, (n,), to the points that a few steps of PGD on them reach in the ball."""


def train_robust_classifier(
    features: Array,
    labels: Array,
    valid_features: Array,
    valid_labels: Array,
    *,
    n_classes: int,
    method: Method = "trades",
    network: Network = "cnn",
    hidden: Sequence[int] = (128, 64),
    purifier: DiffusionPurifier | None = None,
    attack_eps: float = 0.10,
    norm: str = "Linf",
    n_steps: int = 10,
    trades_beta: float = 3.0,
    ibp_weight: float = 0.1,
    class_weight: ClassWeight | None = None,
    eps_ramp: float = 0.0,
    ema_decay: float = 0.998,
    epochs: int = 100,
    lr: float = 1e-3,
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> TrainingResult[FeatureClassifier]:
    """Train a classifier to answer alike within a ball around each sample.

    "pgd" minimises the cross-entropy of attacked samples (Madry et al.), "trades" the cross-entropy
    of the samples as they are plus `trades_beta` times the divergence of the answers on attacked
    samples from those (Zhang et al.). "mtl-ibp" minimises a mean of the loss of "pgd" and of the
    cross-entropy of interval bounds of the logits over the ball, in which the bounds have the
    weight `ibp_weight` (De Palma et al.): of a network so trained it is easy to prove that no
    attack succeeds. "trades-ibp" is the same with the loss of "trades".

    With a purifier, what answers, in training as in attacks on it, is the classifier behind the
    purifier: the attack sees the noise of its batch, as in SmoothAdv (Salman et al.). The epoch
    kept is that whose averaged weights have the highest mean of clean and attacked validation
    accuracy, always in the whole ball.

    Parameters
    ----------
    features, labels, valid_features, valid_labels, n_classes
        As for `train_classifier`; features in [0, 1].
    method : {"pgd", "trades", "mtl-ibp", "trades-ibp"}, default="trades"
        What is minimised.
    network : {"cnn", "mlp"}, default="cnn"
        A `FeatureCNN` or a `FeatureMLP`.
    hidden : sequence of int, default=(128, 64)
        Widths of the hidden layers of an MLP.
    purifier : DiffusionPurifier, optional
        Stands before the classifier, and is not changed; not where the loss has bounds, as
        nothing bounds the answers of a random defence.
    attack_eps : float, default=0.10
        Radius of the ball, in units of the features.
    norm : {"Linf", "L2"}, default="Linf"
        Norm of the ball.
    n_steps : int, default=10
        Steps of the attack on each batch.
    trades_beta : float, default=3
        Weight of TRADES' divergence.
    ibp_weight : float, default=0.1
        Share of the interval bounds in the loss of "mtl-ibp" and "trades-ibp", in [0, 1].
    class_weight : {"balanced"}, optional
        "balanced" weights each sample by one over the number of training samples of its class, and
        keeps the epoch by accuracies that are means over the classes. Where classes are unequal,
        the plain loss can end in the answer that is the same for every sample.
    eps_ramp : float, default=0
        Share of the steps, in [0, 1], over which the radius grows evenly from 0 to `attack_eps`.
    ema_decay, epochs, lr, batch_size, seed, device, progress
        As for `train_classifier`.

    Returns
    -------
    TrainingResult
        With "valid_robust_accuracy" in the history, and as means over the classes
        "valid_balanced_accuracy" and "valid_balanced_robust_accuracy".

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
    .. [3] Salman, Li, Razenshteyn, Zhang, Zhang, Bubeck & Yang (2019), Provably robust deep
       learning via adversarially trained smoothed classifiers, NeurIPS.
    .. [4] De Palma, Bunel, Dvijotham, Kumar, Stanforth & Lomuscio (2024), Expressive losses for
       verified robustness via convex combinations, ICLR, arXiv:2305.13991.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    if not (math.isfinite(trades_beta) and trades_beta > 0):
        raise ValueError(f"trades_beta must be a finite number > 0, got {trades_beta}")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    if not 0 <= ibp_weight <= 1:
        raise ValueError(f"ibp_weight must be in [0, 1], a share of the loss, got {ibp_weight}")
    bounded = method in ("mtl-ibp", "trades-ibp")
    if bounded and purifier is not None:
        raise ValueError(
            f'method="{method}" bounds the answers of a classifier alone: leave the purifier out'
        )
    if class_weight not in (None, *get_args(ClassWeight)):
        raise ValueError(f'class_weight must be "balanced" or None, got {class_weight!r}')
    if not 0 <= eps_ramp <= 1:
        raise ValueError(f"eps_ramp must be in [0, 1], a share of the epochs, got {eps_ramp}")
    samples = Samples.of(
        features, labels, valid_features, valid_labels, n_classes=n_classes, device=device
    )
    scores = RobustScores(samples, attack_eps, norm, balanced=class_weight == "balanced")
    x, y = samples.x, samples.y
    weight = None if class_weight is None else balanced_weight(samples)
    model = initialised(lambda: build_classifier(network, x.shape[1], n_classes, hidden), seed).to(
        x
    )
    noise_of = _HeldNoise(purifier)
    seen, fresh = (
        noise_of.draw(samples.valid_x, torch.Generator().manual_seed(seed + 1 + i))
        for i in range(2)
    )

    epoch_of = itertools.count()

    def draw_epoch(generator: torch.Generator) -> tuple[Tensor, ...]:
        order = torch.randperm(len(x), generator=generator)
        jitter = torch.rand(x.shape, generator=generator) * 2 - 1
        noise = noise_of.draw(x, generator)
        radii = _radii(len(x), next(epoch_of), attack_eps, ramp_epochs=eps_ramp * epochs)
        return x[order.to(x.device)], y[order.to(x.device)], jitter.to(x), radii.to(x), noise

    def batch_loss(
        trained: FeatureClassifier,
        rows: Tensor,
        of: Tensor,
        jitter: Tensor,
        radii: Tensor,
        noise: Tensor,
    ) -> Tensor:
        answer = partial(noise_of.answer, trained, noise)
        radius = radii if eps_ramp > 0 else attack_eps

        def worst(loss_of: Callable[[Tensor], Tensor]) -> Tensor:
            with frozen(trained):
                return pgd(
                    loss_of, BALLS[norm](rows, radius), rows + radius * jitter, n_iter=n_steps
                )

        if method in ("trades", "trades-ibp"):
            loss = trades_loss(answer, rows, of, worst, trades_beta, weight)
        else:
            loss = pgd_loss(answer, of, worst, weight)
        if bounded:
            bounds = margin_bounds(trained.weights(), rows, of, radius, norm=norm)
            of_bounds = functional.cross_entropy(bounds, of, weight)
            loss = (1 - ibp_weight) * loss + ibp_weight * of_bounds
        return loss

    def evaluate(trained: nn.Module) -> dict[str, Tensor]:
        return scores.of(*(partial(noise_of.answer, trained, noise) for noise in (seen, fresh)))

    return fit(
        Task(model, batch_loss),
        Settings("robust classifier", epochs, lr, batch_size, ema_decay, seed, progress),
        draw_epoch=draw_epoch,
        evaluate=evaluate,
        rank=scores.rank,
    )


class _HeldNoise:
    """Answers of a classifier, behind the purifier where there is one, with its noise given."""

    def __init__(self, purifier: DiffusionPurifier | None) -> None:
        # A copy, so that no gradient reaches the denoiser's own weights.
        self._purifier = None if purifier is None else copy.deepcopy(purifier).requires_grad_(False)

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return noise with the samples first: (n, S', K, n_features), or nothing."""
        if self._purifier is None:
            return x.new_empty(len(x), 0)
        return self._purifier.draw_noise(x, generator).transpose(0, 1)

    def answer(self, network: nn.Module, noise: Tensor, x: Tensor) -> Tensor:
        """Return logits; x may hold the samples several times over."""
        if self._purifier is None:
            logits: Tensor = network(x)
        else:
            repeated = noise.repeat(len(x) // len(noise), 1, 1, 1).transpose(0, 1)
            logits = DefendedClassifier(self._purifier, network)(x, noise=repeated)
        return logits


def _radii(n_samples: int, epoch: int, attack_eps: float, *, ramp_epochs: float) -> Tensor:
    """Return the radii (n_samples, 1) of an epoch's samples, in their order."""
    done = epoch + torch.arange(1, n_samples + 1).unsqueeze(1) / n_samples
    return attack_eps * (done / max(ramp_epochs, 1 / n_samples)).clamp_max(1)


def balanced_weight(samples: Samples) -> Tensor:
    """Return a weight for each class (n_classes,): one over its share of the training samples."""
    counts = torch.bincount(samples.y, minlength=samples.n_classes)
    return len(samples.y) / (samples.n_classes * counts.clamp_min(1)).to(samples.x)


def pgd_loss(answer: Answer, y: Tensor, worst: Worst, weight: Tensor | None) -> Tensor:
    """Return the mean cross-entropy of attacked samples, weighted by class."""
    attacked = worst(lambda points: functional.cross_entropy(answer(points), y, reduction="none"))
    return functional.cross_entropy(answer(attacked), y, weight)


def trades_loss(
    answer: Answer, x: Tensor, y: Tensor, worst: Worst, trades_beta: float, weight: Tensor | None
) -> Tensor:
    """Return the mean loss of TRADES, weighted by class."""
    with torch.no_grad():
        clean = answer(x).softmax(1)
    attacked = worst(lambda points: _divergence(answer(points), clean))
    of_clean, of_attacked = answer(torch.cat((x, attacked))).chunk(2)
    divergence = _divergence(of_attacked, of_clean.softmax(1))
    if weight is None:
        mean_divergence = divergence.mean()
    else:  # as cross_entropy weights
        mean_divergence = (divergence * weight[y]).sum() / weight[y].sum()
    return functional.cross_entropy(of_clean, y, weight) + trades_beta * mean_divergence


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence (n,) of answers from target probabilities."""
    return functional.kl_div(logits.log_softmax(1), target, reduction="none").sum(1)
