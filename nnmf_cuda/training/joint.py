"""One network that classifies and denoises: Thiry & Guth."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from nnmf_cuda.models.networks import FeatureCNN
from nnmf_cuda.training.classifier import new_classifier
from nnmf_cuda.training.epochs import Settings, Task
from nnmf_cuda.training.loop import TrainingResult, fit
from nnmf_cuda.training.validation import Array, RobustScores, Samples


def train_joint_classifier(
    features: Array,
    labels: Array,
    valid_features: Array,
    valid_labels: Array,
    *,
    n_classes: int,
    sigma_max: float = 0.2,
    denoising_weight: float = 10.0,
    attack_eps: float = 0.10,
    norm: str = "Linf",
    ema_decay: float = 0.998,
    epochs: int = 100,
    lr: float = 1e-3,
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> TrainingResult[FeatureCNN]:
    """Train a `FeatureCNN` to classify noised samples and, by its own gradient, to denoise them.

    The logits f_c are read as log p(x, c) but for a constant, so that their softmax classifies, and
    the gradient of log p(x) = logsumexp_c f_c(x) denoises: by Tweedie and Miyasawa the best guess
    of x_0 from x = x_0 + sigma n is x + sigma^2 grad log p(x). The loss is the cross-entropy of
    noised samples plus `denoising_weight` times the mean square of sigma grad log p(x) + n, the
    guess's error over sigma; sigma is drawn for each sample, evenly up to `sigma_max`. The network
    is not told sigma. The epoch kept is that whose averaged weights have the highest mean of clean
    and attacked validation accuracy; no attack is trained on.

    Parameters
    ----------
    features, labels, valid_features, valid_labels, n_classes
        As for `train_classifier`; features in [0, 1].
    sigma_max : float, default=0.2
        Largest standard deviation of the noise, in units of the features.
    denoising_weight : float, default=10
        Weight of the denoising error.
    attack_eps, norm : float, str
        The ball in which validation attacks.
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
    .. [1] Thiry & Guth (2024), Classification-denoising networks, arXiv:2410.03505.
    .. [2] Miyasawa (1961), An empirical Bayes estimator of the mean of a normal population.
    """
    for name, value in (("sigma_max", sigma_max), ("denoising_weight", denoising_weight)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0, got {value}")
    samples = Samples.of(
        features, labels, valid_features, valid_labels, n_classes=n_classes, device=device
    )
    scores = RobustScores(samples, attack_eps, norm)
    x, y = samples.x, samples.y
    model = new_classifier(samples, seed)

    def draw_epoch(generator: torch.Generator) -> tuple[Tensor, ...]:
        order = torch.randperm(len(x), generator=generator)
        sigma = sigma_max * torch.rand(len(x), 1, generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        return x[order.to(x.device)], y[order.to(x.device)], sigma.to(x), noise.to(x)

    def batch_loss(
        network: FeatureCNN, batch_x: Tensor, batch_y: Tensor, sigma: Tensor, noise: Tensor
    ) -> Tensor:
        logits, score = logits_and_score(network, batch_x + sigma * noise)
        error = (sigma * score + noise).square().mean()
        return functional.cross_entropy(logits, batch_y) + denoising_weight * error

    return fit(
        Task(model, batch_loss),
        Settings("joint classifier", epochs, lr, batch_size, ema_decay, seed, progress),
        draw_epoch=draw_epoch,
        evaluate=scores.of,
        rank=scores.rank,
    )


def logits_and_score(network: FeatureCNN, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, and the gradient of their log-sum-exp in x, both differentiable."""
    leaf = x.detach().requires_grad_()
    logits = network.plain(leaf)  # the fused op has no second derivative
    (score,) = torch.autograd.grad(logits.logsumexp(1).sum(), leaf, create_graph=True)
    return logits, score
